// Measure: the clock around one drain.

package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/supervise"
)

// bound is how long a drain may take.
const bound = 15 * time.Minute

// settle is how long PSA and warehouse may differ when it seems to be done.
const settle = time.Minute

// run is one drain.
type run struct {
	changes int64
	took    time.Duration // from the start of the pipeline until all was in the warehouse
	cpu     time.Duration // of this process: tallywire, and the embedded parts when they are used
	parts   []part
}

func (r run) String() string {
	return fmt.Sprintf("%d changes in %.1f s: %.0f/s, %.1f CPU s of tallywire", r.changes, r.took.Seconds(), r.rate(), r.cpu.Seconds())
}

func (r run) rate() float64 { return float64(r.changes) / r.took.Seconds() }

// timed makes a backlog (nil: there is one of n changes), starts the pipeline,
// times it until the warehouse has all, and stops it.
func (w *world) timed(ctx context.Context, n int64, backlog func(context.Context) (int64, string, error)) (r run, err error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	mark := ""
	if backlog != nil {
		if n, mark, err = backlog(ctx); err != nil {
			return run{}, err
		}
	}
	warehouse, err := pgx.Connect(ctx, w.far.DSN("warehouse"))
	if err != nil {
		return run{}, err
	}
	defer func() { err = errors.Join(err, warehouse.Close(context.WithoutCancel(ctx))) }()
	cfg, err := config.Parse("drain", []byte(w.config), config.Options{})
	if err != nil {
		return run{}, err
	}
	pl, err := supervise.Build(nil, cfg)
	if err != nil {
		return run{}, err
	}
	meter, err := w.meter()
	if err != nil {
		return run{}, err
	}
	began, cpu := time.Now(), processor()
	o := obs.New(w.log)
	done := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	go func() { done <- supervise.Run(running, cfg, o, supervise.RunOptions{Version: "drain"}) }() // ends with stop; it is waited for
	var latest time.Time
	for {
		err = w.drained(ctx, warehouse, mark, pl.Groups(), o, done)
		r = run{changes: n, took: time.Since(began), cpu: processor() - cpu}
		parts, wrong := meter.read()
		if r.parts = parts; wrong != nil {
			err = errors.Join(err, wrong)
		}
		if err != nil {
			break
		}
		// What is left to be told is known a moment after the offsets: a drain that was
		// none yet goes on, and its clock too.
		if latest.IsZero() {
			latest = time.Now().Add(settle)
		}
		if _, err = w.verify(ctx); err == nil || time.Now().After(latest) {
			break
		}
	}
	stop()
	err = errors.Join(err, <-done)
	meter.stop()
	return r, err
}

// drained waits until the marker is in the warehouse, which tells that the
// whole backlog was in Kafka, and then no group has any lag, asked in the order
// of the flow, and none is about something, such as telling who depends on a rate.
func (w *world) drained(ctx context.Context, warehouse *pgx.Conn, mark string, groups []string, o *obs.Obs, done chan error) error {
	tick := time.NewTicker(200 * time.Millisecond) // reading the lag is work too
	defer tick.Stop()
	for {
		there, err := marked(ctx, warehouse, mark)
		if err != nil {
			return err
		}
		for _, g := range groups {
			if !there {
				break
			}
			lag, err := w.lag(ctx, g)
			if err != nil {
				return err
			}
			there = lag == 0
		}
		for _, v := range o.Views() {
			there = there && v.Reason == ""
		}
		if there {
			return nil
		}
		if h := o.Halted(); h != "" {
			return fmt.Errorf("a component halted: %s", h)
		}
		select {
		case err := <-done:
			done <- nil
			return fmt.Errorf("the pipeline ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// lag is how many records of its topics a group has not committed.
func (w *world) lag(ctx context.Context, group string) (int64, error) {
	lags, err := w.cluster.Admin().Lag(ctx, group)
	if err != nil {
		return 0, fmt.Errorf("reading the lag of %s: %w", group, err)
	}
	l, ok := lags[group]
	if begun := ok && l.Error() == nil && len(l.Lag) > 0; !begun {
		return 1, nil
	}
	var sum int64
	for _, topic := range l.Lag {
		for _, p := range topic {
			sum += max(p.Lag, 0)
		}
	}
	return sum, nil
}

// processor is the CPU time of this process.
func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic("BUG: getrusage of this process: " + err.Error())
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
