// Pg_recvlogical: PostgreSQL's own client, which receives and throws away.
// What is faster than it reads the walsender better than Postgres itself does.

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/tallywire/tallywire/benchmarks/internal/proc"
)

// pgRecvlogical finds the program: Debian's own path first, since the one in
// /usr/bin is a script around it.
func (w *world) pgRecvlogical() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/pg_recvlogical")
	if err == nil && len(found) > 0 {
		slices.Sort(found)
		return found[len(found)-1], nil
	}
	if p, err := exec.LookPath("pg_recvlogical"); err == nil {
		return p, nil
	}
	return "", errors.New("the program pg_recvlogical is missing: install postgresql-client, or leave this contender out with -contenders")
}

// receive drains a backlog into /dev/null. Its progress is the octets that it
// has written; their rows are of one size, all told.
func receive(ctx context.Context, w *world, name, base string) (f figure, err error) {
	program, err := w.pgRecvlogical()
	if err != nil {
		return f, err
	}
	log, slot := w.logs[base], w.newSlot()
	if err := w.copySlot(ctx, log, slot); err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	// With messages it meets the one that stands at the end, so that it ends
	// there and not when a keepalive comes by.
	c, err := w.launch(name, nil, program, "-d", w.pg.DSN(log.Name), "--slot", slot, "--start", "--no-loop", "--endpos", log.End, "-f", "/dev/null",
		"-o", "proto_version=1", "-o", "publication_names="+publication, "-o", "binary=true", "-o", "messages=true")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	var last int64
	x := &watcher{w: w, slot: slot, self: c, progress: func(context.Context) (int64, error) {
		last = max(last, proc.Written(c.pid)) // 0 when it has ended
		return last, nil
	}}
	// It ends by itself, and its exit code says whether at the end.
	err = x.until(ctx, every, 2*time.Minute, func() (bool, error) {
		select {
		case <-c.done:
			return true, nil
		default:
			return false, nil
		}
	})
	if c.err != nil || err != nil && x.self.ended() == nil {
		return f, errors.Join(err, c.ended())
	}
	// A row's message holds its columns and 60 octets of frames at most; far
	// fewer octets would be a run that missed rows.
	if enough := float64(log.Changes) * log.RowBytes / 3; float64(x.last().n) < enough {
		return f, fmt.Errorf("pg_recvlogical wrote %d octets, fewer than %d changes can be", x.last().n, log.Changes)
	}
	return x.figure(log.Changes), nil
}
