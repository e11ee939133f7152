// Snapshot: the initial load of the table that backlog A filled; and start: how
// long it takes to the first record.

package main

import (
	"context"
	"errors"
	"time"
)

// load lets tallywire load the table under a slot that it makes.
func (t tallywire) load(ctx context.Context, w *world, name string) (f figure, err error) {
	if err := t.warm(ctx, w); err != nil {
		return f, err
	}
	log, slot := w.logs["base_a"], w.newSlot()
	if err := w.kafka.fresh(ctx, twTopic, 1, nil, twPositions); err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	c, err := t.start(w, w.kafka, name, log.Name, slot, "initial", 1)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	x := &watcher{w: w, self: c, broker: w.kafka}
	if err := x.delivered(ctx, twTopic, log.Changes); err != nil {
		return f, err
	}
	return x.figure(log.Changes), nil
}

// loadDebezium is its snapshot, in one thread.
func loadDebezium(ctx context.Context, w *world, name string) (f figure, err error) {
	if err := warmDebezium(ctx, w); err != nil {
		return f, err
	}
	log, slot := w.logs["base_a"], w.newSlot()
	if err := w.kafka.fresh(ctx, dbzTopic, 1, nil); err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	k := &connector{db: log.Name, slot: slot, snapshot: "initial_only"}
	c, err := k.start(ctx, w, w.kafka, name)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.kill()) }()
	x := &watcher{w: w, self: c, broker: w.kafka}
	if err := x.delivered(ctx, dbzTopic, log.Changes); err != nil {
		return f, err
	}
	return x.figure(log.Changes), nil
}

// The topic is looked at this often when the time to its first record counts.
const fine = 5 * time.Millisecond

// first is the time from tallywire's start to its first record, all topics and
// schemas being there.
func (t tallywire) first(ctx context.Context, w *world, name string) (f figure, err error) {
	if err := t.warm(ctx, w); err != nil {
		return f, err
	}
	slot := w.newSlot()
	if err := w.copySlot(ctx, w.logs["base_a"], slot); err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	if err := w.kafka.fresh(ctx, twTopic, 1, nil, twPositions); err != nil {
		return f, err
	}
	compact := "compact"
	if err := w.kafka.create(ctx, twPositions, 1, map[string]*string{"cleanup.policy": &compact}); err != nil {
		return f, err
	}
	c, err := t.start(w, w.kafka, name, "base_a", slot, "never", 1)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	f.first, err = w.firstRecord(ctx, c, w.kafka, twTopic, fine)
	return f, err
}

func firstOfDebezium(ctx context.Context, w *world, name string) (f figure, err error) {
	if err := warmDebezium(ctx, w); err != nil {
		return f, err
	}
	slot := w.newSlot()
	if err := w.copySlot(ctx, w.logs["base_a"], slot); err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	if err := w.kafka.fresh(ctx, dbzTopic, 1, nil); err != nil {
		return f, err
	}
	k := &connector{db: "base_a", slot: slot, snapshot: "no_data"}
	c, err := k.start(ctx, w, w.kafka, name)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.kill()) }()
	f.first, err = w.firstRecord(ctx, c, w.kafka, dbzTopic, fine)
	return f, err
}
