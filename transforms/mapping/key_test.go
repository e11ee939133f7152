package mapping_test

import (
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
