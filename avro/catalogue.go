// Catalogue: the contracts that a configuration has: those of the pack, and what
// a firm's files add to them.

package avro

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/tallywire/tallywire/internal/problem"
)

//go:embed contracts/*.avsc
var packFiles embed.FS

// Catalogue holds contracts by topic. It is shared and immutable: do not change
// the map or what it holds.
type Catalogue map[string]*Contract

// Topics lists them in order.
func (c Catalogue) Topics() []string {
	out := make([]string, 0, len(c))
	for t := range c {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

// Pack gives the built-in contracts.
func Pack() (Catalogue, error) { return pack() }

var pack = sync.OnceValues(func() (Catalogue, error) {
	files, err := packFiles.ReadDir("contracts")
	if err != nil {
		return nil, fmt.Errorf("listing the contracts: %w", err)
	}
	out := Catalogue{}
	for _, f := range files {
		name := path.Join("contracts", f.Name())
		text, err := packFiles.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		c, err := parseContract(string(text))
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		if want := c.Name + ".avsc"; f.Name() != want {
			return nil, fmt.Errorf("reading %s: topic %s belongs into %s", name, c.Topic, want)
		}
		out[c.Topic] = c
	}
	return out, out.check()
})

// LoadCatalogue gives the pack with the *.avsc files of directories, in order:
// contracts of further entities, and {"extends": "ps.project", "fields": […]},
// which adds fields that may be null to one that is there. What is wrong comes
// joined, TW-CONTRACT each, with file and field; the catalogue is then what could
// be read, for other mistakes to be told as well.
func LoadCatalogue(dirs ...string) (Catalogue, error) {
	all, err := Pack()
	if err != nil || len(dirs) == 0 {
		return all, err
	}
	l := loader{all: Catalogue{}}
	for t, c := range all {
		l.all[t] = c
	}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.avsc"))
		if err == nil && len(files) == 0 {
			_, err = os.ReadDir(dir)
		}
		if err != nil {
			l.bad = append(l.bad, ErrContract.New("reading the contracts: %w", err).At("%s", dir))
		} else if len(files) == 0 {
			l.bad = append(l.bad, ErrContract.New("there is no contract here: no file *.avsc").At("%s", dir))
		}
		for _, f := range files {
			l.file(f)
		}
	}
	for _, x := range l.extensions {
		l.extend(x)
	}
	if len(l.bad) == 0 {
		l.fail("", l.all.check())
	}
	return l.all, errors.Join(l.bad...)
}

// check looks at what refers to other contracts.
func (c Catalogue) check() error {
	var bad []error
	for _, t := range c.Topics() {
		for _, f := range c[t].Fields {
			if f.References != "" && c[f.References] == nil {
				bad = append(bad, ErrContract.New("field %s of %s references %s, which has no contract", f.Name, t, f.References).At("%s", c[t].File))
			}
		}
	}
	return errors.Join(bad...)
}

// extension is a file that adds fields.
type extension struct {
	file    string
	Extends string            `json:"extends"`
	Fields  []json.RawMessage `json:"fields"`
}

type loader struct {
	all        Catalogue
	extensions []extension
	bad        []error
}

// fail notes what is wrong with a file: each of joined errors by itself.
func (l *loader) fail(file string, err error) {
	if several, is := err.(interface{ Unwrap() []error }); is { //nolint:errorlint // the very join
		for _, err := range several.Unwrap() {
			l.fail(file, err)
		}
		return
	}
	switch {
	case err == nil:
	case problem.Of(err) != nil:
		l.bad = append(l.bad, err)
	default:
		l.bad = append(l.bad, ErrContract.New("%w", err).At("%s", file))
	}
}

func (l *loader) file(name string) {
	text, err := os.ReadFile(name)
	if err != nil {
		l.fail(name, err)
		return
	}
	var kind struct {
		Extends *string `json:"extends"`
	}
	if err := json.Unmarshal(text, &kind); err != nil {
		l.fail(placeOf(name, text, err), err)
		return
	}
	if kind.Extends != nil {
		x := extension{file: name}
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&x); err != nil {
			l.fail(name, err)
			return
		}
		l.extensions = append(l.extensions, x) // when all that may be extended is there
		return
	}
	c, err := parseContract(string(text))
	if err != nil {
		l.fail(name, err)
		return
	}
	if space, rest, ok := strings.Cut(c.Topic, "."); !ok || space == "" || rest == "" || strings.Contains(rest, ".") {
		l.fail(name, fmt.Errorf("topic %q: want pack.entity, such as ps.project", c.Topic))
		return
	}
	if l.all[c.Topic] != nil {
		l.bad = append(l.bad, ErrContract.New("%s has a contract", c.Topic).At("%s", name).
			WithRemedy(`Add fields to it: {"extends": %q, "fields": [{"name": …, "type": ["null", …], "default": null, …}]}; or name another topic.`, c.Topic))
		return
	}
	c.File = name
	l.all[c.Topic] = c
}

// placeOf is file:line:column of a mistake in JSON.
func placeOf(name string, text []byte, err error) string {
	var at int64
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		at = syntax.Offset
	case errors.As(err, &typ):
		at = typ.Offset
	}
	before := text[:min(int(at), len(text))]
	return fmt.Sprintf("%s:%d:%d", name, bytes.Count(before, []byte("\n"))+1, len(before)-bytes.LastIndexByte(before, '\n'))
}

func (l *loader) extend(x extension) {
	base := l.all[x.Extends]
	if base == nil {
		l.bad = append(l.bad, ErrContract.New("it extends %q, which has no contract", x.Extends).At("%s", x.file).
			WithRemedy("Write one of: %s.", strings.Join(l.all.Topics(), ", ")))
		return
	}
	if len(x.Fields) == 0 {
		l.fail(x.file, fmt.Errorf("it adds no fields to %s", x.Extends))
		return
	}
	// Attributes in order of their names: the schema's text is the same each time.
	var record map[string]json.RawMessage
	var fields []json.RawMessage
	err := json.Unmarshal([]byte(base.Schema), &record)
	if err == nil {
		err = json.Unmarshal(record["fields"], &fields)
	}
	if err != nil {
		panic("BUG: a contract that was read is no JSON: " + err.Error())
	}
	bad := len(l.bad)
	for _, raw := range x.Fields {
		var f struct {
			Name    string          `json:"name"`
			Default json.RawMessage `json:"default"`
		}
		if err := json.Unmarshal(raw, &f); err != nil {
			l.fail(x.file, fmt.Errorf("a field: %w", err))
			continue
		}
		if base.Table.Column(f.Name) >= 0 {
			l.fail(x.file, fmt.Errorf("field %s: %s has it already", f.Name, x.Extends))
		}
		if string(f.Default) != "null" { // records of before have none of it
			l.fail(x.file, fmt.Errorf(`field %s: what is added may be null: its type is ["null", …], its default null`, f.Name))
		}
		fields = append(fields, raw)
	}
	if len(l.bad) > bad {
		return
	}
	if record["fields"], err = json.Marshal(fields); err != nil {
		panic("BUG: fields that were read are no JSON: " + err.Error())
	}
	text, err := json.Marshal(record)
	if err != nil {
		panic("BUG: a contract that was read is no JSON: " + err.Error())
	}
	c, err := parseContract(string(text))
	if err != nil {
		l.fail(x.file, err)
		return
	}
	for i := len(base.Fields); i < len(c.Fields); i++ {
		if !c.Table.Columns[i].Nullable {
			l.fail(x.file, fmt.Errorf(`field %s: what is added may be null: its type is ["null", …], its default null`, c.Fields[i].Name))
		}
	}
	c.File = x.file
	l.all[x.Extends] = c
}
