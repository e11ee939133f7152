// Watch: the clock, what /proc says of processes, and the proof that what came
// out is right.

package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/benchmarks/internal/proc"
)

// How the clock goes: the output's last stable offset is read at each tick;
// once it has stood still for a while, what is committed is read and compared.
// The run ended when it last moved. Reading it all only then keeps the reader
// out of what is measured.
const (
	every  = 20 * time.Millisecond
	quiet  = 1500 * time.Millisecond
	within = 10 * time.Minute
)

const none = math.MinInt64 // no cost: the entry waits

// figure is one run.
type figure struct {
	rows    int64
	took    time.Duration
	written int64 // records of the output, with the markers of transactions

	self, redis, broker time.Duration // CPU
	rss, redisRSS       int64         // at their largest, octets
	others              time.Duration // CPU of who takes no part, this program neither

	quiet, within latency // of the section live
}

func (f figure) rate() float64               { return float64(f.rows) / f.took.Seconds() }
func (f figure) per(d time.Duration) float64 { return d.Seconds() / float64(f.rows) * 1e6 }
func (f figure) cpu() float64                { return f.per(f.self + f.redis) }

// foreign is what others took of the machine's time, in per cent.
func (f figure) foreign() float64 {
	return 100 * f.others.Seconds() / (f.took.Seconds() * float64(runtime.NumCPU()))
}

func (f figure) String() string {
	if f.quiet != nil {
		return fmt.Sprintf("in quiet p50 %v, p99 %v; within a fan-out of %.2f s (%d entries) p50 %v, p99 %v", ms(f.quiet.at(0.5)), ms(f.quiet.at(0.99)), f.took.Seconds(), len(f.within), ms(f.within.at(0.5)), ms(f.within.at(0.99)))
	}
	return fmt.Sprintf("%7.0f rows/s, %.2f s; CPU s per million: %.1f, redis-server %.1f, broker %.1f; peak RSS %d MiB, redis-server %d; %d records out; others %.0f %% of the machine",
		f.rate(), f.took.Seconds(), f.per(f.self), f.per(f.redis), f.per(f.broker), f.rss>>20, f.redisRSS>>20, f.written, f.foreign())
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// watcher follows the output of a contender.
type watcher struct {
	w      *world
	r      *running
	client *kgo.Client
	read   map[int32]int64  // offset after what was read, by partition
	costs  map[string]int64 // of each key, its last
}

func newWatcher(w *world, r *running) *watcher {
	return &watcher{w: w, r: r, read: map[int32]int64{}, costs: map[string]int64{}}
}

func (x *watcher) close() {
	if x.client != nil {
		x.client.Close()
	}
}

// sample is the CPU time of who takes part, and the output's end.
type sample struct {
	at                  time.Time
	end                 int64
	self, redis, broker time.Duration
	ours, busy          time.Duration // this program, all processes
}

func (x *watcher) sample(ctx context.Context) sample {
	s := sample{at: time.Now(), self: proc.CPU(x.r.pid), redis: proc.CPU(x.r.redis), broker: proc.CPU(x.w.kafka.PID()), ours: proc.CPU(os.Getpid()), busy: proc.Busy()}
	s.end, _ = x.w.ends(ctx, x.r.output) // not there yet: 0
	return s
}

// timed starts something and waits until the entries cost what they must; the
// first entries alone, when want is shorter than all.
func (x *watcher) timed(ctx context.Context, want []int64, begin func() error) (f figure, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	first := x.sample(ctx)
	last := first
	begun := make(chan error, 1)
	go func() { begun <- begin() }()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := x.r.ended(); err != nil {
			return f, err
		}
		s := x.sample(ctx)
		if s.end != last.end {
			last = s
		} else if s.at.Sub(last.at) > quiet && s.end > 0 {
			wrong, err := x.wrong(ctx, want)
			if err != nil {
				return f, err
			}
			if wrong == "" {
				break
			}
			if s.at.Sub(last.at) > time.Minute {
				return f, fmt.Errorf("nothing comes any more, and %s", wrong)
			}
		}
		select {
		case <-ctx.Done():
			return f, ctx.Err()
		case <-tick.C:
		}
	}
	f = figure{
		rows: int64(len(want) - 1), took: last.at.Sub(first.at), written: last.end - first.end,
		self: last.self - first.self, redis: last.redis - first.redis, broker: last.broker - first.broker,
		rss: proc.Peak(x.r.pid), redisRSS: proc.Peak(x.r.redis),
	}
	f.others = max(0, last.busy-first.busy-f.self-f.redis-f.broker-(last.ours-first.ours))
	return f, <-begun
}

// wrong reads what was committed since it was last called and says what is not
// as it must be: the number of keys, and the cost of each.
func (x *watcher) wrong(ctx context.Context, want []int64) (string, error) {
	if err := x.catchUp(ctx); err != nil {
		return "", fmt.Errorf("reading %s: %w", x.r.output, err)
	}
	if len(x.costs) != len(want) {
		return fmt.Sprintf("the output has %d keys of %d", len(x.costs), len(want)), nil
	}
	for i, c := range want {
		if got := x.costs[entryKey(i)]; got != c {
			return fmt.Sprintf("entry %d costs %d instead of %d", i, got, c), nil
		}
	}
	return "", nil
}

// catchUp reads the output to its last stable offsets.
func (x *watcher) catchUp(ctx context.Context) error {
	ends, err := x.w.admin.ListCommittedOffsets(ctx, x.r.output)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return err
	}
	if x.client == nil {
		x.client, err = kgo.NewClient(kgo.SeedBrokers(x.w.kafka.Addr()), kgo.ConsumeTopics(x.r.output), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepControlRecords(), kgo.FetchMaxBytes(16<<20), kgo.FetchMaxPartitionBytes(8<<20))
		if err != nil {
			return err
		}
	}
	behind := func() (yes bool) {
		ends.Each(func(o kadm.ListedOffset) { yes = yes || x.read[o.Partition] < o.Offset })
		return yes
	}
	for behind() {
		fs := x.client.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return err
		}
		fs.EachRecord(func(r *kgo.Record) {
			x.read[r.Partition] = r.Offset + 1
			if r.Attrs.IsControl() || err != nil {
				return
			}
			var cost int64
			if cost, err = x.r.cost(r.Key, r.Value); err == nil {
				// Avro's string, behind the head of five octets and its length in one.
				x.costs[string(r.Key[6:])] = cost
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}
