package join_test

import (
	"context"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
	"github.com/tallywire/tallywire/pipeline/state"
)

// all is every record of some topics, as one batch.
func (w *world) all(topics ...string) *change.Batch {
	b := change.Get()
	for _, name := range topics {
		l := w.logs[name]
		for p := range int32(partitions) {
			for o := range l.parts[p] {
				l.put(b, p, int64(o), w.texts)
			}
			if n := int64(len(l.parts[p])); n > 0 {
				b.Ranges = append(b.Ranges, change.Range{Topic: l.topic, Partition: p, From: 0, To: n})
			}
		}
	}
	return b
}

// begin empties Redis and has both groups take their partitions.
func begin(t testing.TB, addr string) *world {
	w := newWorld(t, addr, 1, costing())
	w.sched.Flush = func() {}
	if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	w.take(t, w.left, w.right)
	return w
}

func (w *world) take(t testing.TB, groups ...*group) {
	t.Helper()
	for _, g := range groups {
		if err := g.check(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) apply(t testing.TB, g *group) {
	t.Helper()
	if err := g.work(t.Context(), 1000, false); err != nil {
		t.Fatal(err)
	}
}

func references(w *world) {
	w.customer("1", "c1")
	w.project("1", "1", "EUR")
	w.project("2", "2", "EUR") // whose customer is missing
	w.rate("1", 8, 0, 5, 600000, "EUR")
	w.rate("1", 9, 5, -1, 700000, "EUR")
}

func TestLeftSuite(t *testing.T) {
	addr := miniRedis(t)
	var w *world
	input := func(hours int64) func(testing.TB) *change.Batch {
		return func(testing.TB) *change.Batch {
			if len(w.logs["ps.time_entry"].latest()) == 0 {
				for v := range int64(3) {
					for id := range 4 {
						w.entry(id, "1", "1", 3+v, hours)
					}
				}
				w.entry(5, "1", "2", 3, 100)
				w.delete("ps.time_entry", "2")
				w.logs[refreshTopic].append("3", row{"left_key": w.str("3")}) // as the right side would tell
			}
			return w.all("ps.time_entry")
		}
	}
	c := pipelinetest.StageCase{
		New: func(tb testing.TB) pipeline.Stage {
			w = begin(tb, addr)
			references(w)
			w.apply(tb, w.right)
			return w.left.stage
		},
		Input: input(100),
		Wipe: func(tb testing.TB) {
			if err := w.rdb.FlushAll(tb.Context()).Err(); err != nil {
				tb.Fatal(err)
			}
			w.take(tb, w.right)
		},
		Bad: func(tb testing.TB) *change.Batch {
			w.rate("1", 9, 5, -1, 5000, "?")
			w.take(tb, w.left)
			w.apply(tb, w.right)
			w.entry(1, "1", "1", 6, 100)
			w.entry(2, "1", "1", 3, 100)
			w.entry(3, "1", "1", 6, 100) // by the same rate
			return w.all("ps.time_entry")
		},
		Rejects: 2,
	}
	pipelinetest.StageSuite(t, c)
}

func TestRightSuite(t *testing.T) {
	addr := miniRedis(t)
	var w *world
	pipelinetest.StageSuite(t, pipelinetest.StageCase{
		New: func(tb testing.TB) pipeline.Stage {
			w = begin(tb, addr)
			for id := range 6 {
				w.entry(id, string(rune('1'+id/2)), "1", 3, 100)
			}
			w.apply(tb, w.left)
			return w.right.stage
		},
		// One change of each reference: two of one in a batch tell once, in two
		// batches twice.
		Input: func(testing.TB) *change.Batch {
			if len(w.logs["ps.cost_rate"].latest()) == 0 {
				w.rate("1", 8, 0, 5, 600000, "EUR")
				w.rate("2", 9, 0, 5, 600000, "EUR")
				w.delete("ps.cost_rate", "3/10")
			}
			return w.all("ps.cost_rate")
		},
		State: func(testing.TB) *state.Table { return w.right.table },
		Wipe: func(tb testing.TB) {
			if err := w.rdb.FlushAll(tb.Context()).Err(); err != nil {
				tb.Fatal(err)
			}
			w.take(tb, w.left)
			// The suite looks after the partitions of its batches only.
			for _, s := range w.right.stage.Stores() {
				for p := range int32(partitions) {
					if l := w.logs[s.Topic()]; len(l.parts[p]) == 0 {
						if _, _, err := s.Check(tb.Context(), l.topic, p, 0); err != nil {
							tb.Fatal(err)
						}
					}
				}
			}
		},
	})
}
