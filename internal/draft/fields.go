// Fields: from which column each field of a contract comes, and how.

package draft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/expr"
)

// Field is one field of a rule.
type Field struct {
	Name string
	Text string // what is written; "" with Blank: it is left to do
	Null bool   // null is written
	Note string // why, or what to do

	blank, key bool
	column     string // of which it is made
	leads      string // the table that its foreign key leads to, when that is the right one
}

// Blank reports whether it is left to do.
func (f *Field) Blank() bool { return f.blank }

func (f Field) undone(format string, args ...any) Field {
	f.Text, f.blank, f.Note = "", true, fmt.Sprintf(format, args...)
	return f
}

// maker makes the fields of one rule.
type maker struct {
	*Draft
	e *entity
	c *avro.Contract
	t *Table

	used []string // columns that another field has
}

func (d *Draft) fields(e *entity, c *avro.Contract, t *Table) []Field {
	m := maker{Draft: d, e: e, c: c, t: t}
	out := make([]Field, len(c.Fields))
	// Two fields mean different things: a column is guessed for one of them, and
	// first for one that a foreign key tells. The key may be a number too.
	for _, references := range []bool{true, false} {
		for i := range c.Fields {
			if references != (c.Fields[i].References != "") {
				continue
			}
			out[i] = m.field(i)
			if out[i].column != "" && !out[i].key {
				m.used = append(m.used, out[i].column)
			}
		}
	}
	return out
}

func (m *maker) field(i int) Field {
	target := &m.c.Table.Columns[i]
	f := Field{Name: target.Name}
	switch def := &m.c.Fields[i]; {
	case slices.Contains(m.c.Table.Key, i):
		f = m.keyField(f)
	case def.References != "":
		f = m.reference(f, def.References)
	case def.Values != nil:
		f = m.closed(f, def.Values)
	case target.Kind == change.Bool:
		f = m.flag(f)
	default:
		f = m.value(f, target)
	}
	if f.Text == "" && m.c.Optional(i) {
		f.blank, f.Note = false, ""
		// A field that is not named takes the column of its own name.
		if col := m.t.Column(f.Name); col >= 0 && !m.t.Hidden[f.Name] {
			f.Null, f.Note = true, fmt.Sprintf("column %s is %s, and does not look like it", f.Name, m.t.Columns[col].Type)
		}
	}
	return f
}

// columns are those that may be the field, the likeliest first.
func (m *maker) columns(field string) []*change.Column {
	return slices.DeleteFunc(m.called(m.e.fields[field]), func(col *change.Column) bool { return slices.Contains(m.used, col.Name) })
}

func (m *maker) called(names []string) []*change.Column {
	var out []*change.Column
	for _, name := range names {
		for i := range m.t.Columns {
			col := &m.t.Columns[i]
			if !m.t.Hidden[col.Name] && slices.Contains(m.t.names(col.Name), name) && !slices.Contains(out, col) {
				out = append(out, col)
			}
		}
	}
	return out
}

// times are kinds of columns that say when something happened.
var times = []change.Kind{change.Timestamp, change.TimestampTZ, change.Date}

// where is the condition that leaves out rows that are marked as deleted; "":
// none are.
func (m *maker) where() string {
	for _, col := range m.called(deleted) {
		switch ref := expr.Column(col.Name); {
		case ref == "":
		case col.Kind == change.Bool && col.Nullable:
			return "!coalesce(" + ref + ", false)"
		case col.Kind == change.Bool:
			return "!" + ref
		case col.Nullable && slices.Contains(times, col.Kind):
			return ref + " == null"
		}
	}
	return ""
}

// mixed is a column by which the rows of a table of people may be told from those
// of groups, or of who has left: a text of few values, by the statistics. Which
// they are is not known, since no row is read. nil: there is none.
func (m *maker) mixed() *change.Column {
	const few = 20
	for _, col := range m.called([]string{"type", "kind"}) {
		if n := m.t.Distinct[col.Name]; m.c.Topic == "ps.resource" && n > 1 && n <= few && (col.Kind == change.String || col.Kind == change.Enum) && expr.Column(col.Name) != "" {
			return col
		}
	}
	return nil
}

// names are what a column is called, in English too: also without the name of its
// table, and without a word that all columns of the table begin with.
func (t *Table) names(column string) []string {
	w := words(column)
	out := also(w)
	if len(w) < 2 {
		return out
	}
	head := words(singular(t.Name))
	for _, begin := range [][]string{head, head[max(0, len(head)-1):]} {
		if len(begin) > 0 && len(w) > len(begin) && slices.Equal(w[:len(begin)], begin) {
			out = append(out, also(w[len(begin):])...)
		}
	}
	if in, begin := translated(w), translated(head); len(begin) > 0 && len(in) > len(begin) && slices.Equal(in[:len(begin)], begin) {
		out = append(out, strings.Join(in[len(begin):], "_"))
	}
	for i := range t.Columns {
		if other := words(t.Columns[i].Name); len(other) < 2 || other[0] != w[0] {
			return out
		}
	}
	return append(out, also(w[1:])...)
}

// template is a text of columns in braces, after a beginning; "": it cannot be
// written.
func template(begin string, columns ...string) string {
	if slices.ContainsFunc(columns, func(c string) bool { return strings.ContainsAny(c, "{}:\"'") }) {
		return ""
	}
	var b strings.Builder
	for i, c := range columns {
		if i > 0 {
			begin = "/"
		}
		fmt.Fprintf(&b, "%s{%s}", begin, c)
	}
	return b.String()
}

// keyField is the source's name and the key.
func (m *maker) keyField(f Field) Field {
	f.key = true
	var columns []string
	for _, k := range m.t.Key {
		columns = append(columns, m.t.Columns[k].Name)
	}
	if m.e.under != "" {
		r := m.reference(Field{}, "")
		if r.column == "" {
			f.Note = fmt.Sprintf("to be joined it has to begin with the key of %s: \"%s-{column}/{…}\"", m.e.under, m.Source)
		} else {
			columns = append([]string{r.column}, slices.DeleteFunc(columns, func(c string) bool { return c == r.column })...)
		}
	}
	if len(columns) == 0 {
		return f.undone("the table has no key")
	}
	f.Text, f.column = template(m.Source+"-", columns...), columns[0]
	if f.Text == "" {
		return f.undone("no template can name %s: give the table another key, or the column another name", list(columns))
	}
	return f
}

// reference holds the key of another entity: a foreign key to its table, or else
// a column of such a name. Without topic it is the one that the key begins with.
func (m *maker) reference(f Field, topic string) Field {
	if topic == "" {
		f.Name = m.e.under
		def, _ := m.c.Field(f.Name)
		topic = def.References
	}
	named := m.columns(f.Name)
	var to string
	if r := m.rule(topic); r != nil {
		to = r.Table.Full()
	}
	var follow []*change.Column
	for i := range m.t.Columns {
		if col := &m.t.Columns[i]; to != "" && m.t.References[col.Name] == to && to != m.t.Full() {
			follow = append(follow, col)
		}
	}
	var col *change.Column
	for _, n := range named {
		if col == nil && slices.Contains(follow, n) {
			col = n
		}
	}
	switch {
	case col != nil:
	case len(follow) == 1:
		col = follow[0]
	case len(follow) > 1:
		return f.undone("%d columns lead to %s: %s", len(follow), to, list(columnNames(follow)))
	default:
		for _, n := range named {
			if text(n) && (m.t.References[n.Name] == "" || to == "") {
				col = n
				break
			}
		}
	}
	if col == nil {
		if to == "" {
			return f.undone("the key of %s, for which no table was found", topic)
		}
		return f.undone("no column leads to %s: \"%s-{column}\", or an expression", to, m.Source)
	}
	f.column = col.Name
	f.Text = template(m.Source+"-", col.Name)
	switch {
	case f.Text == "":
		return f.undone("no template can name %s", col.Name)
	case slices.Contains(follow, col):
		f.leads = to
	case to == "":
		f.Note = fmt.Sprintf("no table was found for %s", topic)
	default:
		f.Note = fmt.Sprintf("by its name; no foreign key says that it leads to %s", to)
	}
	return m.null(f, col)
}

// closed is a field of a closed list: only an enum shows that its values are of it.
func (m *maker) closed(f Field, values []string) Field {
	one := strings.Join(values, ", ")
	for _, col := range m.columns(f.Name) {
		ref := expr.Column(col.Name)
		if ref == "" {
			return f.undone("one of %s; column %s, which no expression can name", one, col.Name)
		}
		if col.Kind == change.Enum {
			if !slices.ContainsFunc(col.Labels, func(l string) bool { return !slices.Contains(values, l) }) {
				f.Text, f.column = written(col, change.String), col.Name
				return m.null(f, col)
			}
			return f.undone("one of %s; %s is one of %s: 'code(\"%s\", %s)' with a code list", one, col.Name, strings.Join(col.Labels, ", "), m.listName(f), ref)
		}
		if !text(col) {
			continue
		}
		how := fmt.Sprintf("'code(\"%s\", %s)' with a code list", m.listName(f), ref)
		if col.Kind == change.String {
			how = written(col, change.String) + " if those are its values, else " + how
		}
		return f.undone("one of %s; column %s%s: %s", one, col.Name, m.many(col), how)
	}
	return f.undone("one of %s: a constant is written \"=%s\"", one, values[0])
}

// many says how many values a column has, where that is known.
func (m *maker) many(col *change.Column) string {
	switch n := m.t.Distinct[col.Name]; n {
	case 0:
		return ""
	case 1:
		return " (one value)"
	default:
		return fmt.Sprintf(" (about %d values)", n)
	}
}

// listName is what a code list for the field may be called.
func (m *maker) listName(f Field) string { return m.c.Name + "_" + f.Name }

// flag is true or false.
func (m *maker) flag(f Field) Field {
	for _, col := range m.columns(f.Name) {
		if col.Kind == change.Bool && written(col, change.Bool) != "" {
			f.Text, f.column = written(col, change.Bool), col.Name
			return m.null(f, col)
		}
	}
	if f.Name == "active" {
		for _, col := range m.called(append(append([]string{}, against...), m.e.fields["left_on"]...)) {
			switch ref := expr.Column(col.Name); {
			case ref == "":
			case col.Kind == change.Bool:
				f.Text, f.column = "!"+ref, col.Name
				return m.null(f, col)
			case col.Nullable && slices.Contains(times, col.Kind):
				f.Text, f.column, f.Note = ref+" == null", col.Name, "a guess: with a date that is to come it is false already"
				return f
			}
		}
		if cols := m.called([]string{"status", "state"}); len(cols) > 0 && expr.Column(cols[0].Name) != "" {
			return f.undone("column %s%s may say it: '%s == …'", cols[0].Name, m.many(cols[0]), expr.Column(cols[0].Name))
		}
	}
	return m.nothing(f)
}
