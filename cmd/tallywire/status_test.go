package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/console"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

// Lost if this fails: what to do about a halt, which only the log says; or a
// statement that is to be copied, in the middle of a line.
func TestRemediesAreToldInText(t *testing.T) {
	o := obs.New(slog.New(slog.DiscardHandler))
	o.Component("source", "hcm").Is(obs.Running, "")
	o.Component("source", "hcm").Notices(obs.Notice{
		Code: "TW-PG-TABLE", Subjects: []string{"public.a", "public.b"}, Text: "public.a, public.b: is not in publication",
		Remedy: "The owner runs:\nALTER PUBLICATION p", Since: time.Date(2026, 7, 1, 9, 30, 0, 0, time.UTC),
	})
	o.Component("source", "psa").Ails(obs.Halted, "TW-PG-PUBLICATION: it may not", "A superuser runs:\nCREATE PUBLICATION \"p\";")
	web := httptest.NewServer(console.New(console.Options{Views: o.Views}).Handler())
	defer web.Close()
	code, out, errs := tw("status", "--url", web.URL)
	if code != exitUnwell || !strings.Contains(out, "TW-PG-PUBLICATION: it may not\n  remedy: A superuser runs:\n  CREATE PUBLICATION \"p\";\n") {
		t.Errorf("status: exit %d\n%s%s", code, out, errs)
	}

	if !strings.Contains(out, "source hcm, since 2026-07-01 09:30:00Z: TW-PG-TABLE: public.a, public.b: is not in publication\n  remedy: The owner runs:\n  ALTER PUBLICATION p\n") {
		t.Errorf("a notice is not told:\n%s", out)
	}
	if code, out, errs := tw("status", "--output", "json", "--url", web.URL); code != exitUnwell || !strings.Contains(out, `"subjects":`) {
		t.Errorf("status --output json: exit %d\n%s%s", code, out, errs)
	}
	page, err := http.Get(web.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer page.Body.Close()
	if text, err := io.ReadAll(page.Body); err != nil || !strings.Contains(string(text), "TW-PG-TABLE: public.a, public.b: is not in publication") {
		t.Errorf("the page does not say it (%v)", err)
	}
	metrics, err := o.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	of := 0.0
	for _, m := range metrics {
		if m.GetName() == "tallywire_notices" {
			of = m.Metric[0].Gauge.GetValue()
		}
	}
	if of != 2 {
		t.Errorf("the metric says that it is of %v tables, want 2", of)
	}

	d := &doctor{}
	d.note("sources.psa", "its publication", errDoctor.New("it may not").WithRemedy("A superuser runs:\nCREATE PUBLICATION \"p\";"))
	var b strings.Builder
	if d.text(&b); !strings.Contains(b.String(), "\n\t\tremedy: A superuser runs:\n\t\tCREATE PUBLICATION \"p\";\n") {
		t.Errorf("doctor:\n%s", b.String())
	}
	if got := problem.Format(errDoctor.New("it may not").WithRemedy("A superuser runs:\nCREATE PUBLICATION \"p\";")); !strings.HasSuffix(got, "\n  remedy  A superuser runs:\nCREATE PUBLICATION \"p\";\n") {
		t.Errorf("an error:\n%s", got)
	}
}
