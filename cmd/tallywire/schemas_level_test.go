package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/tallywire/tallywire/avro"
)

// gate stands before a registry; look says whether a request gets through, is
// answered by a status, or, with -1, finds the registry gone.
func gate(t *testing.T, to string, look func(*http.Request) int) string {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch status := look(r); {
		case status < 0:
			panic(http.ErrAbortHandler)
		case status > 0:
			w.WriteHeader(status)
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(h.Close)
	return h.URL
}

// Lost if this fails: a step over a breaking change that was killed in the middle
// leaves a subject that takes anything, for ever, and nobody is told.
func TestStepThatWasCutShort(t *testing.T) {
	broker, registry, client := schemas(t)
	var errs bytes.Buffer
	var gone, denied, cut atomic.Bool
	at := gate(t, registry, func(r *http.Request) int {
		switch level := r.URL.Path == "/config/firm.seat-value"; {
		case gone.Load():
			return -1
		case level && denied.Load():
			return http.StatusForbidden
		case level && cut.Load() && r.Method == http.MethodPut:
			// What helps afterwards is said before.
			if !strings.Contains(errs.String(), "its level is BACKWARD, the global one") || !strings.Contains(errs.String(), "curl -X DELETE http://127.0.0.1:") {
				t.Errorf("before the level is NONE it is said:\n%s", errs.String())
			}
		case cut.Load() && r.Method == http.MethodPost && r.URL.Path == "/subjects/firm.seat-value/versions":
			gone.Store(true)
			return -1
		}
		return 0
	})
	file, contract := seats(t, broker, at)
	own := func(want string) {
		t.Helper()
		is := "none"
		if r := client.Compatibility(t.Context(), "firm.seat-value")[0]; r.Err == nil {
			is = r.Level.String()
		}
		if is != want {
			t.Errorf("the subject's own level is %s, want %s", is, want)
		}
	}
	set := func(level sr.CompatibilityLevel, subject ...string) {
		t.Helper()
		if r := client.SetCompatibility(t.Context(), sr.SetCompatibility{Level: level}, subject...)[0]; r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	contract(2, "")
	contractsSay(t, file, exitOK, []string{"firm.seat same 1"}, "register")

	contract(4, "")
	cut.Store(true)
	var out bytes.Buffer
	if code := run([]string{"contracts", "register", "--breaking", "firm.seat", "-c", file}, &out, &errs); code != exitFailed {
		t.Errorf("cut short: exit %d\n%s%s", code, &out, &errs)
	}
	if text := errs.String(); !strings.Contains(text, "back from NONE") || strings.Count(text, "curl -X DELETE "+at+"/config/firm.seat-value") != 2 {
		t.Errorf("what failed in the end does not say how to mend it:\n%s", text)
	}
	cut.Store(false)
	gone.Store(false)
	own("NONE")

	// It is noticed, and nothing slips through meanwhile.
	mends := []string{"its level is NONE, the global one BACKWARD", "tallywire contracts register --breaking firm.seat", "curl -X DELETE " + at + "/config/firm.seat-value"}
	contractsSay(t, file, exitDiffer, append(mends, "firm.seat unchecked 1 ~ area: "), "diff")
	contractsSay(t, file, exitDiffer, []string{`"standing": "unchecked"`, `"level": "NONE", "remedy": "`}, "diff", "firm.seat", "-o", "json")
	contractsSay(t, file, exitRefused, append(mends, "nothing was registered"), "register")
	if _, out, _ := tw("doctor", "-c", file); !strings.Contains(strings.Join(strings.Fields(out), " "), "the registry takes the contract of firm.seat advice: its level is NONE") {
		t.Errorf("doctor: %s", out)
	}
	contractsSay(t, file, exitOK, []string{"firm.seat same 2", "subject firm.seat-value: its level is NONE; it is the global one, BACKWARD, when"}, "register", "--breaking")
	own("none")
	contractsSay(t, file, exitOK, []string{"firm.seat same 2"}, "diff", "firm.seat")

	// Killed after it had registered.
	set(sr.CompatNone, "firm.seat-value")
	contractsSay(t, file, exitOK, append(mends, "firm.seat same 2"), "diff")
	contractsSay(t, file, exitOK, append(mends, "firm.seat same 2"), "register")
	own("NONE")
	denied.Store(true) // who may not see levels compares contracts all the same
	contractsSay(t, file, exitOK, []string{"firm.seat same 2"}, "diff", "firm.seat")
	denied.Store(false)
	contractsSay(t, file, exitOK, []string{"firm.seat same 2"}, "register", "--breaking")
	own("none")

	// A firm whose global level is NONE means it.
	set(sr.CompatNone)
	set(sr.CompatNone, "firm.seat-value")
	contract(6, "")
	contractsSay(t, file, exitOK, []string{"firm.seat compatible 2 ~ area: "}, "diff", "firm.seat")
	contractsSay(t, file, exitOK, []string{"firm.seat same 3"}, "register", "--breaking", "firm.seat")
	own("NONE")
	if _, out, _ := tw("doctor", "-c", file); strings.Contains(out, "its level is NONE") {
		t.Errorf("doctor: %s", out)
	}
}

// Lost if this fails: a process that dies while the registry takes a schema all the
// same leaves the subject so that it takes anything; or a subject that was given up is
// taken for one that has its schemas.
func TestDecisionThatWasCutShort(t *testing.T) {
	_, registry, client := schemas(t)
	var cut atomic.Bool
	at := gate(t, registry, func(r *http.Request) int {
		if cut.Load() && r.Method == http.MethodDelete && strings.HasPrefix(r.URL.Path, "/config/") {
			return -1
		}
		return 0
	})
	reg, err := avro.NewRegistry(at)
	if err != nil {
		t.Fatal(err)
	}
	schema := func(of string) string {
		return `{"type":"record","name":"row","fields":[{"name":"id","type":"` + of + `"}]}`
	}
	register := func(subject, of string) {
		t.Helper()
		if _, err := reg.Register(t.Context(), subject, schema(of)); err != nil {
			t.Fatal(err)
		}
	}
	for _, topic := range []string{"psa.a", "aside.a"} {
		of := map[string]string{"psa.a": "int", "aside.a": "string"}[topic]
		register(avro.KeySubject(topic), of)
		register(avro.ValueSubject(topic), of)
	}
	adopt := func() error {
		_, err := reg.Adopt(t.Context(), "aside.a", "psa.a", false, func(string) {})
		return err
	}
	subjects := []string{avro.KeySubject("psa.a"), avro.ValueSubject("psa.a")}
	levels := func() (own []string) {
		for _, r := range client.Compatibility(t.Context(), subjects...) {
			if r.Err == nil {
				own = append(own, r.Subject+" "+r.Level.String())
			}
		}
		return own
	}
	cut.Store(true)
	for range subjects { // the key's subject first, then that of the records
		if err := adopt(); err == nil {
			t.Fatal("it went well, with a registry that was gone")
		}
	}
	if got := levels(); len(got) == 0 {
		t.Fatal("nothing was cut short")
	}
	cut.Store(false)
	if err := adopt(); err != nil {
		t.Fatal(err)
	}
	if got := levels(); len(got) > 0 {
		t.Errorf("left as they were when it was cut short: %v", got)
	}
	for _, subject := range subjects {
		all, err := client.Schemas(t.Context(), subject)
		if err != nil || len(all) != 2 {
			t.Errorf("subject %s has %d schemas, %v", subject, len(all), err)
		}
		if err := reg.Forget(t.Context(), subject); err != nil {
			t.Fatal(err)
		}
		register(subject, "int")
		if all, err = client.Schemas(t.Context(), subject); err != nil || len(all) != 1 {
			t.Errorf("after it was begun anew, subject %s has %d schemas, %v", subject, len(all), err)
		}
	}
}
