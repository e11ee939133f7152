package avro

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/change"
)

// Lost if this fails: a registry, or a reader, refuses the schema of a table for its
// name; or two tables that need not be are records of one name.
func TestNamesOfTablesAreAvroNames(t *testing.T) {
	part := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	name := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"grö", "gr_x00F6_", "order items", "a.b", "a", "b", "1a", "_1a", "😀"})).Filter(func(s string) bool {
		return s != "" && !strings.Contains(s, "-") && (s[0] < '0' || s[0] > '9')
	})
	rapid.Check(t, func(t *rapid.T) {
		tables := [2][2]string{{name.Draw(t, "schema"), name.Draw(t, "table")}, {name.Draw(t, "schema"), name.Draw(t, "table")}}
		var spaces [2]string
		for i, n := range tables {
			spaces[i] = namespace(change.TopicName("psa", n[0], n[1]))
			parts := strings.Split(spaces[i], ".")
			for _, p := range parts {
				if !part.MatchString(p) {
					t.Fatalf("%q is in the name of %q", p, n)
				}
			}
			if len(parts) != 3 {
				t.Fatalf("%q has the name %s", n, spaces[i])
			}
		}
		if (spaces[0] == spaces[1]) != (tables[0] == tables[1]) {
			t.Fatalf("%q have the names %q", tables, spaces)
		}
	})
	if namespace("psa.public.a-b") != "psa.public.a_b" || namespace("psa.public.1a") != "psa.public._1a" {
		t.Error("names of before are others now")
	}
}
