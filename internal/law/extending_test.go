package law

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A guide that names what is not there any more sends people the wrong way.
func TestExtendingNamesWhatIsThere(t *testing.T) {
	tree := os.DirFS(filepath.Join("..", ".."))
	text, err := fs.ReadFile(tree, "docs/extending.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, m := range ticked.FindAllStringSubmatch(string(text), -1) {
		what := m[1]
		if !strings.Contains(what, "/") || strings.ContainsAny(what, "<* ") {
			continue
		}
		seen++
		if _, err := fs.Stat(tree, strings.TrimSuffix(what, "/")); err != nil {
			t.Errorf("docs/extending.md names %s, which is not there", what)
		}
	}
	// What it names of packages is declared in them.
	declared := map[string]map[string]bool{}
	for name, dir := range map[string]string{"pipeline": "pipeline", "state": "pipeline/state", "pipelinetest": "pipeline/pipelinetest", "change": "change", "secret": "internal/secret", "obs": "internal/obs"} {
		files, err := fs.Glob(tree, dir+"/*.go")
		if err != nil {
			t.Fatal(err)
		}
		declared[name] = map[string]bool{}
		for _, f := range files {
			ds, err := declarations(tree, f)
			if err != nil {
				t.Fatal(err)
			}
			for d := range ds {
				declared[name][d] = true
			}
		}
	}
	for _, m := range regexp.MustCompile("`([a-z]+)\\.([A-Z][A-Za-z]*)").FindAllStringSubmatch(string(text), -1) {
		of, ours := declared[m[1]]
		if !ours {
			continue // a variable, or another's package
		}
		seen++
		if !of[m[2]] {
			t.Errorf("docs/extending.md names %s.%s, which is not declared", m[1], m[2])
		}
	}
	if seen < 25 {
		t.Errorf("saw only %d names", seen)
	}
}
