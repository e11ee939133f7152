// Values: fields that are a text, a number, a date or a time.

package draft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/expr"
)

// ids are fields for which an id of another table will do.
var ids = []string{"task_number", "status", "legal_entity", "billing_type"}

// value is a text, a number, a date or a time.
func (m *maker) value(f Field, target *change.Column) Field {
	misfit := ""
	cols := m.columns(f.Name)
	beside := f.Name == "first_name" && len(cols) == 0 && len(m.called(m.e.fields["last_name"])) > 0
	if beside {
		cols = m.called([]string{"name"})
	}
	for _, col := range cols {
		ref, at := expr.Column(col.Name), m.t.References[col.Name]
		number := col.Kind == change.Int || col.Kind == change.Decimal || col.Kind == change.Float64 || col.Kind == change.Float32
		_, takes := expr.Takes(col, target)
		way := expr.Way(col, target)
		narrower := target.Kind == change.Decimal && col.Kind == change.Decimal && (col.Scale < 0 || col.Scale > target.Scale)
		f.column = col.Name
		switch {
		case ref == "" && (!expr.Plain(col.Name) || !takes || narrower || f.Name == "hours"):
			misfit = fmt.Sprintf("column %s, which no expression can name", col.Name)
			continue
		case at != "" && m.entityOf(at) != "":
			misfit = fmt.Sprintf("column %s leads to %s, which is %s", col.Name, at, m.entityOf(at))
			continue
		case target.Kind == change.String && (!text(col) || (at != "" || f.Name == "currency" && col.Kind != change.String) && !slices.Contains(ids, f.Name)):
			misfit = fmt.Sprintf("column %s is %s", col.Name, col.Type)
			if at != "" {
				misfit = fmt.Sprintf("column %s leads to %s: 'code(\"%s\", %s)' with a code list", col.Name, at, m.listName(f), ref)
			}
			continue
		case f.Name == "hours" && number && unit(col.Name) > 0:
			f.Text = perHour(col, unit(col.Name), target)
		case f.Name == "hours" && col.Kind == change.Int && !hours(col.Name):
			// 3600 hours for one are worse than none.
			misfit = fmt.Sprintf("does %s count hours: %s, minutes: '%s', or seconds: '%s'?", col.Name, written(col, target.Kind), perHour(col, 60, target), perHour(col, 3600, target))
			continue
		case narrower:
			f.Text = fmt.Sprintf(`round(%s, %d, "half_even")`, ref, target.Scale)
			f.Note = fmt.Sprintf("the column is %s, the field has %d decimals", col.Type, target.Scale)
		case takes:
			f.Text = written(col, target.Kind)
			switch {
			case at != "":
				f.Note = "an id of " + at
			case target.Kind == change.String && col.Kind == change.Int && slices.Contains(ids, f.Name) && f.Name != "task_number":
				f.Note = fmt.Sprintf("a number, as text; words by a code list: 'code(\"%s\", %s)'", m.listName(f), ref)
			}
		case way != "":
			f.Text, f.Note = way, "the column is "+col.Type
			if strings.Contains(way, `"UTC"`) {
				f.Note = "the zone is a guess: the column is " + col.Type
			}
		default:
			misfit = fmt.Sprintf("column %s is %s, the field is %s", col.Name, col.Type, target.Type)
			if how := ofText[target.Kind]; how != "" && col.Kind == change.String {
				misfit += fmt.Sprintf(": '"+how+"', if all its texts are of that form", ref)
			}
			continue
		}
		if f.Name == "hours" && col.Kind != change.Interval && unit(col.Name) == 0 && !hours(col.Name) {
			f.Note = strings.TrimPrefix(f.Note+"; if it counts hours", "; ")
		}
		if beside {
			f.Note = "a guess: it stands beside the last name"
		}
		if f.Name == "updated_at" && col.Nullable && ref != "" {
			m.orMade(&f, col, takes)
		}
		return m.null(f, col)
	}
	f.column = ""
	if misfit != "" {
		return f.undone("%s", misfit)
	}
	if how := m.between(target); f.Name == "hours" && how != "" {
		return f.undone("no column counts them; from begin to end, with all breaks: '%s'", how)
	}
	if f.Name == "first_name" || f.Name == "last_name" {
		if cols := m.called(whole); len(cols) > 0 && text(cols[0]) && expr.Column(cols[0].Name) != "" {
			return f.undone("part of %s? '%s.split(\" \")[%d]'", cols[0].Name, expr.Column(cols[0].Name), strings.Count(f.Name, "last"))
		}
	}
	return m.nothing(f)
}

// between are the hours from the column of a begin to that of an end; "": the table
// has no such two of one type.
func (m *maker) between(target *change.Column) string {
	for _, a := range m.called(begun) {
		for _, b := range m.called(ended) {
			from, to := expr.Column(a.Name), expr.Column(b.Name)
			if a.Kind == b.Kind && from != "" && to != "" && slices.Contains([]change.Kind{change.Timestamp, change.TimestampTZ, change.Time}, a.Kind) {
				return fmt.Sprintf(`hours(%s - %s, %d, "half_even")`, to, from, target.Scale)
			}
		}
	}
	return ""
}

// orMade lets the last change of a row that was never changed be when it was
// made, where the table has both.
func (m *maker) orMade(f *Field, col *change.Column, takes bool) {
	for _, first := range m.called(made) {
		if first.Kind != col.Kind || expr.Column(first.Name) == "" {
			continue
		}
		ref := expr.Column(col.Name)
		either := fmt.Sprintf("coalesce(%s, %s)", ref, expr.Column(first.Name))
		if takes {
			f.Text = either
		} else {
			f.Text = strings.Replace(f.Text, ref, either, 1)
		}
		return
	}
}

// nothing leaves a field to do for which there is no column.
func (m *maker) nothing(f Field) Field {
	if a := advice[f.Name]; a != "" {
		return f.undone("no column looks like it; %s", a)
	}
	if target := &m.c.Table.Columns[m.c.Table.Column(f.Name)]; f.Name == "updated_at" || f.Name == "start_date" || f.Name == "created_at" {
		for _, col := range m.called(append(append([]string{}, made...), changed...)) {
			how := expr.Way(col, target)
			if _, ok := expr.Takes(col, target); ok {
				how = written(col, target.Kind)
			}
			if how != "" {
				return f.undone("no column looks like it; near it may be %s: %s", col.Name, quote(how))
			}
		}
	}
	return f.undone("no column looks like it")
}

// null notes that rows without a value are parked.
func (m *maker) null(f Field, col *change.Column) Field {
	at := m.c.Table.Column(f.Name)
	if at < 0 || !col.Nullable || m.c.Optional(at) {
		return f
	}
	if f.Note != "" {
		f.Note += "; "
	}
	f.Note += col.Name + " may be null: such a row is parked"
	return f
}

// written is how a rule names a column.
func written(col *change.Column, into change.Kind) string {
	ref := expr.Column(col.Name)
	if expr.Plain(col.Name) {
		return col.Name
	}
	if into == change.String && col.Kind != change.String {
		return "string(" + ref + ")"
	}
	return ref
}

// ofText is how a text becomes a value of another kind.
var ofText = map[change.Kind]string{change.Date: "date(%s)", change.Decimal: "decimal(%s)", change.TimestampTZ: "moment(%s)"}

// hours reports whether a column's name says that it counts hours.
func hours(column string) bool {
	return slices.ContainsFunc(translated(words(column)), func(w string) bool { return slices.Contains(countsHours, w) })
}

// perHour is a count of parts of an hour, in hours.
func perHour(col *change.Column, parts int, target *change.Column) string {
	return fmt.Sprintf(`div(%s, %d, %d, "half_even")`, exact(col), parts, target.Scale)
}

// exact is a column as an exact number.
func exact(col *change.Column) string {
	if col.Kind == change.Decimal || col.Kind == change.Int {
		return expr.Column(col.Name)
	}
	return "decimal(" + expr.Column(col.Name) + ")"
}

// unit is how many of what a column counts make an hour, 0: it does not say.
func unit(column string) int {
	for _, w := range translated(words(column)) {
		if n := units[w]; n > 0 {
			return n
		}
	}
	return 0
}

// text reports whether a column may be a name, a code or an id.
func text(col *change.Column) bool {
	switch col.Kind {
	case change.String, change.Text, change.Enum, change.Int, change.UUID, change.Decimal:
		return true
	}
	return false
}

func columnNames(cols []*change.Column) []string {
	out := make([]string, len(cols))
	for i, c := range cols {
		out[i] = c.Name
	}
	return out
}
