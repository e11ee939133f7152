package join_test

import (
	"log/slog"
	"testing"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/join"
)

// Who waits is shown to people: also after a restart, and after the state was
// lost and rebuilt, without a record having to arrive.
func TestWaitingIsCounted(t *testing.T) {
	w := calm(t)
	comp := obs.New(slog.New(slog.DiscardHandler)).Component("transform", "costed")
	w.left.make = func() pipeline.Keeper {
		l, _ := join.New(compiled(t, costing()), join.Options{
			Redis: w.left.rdb, Log: slog.New(slog.DiscardHandler), Component: comp,
			Topics: worldTopics{w},
		})
		l.Stores()[0].CheckEvery = 0
		return l
	}
	w.left.stage = w.left.make()
	want := func(n int64) {
		t.Helper()
		if got := comp.View().Waiting; got != n {
			t.Errorf("%d wait, want %d", got, n)
		}
	}
	references(w)
	w.entry(1, "1", "1", 3, 100)
	w.entry(2, "1", "2", 3, 100) // no customer
	w.entry(3, "2", "1", 3, 100) // no rate
	w.entry(4, "2", "1", 3, 100)
	w.delete("ps.time_entry", "4")
	settled(t, w)
	want(2)
	w.rate("2", 7, 0, -1, 600000, "EUR")
	settled(t, w)
	want(1)

	comp.Waiting(0)
	w.left.stage = w.left.make()
	w.take(t, w.left)
	want(1)

	if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	w.take(t, w.left, w.right)
	w.take(t, w.left)
	want(1)
}
