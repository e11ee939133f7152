package pgoutput

import (
	"testing"

	"github.com/tallywire/tallywire/change"
)

// If this failed, rows that are written by hand would be other rows than those
// that the stream brings, and a rule that is tested by them another rule.
func TestNamedTypes(t *testing.T) {
	for _, c := range []struct{ typ, text, want string }{
		{"bigint", "17", "17"},
		{"int8", "-9223372036854775808", "-9223372036854775808"},
		{"smallint", "32768", ""},
		{"boolean", "true", "t"},
		{"bool", "f", "f"},
		{"boolean", "1", ""},
		{"numeric(12,4)", "8", "8.0000"},
		{"NUMERIC (12, 4)", "-8.5", "-8.5000"},
		{"numeric(4,2)", "1.005", ""},
		{"numeric", "1.500", "1.500"},
		{"decimal(5)", "7", "7"},
		{"numeric", "NaN", "NaN"},
		{"double precision", "0.333333333", "0.333333333"},
		{"real", "1.5", "1.5"},
		{"double precision", "much", ""},
		{"text", "a b", "a b"},
		{"varchar(20)", "x", "x"},
		{"character(3)", "EU", "EU "},
		{"char(3)", "EUR", "EUR"},
		{"date", "2026-03-31", "2026-03-31"},
		{"date", "31.03.2026", ""},
		{"time", "08:30:00", "08:30:00"},
		{"timestamp", "2026-03-31T23:00:00", "2026-03-31 23:00:00"},
		{"timestamp(3) without time zone", "2026-03-31", "2026-03-31 00:00:00"},
		{"timestamptz", "2026-03-31T23:00:00Z", "2026-03-31 23:00:00+00"},
		{"timestamp with time zone", "2026-03-31 23:00:00+02", "2026-03-31 21:00:00+00"},
		{"timestamptz", "2026-03-31 23:00:00", ""},
		{"interval", "1 day 02:30:00", "1 day 02:30:00"},
		{"uuid", "6f9619ff-8b86-d011-b42d-00c04fc964ff", "6f9619ff-8b86-d011-b42d-00c04fc964ff"},
		{"jsonb", `{"a": 1}`, `{"a": 1}`},
		{"bytea", `\x00ff`, `\x00ff`},
		{"integer[]", "{1,2}", "{1,2}"},
		{"numeric(6,2)[]", "{1.50}", "{1.50}"},
	} {
		n, ok := NamedType(c.typ)
		if !ok {
			t.Errorf("%s is not known", c.typ)
			continue
		}
		b := change.Get()
		got := ""
		if v, err := n.Value(b, c.text); err == nil {
			got = string(b.AppendText(nil, v))
		}
		if got != c.want {
			t.Errorf("%q as %s is %q, want %q", c.text, c.typ, got, c.want)
		}
		b.Release()
	}
	for _, typ := range []string{"ltree", "numeric(", "numeric(0,0)", "date(3)", "timestamp(9)", "", "bigint(", "numeric(a)"} {
		if _, ok := NamedType(typ); ok {
			t.Errorf("%q is taken for a type", typ)
		}
	}
}
