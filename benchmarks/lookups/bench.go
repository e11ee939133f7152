// Bench: who runs when, and one run.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/tallywire/tallywire/internal/embedded"
)

var sections = []string{"load", "fan", "live"}

// startFunc starts a contender on topics whose right sides are there.
type startFunc = func(ctx context.Context, w *world, name string) (*running, error)

type contender struct {
	name  string
	start startFunc
}

// contenders are all of them, in the order of their first round.
var contenders = []contender{
	{"tallywire", tallywire("costed.ps.time_entry_costed")},
	{"streams-rocksdb", streams("rocksdb")},
	{"streams-memory", streams("memory")},
}

func names() (out []string) {
	for _, c := range contenders {
		out = append(out, c.name)
	}
	return out
}

// running is a contender that was started.
type running struct {
	output string   // topic
	groups []string // of consumers
	cost   func(key, value []byte) (int64, error)
	redis  int // process id; 0: it has none

	pid      int
	log      string
	done     chan struct{} // closed when it has ended
	err      error         // how; after done
	stopping []func() error
}

// launch starts its program, the output in <tmp>/<name>.log.
func (r *running) launch(w *world, name string, args ...string) error {
	r.log = filepath.Join(w.tmp, name+".log")
	log, err := os.Create(r.log)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(context.Background(), args[0], args[1:]...) // stop ends it
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.tmp, log, log
	r.done = make(chan struct{})
	err = embedded.StartChild(cmd, func(err error) { r.err = err; close(r.done) })
	if err = errors.Join(err, log.Close()); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	r.pid = cmd.Process.Pid
	r.stopping = append(r.stopping, func() error {
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return err
			}
			select {
			case <-r.done:
				return nil
			case <-time.After(20 * time.Second):
			}
		}
		<-r.done
		return nil
	})
	return nil
}

func (r *running) stop() error {
	var errs []error
	for _, f := range slices.Backward(r.stopping) {
		errs = append(errs, f())
	}
	r.stopping = nil
	return errors.Join(errs...)
}

// ended says whether it has ended by itself, and with what in its log.
func (r *running) ended() error {
	select {
	case <-r.done:
		b, err := os.ReadFile(r.log)
		return errors.Join(fmt.Errorf("it ended by itself (%w): %s", r.err, b[max(0, len(b)-4000):]), err)
	default:
		return nil
	}
}

// results are the figures by section and contender.
type results map[string]map[string][]figure

func (o *options) run(ctx context.Context) (err error) {
	w, err := newWorld(ctx, o)
	defer func() { err = errors.Join(err, w.close()) }()
	if err != nil {
		return err
	}
	var part []contender
	for _, c := range contenders {
		if slices.Contains(o.contenders, c.name) {
			part = append(part, c)
		}
	}
	res := results{}
	for _, section := range o.only {
		res[section] = map[string][]figure{}
		for round := range o.runs {
			for i := range part {
				c := part[(i+round)%len(part)] // so that nobody always follows the same one
				name := fmt.Sprintf("%s-%s-%d", section, c.name, round+1)
				f, err := w.measure(ctx, c, section, name)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				w.say("%-4s round %d  %-15s  %s", section, round+1, c.name, f)
				res[section][c.name] = append(res[section][c.name], f)
			}
		}
	}
	return w.report(ctx, res)
}

// measure is one run of one contender.
func (w *world) measure(ctx context.Context, c contender, section, name string) (f figure, err error) {
	d := w.data[section]
	if err := w.clear(ctx); err != nil {
		return f, err
	}
	if err := w.create(ctx, partitions, "compact", append([]string{leftTopic}, rightTopics...)...); err != nil {
		return f, err
	}
	if err := w.produce(ctx, d.right...); err != nil {
		return f, err
	}
	r, err := c.start(ctx, w, name)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	x := newWatcher(w, r)
	defer x.close()
	if err := w.ready(ctx, x, d); err != nil {
		return f, err
	}
	load, err := x.timed(ctx, d.costs, func() error { return w.produce(ctx, d.entries[1:]...) })
	if err != nil || section == "load" {
		return load, err
	}
	if section == "live" {
		return w.live(ctx, x, d)
	}
	fan, err := x.timed(ctx, d.after, func() error { return w.produce(ctx, d.changed) })
	fan.rows = int64(d.touched)
	return fan, err
}

// ready waits until the right sides are read: no group has a lag, and the first
// entry has come out with its cost.
func (w *world) ready(ctx context.Context, x *watcher, d *data) error {
	if err := w.produce(ctx, d.entries[0]); err != nil {
		return err
	}
	if _, err := x.timed(ctx, d.costs[:1], func() error { return nil }); err != nil {
		return fmt.Errorf("getting ready: %w", err)
	}
	return w.until(ctx, time.Minute, "the right sides to be read", func() (bool, error) {
		lags, err := w.admin.Lag(ctx, x.r.groups...)
		if err != nil {
			return false, err
		}
		for _, g := range x.r.groups {
			l, ok := lags[g]
			if !ok || l.Error() != nil || len(l.Lag) == 0 || l.Lag.Total() > 0 {
				return false, x.r.ended()
			}
		}
		return true, nil
	})
}
