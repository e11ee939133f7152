// Rule: one as configured, and how its fields fit the columns of a table.

package mapping

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/transforms/join"
)

// entry is one rule as configured.
type entry struct {
	from, path string
	to         *change.Table
	contract   []avro.Field // of each column of to
	where      string       // "": every row
	each       string       // a list, whose elements give a record each; "": a row gives one
	sources    []source     // one per column of to
	claims     bool         // rows may hand its keys to each other
	look       *look        // it uses other rows; nil: its own alone
	rows       *rowsOf      // it keeps rows for those that do; nil: it is a rule
}

// restricted says whether a field may be seen by few.
func (e *entry) restricted() bool {
	if e.rows != nil {
		return false // the rules say it that use them
	}
	return slices.ContainsFunc(e.contract, func(f avro.Field) bool { return f.Sensitivity == avro.Restricted })
}

// keyPrefix is what all its keys begin with: the text before the first column.
func (e *entry) keyPrefix() string {
	if e.rows != nil {
		return ""
	}
	switch src := &e.sources[e.to.Key[0]]; {
	case src.text != nil:
		return *src.text
	case len(src.between) > 0:
		return src.between[0]
	case src.checked != nil:
		return src.checked.Prefix
	}
	return ""
}

// closed says that text is none of the values that field i may have.
func (e *entry) closed(i int, text string) *problem.Error {
	f := &e.contract[i]
	if f.Values == nil || slices.Contains(f.Values, text) {
		return nil
	}
	is := ""
	if e.shown(i) {
		if is = fmt.Sprintf(" %q,", text); len(is) > 100 {
			is = is[:100] + "…,"
		}
	}
	p := ErrValue.New("field %s of %s is%s none of %s", f.Name, e.to.Topic, is, strings.Join(f.Values, ", "))
	if near := config.Nearest(text, slices.Clone(f.Values)); near != "" {
		p.Text += fmt.Sprintf("; did you mean %q?", near)
	}
	return p
}

// optional says whether the source may have nothing for field i.
func (e *entry) optional(i int) bool {
	return e.to.Columns[i].Nullable || e.contract[i].HasOwn()
}

// shown says whether a message may have values of field i.
func (e *entry) shown(i int) bool {
	s := e.contract[i].Sensitivity
	return s == avro.Public || s == avro.Internal
}

// has reports whether a closed list has text, without allocating.
func (e *entry) has(i int, text []byte) bool {
	for _, v := range e.contract[i].Values {
		if v == string(text) {
			return true
		}
	}
	return false
}

type field struct {
	kind    fieldKind
	col     int // the first of cols
	cols    []int
	between []string
	text    string       // a constant text
	value   change.Value // another constant
	program *expr.Program
	closed  bool // it must be one of the contract's values
	names   bool // it is a key, or names one: equal numbers have one text
	// commitTime: where it is null, it is when the change was committed.
	commitTime bool
	otherwise  *avro.Default // what it is where it is null; nil: null
}

type fieldKind uint8

const (
	same   fieldKind = iota // the value as it is
	asText                  // its canonical text
	texts                   // texts of several
	constantText
	constantValue
	computed
	keyText // the key of the row, whatever its columns are
	packed  // columns with their names and kinds
)

func fieldNames(t *change.Table) []string {
	out := make([]string, len(t.Columns))
	for i := range t.Columns {
		out[i] = t.Columns[i].Name
	}
	return out
}

// compileField fits the source of field i to the columns of a table.
func compileField(e *entry, scope expr.Scope, i int) (field, []error) {
	src, target, t := &e.sources[i], &e.to.Columns[i], scope.Row
	c := &e.contract[i]
	f := field{between: src.between, closed: c.Values != nil, names: c.References != "" || slices.Contains(e.to.Key, i), commitTime: c.Fallback == avro.CommitTime, otherwise: c.Default}
	switch {
	case e.look != nil && e.look.waiting == i:
		f.kind, f.col = same, t.Column(join.WaitsColumn)
		f.cols = []int{f.col}
		return f, nil
	case src.text != nil:
		f.kind, f.text = constantText, *src.text
		return f, nil
	case src.constant != nil:
		f.kind, f.value = constantValue, *src.constant
		return f, nil
	case src.expression != "":
		p, mistakes := expr.Compile(src.expression, scope, target)
		if p == nil {
			return f, told(ErrColumn, src.path, mistakes)
		}
		f.kind, f.program, f.cols = computed, p, p.Columns
		return f, nil
	}
	var bad []error
	for _, name := range src.cols {
		c := t.Column(name)
		if c < 0 && !src.named && e.optional(i) {
			f.kind, f.value = constantValue, change.NullValue()
			return f, nil
		}
		if c < 0 {
			err := ErrColumn.New("%s has no column %q for field %s of %s", t.Topic, name, target.Name, e.to.Topic).At("%s", src.path)
			if near := config.Nearest(name, fieldNames(t)); near != "" {
				err.WithRemedy("Did you mean %s?", near)
			}
			bad = append(bad, err)
			continue
		}
		f.cols = append(f.cols, c)
	}
	if len(bad) > 0 {
		return f, bad
	}
	f.col = f.cols[0]
	if len(src.between) > 0 {
		f.kind = texts
		return f, nil
	}
	col := &t.Columns[f.col]
	text, ok := expr.Takes(col, target)
	if !ok {
		return f, []error{ErrColumn.New("column %s of %s is %s, field %s of %s is %s%s", col.Name, t.Topic, col.Type, target.Name, e.to.Topic, target.Type, way(col, target)).At("%s", src.path)}
	}
	f.kind = same
	if text {
		f.kind = asText
	}
	return f, nil
}

// way is how an expression makes the field of such a column.
func way(col, target *change.Column) string {
	if how := expr.Way(col, target); how != "" {
		return "; an expression makes one of the other: " + how
	}
	return ""
}
