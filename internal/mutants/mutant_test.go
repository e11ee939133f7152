package main

import (
	"strings"
	"testing"
)

const sample = `# a comment
what: nothing is added
invariant: 3, A4
package: ./sum
test: ^TestAdd$

in: Add
find:
	if a == 0 {
		return b
	}
replace:

in: (*Sum).Of
find:
	a + b
replace:
	a
	// and not b
`

func TestParse(t *testing.T) {
	m, err := parse("testdata/mutants/no-add.mutant", sample)
	if err != nil {
		t.Fatal(err)
	}
	if m.name != "no-add" || m.what != "nothing is added" || strings.Join(m.invariants, " ") != "3 A4" || m.pkg != "./sum" || m.testPackage != "./sum" || m.test != "^TestAdd$" || m.hangs {
		t.Errorf("the head is %+v", m)
	}
	want := []edit{
		{in: "Add", find: "if a == 0 {\n\treturn b\n}", line: 7},
		{in: "(*Sum).Of", find: "a + b", replace: "a\n// and not b", line: 14},
	}
	if len(m.edits) != 2 || m.edits[0] != want[0] || m.edits[1] != want[1] {
		t.Errorf("the edits are %+v", m.edits)
	}
}

// What is wrong with a file is said with its line.
func TestParseMistakes(t *testing.T) {
	for _, c := range []struct{ old, with, says string }{
		{"invariant: 3, A4", "invariant: 15", `m.mutant:3: "15" is neither`},
		{"invariant:", "invariants:", `m.mutant:3: unknown key "invariants"`},
		{"what: nothing is added\n", "", "m.mutant:1: the key what: is missing"},
		{"test: ^TestAdd$\n", "", "m.mutant:1: the key test: is missing"},
		{"package: ./sum", "package: sum", "m.mutant:4: package: begins with ./"},
		{"test: ^TestAdd$", "test: (", "m.mutant:5: error parsing regexp"},
		{"test: ^TestAdd$", "test: x\ntest: y", "m.mutant:6: test: is there twice"},
		{"test: ^TestAdd$", "test: x\nhangs: no", "m.mutant:6: hangs: can only be true"},
		{"in: Add", "\tin: Add", "m.mutant:7: an indented line outside"},
		{"in: Add\n", "", "m.mutant:7: find: before any in:"},
		{"replace:\n\nin:", "\nin:", "m.mutant:7: the edit has no replacement"},
		{"find:\n\ta + b\n", "", "m.mutant:14: the edit has no piece to find"},
		{"in: (*Sum).Of", "package: ./x", "m.mutant:14: package: belongs into the head"},
		{"in: (*Sum).Of\n", "", "m.mutant:14: find: is there twice"},
		{"\ta + b", "a + b", "m.mutant:16: neither a key nor a line of a block"},
		{"find:\n\ta + b", "find: a + b", "m.mutant:15: the text of find: stands on the next lines"},
		{sample[strings.Index(sample, "\nin: Add"):], "", "m.mutant:6: there is no edit"},
	} {
		_, err := parse("m.mutant", strings.Replace(sample, c.old, c.with, 1))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("with %q for %q: %v; want %q", c.with, c.old, err, c.says)
		}
	}
}

func TestChoose(t *testing.T) {
	var all []*mutant
	for _, n := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		all = append(all, &mutant{name: n, pkg: "./" + n, testPackage: "./" + n})
	}
	all[1].testPackage = "./x/y"
	names := func(ms []*mutant) (s string) {
		for _, m := range ms {
			s += m.name
		}
		return s
	}
	for _, c := range []struct {
		files   string
		commits int
		want    string
	}{
		{"README.md", 0, "abc"},
		{"README.md", 1, "def"},
		{"README.md", 2, "agh"}, // all in turn
		{"a/file.go", 0, "abcd"},
		{"x/y/z_test.go", 1, "bdef"},
		{"x/file.go", 1, "def"},
		{"testdata/mutants/h.mutant", 0, "abch"},
	} {
		if got := names(choose(all, strings.Fields(c.files), c.commits)); got != c.want {
			t.Errorf("%s after %d commits: %s, want %s", c.files, c.commits, got, c.want)
		}
	}
	if _, err := named(all, []string{"a", "z"}); err == nil || !strings.Contains(err.Error(), "no mutant z") {
		t.Errorf("a name that does not exist: %v", err)
	}
}
