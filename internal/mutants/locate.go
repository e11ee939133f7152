// Finding the pieces of a mutant in the syntax tree, and putting others there.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// declaration is where a name is declared: a range of octets of a file.
type declaration struct {
	file     string
	from, to int
}

// source is the code of a package as this platform builds it, without tests.
type source struct {
	text  map[string][]byte // by file
	where map[string][]declaration
}

// readSource reads a package and finds its declarations.
func readSource(dir string) (*source, error) {
	// Which files count is decided as the compiler does: by name and build tags.
	p, err := build.Default.ImportDir(dir, 0)
	if err != nil {
		return nil, err
	}
	s := &source{text: map[string][]byte{}, where: map[string][]declaration{}}
	for _, name := range append(p.GoFiles, p.CgoFiles...) {
		file := filepath.Join(dir, name)
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		s.text[file] = text
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, file, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		add := func(name string, n ast.Node) {
			s.where[name] = append(s.where[name], declaration{file, set.Position(n.Pos()).Offset, set.Position(n.End()).Offset})
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				add(funcName(d), d)
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.ValueSpec:
						for _, id := range spec.Names {
							add(id.Name, spec)
						}
					case *ast.TypeSpec:
						add(spec.Name.Name, spec)
					}
				}
			}
		}
	}
	return s, nil
}

// funcName is Func, Type.Method or (*Type).Method.
func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	t, pointer := d.Recv.List[0].Type, false
	if star, ok := t.(*ast.StarExpr); ok {
		t, pointer = star.X, true
	}
	switch generic := t.(type) {
	case *ast.IndexExpr:
		t = generic.X
	case *ast.IndexListExpr:
		t = generic.X
	}
	name := fmt.Sprint(t)
	if id, ok := t.(*ast.Ident); ok {
		name = id.Name
	}
	if pointer {
		name = "(*" + name + ")"
	}
	return name + "." + d.Name.Name
}

// lexeme is a token and where it stands.
type lexeme struct {
	tok      token.Token
	text     string
	from, to int
}

// lexemes takes code apart. Comments, white space and the semicolons that line
// ends stand for are not there.
func lexemes(code []byte) ([]lexeme, error) {
	set := token.NewFileSet()
	file := set.AddFile("", set.Base(), len(code))
	var s scanner.Scanner
	var wrong scanner.ErrorList
	s.Init(file, code, wrong.Add, 0)
	var out []lexeme
	for {
		pos, tok, text := s.Scan()
		if tok == token.EOF {
			return out, wrong.Err()
		}
		if tok == token.SEMICOLON && text != ";" {
			continue
		}
		if text == "" {
			text = tok.String()
		}
		at := file.Offset(pos)
		end := at + len(text)
		if tok == token.STRING && text[0] == '`' {
			// The scanner drops carriage returns from a raw string.
			end = at + 1 + bytes.IndexByte(code[at+1:], '`') + 1
		}
		out = append(out, lexeme{tok, text, at, end})
	}
}

// find gives every range of code, between from and to, that has the tokens of a piece.
func find(code []byte, d declaration, piece string) ([][2]int, error) {
	want, err := lexemes([]byte(piece))
	if err != nil {
		return nil, fmt.Errorf("reading the piece: %w", err)
	}
	if len(want) == 0 {
		return nil, errors.New("the piece has nothing but comments")
	}
	have, err := lexemes(code[d.from:d.to])
	if err != nil {
		return nil, fmt.Errorf("reading the declaration: %w", err)
	}
	same := func(a, b lexeme) bool { return a.tok == b.tok && a.text == b.text }
	var out [][2]int
	for i := 0; i+len(want) <= len(have); i++ {
		if slices.EqualFunc(have[i:i+len(want)], want, same) {
			out = append(out, [2]int{d.from + have[i].from, d.from + have[i+len(want)-1].to})
		}
	}
	return out, nil
}

// apply gives the files of the package that the mutant changes, as it changes
// them, by their paths.
func (m *mutant) apply(root string) (map[string][]byte, error) {
	s, err := readSource(filepath.Join(root, m.pkg))
	if err != nil {
		return nil, fmt.Errorf("mutant %s: reading package %s: %w", m.name, m.pkg, err)
	}
	type change struct {
		at   [2]int
		with string
	}
	changes := map[string][]change{}
	for _, e := range m.edits {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("mutant %s: package %s: %s", m.name, m.pkg, fmt.Sprintf(format, args...))
		}
		declared := s.where[e.in]
		switch len(declared) {
		case 0:
			return nil, fail("there is no %s; the nearest names: %s", e.in, strings.Join(nearest(e.in, s.where), ", "))
		case 1:
		default:
			return nil, fail("%s is declared %d times", e.in, len(declared))
		}
		d := declared[0]
		first, _, _ := strings.Cut(e.find, "\n")
		at, err := find(s.text[d.file], d, e.find)
		switch {
		case err != nil:
			return nil, fail("%s: %q: %v", e.in, first, err)
		case len(at) == 0:
			return nil, fail("%s (%s) has no such piece: %q", e.in, filepath.Base(d.file), first)
		case len(at) > 1:
			return nil, fail("%s (%s) has the piece %d times: %q; take more of what stands around it", e.in, filepath.Base(d.file), len(at), first)
		}
		changes[d.file] = append(changes[d.file], change{at[0], e.replace})
	}
	out := map[string][]byte{}
	for file, list := range changes {
		slices.SortFunc(list, func(a, b change) int { return b.at[0] - a.at[0] }) // from the end: what lies before keeps its place
		text := bytes.Clone(s.text[file])
		for i, c := range list {
			if i > 0 && c.at[1] > list[i-1].at[0] {
				return nil, fmt.Errorf("mutant %s: package %s: two edits overlap in %s", m.name, m.pkg, filepath.Base(file))
			}
			text = slices.Replace(text, c.at[0], c.at[1], []byte(c.with)...)
		}
		out[file] = text
	}
	return out, nil
}

// nearest gives the three declared names that take the fewest changes to become name.
func nearest(name string, declared map[string][]declaration) []string {
	var names []string
	far := map[string]int{}
	for n := range declared {
		names = append(names, n)
		far[n] = distance(name, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		if far[a] != far[b] {
			return far[a] - far[b]
		}
		return strings.Compare(a, b)
	})
	return names[:min(3, len(names))]
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			step := diagonal
			if a[i] != b[j] {
				step = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], step
		}
	}
	return row[len(b)]
}
