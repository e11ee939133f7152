package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

// world is what the tests share: a server, and the ways to it.
var world struct {
	once sync.Once
	pg   *embedded.Postgres
	far  *testkit.Veth // nil: not permitted here
	slow *testkit.Delay
	err  error
}

func shared(t *testing.T) *embedded.Postgres {
	t.Helper()
	w := &world
	w.once.Do(func() {
		o := embedded.PostgresOptions{Unix: true, TLS: true, Params: map[string]string{"fsync": "off"}}
		// Not permitted is said by the test that wants it.
		if w.far, w.err = testkit.NewVeth(context.Background()); w.err == nil {
			o.Listen = []string{w.far.Near}
		}
		if w.err != nil && os.Geteuid() == 0 {
			return
		}
		if w.pg, w.err = embedded.StartPostgres(context.Background(), o); w.err == nil {
			w.slow, w.err = testkit.NewDelay(net.JoinHostPort("127.0.0.1", strconv.Itoa(w.pg.Port)), time.Millisecond)
		}
	})
	if w.err != nil {
		t.Fatal(w.err)
	}
	return w.pg
}

func TestMain(m *testing.M) {
	code := m.Run()
	var errs []error
	if world.slow != nil {
		errs = append(errs, world.slow.Close())
	}
	if world.pg != nil {
		errs = append(errs, world.pg.Stop())
	}
	if world.far != nil {
		errs = append(errs, world.far.Close())
	}
	errs = append(errs, goleak.Find())
	if err := errors.Join(errs...); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// way is how the server is reached.
type way struct {
	dsn  func(db string) string
	dial pgconn.DialFunc
}

// everyWay runs a test on each transport.
func everyWay(t *testing.T, f func(t *testing.T, w way)) {
	pg := shared(t)
	at := func(addr string) func(string) string {
		return func(db string) string { return "postgres://postgres@" + addr + "/" + db + "?sslmode=disable" }
	}
	t.Run("tcp", func(t *testing.T) { f(t, way{dsn: pg.DSN}) })
	t.Run("unix", func(t *testing.T) { f(t, way{dsn: pg.UnixDSN}) })
	t.Run("tls", func(t *testing.T) { f(t, way{dsn: pg.TLSDSN}) })
	t.Run("delay", func(t *testing.T) { f(t, way{dsn: at(world.slow.Addr())}) })
	t.Run("veth", func(t *testing.T) {
		if world.far == nil {
			t.Log("not tried: network namespaces and veth pairs need CAP_SYS_ADMIN and CAP_NET_ADMIN, as root has them")
			return
		}
		f(t, way{dsn: at(net.JoinHostPort(world.far.Near, strconv.Itoa(pg.Port))), dial: world.far.Dial})
	})
}

var dbs atomic.Int32

const schema = `
CREATE TABLE t(id bigint PRIMARY KEY, body text);
CREATE PUBLICATION p FOR TABLE t;
CREATE FUNCTION add(first bigint, last bigint, times int) RETURNS void LANGUAGE sql AS
  $$ INSERT INTO t SELECT i, repeat(i::text || ' ', times) FROM generate_series(first, last) i $$;
CREATE PROCEDURE each(first bigint, last bigint) LANGUAGE plpgsql AS
  $$ BEGIN FOR i IN first .. last LOOP PERFORM add(i, i, 3); COMMIT; END LOOP; END $$`

// newDB makes a database with a table t, filled by add and each, and a slot of
// the database's name.
func newDB(t *testing.T, pg *embedded.Postgres) string {
	t.Helper()
	name := fmt.Sprintf("t%d", dbs.Add(1))
	if err := pg.CreateDatabase(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	exec(t, pg, name, schema)
	exec(t, pg, name, "SELECT pg_create_logical_replication_slot(current_database(), 'pgoutput')")
	t.Cleanup(func() { // a slot that nobody reads keeps WAL for ever
		ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
		defer cancel()
		for pg.PID() != 0 {
			err := pg.Exec(ctx, name, "SELECT pg_drop_replication_slot('"+name+"')")
			var e *pgconn.PgError
			if !errors.As(err, &e) || e.Code != "55006" { // its walsender is not gone yet
				return
			}
		}
	})
	return name
}

func exec(t *testing.T, pg *embedded.Postgres, db, sql string) {
	t.Helper()
	if err := pg.Exec(t.Context(), db, sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// stream is a connection that streams, with somebody who sends status updates.
type stream struct {
	*Socket
	t     *testing.T
	under *Conn
	pid   uint32

	close sync.Once
	stop  chan struct{}
	acks  sync.WaitGroup
	sendE atomic.Pointer[error] // of a status update
}

func open(t *testing.T, w way, db string, gather bool) *stream {
	t.Helper()
	cfg, err := pgconn.ParseConfig(w.dsn(db))
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "database"
	s := &stream{t: t, stop: make(chan struct{})}
	dial := w.dial
	if dial == nil {
		dial = cfg.DialFunc
	}
	cfg.DialFunc = dial
	if gather {
		cfg.DialFunc = func(ctx context.Context, network, address string) (c net.Conn, err error) {
			c, s.under, err = Dial(ctx, DialFunc(dial), network, address)
			return c, err
		}
	}
	var in io.Reader
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		in = r
		return pgproto3.NewFrontend(r, w)
	}
	c, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.pid = c.PID()
	err = pglogrepl.StartReplication(t.Context(), c, db, 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'p'"}})
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	if s.Socket, err = NewSocket(h, in, s.under); err != nil {
		t.Fatal(err)
	}
	s.acks.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
			if err := s.Send(append([]byte{'r'}, make([]byte, 33)...)); err != nil {
				s.sendE.Store(&err)
				return
			}
		}
	})
	t.Cleanup(s.end)
	return s
}

func (s *stream) end() {
	s.close.Do(func() {
		close(s.stop)
		s.Socket.Close()
		s.acks.Wait()
	})
}

// awaitFull returns when the reader waits for room: all chunks are there, and
// the last one is full but for what is not read into any more. (How many octets
// that is depends on how they came.)
func (s *stream) awaitFull() {
	s.t.Helper()
	defer func() {
		if s.t.Failed() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.t.Logf("%+v, %d chunks in the queue, reading ended with %v, acknowledging with %v", s.under.Counts(), len(s.queue), s.err, s.sendE.Load())
		}
	}()
	poll(s.t, "read-ahead is used up", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			s.t.Fatalf("the connection ended before read-ahead was used up: %v", s.err)
		}
		k := len(s.queue)
		if 1+k < ReadAhead/chunkSize {
			return false
		}
		last := s.queue[k-1]
		return len(last.buf)-int(last.n.Load()) < chunkMin
	})
}

// frame gives the next frame that is not a keepalive, or the error that ended
// the connection.
func (s *stream) frame() (kind byte, body []byte, err error) {
	s.t.Helper()
	timer := time.NewTimer(testkit.Patience)
	defer timer.Stop()
	for {
		kind, body, ok, err := s.Next()
		switch {
		case err != nil:
			return 0, nil, err
		case ok && kind == 'd' && body[0] == 'k':
		case ok:
			return kind, body, nil
		default:
			select {
			case <-s.More():
			case <-timer.C:
				s.t.Fatal("nothing comes for a minute")
			}
		}
	}
}

// row gives the next inserted row.
func (s *stream) row() (id int64, body string) {
	s.t.Helper()
	for {
		kind, f, err := s.frame()
		if err != nil {
			s.t.Fatalf("the stream ends: %v", err)
		}
		if kind != 'd' {
			s.t.Fatalf("a frame of kind %q", kind)
		}
		if id, body, ok := insert(s.t, f); ok {
			return id, body
		}
	}
}

// insert reads an Insert of pgoutput.
func insert(t *testing.T, f []byte) (id int64, body string, ok bool) {
	t.Helper()
	m, err := pglogrepl.Parse(f[25:])
	if err != nil {
		t.Fatal(err)
	}
	i, ok := m.(*pglogrepl.InsertMessage)
	if !ok {
		return 0, "", false
	}
	id, err = strconv.ParseInt(string(i.Tuple.Columns[0].Data), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return id, string(i.Tuple.Columns[1].Data), true
}
