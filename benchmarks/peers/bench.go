// Bench: who runs when.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// contender is one that is measured.
type contender struct {
	name string
	run  map[string]runFunc // by section
}

type runFunc = func(ctx context.Context, w *world, name string) (figure, error)

func drainBy(t tallywire, base string, partitions int32) runFunc {
	return func(ctx context.Context, w *world, name string) (figure, error) {
		return t.drain(ctx, w, name, base, partitions)
	}
}

func debeziumFrom(base string, partitions int32) runFunc {
	return func(ctx context.Context, w *world, name string) (figure, error) {
		return debezium(ctx, w, name, base, partitions)
	}
}

func receiveFrom(base string) runFunc {
	return func(ctx context.Context, w *world, name string) (figure, error) { return receive(ctx, w, name, base) }
}

// contenders are all of them, in the order of their first round.
var contenders = []contender{
	{"tallywire", map[string]runFunc{
		"a": drainBy(tallywire{}, "base_a", 1), "b": drainBy(tallywire{}, "base_b", 1), "a8": drainBy(tallywire{}, "base_a", 8),
		"snapshot": tallywire{}.load, "start": tallywire{}.first, "latency": latencyBy(tallywire{}),
	}},
	{"tallywire-1ms", map[string]runFunc{"latency": func(ctx context.Context, w *world, name string) (figure, error) {
		b, err := w.quickBroker(ctx)
		if err != nil {
			return figure{}, err
		}
		return tallywire{}.latencyOn(ctx, w, b, name)
	}}},
	{"tallywire-alo", map[string]runFunc{
		"a": drainBy(atLeastOnce, "base_a", 1), "b": drainBy(atLeastOnce, "base_b", 1), "latency": latencyBy(atLeastOnce),
	}},
	{"debezium", map[string]runFunc{
		"a": debeziumFrom("base_a", 1), "b": debeziumFrom("base_b", 1), "a8": debeziumFrom("base_a", 8),
		"snapshot": loadDebezium, "start": firstOfDebezium, "latency": latencyDebezium,
	}},
	{"debezium-eo", map[string]runFunc{"latency": latencyDebeziumEO}},
	{"pg_recvlogical", map[string]runFunc{"a": receiveFrom("base_a"), "b": receiveFrom("base_b")}},
}

var atLeastOnce = tallywire{delivery: "at-least-once"}

func latencyBy(t tallywire) runFunc {
	return func(ctx context.Context, w *world, name string) (figure, error) {
		return t.latencyOn(ctx, w, w.kafka, name)
	}
}

func names() []string {
	var out []string
	for _, c := range contenders {
		out = append(out, c.name)
	}
	return out
}

// takesPart says whether a contender runs at all.
func (w *world) takesPart(name string) bool { return slices.Contains(w.o.contenders, name) }

// results are the figures by section and contender.
type results map[string]map[string][]figure

// run measures everything asked for, and says how many ratios were missed.
func (o *options) run(ctx context.Context) (missed int, err error) {
	load := loadAverage()
	var w *world
	err = o.locked(ctx, func() error { w, err = newWorld(ctx, o); return err })
	defer func() { err = errors.Join(err, w.close()) }()
	if err != nil {
		return 0, err
	}
	res := results{}
	for _, section := range o.only {
		res[section] = map[string][]figure{}
		for round := range o.runs {
			if err := o.locked(ctx, func() error { return w.round(ctx, section, round, res[section]) }); err != nil {
				return 0, fmt.Errorf("section %s, round %d: %w", section, round+1, err)
			}
		}
	}
	return w.report(ctx, res, load)
}

// locked does what loads the machine while the lock file of -lock is held.
func (o *options) locked(ctx context.Context, f func() error) error {
	if o.lock == "" {
		return f()
	}
	unlock, err := lock(ctx, o.lock, func() { fmt.Println("         waiting for", o.lock) })
	if err != nil {
		return err
	}
	return errors.Join(f(), unlock())
}

// round lets each contender run once; each round begins with another, so that
// nobody always follows the same one.
func (w *world) round(ctx context.Context, section string, round int, res map[string][]figure) error {
	var part []contender
	for _, c := range contenders {
		if w.takesPart(c.name) && c.run[section] != nil {
			part = append(part, c)
		}
	}
	if section == "a" && round == 0 && !w.o.trial() && w.takesPart("tallywire") {
		// What the requests of startBroker leave uncompiled in the broker takes
		// a third off the rate of who comes first: that one does not count.
		f, err := tallywire{}.drain(ctx, w, "a-warming", "base_a", 1)
		if err != nil {
			return fmt.Errorf("warming the broker: %w", err)
		}
		w.say("%-8s warming  %-14s  %s", section, "tallywire", f)
	}
	for i := range part {
		c := part[(i+round)%len(part)]
		name := fmt.Sprintf("%s-%s-%d", section, c.name, round+1)
		f, err := c.run[section](ctx, w, name)
		if err != nil && ctx.Err() == nil {
			// Once may be the machine; the report tells of it.
			first, _, _ := strings.Cut(err.Error(), "\n")
			w.say("%s failed and is done again: %s", name, first)
			w.failed = append(w.failed, first)
			f, err = c.run[section](ctx, w, name+"-again")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		w.say("%-8s round %d  %-14s  %s", section, round+1, c.name, f)
		res[c.name] = append(res[c.name], f)
	}
	return nil
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(b))[0]
}
