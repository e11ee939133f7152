// Window: the quantiles of recent durations, exact.

package obs

import (
	"fmt"
	"sort"
	"strconv"
	"time"
)

// Window keeps the last durations for exact quantiles of recent work. The zero
// Window is ready; it is guarded by its owner's lock.
type Window struct {
	at   int
	n    int
	ring [1024]sample
}

type sample struct {
	when time.Time
	d    time.Duration
}

// Add notes a duration.
func (w *Window) Add(d time.Duration) {
	w.ring[w.at] = sample{time.Now(), d}
	w.at = (w.at + 1) % len(w.ring)
	if w.n < len(w.ring) {
		w.n++
	}
}

// Forget empties the window.
func (w *Window) Forget() { w.at, w.n = 0, 0 }

// Quantiles of what was noted within the last minute; zero when nothing was.
func (w *Window) Quantiles() (p50, p95, p99 time.Duration) {
	since := time.Now().Add(-time.Minute)
	ds := make([]time.Duration, 0, w.n)
	for _, s := range w.ring[:w.n] {
		if s.when.After(since) {
			ds = append(ds, s.d)
		}
	}
	if len(ds) == 0 {
		return 0, 0, 0
	}
	sort.Slice(ds, func(i, j int) bool { return ds[i] < ds[j] })
	q := func(p float64) time.Duration { return ds[int(p*float64(len(ds)-1))] }
	return q(0.50), q(0.95), q(0.99)
}

func itoa(n int32) string { return strconv.Itoa(int(n)) }

func progressText(what string, done, total int64) string {
	if what == "" {
		return ""
	}
	if total > 0 {
		return fmt.Sprintf("%d of %d %s", done, total, what)
	}
	return fmt.Sprintf("%d %s", done, what)
}
