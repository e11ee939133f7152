package draft

import (
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
)

// Lost if this fails: a firm that enters from when to when it worked is told that
// it has no hours.
func TestHoursFromBeginToEnd(t *testing.T) {
	for _, c := range []struct {
		begin, end string
		a, b       change.Kind
		want       string
	}{
		{"beginn", "ende", change.Timestamp, change.Timestamp, `'hours(row.ende - row.beginn, 6, "half_even")'`},
		{"start_time", "end_time", change.Time, change.Time, `'hours(row.end_time - row.start_time, 6, "half_even")'`},
		{"beginn", "ende", change.TimestampTZ, change.Timestamp, ""},
		{"begin:", "ende", change.Time, change.Time, ""},
		{"beginn", "ende", change.Date, change.Date, ""},
	} {
		work := table("public", "buchungen", 0, "id", change.Int, "mitarbeiter_id", change.Int, "projekt_id", change.Int, "datum", change.Date, "bemerkung", change.String, c.begin, c.a, c.end, c.b)
		f := field(t, drafted(t, work)["ps.time_entry"], "hours")
		if !f.Blank() || strings.Contains(f.Note, "hours(") != (c.want != "") || !strings.Contains(f.Note, c.want) {
			t.Errorf("%s %s: %+v, want %s", c.begin, c.end, f, c.want)
		}
	}
}

// Lost if this fails: everyone who ever left counts as somebody who is there.
func TestWhoLeftIsNotActive(t *testing.T) {
	for _, c := range []struct {
		column   string
		kind     change.Kind
		nullable bool
		want     string // "": it is left to do
	}{
		{"gone", change.Date, true, "row.gone == null"},
		{"left_on", change.Timestamp, true, "row.left_on == null"},
		{"austrittsdatum", change.Date, true, "row.austrittsdatum == null"},
		{"exit_date", change.Date, true, "row.exit_date == null"},
		{"gone", change.Bool, false, "!row.gone"},
		{"left_on", change.Date, false, ""}, // then it is no sign
		{"left:on", change.Date, true, ""},
		{"gone", change.String, true, ""},
	} {
		people := table("public", "employees", 0, "id", change.Int, "first_name", change.String, "surname", change.String, c.column, c.kind)
		people.Columns[3].Nullable = c.nullable
		if f := field(t, drafted(t, people)["ps.resource"], "active"); f.Text != c.want || f.Blank() != (c.want == "") {
			t.Errorf("%s %s: active is %q, want %q", c.column, c.kind, f.Text, c.want)
		}
	}
	firms := table("public", "customers", 0, "id", change.Int, "name", change.String, "closed_on", change.Date)
	firms.Columns[2].Nullable = true
	if f := field(t, drafted(t, firms)["ps.customer"], "active"); f.Text != "row.closed_on == null" {
		t.Errorf("a customer is active: %q", f.Text)
	}
}
