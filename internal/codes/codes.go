// Package codes reads code lists: what the codes of a system mean in the firm's
// terms. A list is a file NAME.csv with a head line that names the columns code
// and value; further columns are for people.
package codes

import (
	"encoding/csv"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/internal/problem"
)

// ErrCodes is a list that cannot be read.
var ErrCodes = problem.Define("TW-CODES", problem.Halt,
	"A code list cannot be read, or says two things of one code.",
	"Correct the file where the message says: a head line with the columns code and value, then one line for each code.")

// List translates codes. It is immutable.
type List struct {
	Name string // of the file, without .csv
	File string

	values map[string]string
	codes  []string
}

// Value is what a code means.
func (l *List) Value(code string) (value string, ok bool) {
	value, ok = l.values[code]
	return value, ok
}

// Codes are all codes, in the file's order. Do not change them.
func (l *List) Codes() []string { return l.codes }

// Lists are code lists by name.
type Lists map[string]*List

// Names lists them in order.
func (l Lists) Names() []string {
	var out []string
	for name := range l {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Load reads the *.csv files of directories. What is wrong comes joined,
// TW-CODES each, with file and line; the lists are then those that could be read.
func Load(dirs ...string) (Lists, error) {
	out := Lists{}
	var bad []error
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.csv"))
		if err == nil && len(files) == 0 {
			if _, err = os.ReadDir(dir); err == nil {
				err = errors.New("there is no code list here: no file *.csv")
			}
		}
		if err != nil {
			bad = append(bad, ErrCodes.New("reading code lists: %w", err).At("%s", dir))
		}
		for _, file := range files {
			l, errs := load(file)
			bad = append(bad, errs...)
			if other := out[l.Name]; other != nil {
				bad = append(bad, ErrCodes.New("there is a list %s in %s too", l.Name, other.File).At("%s", file))
				continue
			}
			out[l.Name] = l
		}
	}
	return out, errors.Join(bad...)
}

func load(file string) (*List, []error) {
	l := &List{Name: strings.TrimSuffix(filepath.Base(file), ".csv"), File: file, values: map[string]string{}}
	var bad []error
	fail := func(line int, format string, args ...any) {
		bad = append(bad, ErrCodes.New(format, args...).At("%s:%d", file, line))
	}
	f, err := os.Open(file)
	if err != nil {
		return l, []error{ErrCodes.New("%w", err).At("%s", file)}
	}
	defer f.Close() //nolint:errcheck // nothing was written
	r := csv.NewReader(f)
	r.Comment = '#'
	head, err := r.Read()
	if err != nil {
		fail(1, "reading the head line: %w", err)
		return l, bad
	}
	head[0] = strings.TrimPrefix(head[0], "\ufeff") // as spreadsheets write it
	code, value := slices.Index(head, "code"), slices.Index(head, "value")
	if code < 0 || value < 0 {
		fail(1, "the head line names %s: want code and value among them", strings.Join(head, ", "))
		return l, bad
	}
	lines := map[string]int{}
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if p := (*csv.ParseError)(nil); errors.As(err, &p) {
			fail(p.Line, "%w", p.Err)
			if errors.Is(err, csv.ErrFieldCount) {
				continue
			}
			break
		} else if err != nil {
			fail(0, "%w", err)
			break
		}
		line, _ := r.FieldPos(code)
		c := row[code]
		switch {
		case row[value] == "":
			fail(line, "code %q has no value", c)
		case lines[c] > 0:
			fail(line, "code %q stands in line %d too", c, lines[c])
		default:
			lines[c] = line
			l.values[c] = row[value]
			l.codes = append(l.codes, c)
		}
	}
	if len(bad) == 0 && len(l.codes) == 0 {
		fail(1, "the list is empty")
	}
	return l, bad
}
