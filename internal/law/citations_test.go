// Citations: comments and documents give their reasons by number: a rule of
// docs/rules.md, an invariant of docs/ARCHITECTURE.md, a decision. Here it is
// held that each leads somewhere, and that the rules name code that is there.

package law

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const (
	rulesFile      = "docs/rules.md"
	invariantsFile = "docs/ARCHITECTURE.md"
	decisionsDir   = "docs/decisions"
)

// A reason that cannot be looked up is no reason: the next change takes out
// what it defends.
func TestCitations(t *testing.T) {
	c, err := checkCitations(os.DirFS(filepath.Join("..", "..")))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.problems {
		t.Error(p)
	}
	t.Logf("%d citations of rules, %d of invariants, %d of decisions in Go files; %d, %d, %d in documents",
		c.inCode[ruleKind], c.inCode[invariantKind], c.inCode[decisionKind], c.inDocs[ruleKind], c.inDocs[invariantKind], c.inDocs[decisionKind])
	if c.inCode[ruleKind] < 60 || c.inCode[invariantKind] < 70 || c.inCode[decisionKind] < 3 || c.inDocs[ruleKind] < 40 || c.inDocs[invariantKind] < 15 || c.inDocs[decisionKind] < 5 {
		t.Error("saw too few: a way of citing is not recognised any more")
	}
	if c.code < 150 {
		t.Errorf("%s names only %d declarations", rulesFile, c.code)
	}
}

type kind int

const (
	ruleKind kind = iota
	invariantKind
	decisionKind
	kinds
)

// citations is what checkCitations finds.
type citations struct {
	rules, invariants, decisions map[string]bool

	inCode, inDocs [kinds]int
	code           int // declarations that rules name
	problems       []string
}

func (c *citations) problem(file string, line int, format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf("%s:%d: ", file, line)+fmt.Sprintf(format, args...))
}

func checkCitations(tree fs.FS) (*citations, error) {
	c := &citations{rules: map[string]bool{}, invariants: map[string]bool{}, decisions: map[string]bool{}}
	if err := c.define(tree); err != nil {
		return nil, err
	}
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
				return fs.SkipDir
			}
			return nil
		case strings.HasSuffix(name, ".go"):
			return c.source(tree, name)
		case strings.HasSuffix(name, ".md") && (strings.HasPrefix(name, "docs/") || name == "README.md" || name == "CONTRIBUTING.md"):
			b, err := fs.ReadFile(tree, name)
			if err != nil {
				return err
			}
			c.text(name, 1, string(b), &c.inDocs)
		}
		return nil
	})
	return c, err
}

var (
	ruleHeading = regexp.MustCompile(`^### ([A-Z][0-9]{1,2})\. \S`)
	listed      = regexp.MustCompile(`^([0-9]+)\. `)
	ticked      = regexp.MustCompile("`([^`]+)`")
)

// define reads what may be cited, and checks what rules say about the code.
func (c *citations) define(tree fs.FS) error {
	b, err := fs.ReadFile(tree, rulesFile)
	if err != nil {
		return err
	}
	var rule string // whose section this is, at line began
	began, settled := 0, true
	section := func(next string, at int) {
		if !settled {
			c.problem(rulesFile, began, "rule %s does not say where it is kept: add a paragraph \"Upheld in …\" or \"Not built yet …\"", rule)
		}
		rule, began, settled = next, at, next == ""
	}
	for i, line := range strings.Split(string(b), "\n") {
		switch m := ruleHeading.FindStringSubmatch(line); {
		case m != nil:
			section(m[1], i+1)
			if c.rules[rule] {
				c.problem(rulesFile, i+1, "rule %s is there twice: give this one the next free number", rule)
			}
			c.rules[rule] = true
		case strings.HasPrefix(line, "### "):
			c.problem(rulesFile, i+1, "a heading without an id: write \"### A4. What is to be done\"")
		case strings.HasPrefix(line, "## "):
			section("", i+1)
		case strings.HasPrefix(line, "Not built yet"):
			settled = true
		case strings.HasPrefix(line, "Upheld in "):
			settled = true
			if err := c.upheld(tree, i+1, line); err != nil {
				return err
			}
		}
	}
	section("", 0)

	b, err = fs.ReadFile(tree, invariantsFile)
	if err != nil {
		return err
	}
	_, text, _ := strings.Cut(string(b), "\n## Invariants\n")
	text, _, _ = strings.Cut(text, "\n## ")
	for line := range strings.Lines(text) {
		if m := listed.FindStringSubmatch(line); m != nil {
			c.invariants[m[1]] = true
		}
	}

	pages, err := fs.Glob(tree, decisionsDir+"/[0-9][0-9][0-9][0-9]-*.md")
	for _, p := range pages {
		n, err := strconv.Atoi(path.Base(p)[:4])
		if err != nil {
			return err
		}
		c.decisions[strconv.Itoa(n)] = true
	}
	return err
}

// upheld checks a paragraph "Upheld in `file.go` `name`, `other`; …": a path is
// there, and a name is declared in the file before it.
func (c *citations) upheld(tree fs.FS, line int, text string) error {
	var file string
	var declared map[string]bool
	for _, m := range ticked.FindAllStringSubmatch(text, -1) {
		switch what := m[1]; {
		case strings.Contains(what, "/"):
			file, declared = what, nil
			if _, err := fs.Stat(tree, file); errors.Is(err, fs.ErrNotExist) {
				c.problem(rulesFile, line, "there is no %s: name the file in which the rule is kept now", file)
				return nil
			} else if err != nil {
				return err
			}
			if strings.HasSuffix(file, ".go") {
				var err error
				if declared, err = declarations(tree, file); err != nil {
					return err
				}
			}
		case !declared[what]:
			c.problem(rulesFile, line, "%q declares no %s: name what keeps the rule now, a method as Type.Method", file, what)
		default:
			c.code++
		}
	}
	if file == "" {
		c.problem(rulesFile, line, "names no file: write \"Upheld in `file.go` `name`\"")
	}
	return nil
}

func parse(tree fs.FS, name string) (*token.FileSet, *ast.File, error) {
	b, err := fs.ReadFile(tree, name)
	if err != nil {
		return nil, nil, err
	}
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, name, b, parser.ParseComments|parser.SkipObjectResolution)
	return set, f, err
}

// declarations are the names that a file declares, methods as Type.Method.
func declarations(tree fs.FS, name string) (map[string]bool, error) {
	_, f, err := parse(tree, name)
	if err != nil {
		return nil, err
	}
	all := map[string]bool{}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				all[d.Name.Name] = true
				continue
			}
			on := d.Recv.List[0].Type
			if p, ok := on.(*ast.StarExpr); ok {
				on = p.X
			}
			if p, ok := on.(*ast.IndexExpr); ok { // of a generic type
				on = p.X
			}
			if id, ok := on.(*ast.Ident); ok {
				all[id.Name+"."+d.Name.Name] = true
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					all[s.Name.Name] = true
				case *ast.ValueSpec:
					for _, n := range s.Names {
						all[n.Name] = true
					}
				}
			}
		}
	}
	return all, nil
}

// source checks the comments of a Go file. Lines that follow each other are
// read as one text: a citation may go on in the next.
func (c *citations) source(tree fs.FS, name string) error {
	set, f, err := parse(tree, name)
	if err != nil {
		return err
	}
	for _, g := range f.Comments {
		var lines []string
		for _, one := range g.List {
			for l := range strings.SplitSeq(one.Text, "\n") {
				l = strings.TrimSpace(l)
				l = strings.TrimPrefix(strings.TrimPrefix(l, "//"), "/*")
				lines = append(lines, strings.TrimSuffix(l, "*/"))
			}
		}
		c.text(name, set.Position(g.Pos()).Line, strings.Join(lines, "\n"), &c.inCode)
	}
	return nil
}

const (
	anID  = `[A-Z][0-9]{1,2}\b`
	andID = `(?:(?:,|,?\s+and|\s+to)\s+` + anID + `)*`
)

var (
	quoted    = regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
	id        = regexp.MustCompile(anID)
	number    = regexp.MustCompile(`[0-9]+`)
	heading   = regexp.MustCompile(`(?m)^### ` + anID)
	inParens  = regexp.MustCompile(`\(([^()]*)\)`)
	item      = regexp.MustCompile(`(?:^|[,;]|\band\s)\s*(` + anID + `)\s*(?:$|[,;]|and\s)`)
	ruleWord  = regexp.MustCompile(`\b[Rr]ules?\s+(` + anID + andID + `)`)
	atStart   = regexp.MustCompile(`^\s*(` + anID + `(?:,\s+` + anID + `)*)(?:[.:]|,\s+invariants?\s)`)
	invariant = regexp.MustCompile(`\b[Ii]nvariant\s+[0-9]+|\b[Ii]nvariants\s+[0-9]+(?:(?:,|,?\s+and|\s+to)\s+[0-9]+)*`)
	decision  = regexp.MustCompile(`\b[Dd]ecision\s+[0-9]+|\b[Dd]ecisions\s+[0-9]+(?:(?:,|,?\s+and|\s+to)\s+[0-9]+)*`)
	odd       = regexp.MustCompile(`\b[Ee]xactly-once\s+(?:rules?\s+)?` + anID + `|\b[Ss]tyle\s+rules?\s+[0-9]+|\brule\s+[0-9]+`)
	elsewhere = regexp.MustCompile(`(?:^|[\s("'\[])([A-HM][0-9]{1,2})(?:$|[\s)"'\].,;:])`)
)

// text checks a comment or a document that begins at a line of a file. What
// stands in backticks cites nothing.
func (c *citations) text(file string, line int, text string, seen *[kinds]int) {
	b := []byte(text)
	hide := func(from, to int) {
		for i := from; i < to; i++ {
			if b[i] != '\n' { // citations run over line ends
				b[i] = ' '
			}
		}
	}
	for _, m := range quoted.FindAllIndex(b, -1) {
		hide(m[0], m[1])
	}
	if file == rulesFile {
		for _, m := range heading.FindAllIndex(b, -1) {
			hide(m[0], m[1])
		}
	}
	at := func(i int) int { return line + strings.Count(text[:i], "\n") }
	cite := func(k kind, which *regexp.Regexp, known map[string]bool, from, to int, remedy func(string) string) {
		for _, m := range which.FindAllIndex(b[from:to], -1) {
			seen[k]++
			if what := string(b[from+m[0] : from+m[1]]); !known[what] {
				c.problem(file, at(from+m[0]), "%s", remedy(what))
			}
		}
		hide(from, to)
	}
	for _, m := range odd.FindAllIndex(b, -1) {
		c.problem(file, at(m[0]), "%q: cite a rule of %s as (A4), rule A4, or rules A4, A5", strings.Join(strings.Fields(text[m[0]:m[1]]), " "), rulesFile)
		hide(m[0], m[1])
	}
	if strings.HasSuffix(file, ".go") {
		if m := atStart.FindSubmatchIndex(b); m != nil {
			cite(ruleKind, id, c.rules, m[2], m[3], c.noRule)
		}
	}
	for _, m := range invariant.FindAllIndex(b, -1) {
		cite(invariantKind, number, c.invariants, m[0], m[1], func(n string) string {
			return fmt.Sprintf("there is no invariant %s: %s has %d of them", n, invariantsFile, len(c.invariants))
		})
	}
	for _, m := range decision.FindAllIndex(b, -1) {
		cite(decisionKind, number, c.decisions, m[0], m[1], func(n string) string {
			return fmt.Sprintf("there is no decision %s: %s holds one page for each that is made", n, decisionsDir)
		})
	}
	for _, m := range ruleWord.FindAllSubmatchIndex(b, -1) {
		cite(ruleKind, id, c.rules, m[2], m[3], c.noRule)
	}
	for _, p := range inParens.FindAllSubmatchIndex(b, -1) {
		for { // one at a time: what stands between two belongs to both
			m := item.FindSubmatchIndex(b[p[2]:p[3]])
			if m == nil {
				break
			}
			cite(ruleKind, id, c.rules, p[2]+m[2], p[2]+m[3], c.noRule)
		}
	}
	for _, m := range elsewhere.FindAllSubmatchIndex(b, -1) {
		what := text[m[2]:m[3]]
		c.problem(file, at(m[2]), "%s reads like a rule: cite it as (%s) or rule %s, or put it in backticks if it is none", what, what, what)
	}
}

// noRule says what to do about a rule that does not exist.
func (c *citations) noRule(what string) string {
	last, letters := 0, map[string]bool{}
	for r := range c.rules {
		letters[r[:1]] = true
		if n, err := strconv.Atoi(r[1:]); err == nil && r[:1] == what[:1] {
			last = max(last, n)
		}
	}
	if last > 0 {
		return fmt.Sprintf("there is no rule %s: %s ends with %s%d there; correct the number, or write the rule", what, rulesFile, what[:1], last)
	}
	return fmt.Sprintf("there is no rule %s: those of %s begin with %s; put it in backticks if it is none", what, rulesFile, strings.Join(slices.Sorted(maps.Keys(letters)), ", "))
}

// The citations' own test: what must be found, and what must not be. Were one
// way of citing not seen, wrong citations in it would pass for ever.
func TestCitationsAreFound(t *testing.T) {
	tree := func(more fstest.MapFS) fstest.MapFS {
		all := fstest.MapFS{
			rulesFile:                      {Data: []byte("# Rules\n\n## A\n\n### A1. One\n\nNot built yet.\n\n### A4. Four\n\nUpheld in `x/x.go` `f`, `T.g`, `K`.\n\n## B\n\n### B1. First\n\nNot built yet: all of it.\n")},
			invariantsFile:                 {Data: []byte("# Architecture\n\n1. not one\n9. nor this\n\n## Invariants\n\n1. One.\n2. Two.\n\n## More\n\n3. Three.\n")},
			decisionsDir + "/0021-turn.md": {Data: []byte("# 21\n")},
			"x/x.go":                       {Data: []byte("package x\n\nconst K = 1\n\ntype T struct{}\n\nfunc f() {}\n\nfunc (*T) g() {}\n")},
		}
		maps.Copy(all, more)
		return all
	}
	check := func(more fstest.MapFS) *citations {
		t.Helper()
		c, err := checkCitations(tree(more))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	comment := func(text string) fstest.MapFS {
		return fstest.MapFS{"x/y.go": {Data: []byte("package x\n\n// " + strings.ReplaceAll(text, "\n", "\n// ") + "\nvar y int\n")}}
	}

	for _, good := range []struct {
		text string
		want [kinds]int
	}{
		{"It is so (A4).", [kinds]int{1, 0, 0}},
		{"It is so (A4, B1 and A1).", [kinds]int{3, 0, 0}},
		{"It is so (A1,\nA4, invariant 2).", [kinds]int{2, 1, 0}},
		{"(invariant 2; rules A1, B1)", [kinds]int{2, 1, 0}},
		{"As rule A4 says, and rules A1 and\nB1.", [kinds]int{3, 0, 0}},
		{"A1, A4. Without it ten are lost.", [kinds]int{2, 0, 0}},
		{"A1, invariant 2. Without it ten are lost.", [kinds]int{1, 1, 0}},
		{"Invariant 1, as invariants 1 and 2 (decision 21).", [kinds]int{0, 3, 1}},
		{"`Z9`, `(J3)`, the (A) and (1), 16/B374D848, TW-A9, x.A9 and 0xA9 are none.", [kinds]int{}},
	} {
		c := check(comment(good.text))
		if len(c.problems) > 0 || c.inCode != good.want {
			t.Errorf("%q: saw %v, want %v; %q", good.text, c.inCode, good.want, c.problems)
		}
	}
	for text, want := range map[string]string{
		"It is so (A12).":                     "x/y.go:3: there is no rule A12: docs/rules.md ends with A4 there",
		"It is so (J3).":                      "x/y.go:3: there is no rule J3: those of docs/rules.md begin with A, B",
		"It is so, long before\n(A1, A4, B2)": "x/y.go:4: there is no rule B2",
		"As rule C1 says.":                    "no rule C1",
		"As rules A1, A4 and\nB3 say.":        "x/y.go:4: there is no rule B3",
		"A7. Without it ten are lost.":        "no rule A7",
		"invariant 3":                         "no invariant 3: docs/ARCHITECTURE.md has 2",
		"Invariants 1 and 9":                  "no invariant 9",
		"see decision 20":                     "no decision 20",
		"(exactly-once rule A4)":              "cite a rule",
		"exactly-once A4, B1":                 "cite a rule",
		"of style rule 14":                    "cite a rule",
		"by rule 3":                           "cite a rule",
		"This is A4 again.":                   "cite it as (A4)",
	} {
		c := check(comment(text))
		if !slices.ContainsFunc(c.problems, func(p string) bool { return strings.Contains(p, want) }) {
			t.Errorf("%q: found %q, want %q", text, c.problems, want)
		}
	}
	for name, bad := range map[string]struct {
		more fstest.MapFS
		want string
	}{
		"a document":     {fstest.MapFS{"docs/x.md": {Data: []byte("# X\n\nIt is so (A9).\n")}}, "docs/x.md:3: there is no rule A9"},
		"the readme":     {fstest.MapFS{"README.md": {Data: []byte("invariant 12\n")}}, "README.md:1: there is no invariant 12"},
		"a rule twice":   {fstest.MapFS{rulesFile: {Data: []byte("### A1. One\n\nNot built yet.\n\n### A1. Two\n\nNot built yet.\n")}}, "docs/rules.md:5: rule A1 is there twice"},
		"no id":          {fstest.MapFS{rulesFile: {Data: []byte("### One\n")}}, "docs/rules.md:1: a heading without an id"},
		"kept nowhere":   {fstest.MapFS{rulesFile: {Data: []byte("### A1. One\n\n### A2. Two\n\nNot built yet.\n")}}, "docs/rules.md:1: rule A1 does not say"},
		"the last one":   {fstest.MapFS{rulesFile: {Data: []byte("### A1. One\n")}}, "docs/rules.md:1: rule A1 does not say"},
		"no such file":   {fstest.MapFS{rulesFile: {Data: []byte("### A1. One\n\nUpheld in `x/z.go` `f`.\n")}}, "docs/rules.md:3: there is no x/z.go"},
		"no such name":   {fstest.MapFS{rulesFile: {Data: []byte("### A1. One\n\nUpheld in `x/x.go` `f`, `g`.\n")}}, `docs/rules.md:3: "x/x.go" declares no g`},
		"no file at all": {fstest.MapFS{rulesFile: {Data: []byte("### A1. One\n\nUpheld in many places.\n")}}, "docs/rules.md:3: names no file"},
	} {
		c := check(bad.more)
		if !slices.ContainsFunc(c.problems, func(p string) bool { return strings.HasPrefix(p, bad.want) }) {
			t.Errorf("%s: found %q, want %q", name, c.problems, bad.want)
		}
	}
}
