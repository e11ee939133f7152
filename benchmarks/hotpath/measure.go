// Measure: both sides in turns.

package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"
)

// figure is one line of the table; times are nanoseconds of one change.
type figure struct {
	stage, op           string
	ours, theirs        float64
	allocs, theirAllocs float64
}

func (f *figure) name() string   { return f.stage + "/" + f.op }
func (f *figure) times() float64 { return f.theirs / f.ours }

// stage is a pair of paths that do the same.
type stage struct {
	name         string
	ours, theirs func() error
}

// Batches of a turn: so many that neither finds the caches as the other left
// them for a large part of it, and that each of the oracle's turns collects its
// garbage a few times.
const turnBatches = 8

func measure(ctx context.Context, h *hot, o *oracle, turns int) ([]figure, error) {
	var out []figure
	for _, op := range operations {
		msgs := messages(op.op)
		for _, s := range []stage{
			{"decode", func() error { return h.decode(msgs) }, func() error { return o.parse(msgs) }},
			{"encode", h.encode, o.encode},
			{"whole", func() error { return h.whole(msgs) }, func() error { return o.whole(msgs) }},
		} {
			if s.name == "encode" { // both have decoded then
				if err := h.decode(msgs); err != nil {
					return nil, err
				}
				if err := o.decode(msgs); err != nil {
					return nil, err
				}
			}
			f, err := s.run(ctx, turns)
			if err != nil {
				return nil, fmt.Errorf("%s of an %s: %w", s.name, op.name, err)
			}
			f.stage, f.op = s.name, op.name
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(a, b figure) int { return len(a.stage) - len(b.stage) }) // whole, the shortest word, first
	return out, nil
}

func (s *stage) run(ctx context.Context, turns int) (f figure, err error) {
	count := func(run func() error) float64 {
		return testing.AllocsPerRun(5, func() {
			if e := run(); e != nil {
				err = e
			}
		}) / batchRows
	}
	f.allocs, f.theirAllocs = count(s.ours), count(s.theirs)
	turn := func(run func() error) (time.Duration, error) {
		runtime.GC() // not what the other left behind
		began := time.Now()
		for range turnBatches {
			if err := run(); err != nil {
				return 0, err
			}
		}
		return time.Since(began), nil
	}
	var ours, theirs []time.Duration
	for range turns {
		if err := ctx.Err(); err != nil {
			return f, err
		}
		a, err := turn(s.ours)
		if err != nil {
			return f, err
		}
		b, err := turn(s.theirs)
		if err != nil {
			return f, err
		}
		ours, theirs = append(ours, a), append(theirs, b)
	}
	f.ours = float64(quartile(ours).Nanoseconds()) / (turnBatches * batchRows)
	f.theirs = float64(quartile(theirs).Nanoseconds()) / (turnBatches * batchRows)
	return f, err
}

// quartile is the first one: on a busy machine the median is of turns in which
// somebody else had the core, sometimes for one side alone.
func quartile(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/4]
}
