// Watch: the clock. A contender's progress and CPU time are sampled while it
// runs, and the figures are cut out of the samples afterwards.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/tallywire/tallywire/benchmarks/internal/proc"
)

// The steady part of a run, as fractions of its records: without the start, in
// which a JVM compiles, and without the end, in which queues run dry.
const steadyFrom, steadyTo = 0.25, 0.95

const every = 50 * time.Millisecond

// figure is what one run gave. Zero: not measured.
type figure struct {
	steady float64 // rows (changes) per second between 25 and 95 % of them
	whole  float64 // from the first to the last
	// CPU seconds per million rows over the steady part: of the contender, its
	// walsender, the broker.
	self, sender, broker float64
	total                float64       // CPU s of the contender from its start to the last record, per million rows
	rss                  float64       // peak, octets
	first                time.Duration // from the start of the process to the first record
	p50, p95, p99        float64       // latency, ms
	// Of the generator's own INSERT, ms: part of all latencies; a disk that is
	// slow to flush shows here.
	commit50, commit99 float64
	core               float64 // share of a core that the contender took while latency was measured
	// others is the share of the machine that was taken by what has no part in
	// the run: above some hundredths the rate says little.
	others float64
}

type sample struct {
	at                   time.Time
	n                    int64
	self, sender, broker time.Duration
	busy                 time.Duration // the whole machine, less what has a part in the run
}

// watcher samples one run.
type watcher struct {
	w        *world
	slot     string // whose walsender; "": unknown
	self     *child
	broker   *broker // nil: none takes part
	sender   int
	progress func(context.Context) (int64, error)

	samples []sample
	peak    int64 // largest resident set seen, octets
}

// sample takes one.
func (x *watcher) sample(ctx context.Context) error {
	if x.sender == 0 && x.slot != "" {
		if err := x.w.sql.QueryRow(ctx, `select coalesce(max(active_pid), 0) from pg_replication_slots where slot_name = $1`, x.slot).Scan(&x.sender); err != nil {
			return fmt.Errorf("looking for the walsender: %w", err)
		}
	}
	n, err := x.progress(ctx)
	if err != nil {
		return fmt.Errorf("reading the progress of %s: %w", x.self.name, err)
	}
	s := sample{at: time.Now(), n: n, self: proc.CPU(x.self.pid)}
	if x.sender != 0 {
		s.sender = proc.CPU(x.sender)
	}
	if x.broker != nil {
		s.broker = proc.CPU(x.broker.PID())
	}
	s.busy = proc.Busy() - s.self - s.sender - s.broker - proc.CPU(os.Getpid())
	x.peak = max(x.peak, proc.Peak(x.self.pid))
	x.samples = append(x.samples, s)
	return nil
}

// errLong says that a run did not come to its end.
var errLong = errors.New("it took too long")

// until samples until enough says so, or the contender ends (its samples end
// there), or limit passes.
func (x *watcher) until(ctx context.Context, interval, limit time.Duration, enough func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	late := time.After(limit)
	for {
		if err := x.sample(ctx); err != nil {
			return err
		}
		if yes, err := enough(); yes || err != nil {
			return err
		}
		select {
		case <-x.self.done:
			return x.self.ended()
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return fmt.Errorf("%s: %w: %d after %s\n%s", x.self.name, errLong, x.last().n, limit, x.self.tail())
		case <-tick.C:
		}
	}
}

func (x *watcher) last() sample { return x.samples[len(x.samples)-1] }

// still says that nothing has moved for the last k samples.
func (x *watcher) still(k int) bool {
	return len(x.samples) > k && x.samples[len(x.samples)-1-k].n == x.last().n
}

// delivered watches until a topic holds exactly want committed records, and
// counts them; the end offset alone would count the markers of transactions.
func (x *watcher) delivered(ctx context.Context, topic string, want int64) error {
	x.progress = func(ctx context.Context) (int64, error) { return x.broker.ends(ctx, topic) }
	var counted int64
	return x.until(ctx, every, 4*time.Minute, func() (bool, error) {
		if n := x.last().n; n < want || n == counted || !x.still(10) {
			return false, nil
		}
		counted = x.last().n
		n, err := x.broker.count(ctx, topic)
		if err != nil {
			return false, err
		}
		if n > want {
			return false, fmt.Errorf("%s delivered %d records, wanted are %d", x.self.name, n, want)
		}
		return n == want, nil
	})
}

// figure cuts the figures out, for rows of work. The windows begin and end at
// samples, with what was seen there: a step of a large transaction cannot blur
// them. A run too short for a window gives no rate.
func (x *watcher) figure(rows int64) figure {
	f := figure{rss: float64(x.peak)}
	total := x.last().n
	at := func(fraction float64) sample {
		for _, s := range x.samples {
			if float64(s.n) >= fraction*float64(total) && s.n > 0 {
				return s
			}
		}
		return x.last()
	}
	perRow := float64(rows) / float64(total)
	begin, from, to, end := at(0), at(steadyFrom), at(steadyTo), at(1)
	f.first = begin.at.Sub(x.self.began)
	if end.n > begin.n {
		f.whole = float64(end.n-begin.n) * perRow / end.at.Sub(begin.at).Seconds()
	}
	f.total = end.self.Seconds() / float64(rows) * 1e6
	if to.n > from.n {
		n := float64(to.n-from.n) * perRow
		f.steady = n / to.at.Sub(from.at).Seconds()
		f.self = (to.self - from.self).Seconds() / n * 1e6
		f.sender = (to.sender - from.sender).Seconds() / n * 1e6
		f.broker = (to.broker - from.broker).Seconds() / n * 1e6
		f.others = max(0, (to.busy-from.busy).Seconds()/to.at.Sub(from.at).Seconds()/float64(runtime.NumCPU()))
	}
	return f
}

func (f figure) String() string {
	if f.p50 > 0 {
		return fmt.Sprintf("p50 %.1f, p95 %.1f, p99 %.1f ms (of which the INSERT itself: p50 %.1f, p99 %.1f), %.0f %% of a core; others %.0f %% of the machine",
			f.p50, f.p95, f.p99, f.commit50, f.commit99, f.core*100, f.others*100)
	}
	if f.total == 0 {
		return fmt.Sprintf("first record after %.2f s", f.first.Seconds())
	}
	return fmt.Sprintf("%s rows/s steady, %s whole; CPU s per million: %.2f (whole %.2f), walsender %.2f, broker %.2f; peak RSS %.0f MiB; first record after %.2f s; others %.0f %% of the machine",
		thousands(f.steady), thousands(f.whole), f.self, f.total, f.sender, f.broker, f.rss/(1<<20), f.first.Seconds(), f.others*100)
}

func thousands(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1fk", v/1000)
}
