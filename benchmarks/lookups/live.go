// Live: how long a new entry takes until its result may be read, in quiet and while one
// rate has 100,000 others told.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	livePerSecond = 500
	liveQuiet     = 10 * time.Second // measured before the rate changes
	liveMost      = 30_000           // a minute of them: a fan-out that takes longer is an error
)

// liveEntry is an entry that is written again, with other hours.
type liveEntry struct {
	record *kgo.Record
	entry  int
	cost   int64
}

// latency is how long entries took, each from when it was due to be sent.
type latency []time.Duration

// at is a quantile of what was measured, from 0 to 1.
func (l latency) at(q float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(l))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// feed sends entries one by one and reads when their results are committed.
type feed struct {
	w      *world
	client *kgo.Client

	mu    sync.Mutex
	due   map[string]time.Time // by key, those that have not come
	took  latency
	told  map[string]bool // keys that are to come because of the rate
	last  time.Time       // when the last of told came
	wrong error
}

// live measures entries in quiet, then while the rate's entries are told.
func (w *world) live(ctx context.Context, x *watcher, d *data) (f figure, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	ends, err := w.admin.ListCommittedOffsets(ctx, x.r.output)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return f, err
	}
	c, err := kgo.NewClient(kgo.SeedBrokers(w.kafka.Addr()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(time.Second),
		kgo.ConsumePartitions(ends.KOffsets()))
	if err != nil {
		return f, err
	}
	e := &feed{w: w, client: c, due: map[string]time.Time{}, told: map[string]bool{}}
	reading := make(chan struct{})
	go func() { defer close(reading); e.read(ctx) }()
	defer func() { c.Close(); <-reading }()

	quietly := int(liveQuiet.Seconds() * livePerSecond)
	if len(d.live) < liveMost {
		return f, fmt.Errorf("the section live writes up to %d entries of others, and there are %d: -entries has to be larger", liveMost, len(d.live))
	}
	if f.quiet, _, err = e.send(ctx, d.live[:quietly], func() bool { return false }); err != nil {
		return f, err
	}
	e.mu.Lock()
	for i, c := range d.after {
		if c != d.costs[i] {
			e.told[entryKey(i)] = true
		}
	}
	e.mu.Unlock()
	began := time.Now()
	if err := w.produce(ctx, d.changed); err != nil {
		return f, err
	}
	var sent int
	if f.within, sent, err = e.send(ctx, d.live[quietly:], func() bool { return len(e.told) == 0 }); err != nil {
		return f, err
	}
	if f.rows, f.took = int64(d.touched), e.tellingEnded().Sub(began); f.took < 0 {
		return f, errors.New("not all entries were told of the rate while the live ones lasted")
	}
	want := slices.Clone(d.after)
	for _, l := range d.live[:quietly+sent] {
		want[l.entry] = l.cost
	}
	_, err = x.timed(ctx, want, func() error { return nil })
	return f, err
}

// send sends entries, at their time, until it is enough, and waits until all that it
// sent have come. sent: how many.
func (e *feed) send(ctx context.Context, entries []liveEntry, enough func() bool) (took latency, sent int, err error) {
	began := time.Now()
	for i, l := range entries {
		due := began.Add(time.Duration(i) * time.Second / livePerSecond)
		if err := sleep(ctx, time.Until(due)); err != nil {
			return nil, sent, err
		}
		e.mu.Lock()
		stop := enough()
		if !stop {
			e.due[entryKey(l.entry)] = due
		}
		e.mu.Unlock()
		if stop {
			break
		}
		r := l.record
		e.w.client.Produce(ctx, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Partition: r.Partition}, func(_ *kgo.Record, err error) {
			if err != nil {
				e.fail(err)
			}
		})
		sent++
	}
	err = e.w.until(ctx, time.Minute, "the results of live entries", func() (bool, error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.due) == 0, e.wrong
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	took, e.took = e.took, nil
	return took, sent, err
}

// tellingEnded is when the last entry that a rate concerns came; zero: they have not all.
func (e *feed) tellingEnded() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.told) > 0 {
		return time.Time{}
	}
	return e.last
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (e *feed) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wrong = cmp.Or(e.wrong, err)
}

// read notes what comes, until the client is closed.
func (e *feed) read(ctx context.Context) {
	for {
		fs := e.client.PollFetches(ctx)
		now := time.Now()
		if fs.IsClientClosed() {
			return
		}
		if err := fs.Err(); err != nil {
			e.fail(fmt.Errorf("reading results: %w", err))
			return
		}
		e.mu.Lock()
		fs.EachRecord(func(r *kgo.Record) {
			key := string(r.Key[6:]) // Avro's string, behind the head of five octets and its length in one
			if due, is := e.due[key]; is {
				e.took = append(e.took, now.Sub(due))
				delete(e.due, key)
			}
			if e.told[key] {
				delete(e.told, key)
				e.last = now
			}
		})
		e.mu.Unlock()
	}
}
