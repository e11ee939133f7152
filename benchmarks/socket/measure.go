// Measure: one reader on one slot.

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/tallywire/tallywire/sources/postgres/wire"
)

// result is one run.
type result struct {
	changes      int
	took         time.Duration
	sender, self time.Duration // CPU
	counts       wire.Counts
	late         []time.Duration // of each row of a live flow, sorted
}

// reader is one connection that streams.
type reader struct {
	sock  *wire.Socket
	under *wire.Conn
	pid   int
}

// open starts to stream from a slot.
func (w *world) open(ctx context.Context, over way, slot string, gather bool) (*reader, error) {
	cfg, err := pgconn.ParseConfig(over.dsn)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "database"
	r := &reader{}
	dial := cfg.DialFunc
	if over.dial != nil {
		dial = over.dial
	}
	cfg.DialFunc = dial
	if gather {
		cfg.DialFunc = func(ctx context.Context, network, address string) (c net.Conn, err error) {
			c, r.under, err = wire.Dial(ctx, wire.DialFunc(dial), network, address)
			return c, err
		}
	}
	var in io.Reader
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		in = r
		return pgproto3.NewFrontend(r, w)
	}
	c, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	r.pid = int(c.PID())
	args := []string{"proto_version '1'", "publication_names 'bench'", "binary 'true'"}
	if err := pglogrepl.StartReplication(ctx, c, slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: args}); err != nil {
		return nil, errors.Join(err, c.Close(ctx))
	}
	h, err := c.Hijack()
	if err != nil {
		return nil, err
	}
	if r.sock, err = wire.NewSocket(h, in, r.under); err != nil {
		return nil, errors.Join(err, h.Conn.Close())
	}
	return r, nil
}

// each gives the messages of pgoutput until see says that it was the last.
func (r *reader) each(ctx context.Context, see func(m []byte) (last bool)) error {
	for {
		kind, body, ok, err := r.sock.Next()
		switch {
		case err != nil:
			return err
		case !ok:
			select {
			case <-r.sock.More():
			case <-ctx.Done():
				return ctx.Err()
			}
		case kind == 'd' && body[0] == 'w':
			if see(body[25:]) {
				return nil
			}
		case kind != 'd':
			return fmt.Errorf("a frame of kind %q: %s", kind, body)
		}
	}
}

// read reads a backlog from its beginning.
func (w *world) read(ctx context.Context, over way, backlog string, gather bool) (res result, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := w.exec(ctx, "SELECT pg_copy_logical_replication_slot('base_"+backlog+"', 'run')"); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, w.drop(context.WithoutCancel(ctx), "run")) }()
	r, err := w.open(ctx, over, "run", gather)
	if err != nil {
		return res, err
	}
	defer r.sock.Close()
	// From the first row on: looking for where to begin is not what is measured.
	var began time.Time
	var sender, self time.Duration
	err = r.each(ctx, func(m []byte) bool {
		switch m[0] {
		case 'I', 'U', 'D':
			if res.changes++; res.changes == 1 {
				began, self, sender = time.Now(), processor(), cpuOf(r.pid)
			}
		}
		return res.changes == w.rows
	})
	if err != nil {
		return res, err
	}
	res.took, res.self, res.sender = time.Since(began), processor()-self, cpuOf(r.pid)-sender
	if r.under != nil {
		res.counts = r.under.Counts()
	}
	return res, nil
}

// follow follows transactions of five rows as they are made.
func (w *world) follow(ctx context.Context, over way, rate int, span time.Duration, gather bool) (res result, err error) {
	ctx, cancel := context.WithTimeout(ctx, span+time.Minute)
	defer cancel()
	if err := w.exec(ctx, "SELECT pg_create_logical_replication_slot('run', 'pgoutput')"); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, w.drop(context.WithoutCancel(ctx), "run")) }()
	r, err := w.open(ctx, over, "run", gather)
	if err != nil {
		return res, err
	}
	defer r.sock.Close()
	fed := make(chan error, 1)
	go func() { fed <- w.exec(ctx, fmt.Sprintf("CALL feed(%d, %d)", rate, int(span.Seconds()*float64(rate)))) }()
	defer func() { err = errors.Join(err, <-fed) }()
	want := int(span.Seconds()*float64(rate)) * 5
	var began time.Time
	var sender, self time.Duration
	err = r.each(ctx, func(m []byte) bool {
		if m[0] != 'I' {
			return false
		}
		// The last column is updated_at: µs since 2000.
		at := time.UnixMicro(int64(binary.BigEndian.Uint64(m[len(m)-8:])) + 946_684_800_000_000)
		res.late = append(res.late, time.Since(at))
		if res.changes++; res.changes == 1 {
			began, self, sender = time.Now(), processor(), cpuOf(r.pid)
		}
		return res.changes == want
	})
	if err != nil {
		cancel()
		return res, err
	}
	res.took, res.self, res.sender = time.Since(began), processor()-self, cpuOf(r.pid)-sender
	slices.Sort(res.late)
	return res, nil
}

// processor is the CPU time of this process.
func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpuOf is the CPU time of a process, by the scheduler's count.
func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	ns, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(ns)
}
