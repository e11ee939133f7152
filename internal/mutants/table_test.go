// The table in docs/ARCHITECTURE.md of what upholds each invariant says what is so.

package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const invariants = 14

// upheld is a row: one place of one invariant.
type upheld struct {
	invariant      string
	file, function string
	tests          [][2]string // package and name
	mutants        []string
}

var (
	tableRow = regexp.MustCompile(`^\| ([0-9]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$`)
	quoted   = regexp.MustCompile("`([^`]+)`")
)

func readTable(t *testing.T, root string) []upheld {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n### What upholds them\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var lines []string
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "|") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	var rows []upheld
	for _, line := range lines[min(2, len(lines)):] { // after the head
		m := tableRow.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not a row of the table of invariants:\n%s", line)
		}
		names := func(cell string) (out []string) {
			for _, q := range quoted.FindAllStringSubmatch(cell, -1) {
				out = append(out, q[1])
			}
			return out
		}
		place, tests := names(m[2]), names(m[3])
		if len(place) != 2 || len(tests) == 0 || len(tests)%2 != 0 {
			t.Fatalf("a row that is not number, file and function, packages and tests, mutants:\n%s", line)
		}
		r := upheld{invariant: m[1], file: place[0], function: place[1], mutants: names(m[4])}
		for pair := range slices.Chunk(tests, 2) {
			r.tests = append(r.tests, [2]string{pair[0], pair[1]})
		}
		rows = append(rows, r)
	}
	return rows
}

// testsOf are the tests that a package has on this platform or another.
func testsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				out[fn.Name.Name] = true
			}
		}
	}
	return out
}

// A table that nobody holds against the code is wrong after the next refactoring.
func TestTableOfInvariants(t *testing.T) {
	root, all := project(t)
	byName := map[string]*mutant{}
	for _, m := range all {
		byName[m.name] = m
	}
	named := map[[2]string]bool{} // invariant, mutant
	rows := map[string]int{}
	tests := map[string]map[string]bool{}
	sources := map[string]*source{}
	for _, r := range readTable(t, root) {
		rows[r.invariant]++
		dir := path.Dir(r.file)
		if sources[dir] == nil {
			s, err := readSource(filepath.Join(root, dir))
			if err != nil {
				t.Errorf("invariant %s: reading %s: %v", r.invariant, dir, err)
				continue
			}
			sources[dir] = s
		}
		file := filepath.Join(root, r.file)
		if !slices.ContainsFunc(sources[dir].where[r.function], func(d declaration) bool { return d.file == file }) {
			t.Errorf("invariant %s: there is no %s in %s", r.invariant, r.function, r.file)
		}
		for _, test := range r.tests {
			if tests[test[0]] == nil {
				tests[test[0]] = testsOf(t, filepath.Join(root, test[0]))
			}
			if !tests[test[0]][test[1]] {
				t.Errorf("invariant %s: there is no %s in package %s", r.invariant, test[1], test[0])
			}
		}
		for _, name := range r.mutants {
			named[[2]string{r.invariant, name}] = true
			m := byName[name]
			if m == nil {
				t.Errorf("invariant %s: there is no mutant %s", r.invariant, name)
				continue
			}
			if !slices.Contains(m.invariants, r.invariant) {
				t.Errorf("invariant %s: the mutant %s is of invariant %v", r.invariant, name, m.invariants)
			}
			if m.pkg != "./"+dir || !slices.ContainsFunc(m.edits, func(e edit) bool { return e.in == r.function }) {
				t.Errorf("invariant %s: the mutant %s does not change %s of %s", r.invariant, name, r.function, dir)
			}
			top, _, _ := strings.Cut(m.test, "/")
			pattern := regexp.MustCompile(top)
			if !slices.ContainsFunc(r.tests, func(test [2]string) bool { return m.testPackage == "./"+test[0] && pattern.MatchString(test[1]) }) {
				t.Errorf("invariant %s: the row does not name the test of the mutant %s", r.invariant, name)
			}
		}
	}
	for i := range invariants {
		if n := strconv.Itoa(i + 1); rows[n] == 0 {
			t.Errorf("invariant %s has no row", n)
		}
	}
	for _, m := range all {
		for _, n := range m.invariants {
			if _, err := strconv.Atoi(n); err == nil && !named[[2]string{n, m.name}] {
				t.Errorf("the mutant %s is not in a row of invariant %s", m.name, n)
			}
		}
	}
}
