package join_test

import (
	"testing"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline/state"
	"github.com/tallywire/tallywire/transforms/join"
)

// start has both groups run under a rule, from where they are.
func (w *world) start(t *testing.T, rule join.Rule) {
	w.plan = compiled(t, rule)
	for _, g := range []*group{w.left, w.right} {
		g.stage = g.make()
	}
}

// The rule begins to use another column of the rates, and then one of them is deleted
// that was read before. If this failed, nobody would know whose cost it was.
func TestRatesGoUnderAnotherRule(t *testing.T) {
	w := calm(t)
	references(w)
	w.entry(1, "1", "1", 7, 100)
	w.entry(2, "1", "1", 3, 100)
	settled(t, w)
	rule := costing()
	rule.Uses = append(rule.Uses, "cost_rate.updated_at")
	w.start(t, rule)
	w.delete("ps.cost_rate", "1/9")
	w.take(t, w.left, w.right)
	w.apply(t, w.right)
	w.drain(t.Context())
	if got := w.field(t, w.logs[wide].latest(), "1", join.WaitsColumn); got != "cost_rate of resource 1 on 1970-01-08" {
		t.Errorf("the entry says it waits for %q", got)
	}
}

// Another has deleted the beginning of a topic, as Kafka does with what is older than its
// retention, before a rule was there that looks its rows up by a column. If this failed,
// the rule would halt at its first row, and no replay would help.
func TestRowsOfATopicWithoutItsBeginning(t *testing.T) {
	w := calm(t)
	references(w)
	rates := w.logs["ps.cost_rate"]
	for id := 20; id < 40; id++ { // each partition had some
		w.rate("9", id, 0, -1, 1, "EUR")
	}
	for p := range rates.parts {
		rates.start[p] = int64(len(rates.parts[p]))
	}
	*w.right.committed["ps.cost_rate"] = rates.start // where a group begins that never was there
	w.rate("1", 8, 0, 5, 600000, "EUR")
	w.rate("1", 9, 5, -1, 700000, "EUR")
	w.entry(1, "1", "1", 7, 100)
	settled(t, w)
	w.delete("ps.cost_rate", "1/9")
	settled(t, w)
	if got := w.field(t, w.logs[wide].latest(), "1", join.WaitsColumn); got != "cost_rate of resource 1 on 1970-01-08" {
		t.Errorf("the entry says it waits for %q", got)
	}
}

// A lookup begins to find rows by another column, or what was known of them is gone. If
// this failed, a row that is deleted then would be told to nobody, with all green.
//
// Remedy: TW-LOOKUP-UNSEEN
func TestGroupsThatAreNotKnown(t *testing.T) {
	another := costing()
	another.Lookups["cost_rate"] = join.Lookup{Topic: "ps.cost_rate", On: "row.resource_id", By: "currency"}
	for name, begin := range map[string]func(*world){
		"another column": func(w *world) { w.start(t, another) },
		"lost": func(w *world) {
			w.right.changelog = [partitions][]*state.Entry{}
			if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			w.start(t, costing())
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := calm(t)
			references(w)
			w.entry(1, "1", "1", 7, 100)
			w.entry(2, "EUR", "1", 7, 100)
			settled(t, w)
			begin(w)
			w.delete("ps.cost_rate", "1/9")
			w.take(t, w.left, w.right)
			err := w.right.work(t.Context(), 1000, false)
			if !problem.Has(err, join.ErrUnseen) {
				t.Fatalf("it says %v, want TW-LOOKUP-UNSEEN", err)
			}
			for _, at := range w.right.committed { // tallywire replay
				*at = [partitions]int64{}
			}
			w.rate("1", 9, 5, -1, 700000, "EUR")
			w.drain(t.Context())
			w.delete("ps.cost_rate", "1/9")
			w.delete("ps.cost_rate", "1/8")
			w.drain(t.Context())
			for key, row := range w.logs[wide].latest() {
				if rate := row["cost_rate.rate"]; !rate.IsNull() {
					t.Errorf("entry %s still has a rate", key)
				}
			}
			// The rule that was may come back: what it finds rows by was never lost.
			w.start(t, costing())
			w.rate("1", 9, 5, -1, 710000, "EUR")
			w.drain(t.Context())
			w.delete("ps.cost_rate", "1/9")
			w.drain(t.Context())
			if got := w.field(t, w.logs[wide].latest(), "1", "cost_rate.rate"); got != "" {
				t.Errorf("under the rule that was: rate %s", got)
			}
		})
	}
}
