package rest

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

// Lost if this fails: whoever sets the sink up finds out one missing right per
// start, by records that are parked; or the doctor changes the far side.
func TestDoctor(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	real, err := url.Parse(r.erp.URL())
	if err != nil {
		t.Fatal(err)
	}
	var forbid string // who asks for this is told that it may not
	forward := httputil.NewSingleHostReverseProxy(real)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if forbid != "" && strings.Contains(q.Method+" "+q.URL.Path, forbid) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		forward.ServeHTTP(w, q)
	}))
	t.Cleanup(front.Close)
	r.cfg.URL = front.URL
	r.restart("one")
	look := func() (n int, wrong string) {
		fs := r.sink.Doctor(t.Context())
		for _, f := range fs {
			if e := problem.Of(f.Err); e != nil {
				wrong += f.What + " " + e.ID + "; "
			} else if f.Err != nil {
				t.Errorf("%s: %v is no problem", f.What, f.Err)
			}
		}
		return len(fs), wrong
	}
	if n, wrong := look(); n != 10 || wrong != "" {
		t.Errorf("%d findings, wrong: %s", n, wrong)
	}
	forbid = "PATCH /api/v2.0/companies(" + r.cfg.Company + ")/employees"
	if _, wrong := look(); wrong != "writing employees TW-REST-CREDENTIALS; " {
		t.Errorf("employees must not be written: %s", wrong)
	}
	forbid = "/projects"
	if _, wrong := look(); wrong != "reading projects TW-REST-CREDENTIALS; " {
		t.Errorf("projects must not be read: %s", wrong)
	}
	forbid = ""
	company := r.cfg.Company
	r.cfg.Company = strings.Repeat("1", 8) + company[8:]
	r.restart("one")
	if n, wrong := look(); n != 2 || wrong != "company "+r.cfg.Company+" TW-REST-PROTOCOL; " {
		t.Errorf("another company: %d, %s", n, wrong)
	}
	r.cfg.Company, r.cfg.ClientSecret = company, secret.Of("wrong")
	r.restart("one")
	if n, wrong := look(); n != 1 || wrong != "a token from "+r.cfg.TokenURL+" TW-REST-CREDENTIALS; " {
		t.Errorf("a wrong secret: %d, %s", n, wrong)
	}
	for what, n := range r.erp.Stats() {
		if n > 0 && strings.HasSuffix(what, " 200") && strings.HasPrefix(what, "PATCH") || strings.HasPrefix(what, "POST") && strings.HasSuffix(what, " 201") {
			t.Errorf("the doctor changed something: %s, %d times", what, n)
		}
	}
}
