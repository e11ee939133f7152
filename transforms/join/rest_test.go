package join

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// How much of a fan-out is told at once: little while left rows come, since those wait
// behind it; more in quiet; nothing while the other group has enough to do, but not for
// ever. If this failed, new entries would wait until all who depend on a rate were told,
// or a fan-out would never end.
func TestRoomOfAFanOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Flow
		asked := 0
		r := &Right{most: 100, patience: aheadAfter, flow: func(context.Context) (Flow, error) {
			asked++
			return f, nil
		}}
		room := func(what string, want int) {
			t.Helper()
			if got, err := r.room(t.Context()); err != nil || got != want {
				t.Errorf("%s: %d may be told (%v), want %d", what, got, err, want)
			}
			if want > 0 {
				r.pace.at = time.Now()
			}
		}
		room("at first", 400)
		f.Queued = 1600
		time.Sleep(askEvery)
		room("four pages in the queue", 0)
		asked = 0
		room("at once again", 0)
		if asked > 0 {
			t.Errorf("Kafka was asked %d times", asked)
		}
		f.Queued--
		time.Sleep(askEvery)
		room("less than four pages", 400)

		f.Ends++ // a left row comes
		time.Sleep(askEvery)
		room("many in the queue", 0)
		f.Queued = 399
		time.Sleep(askEvery)
		room("few in the queue", 100)
		time.Sleep(quietAfter - askEvery)
		room("for a while", 100)
		time.Sleep(askEvery + time.Millisecond)
		room("in quiet", 400)

		f.Queued = 5000 // and stays
		for range aheadAfter/askEvery - 1 {
			time.Sleep(askEvery)
			room("nobody works on it", 0)
		}
		time.Sleep(askEvery)
		room("nobody works on it for a second", 400)

		time.Sleep(time.Hour) // between two fan-outs many came
		f = Flow{Ends: 1_000_000}
		room("the next fan-out", 400)
		f.Queued = 7
		time.Sleep(askEvery)
		room("some are in the queue", 400)
		if got, want := r.doing(0, &cursor{of: &ref{name: "rate"}, value: "12"}), "telling who depends on rate 12: 0 rows so far, 7 of all who were told are still to be worked off"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}
