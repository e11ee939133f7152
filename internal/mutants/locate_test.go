package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const code = `package sum

import "fmt"

// Limit bounds it.
const (
	Low   = 1
	Limit = "SELECT a " +
		"FROM b"
)

var table = map[string]int{"a": 1, "b": 2}

type Sum[T any] struct {
	n int
}

// Add is a function and a method.
func Add(a, b int) int {
	if a == 0 { // nothing to add
		fmt.Println("a",
			"b")
		return b
	}
	return a + b
}

func (s *Sum[T]) Add(a int) {
	s.n += a
	if a > 0 {
		s.n += 0
	}
}

func (s Sum[T]) Twice() int { return s.n + s.n }
`

func writeFiles(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestApply(t *testing.T) {
	root := t.TempDir()
	writeFiles(t, root, map[string]string{
		"sum/sum.go":      code,
		"sum/sum_test.go": "package sum\n\nfunc Add() {}\n", // of no account
		"sum/other.go":    "//go:build !linux && linux\n\npackage sum\n\nfunc Add() {}\n",
	})
	for _, c := range []struct{ name, in, find, old, with string }{
		{"one expression", "Add", "a + b", "return a + b", "return mutated"},
		{"several lines", "Add", "if a == 0 {\n\tfmt.Println(\"a\", \"b\")\n\treturn b\n}", code[strings.Index(code, "if a == 0"):strings.Index(code, "\n\treturn a + b")], "mutated"},
		{"other white space and comments", "Add", "if a==0 { // other words\n\n /* and more */ fmt . Println(\n\"a\",\"b\")", "if a == 0 { // nothing to add\n\t\tfmt.Println(\"a\",\n\t\t\t\"b\")", "mutated"},
		{"a method", "(*Sum).Add", "s.n += a", "s.n += a", "mutated"},
		{"a method of a value", "Sum.Twice", "return s.n", "return s.n", "mutated"},
		{"a constant", "Limit", `"FROM b"`, `"FROM b"`, "mutated"},
		{"a variable", "table", `, "b": 2`, `, "b": 2`, "mutated"},
		{"a type", "Sum", "n int", "n int", "mutated"},
	} {
		m := &mutant{name: "m", pkg: "./sum", edits: []edit{{in: c.in, find: c.find, replace: "mutated"}}}
		got, err := m.apply(root)
		want := strings.Replace(code, c.old, c.with, 1)
		if err != nil || len(got) != 1 || string(got[filepath.Join(root, "sum/sum.go")]) != want {
			t.Errorf("%s: %v\n%s", c.name, err, got)
		}
	}

	// Several edits, in any order.
	m := &mutant{name: "m", pkg: "./sum", edits: []edit{{in: "Sum.Twice", find: "s.n + s.n", replace: "1"}, {in: "Add", find: "a + b", replace: "2"}}}
	got, err := m.apply(root)
	if want := strings.NewReplacer("s.n + s.n", "1", "a + b", "2").Replace(code); err != nil || string(got[filepath.Join(root, "sum/sum.go")]) != want {
		t.Errorf("two edits: %v\n%s", err, got)
	}
}

func TestApplyMistakes(t *testing.T) {
	root := t.TempDir()
	writeFiles(t, root, map[string]string{"sum/sum.go": code})
	for _, c := range []struct {
		edits []edit
		says  string
	}{
		{[]edit{{in: "Add", find: "a - b\nmore"}}, `mutant m: package ./sum: Add (sum.go) has no such piece: "a - b"`},
		{[]edit{{in: "(*Sum).Ad", find: "a"}}, "mutant m: package ./sum: there is no (*Sum).Ad; the nearest names: (*Sum).Add, "},
		{[]edit{{in: "(*Sum).Add", find: "s.n +="}}, `(*Sum).Add (sum.go) has the piece 2 times: "s.n +="`},
		{[]edit{{in: "Add", find: "// nothing to add"}}, "nothing but comments"},
		{[]edit{{in: "Add", find: "a + b"}, {in: "Add", find: "return a + b"}}, "two edits overlap in sum.go"},
	} {
		m := &mutant{name: "m", pkg: "./sum", edits: c.edits}
		if _, err := m.apply(root); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v; want %q", c.edits, err, c.says)
		}
	}
}

// A refactoring that moves a function does not touch its mutants.
func TestMovedFunctionIsFound(t *testing.T) {
	root := t.TempDir()
	at := strings.Index(code, "func (s *Sum[T]) Add")
	end := strings.Index(code, "func (s Sum[T]) Twice")
	writeFiles(t, root, map[string]string{
		"sum/sum.go":  code[:at] + code[end:],
		"sum/more.go": "package sum\n\n" + code[at:end],
	})
	m := &mutant{name: "m", pkg: "./sum", edits: []edit{{in: "(*Sum).Add", find: "s.n += a", replace: "s.n -= a"}}}
	got, err := m.apply(root)
	if err != nil || !strings.Contains(string(got[filepath.Join(root, "sum/more.go")]), "s.n -= a") {
		t.Errorf("%v\n%s", err, got)
	}
}
