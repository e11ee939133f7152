// The project's own mutants: all of them can be read and find their pieces.

package main

import (
	"path/filepath"
	"testing"
)

// project is the root of the module and its mutants.
func project(t *testing.T) (string, []*mutant) {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	all, err := readAll(root)
	if err != nil {
		t.Fatal(err)
	}
	return root, all
}

// A piece that is gone is noticed here, in a second, and not when the mutants run.
func TestEveryPieceIsThere(t *testing.T) {
	root, all := project(t)
	for _, m := range all {
		if _, err := m.apply(root); err != nil {
			t.Error(err)
		}
	}
}
