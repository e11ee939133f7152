package consume

import (
	"testing"
	"time"
)

// A5. An open transaction that nobody ends holds all readers up; without the
// age of the last stable offset that looks like a slow consumer.
func TestStableAge(t *testing.T) {
	p, now := &Owned{}, time.Now()
	for i, c := range []struct {
		stable, end int64
		want        time.Duration // one second passes per step
	}{
		{5, 5, 0},
		{5, 7, 0},
		{5, 9, time.Second},
		{8, 9, 0}, // it moves
		{8, 9, time.Second},
		{9, 9, 0},
		{9, 9, 0},
		{9, 10, 0},
		{9, 10, time.Second},
	} {
		now = now.Add(time.Second)
		if got := p.stableAge(c.stable, c.end, now); got != c.want {
			t.Errorf("step %d: %v, want %v", i, got, c.want)
		}
	}
}
