package report

import (
	"os"
	"path/filepath"
	"testing"
)

// Lost if this fails: one benchmark wipes out what another has measured.
func TestReplaceLeavesTheOthersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "RESULTS.md")
	for _, s := range [][2]string{{"a", "one\n"}, {"b", "## B\n\ntwo"}, {"a", "\nthree\n\n"}} {
		if err := Replace(path, s[0], s[1]); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := title + "\n<!-- a -->\n\nthree\n\n<!-- /a -->\n\n<!-- b -->\n\n## B\n\ntwo\n\n<!-- /b -->\n"
	if string(got) != want {
		t.Fatalf("the file is\n%s\nwant\n%s", got, want)
	}
}

// Lost if this fails: a file that somebody edited by hand is cut in two.
func TestReplaceRefusesABrokenFile(t *testing.T) {
	for _, have := range []string{"<!-- a -->\n", "<!-- /a -->\n", "<!-- /a -->\n<!-- a -->\n", "<!-- a -->\n<!-- /a -->\n<!-- a -->\n<!-- /a -->\n"} {
		path := filepath.Join(t.TempDir(), "RESULTS.md")
		if err := os.WriteFile(path, []byte(have), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Replace(path, "a", "text"); err == nil {
			t.Errorf("%q was taken", have)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != have {
			t.Errorf("%q became %q (%v)", have, got, err)
		}
	}
}
