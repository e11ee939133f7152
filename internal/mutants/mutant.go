// The text form of a mutant.

package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// folder holds the mutants, seen from the root of the module.
const folder = "testdata/mutants"

const suffix = ".mutant"

// A mutant takes one guarantee out of a package. Its file has a head of
// "key: value" lines, and then one or more edits:
//
//	what: the source is told before the commit
//	invariant: 1
//	package: ./pipeline
//	test: ^TestIngestEndNeverArrives$/^kfake$
//
//	in: (*session).commit
//	find:
//		s.ending, s.txn = t, nil
//	replace:
//		s.durable <- t.boundary
//		s.ending, s.txn = t, nil
//
// The lines of a block are indented by a tab, which is not part of them. A line
// that begins with "#" is a comment.
type mutant struct {
	name        string
	what        string
	invariants  []string // numbers of docs/ARCHITECTURE.md, or rules such as `A4`
	pkg         string   // of what is changed: ./folder
	test        string   // a pattern for -test.run
	testPackage string   // where the test lives
	hangs       bool     // what the mutant does to its test is that it never ends
	edits       []edit
}

// edit is the change of one piece.
type edit struct {
	in            string // the declaration: Func, (*Type).Method, or the name of a var, const or type
	find, replace string
	line          int // of "in:", for messages
}

var (
	invariantName = regexp.MustCompile(`^([1-9]|1[0-4]|A[1-9][0-9]*)$`)
	headKeys      = []string{"what", "invariant", "package", "test", "test package", "hangs"}
)

// readAll reads every mutant, in order of their names.
func readAll(root string) ([]*mutant, error) {
	files, err := filepath.Glob(filepath.Join(root, folder, "*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("listing mutants: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("listing mutants: there are none in %s", folder)
	}
	var all []*mutant
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("reading mutant: %w", err)
		}
		m, err := parse(path.Join(folder, filepath.Base(f)), string(text))
		if err != nil {
			return nil, fmt.Errorf("reading mutant %w", err)
		}
		all = append(all, m)
	}
	return all, nil
}

// parse reads a mutant's text. Its errors begin with file and line.
func parse(file, text string) (*mutant, error) {
	m := &mutant{name: strings.TrimSuffix(path.Base(file), suffix)}
	head := map[string]string{}
	var e *edit
	var block *string // what indented lines belong to
	found := map[string]bool{}
	lines := strings.Split(text, "\n")
	finish := func() error {
		switch {
		case e == nil:
			return nil
		case strings.TrimSpace(e.find) == "":
			return fmt.Errorf("%s:%d: the edit has no piece to find", file, e.line)
		case !found["replace"]:
			return fmt.Errorf("%s:%d: the edit has no replacement: an empty one is written as replace: alone", file, e.line)
		}
		e.find, e.replace = strings.TrimSpace(e.find), strings.TrimSpace(e.replace)
		m.edits = append(m.edits, *e)
		return nil
	}
	for i, line := range lines {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("%s:%d: %s", file, i+1, fmt.Sprintf(format, args...))
		}
		if inner, ok := strings.CutPrefix(line, "\t"); ok {
			if block == nil {
				return nil, fail("an indented line outside of find: and replace:")
			}
			*block += inner + "\n"
			continue
		}
		if strings.TrimSpace(line) == "" {
			if block != nil {
				*block += "\n"
			}
			continue
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		block = nil
		key, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok:
			return nil, fail("neither a key nor a line of a block, which is indented by a tab: %q", line)
		case key == "in":
			if err := finish(); err != nil {
				return nil, err
			}
			if value == "" {
				return nil, fail("in: names no declaration")
			}
			e, found = &edit{in: value, line: i + 1}, map[string]bool{}
		case key == "find" || key == "replace":
			switch {
			case e == nil:
				return nil, fail("%s: before any in:", key)
			case found[key]:
				return nil, fail("%s: is there twice: each edit begins with its own in:", key)
			case value != "":
				return nil, fail("the text of %s: stands on the next lines, indented by a tab", key)
			}
			found[key], block = true, &e.find
			if key == "replace" {
				block = &e.replace
			}
		case !slices.Contains(headKeys, key):
			return nil, fail("unknown key %q: the head may have %s", key, strings.Join(headKeys, ", "))
		case e != nil:
			return nil, fail("%s: belongs into the head, before the first edit", key)
		case value == "":
			return nil, fail("%s: is empty", key)
		default:
			if _, twice := head[key]; twice {
				return nil, fail("%s: is there twice", key)
			}
			head[key] = value
			if key == "invariant" {
				for n := range strings.SplitSeq(value, ",") {
					n = strings.TrimSpace(n)
					if !invariantName.MatchString(n) {
						return nil, fail("%q is neither the number of an invariant nor a rule", n)
					}
					m.invariants = append(m.invariants, n)
				}
			}
			if key == "hangs" && value != "true" {
				return nil, fail("hangs: can only be true")
			}
			if key == "test" {
				if _, err := regexp.Compile(value); err != nil {
					return nil, fail("%v", err)
				}
			}
			if (key == "package" || key == "test package") && !strings.HasPrefix(value, "./") {
				return nil, fail("%s: begins with ./", key)
			}
		}
	}
	if err := finish(); err != nil {
		return nil, err
	}
	for _, key := range []string{"what", "package", "test"} {
		if head[key] == "" {
			return nil, fmt.Errorf("%s:1: the key %s: is missing", file, key)
		}
	}
	if len(m.edits) == 0 {
		return nil, fmt.Errorf("%s:%d: there is no edit", file, len(lines))
	}
	m.what, m.pkg, m.test, m.testPackage = head["what"], head["package"], head["test"], head["test package"]
	m.hangs = head["hangs"] != ""
	if m.testPackage == "" {
		m.testPackage = m.pkg
	}
	return m, nil
}
