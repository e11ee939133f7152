package mapping_test

import (
	"math"
	"math/big"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	cfg "github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// A key that is said once must be the one that the field would have been given:
// another would leave the records of before under their old keys.
func TestKeyOfARule(t *testing.T) {
	for _, key := range []string{"id", "line-{id}", `"line-" + string(row.id)`} {
		byField := entryRule()
		byField.Fields["time_entry_id"] = theText(key)
		byKey := entryRule()
		delete(byKey.Fields, "time_entry_id")
		byKey.Key = theText(key)
		var got [][]string
		for _, r := range []mapping.Topic{byField, byKey} {
			got = append(got, applied(t, rules(t, r), func(b *change.Batch) {
				b.Append(lines, change.Create).New = line(b, 17)
				b.Append(lines, change.Delete).Old = line(b, 18)
			}).got)
		}
		if len(got[0]) != 2 {
			t.Errorf("%s: %q", key, got[0])
		}
		want(t, got[1], got[0]...)
	}
}

// twoKeys is a contract whose key has two fields.
func twoKeys(t *testing.T) avro.Catalogue {
	t.Helper()
	return catalogue(t, `{"type": "record", "name": "Pair", "namespace": "firm", "doc": "A pair.", "topic": "firm.pair", "key": ["left", "right"], "owner": "sales", "fields": [
		{"name": "left", "type": "string", "doc": "One.", "owner": "sales", "sensitivity": "internal"},
		{"name": "right", "type": "string", "doc": "Other.", "owner": "sales", "sensitivity": "internal"}]}`)
}

// What is wrong with a key is told with the rest, where it stands.
func TestMistakesOfAKey(t *testing.T) {
	for name, c := range map[string]struct {
		key  cfg.Scalar
		to   string
		says []string
	}{
		"several":      {theText("line-{id}"), "firm.pair", []string{"topics[0].key", "the key of firm.pair has several fields: left, right", "under fields"}},
		"constant":     {theText("=x"), "ps.resource", []string{"topics[0].key", "a key that is a constant", `"psa-public-line-{id}"`}},
		"number":       {cfg.Scalar{Kind: cfg.NumberScalar, Text: "1"}, "ps.resource", []string{"topics[0].key", "a key that is a constant"}},
		"twice":        {theText("line-{user_id}"), "ps.resource", []string{"topics[0].key", "fields names resource_id as well", "Leave one of the two out."}},
		"expression":   {theText("rwo.id"), "ps.resource", []string{"topics[0].key@1:1", "there is no rwo here"}},
		"nothing":      {theText(""), "ps.resource", []string{"topics[0].key", "is missing"}},
		"and the rest": {theText("rwo.id"), "ps.resource", []string{"there is no rwo here", "topics[0].where@1:", `"frist_name"`}},
	} {
		t.Run(name, func(t *testing.T) {
			r := peopleRule("row.deleted =")
			r.Fields["frist_name"] = theText("x")
			if r.To, r.Key = c.to, c.key; c.to == "firm.pair" {
				r.Fields = nil
			}
			if name != "twice" {
				delete(r.Fields, "resource_id")
			}
			_, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{r}}, twoKeys(t), nil)
			all := problem.Format(err)
			for _, s := range c.says {
				if !strings.Contains(all, s) {
					t.Errorf("it does not say %q:\n%s", s, all)
				}
			}
		})
	}
	// Two rules whose keys may meet are told at the key.
	one, two := peopleRule(""), peopleRule("")
	delete(two.Fields, "resource_id")
	two.From, two.Key = "hr.public.people", theText("line-{id}")
	_, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{one, two}}, nil, nil)
	if p := problem.Of(err); p == nil || p.Where != "transforms.canonical.topics[1].key" {
		t.Errorf("keys that may meet: %s", problem.Format(err))
	}
}

// A foreign key may have another type than the key that it names: numeric(12,2)
// onto numeric(10,0). Spelled as they come, the one is "5.00", the other "5", and
// the row waits for ever on a project 5.00.
func TestKeysAreOfOneSpelling(t *testing.T) {
	table := (&change.Table{
		Source: "psa", Schema: "public", Name: "line", Topic: "psa.public.line", OldFull: true, Key: []int{0},
		Columns: []change.Column{
			{Name: "id", Type: "numeric(10,0)", Kind: change.Decimal, Precision: 10},
			{Name: "user_id", Type: "numeric(12,2)", Kind: change.Decimal, Precision: 12, Scale: 2},
			{Name: "project", Type: "double precision", Kind: change.Float64},
			{Name: "note", Type: "numeric(12,2)", Kind: change.Decimal, Precision: 12, Scale: 2},
		},
	}).Index()
	all := catalogue(t, `{"type": "record", "name": "Line", "namespace": "firm", "doc": "A line.", "topic": "firm.line", "key": ["line_id"], "owner": "sales", "fields": [
		{"name": "line_id", "type": "string", "doc": "Id.", "owner": "sales", "sensitivity": "internal"},
		{"name": "resource_id", "type": "string", "doc": "Who.", "owner": "sales", "sensitivity": "internal", "references": "ps.resource"},
		{"name": "project_id", "type": "string", "doc": "Where.", "owner": "sales", "sensitivity": "internal", "references": "ps.project"},
		{"name": "note", "type": "string", "doc": "No key.", "owner": "sales", "sensitivity": "internal"}]}`)
	rule := mapping.Topic{From: table.Topic, To: "firm.line", Fields: texts(map[string]string{"line_id": "id", "resource_id": "psa-{user_id}/{id}", "project_id": "project"})}
	s, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{rule}}, all, nil)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	o := applied(t, s, func(b *change.Batch) {
		for _, d := range []struct {
			id, user change.Value
			project  float64
		}{
			{change.DecimalValue(5, 0), change.DecimalValue(500, 2), 5},
			{change.DecimalValue(50, 1), change.DecimalValue(550, 2), math.Copysign(0, -1)},
			{change.DecimalValue(0, 0), change.DecimalValue(-1000, 2), 0.5},
			{b.BigDecimal(new(big.Int).Exp(big.NewInt(10), big.NewInt(30), nil), 5), change.DecimalValue(0, 2), 1e20},
		} {
			row := b.Row(4)
			row[0], row[1], row[2], row[3] = d.id, d.user, change.Float64Value(d.project), change.DecimalValue(500, 2)
			b.Append(table, change.Create).New = row
		}
	})
	want(t, o.got,
		"firm.line c 5|psa-5/5|5|5.00|",
		"firm.line c 5|psa-5.5/5|0|5.00|",
		"firm.line c 0|psa--10/0|0.5|5.00|",
		"firm.line c 10000000000000000000000000|psa-0/10000000000000000000000000|1e+20|5.00|")
}
