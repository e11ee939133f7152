package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReloadNamesASource(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tallywire.yml")
	text := `
sources:
  psa: {type: postgres, dsn: "postgres://nobody@127.0.0.1:1/psa"}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	says := func(args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(append([]string{"-c", file}, args...), &out, &errs); code == exitOK {
			t.Errorf("%v does not fail: %s", args, out.String())
		}
		return errs.String()
	}
	if got := says("reload", "crm", "public.a"); !strings.Contains(got, "TW-RELOAD-SOURCE") {
		t.Errorf("of a source that is not there: %s", got)
	}
	// Remedy: TW-RELOAD-SOURCE
	if got := says("reload", "psa", "public.a"); strings.Contains(got, "TW-RELOAD-SOURCE") || !strings.Contains(got, "connecting to the source database") {
		t.Errorf("of one that is: %s", got)
	}
	if got := says("reload"); !strings.Contains(got, "want one SOURCE") {
		t.Errorf("without a source: %s", got)
	}
}
