package law

import (
	"flag"
	"fmt"
	"go/ast"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/files.md anew")

// mapped are the folders of docs/files.md, in the order in which a change
// passes them.
var mapped = []string{
	"change", "avro",
	"sources/postgres", "sources/postgres/wire", "sources/postgres/pgoutput",
	"pipeline", "pipeline/ingest", "pipeline/records", "pipeline/transform", "pipeline/state", "pipeline/parked", "pipeline/deliver",
	"pipeline/internal/consume", "pipeline/internal/retry",
	"transforms/dedupe", "transforms/mapping", "transforms/join",
	"sinks/warehouse", "sinks/rest",
	"internal/kafka", "internal/outage", "internal/problem", "internal/redis", "internal/registry", "internal/control", "internal/obs", "internal/supervise",
}

// Who looks for a thing reads one page instead of thirty files. If this failed,
// the page would speak of files that are not there, or leave some out.
func TestFileMapIsFresh(t *testing.T) {
	root := filepath.Join("..", "..")
	tree := os.DirFS(root)
	var b strings.Builder
	b.WriteString("# Files\n\nWhat each file is for, in its own words: the first sentence of its head. The order of the folders is about that in which a change passes them; [ARCHITECTURE](ARCHITECTURE.md) follows one.\n")
	for _, dir := range mapped {
		files, err := fs.Glob(tree, dir+"/*.go")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "\n## %s\n\n", dir)
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			head, err := headOf(tree, f)
			if err != nil {
				t.Fatal(err)
			}
			if head == "" {
				t.Errorf("%s does not say at its head what it is for", f)
				continue
			}
			fmt.Fprintf(&b, "- [`%s`](../%s): %s\n", path.Base(f), f, head)
		}
	}
	const page = "docs/files.md"
	if *update {
		if err := os.WriteFile(filepath.Join(root, page), []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := fs.ReadFile(tree, page)
	if err != nil || string(have) != b.String() {
		t.Errorf("%s is stale: run go test ./internal/law -run TestFileMapIsFresh -update (%v)", page, err)
	}
}

var sentence = regexp.MustCompile(`^(.*?[^ A-Z.]\.)(?: |$)`)

// headOf is the first sentence of a file's head, on one line.
func headOf(tree fs.FS, name string) (string, error) {
	_, f, err := parse(tree, name)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(f.Comments, func(c *ast.CommentGroup) bool {
		return c.End() < f.Package && !strings.HasPrefix(c.List[0].Text, "//go:build")
	})
	if i < 0 {
		return "", nil
	}
	text := strings.Join(strings.Fields(f.Comments[i].Text()), " ")
	if m := sentence.FindStringSubmatch(text); m != nil {
		return m[1], nil
	}
	return text, nil
}
