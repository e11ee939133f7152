package history

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/internal/testkit"
)

// cutter is a connection that is cut at some commits: before they reach the
// server, or before its answer comes.
type cutter struct {
	net.Conn
	lost, unanswered *atomic.Int64
}

func (c cutter) Write(b []byte) (int, error) {
	if !bytes.Contains(b, []byte("commit\x00")) {
		return c.Conn.Write(b)
	}
	switch rand.IntN(20) {
	case 0:
		c.lost.Add(1)
		c.Close()
		return 0, net.ErrClosed
	case 1:
		c.unanswered.Add(1)
		n, err := c.Conn.Write(b)
		c.Close()
		return n, err
	}
	return c.Conn.Write(b)
}

// What the writers say they committed, and what the server says: of commits
// whose answer was lost, too.
func TestWritersRecordWhatTheyCommitted(t *testing.T) {
	ctx := t.Context()
	dsn := testkit.NewDatabase(t)
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	w, err := NewWriters(ctx, dsn, WritersOptions{Pause: 2 * time.Millisecond, Seed: rand.Uint64()})
	if err != nil {
		t.Fatal(err)
	}
	var lost, unanswered atomic.Int64
	w.dial = func(cfg *pgx.ConnConfig) {
		cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return cutter{conn, &lost, &unanswered}, err
		}
	}
	if _, err := pool.Exec(ctx, "select pg_create_logical_replication_slot('witness', 'test_decoding')"); err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- w.Run(run) }()
	ended := false
	witness := New(WriterTables)
	witness.Loaded()
	for deadline := time.Now().Add(testkit.Patience); !ended; {
		if _, err := witness.Witness(ctx, pool, "witness"); err != nil {
			t.Fatal(err)
		}
		n, unknown := w.Committed()
		enough := n >= 400 && unknown >= 8 && lost.Load() >= 4 && unanswered.Load() >= 4
		if !enough && time.Now().After(deadline) {
			t.Fatalf("%d transactions, %d unknown, %d lost", n, unknown, lost.Load())
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		case <-time.After(50 * time.Millisecond):
		}
		if enough {
			stop()
		}
	}
	if _, err := witness.Witness(ctx, pool, "witness"); err != nil {
		t.Fatal(err)
	}
	w.History().Loaded()
	seen := &Seen{tables: map[string]*seenTable{}}
	for name, wt := range witness.tables {
		st := newSeenTable()
		seen.tables[name] = st
		for k, l := range wt.rows {
			st.rows[k] = l.changes
		}
	}
	// The history is one of all changes since the tables were made.
	for _, ht := range w.History().tables {
		for _, l := range ht.rows {
			l.loaded = 0
		}
	}
	for _, f := range w.History().Check(seen, Options{}) {
		t.Error(f)
	}
	n, unknown := w.Committed()
	t.Logf("%d transactions, %d changes, %d commits asked for", n, w.History().Changes(), unknown)
	for _, name := range w.History().Tables() {
		rows, err := ReadTable(ctx, pool, "select * from "+name)
		if err != nil {
			t.Fatal(err)
		}
		var holds []SinkRow
		for _, r := range rows {
			holds = append(holds, SinkRow{keyOf(WriterTables[name], r), r})
		}
		if len(holds) < 20 {
			t.Errorf("%s holds only %d rows", name, len(holds))
		}
		for _, f := range w.History().CheckSink(name, holds, func(r Row) (string, Row, bool) { return keyOf(WriterTables[name], r), r, true }) {
			if len(f.Columns) == 1 && f.Columns[0] == "at" {
				continue // in this session's time zone
			}
			t.Error(f)
		}
	}
}
