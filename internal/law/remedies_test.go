// Remedies lead somewhere: each that docs/errors.md names is followed by a test,
// which says so where it does: "Remedy: TW-A, TW-B" in a comment.

package law

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// followedElsewhere are the codes whose remedy no test follows, and why.
var followedElsewhere = map[string]string{
	"TW-DEMO":          "`make demo` is the demo itself",
	"TW-DEMO-DRAIN":    "`make demo` is the demo itself",
	"TW-VERIFY":        "`make demo` compares by it",
	"TW-KAFKA-HANGING": "no broker of the tests refuses ClusterAction; with it TestEndHanging",
	"TW-MAP-MESSAGE":   "nothing that is built in writes messages; a discard: TestBadInput",
	"TW-PG-PROTOCOL":   "it asks for a report",
}

var (
	codeRow    = regexp.MustCompile("(?m)^\\| `(TW-[A-Z-]+)` \\|")
	remedyNote = regexp.MustCompile(`// Remedy: (TW-[A-Z-]+(?:, TW-[A-Z-]+)*)`)
)

func TestRemediesAreFollowed(t *testing.T) {
	root := os.DirFS(filepath.Join("..", ".."))
	text, err := fs.ReadFile(root, "docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, m := range codeRow.FindAllStringSubmatch(string(text), -1) {
		codes = append(codes, m[1])
	}
	if len(codes) < 100 {
		t.Fatalf("docs/errors.md has %d codes", len(codes))
	}
	followed := map[string]bool{}
	err = fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := fs.ReadFile(root, path)
		for _, m := range remedyNote.FindAllStringSubmatch(string(text), -1) {
			for _, code := range strings.Split(m[1], ", ") {
				followed[code] = true
				if !slices.Contains(codes, code) && path != "internal/law/remedies_test.go" {
					t.Errorf("%s follows the remedy of %s, which docs/errors.md does not have", path, code)
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range codes {
		switch why, is := followedElsewhere[code]; {
		case !followed[code] && !is:
			t.Errorf("no test follows the remedy of %s: one says so in a comment, \"Remedy: %s\"", code, code)
		case followed[code] && is:
			t.Errorf("a test follows the remedy of %s: it is not to be excused (%s)", code, why)
		}
	}
	for code := range followedElsewhere {
		if !slices.Contains(codes, code) {
			t.Errorf("docs/errors.md has no %s", code)
		}
	}
}
