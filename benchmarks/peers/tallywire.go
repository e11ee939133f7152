// Tallywire: the binary, with a configuration that has the source alone.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// The source's name, and with it the prefix of its topics, is the same in all
// runs, so that its schemas are registered but once.
const (
	twTopic     = "tw." + table
	twPositions = "_tallywire.positions.tw"
)

const twConfig = `kafka: {brokers: ["%s"]}
registry: {url: "%s"}
control: {dsn: "%s"}
http: {listen: "%s"}
state_dir: %q
instance: peers
partitions: %d
sources:
  tw: {type: postgres, dsn: "%s", slot: %s, publication: %s, tables: [%s], load: %s%s}
`

type tallywire struct {
	delivery string // of the source's configuration; "": its default, exactly-once
}

// start runs the binary on a slot, the data topic being there and empty.
func (t tallywire) start(w *world, b *broker, name, db, slot, load string, partitions int32) (*child, error) {
	more := ""
	if t.delivery != "" {
		more = ", delivery: " + t.delivery
	}
	file := filepath.Join(w.tmp, name+".yml")
	text := fmt.Sprintf(twConfig, b.Addr(), w.registry.URL(), w.pg.DSN("control"), "127.0.0.1:0", filepath.Join(w.tmp, "tallywire-state"), partitions,
		w.pg.DSN(db), slot, publication, table, load, more)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	args := []string{w.binary, "run", "-c", file}
	if w.o.profile != "" {
		// The child runs in another folder.
		prof, err := filepath.Abs(w.o.profile + "-" + name + ".prof")
		if err != nil {
			return nil, err
		}
		args = append(args, "--cpuprofile", prof)
	}
	return w.launch(name, nil, args...)
}

// drain reads a copy of a backlog's slot to its end.
func (t tallywire) drain(ctx context.Context, w *world, name, base string, partitions int32) (f figure, err error) {
	log := w.logs[base]
	if err := t.warm(ctx, w); err != nil {
		return f, err
	}
	slot := w.newSlot()
	if err := w.copySlot(ctx, log, slot); err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	if err := w.kafka.fresh(ctx, twTopic, partitions, nil, twPositions); err != nil {
		return f, err
	}
	c, err := t.start(w, w.kafka, name, log.Name, slot, "never", partitions)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	x := &watcher{w: w, slot: slot, self: c, broker: w.kafka}
	if err := x.delivered(ctx, twTopic, log.Records); err != nil {
		return f, err
	}
	return x.figure(log.Changes), nil
}

// warm registers the schemas, by a run that ends with its first record.
func (t tallywire) warm(ctx context.Context, w *world) (err error) {
	if w.warm["tallywire"] {
		return nil
	}
	slot := w.newSlot()
	if err := w.copySlot(ctx, w.logs["base_a"], slot); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	if err := w.kafka.fresh(ctx, twTopic, 1, nil, twPositions); err != nil {
		return err
	}
	c, err := t.start(w, w.kafka, "tallywire-warm", "base_a", slot, "never", 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if _, err := w.firstRecord(ctx, c, w.kafka, twTopic, every); err != nil {
		return err
	}
	w.warm["tallywire"] = true
	return nil
}

// firstRecord waits until a topic has a committed record, and gives the time
// since the contender was started.
func (w *world) firstRecord(ctx context.Context, c *child, b *broker, topic string, interval time.Duration) (time.Duration, error) {
	x := &watcher{w: w, self: c, broker: b, progress: func(ctx context.Context) (int64, error) { return b.ends(ctx, topic) }}
	err := x.until(ctx, interval, time.Minute, func() (bool, error) { return x.last().n > 0, nil })
	return time.Since(c.began), err
}
