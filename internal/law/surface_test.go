package law

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a component's author must know is package pipeline. If this failed, it
// would grow back into everything that the engine is made of.
func TestSurfaceOfPipeline(t *testing.T) {
	const most = 40
	tree := os.DirFS(filepath.Join("..", ".."))
	files, err := filepath.Glob(filepath.Join("..", "..", "pipeline", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	see := func(name *ast.Ident, docs ...*ast.CommentGroup) {
		if !name.IsExported() {
			return
		}
		names++
		for _, d := range docs {
			if d != nil && strings.TrimSpace(d.Text()) != "" {
				return
			}
		}
		t.Errorf("%s does not say what its duties are", name.Name)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		_, parsed, err := parse(tree, "pipeline/"+filepath.Base(f))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					see(d.Name, d.Doc)
				}
			case *ast.GenDecl:
				if d.Tok == token.IMPORT {
					continue
				}
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						see(s.Name, s.Doc, d.Doc)
					case *ast.ValueSpec:
						for _, n := range s.Names {
							see(n, s.Doc, d.Doc)
						}
					}
				}
			}
		}
	}
	t.Logf("%d exported names", names)
	if names < 20 || names > most {
		t.Errorf("package pipeline exports %d names, want at most %d: what only the loops need lies in a room of theirs", names, most)
	}
}
