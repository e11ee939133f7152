package main

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/console"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

// Lost if this fails: what to do about a halt, which only the log says; or a
// statement that is to be copied, in the middle of a line.
func TestRemediesAreToldInText(t *testing.T) {
	o := obs.New(slog.New(slog.DiscardHandler))
	o.Component("source", "psa").Ails(obs.Halted, "TW-PG-PUBLICATION: it may not", "A superuser runs:\nCREATE PUBLICATION \"p\";")
	web := httptest.NewServer(console.New(console.Options{Views: o.Views}).Handler())
	defer web.Close()
	code, out, errs := tw("status", "--url", web.URL)
	if code != exitUnwell || !strings.Contains(out, "TW-PG-PUBLICATION: it may not\n  remedy: A superuser runs:\n  CREATE PUBLICATION \"p\";\n") {
		t.Errorf("status: exit %d\n%s%s", code, out, errs)
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
