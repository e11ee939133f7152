package wire

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

// rows reads rows first to last and wants each once, whole, in order.
func (s *stream) rows(first, last int64, times int) {
	s.t.Helper()
	for want := first; want <= last; want++ {
		id, body := s.row()
		if id != want {
			s.t.Fatalf("row %d comes, want %d", id, want)
		}
		if body != strings.Repeat(fmt.Sprint(id, " "), times) {
			s.t.Fatalf("row %d has another body, of %d octets", id, len(body))
		}
	}
}

// Lost if this fails: rows, parts of rows, or their order.
func TestStream(t *testing.T) {
	everyWay(t, func(t *testing.T, w way) {
		for _, gather := range []bool{true, false} {
			db := newDB(t, world.pg)
			s := open(t, w, db, gather)
			made := async(func() error {
				for _, q := range []string{
					"SELECT add(1, 20000, 30)", "SELECT add(20001, 20003, 1000000)", // 6 MB each, more than ReadAhead together
					"CALL each(20004, 24000)", "SELECT add(24001, 24020, 50000)", "SELECT add(24021, 40000, 10)",
				} {
					if err := world.pg.Exec(t.Context(), db, q); err != nil {
						return err
					}
				}
				return nil
			})
			s.rows(1, 20000, 30)
			s.rows(20001, 20003, 1000000)
			s.rows(20004, 24000, 3)
			s.rows(24001, 24020, 50000)
			s.rows(24021, 40000, 10)
			if err := <-made; err != nil {
				t.Fatal(err)
			}
			if gather && s.under == nil {
				t.Error("the connection does not gather")
			}
			s.end()
		}
	})
}

// Lost if this fails: the fast path is off, and each row wakes a process.
func TestBulkComesInLargeBites(t *testing.T) {
	everyWay(t, func(t *testing.T, w way) {
		db := newDB(t, world.pg)
		exec(t, world.pg, db, "SELECT add(1, 60000, 50)")
		s := open(t, w, db, true)
		s.rows(1, 60000, 50)
		n := s.under.Counts()
		mb := float64(n.Octets) / (1 << 20)
		t.Logf("%.0f MB in %d bites, %d waits, %d pauses", mb, n.Bites, n.Waits, n.Pauses)
		if perMB := float64(n.Bites) / mb; perMB > 128 { // an eager reader of rows like these takes thousands
			t.Errorf("%.0f reads per MB", perMB)
		}
	})
}

// Lost if this fails: a change that comes alone is late, though nothing else is
// to be done.
func TestQuietIsEager(t *testing.T) {
	everyWay(t, func(t *testing.T, w way) {
		db := newDB(t, world.pg)
		s := open(t, w, db, true)
		exec(t, world.pg, db, "SELECT add(1, 30000, 50)")
		s.rows(1, 30000, 50)
		// A bulk has just passed, and its pace must be forgotten.
		var last time.Duration
		for id := int64(30001); id <= 30020; id++ {
			before := s.under.Counts()
			poll(t, "the reader waits", func() bool { return s.under.Counts().Waits > before.Waits || id == 30001 })
			quiet := time.NewTimer(20 * time.Millisecond)
			<-quiet.C
			pauses := s.under.Counts().Pauses
			began := time.Now()
			exec(t, world.pg, db, fmt.Sprintf("SELECT add(%d, %d, 3)", id, id))
			s.rows(id, id, 3)
			last = time.Since(began)
			if more := s.under.Counts().Pauses - pauses; more > 0 && id > 30001 {
				t.Errorf("row %d came alone, and the reader let octets gather %d times", id, more)
			}
		}
		t.Logf("the last row was there %v after its INSERT was sent on a new connection", last)
	})
}

// Lost if this fails: while Kafka stands still for longer than
// wal_sender_timeout the server drops us, and all is decoded again; or memory
// grows for as long as it stands still.
func TestNobodyDecodes(t *testing.T) {
	everyWay(t, func(t *testing.T, w way) {
		t.Parallel() // they mostly wait
		db := newDB(t, world.pg)
		exec(t, world.pg, db, "ALTER DATABASE "+db+" SET wal_sender_timeout = '3s'")
		exec(t, world.pg, db, "SELECT add(1, 30000, 200)")
		s := open(t, w, db, true)
		s.awaitFull()
		patience := time.NewTimer(9 * time.Second) // three times the timeout
		<-patience.C
		if err := s.sendE.Load(); err != nil {
			t.Fatal("a status update fails:", *err)
		}
		if n := s.under.Counts().Octets; n > ReadAhead+2*biteSize {
			t.Errorf("%d octets were read while nobody took them", n)
		}
		s.rows(1, 30000, 200)
	})
}

// Lost if this fails: a source that is stopped hangs, or leaves its goroutine
// and the slot's lock behind.
func TestClose(t *testing.T) {
	everyWay(t, func(t *testing.T, w way) {
		db := newDB(t, world.pg)
		free := func() { // the next START_REPLICATION finds the slot free
			poll(t, "the slot is free", func() bool {
				return world.pg.Exec(t.Context(), db, "SELECT 1/(SELECT count(*) FROM pg_replication_slots WHERE slot_name = current_database() AND NOT active)") == nil
			})
		}
		s := open(t, w, db, true)
		poll(t, "the reader waits", func() bool { return s.under.Counts().Waits > 0 })
		in(t, testkit.Patience, "closing while it waits", async(func() bool { s.end(); return true }))
		if _, _, err := s.frame(); err == nil {
			t.Error("a closed socket gives a frame")
		}
		free()
		exec(t, world.pg, db, "SELECT add(1, 30000, 200)")
		s = open(t, w, db, true)
		s.awaitFull()
		in(t, testkit.Patience, "closing while there is no room", async(func() bool { s.end(); return true }))
		free()
		s = open(t, w, db, true)
		s.rows(1, 1000, 200)
		in(t, testkit.Patience, "closing while octets flow", async(func() bool { s.end(); return true }))
		free()
	})
}

// Lost if this fails: why the server ended the stream, or rows that it sent
// before.
func TestServerEndsTheStream(t *testing.T) {
	everyWay(t, func(t *testing.T, w way) {
		db := newDB(t, world.pg)
		s := open(t, w, db, true)
		exec(t, world.pg, db, "SELECT add(1, 2000, 50)")
		s.rows(1, 2000, 50)
		exec(t, world.pg, db, fmt.Sprintf("SELECT pg_terminate_backend(%d)", s.pid))
		kind, body, err := s.frame()
		for err == nil && kind != 'E' {
			kind, body, err = s.frame()
		}
		if err != nil {
			t.Fatal("before the server's error:", err)
		}
		var e pgproto3.ErrorResponse
		if err := e.Decode(body); err != nil || e.Code != "57P01" {
			t.Errorf("the server's error is %q (%v), want admin_shutdown", e.Code, err)
		}
		// A server that ends with something of ours unread resets the
		// connection instead: what it said before has arrived all the same.
		if _, _, err := s.frame(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after the server's error: %v, want the end", err)
		}
	})
}

// Lost if this fails: a crash of the server tears a frame, and half a row is
// taken for a row; or the source never notices.
func TestServerIsKilled(t *testing.T) {
	pg, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Unix: true, TLS: true, Params: map[string]string{"fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	db := newDB(t, pg)
	exec(t, pg, db, "SELECT add(1, 100000, 50)")
	for name, dsn := range map[string]func(string) string{"tcp": pg.DSN, "unix": pg.UnixDSN, "tls": pg.TLSDSN} {
		t.Run(name, func(t *testing.T) {
			poll(t, "the server is up", func() bool {
				return pg.Exec(t.Context(), db, "SELECT 1/(SELECT count(*) FROM pg_replication_slots WHERE slot_name = current_database() AND NOT active)") == nil
			})
			s := open(t, way{dsn: dsn}, db, true)
			s.rows(1, 1000, 50)
			if err := syscall.Kill(int(s.pid), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			next := int64(1001)
			for {
				kind, f, err := s.frame()
				if err != nil {
					t.Logf("after row %d: %v", next-1, err)
					return
				}
				if kind != 'd' {
					continue // a notice that another process crashed
				}
				if id, body, ok := insert(t, f); ok {
					if id != next || body != strings.Repeat(fmt.Sprint(id, " "), 50) {
						t.Fatalf("row %d comes, want %d whole", id, next)
					}
					if next++; next > 100000 {
						t.Fatal("all rows were there before the kill: it was not in the middle")
					}
				}
			}
		})
	}
}
