// World: a Postgres with two backlogs, and the ways to it.

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

// way is how the server is reached.
type way struct {
	name, dsn string
	dial      pgconn.DialFunc // nil: the usual
}

type world struct {
	pg      *embedded.Postgres
	rows    int
	ways    []way
	closers []func() error
}

const schema = `
CREATE TABLE time_entry (id bigint PRIMARY KEY, employee_id int, project_id int, task_id int, work_date date, minutes int, bill_rate numeric(12,4), cost_rate numeric(12,4), billable boolean, status text, note text, created_at timestamptz, updated_at timestamptz);
CREATE PUBLICATION bench FOR TABLE time_entry;
CREATE FUNCTION entry(i bigint) RETURNS time_entry LANGUAGE sql AS $$
  SELECT i, (i % 997)::int, (i % 499)::int, (i % 31)::int, date '2026-01-01' + (i % 365)::int, (i % 600)::int, 120.5 + i % 50, 60.25 + i % 30, i % 3 > 0,
         'approved', repeat('a note ', 6 + (i % 6)::int), clock_timestamp(), clock_timestamp() $$;
CREATE PROCEDURE bulk(n int) LANGUAGE plpgsql AS $$
BEGIN
  FOR t IN 0 .. n / 1000 - 1 LOOP
    INSERT INTO time_entry SELECT e.* FROM generate_series(t * 1000 + 1, t * 1000 + 1000) i, entry(i) e;
    COMMIT;
  END LOOP;
END $$;
CREATE PROCEDURE oltp(n int) LANGUAGE plpgsql AS $$
DECLARE done int := 0; id0 bigint := 1000000000; top bigint := 1000000000; low bigint := 1000000000;
BEGIN
  WHILE done < n LOOP
    FOR k IN 1 .. least(1 + (done / 2) % 3, n - done) LOOP
      CASE WHEN done % 10 < 6 OR low >= top - 100 THEN
        INSERT INTO time_entry SELECT * FROM entry(top); top := top + 1;
      WHEN done % 10 < 9 THEN
        UPDATE time_entry SET minutes = minutes + 1, updated_at = clock_timestamp() WHERE id = top - 1 - done % 50;
      ELSE
        DELETE FROM time_entry WHERE id = low; low := low + 1;
      END CASE;
      done := done + 1;
    END LOOP;
    COMMIT;
  END LOOP;
END $$;
CREATE SEQUENCE live START 2000000000;
CREATE PROCEDURE feed(rate int, n int) LANGUAGE plpgsql AS $$
DECLARE began timestamptz := clock_timestamp(); ahead float8;
BEGIN
  PERFORM set_config('synchronous_commit', 'on', false); -- else the WAL waits for its writer
  FOR t IN 1 .. n LOOP
    INSERT INTO time_entry SELECT e.* FROM generate_series(1, 5) i, entry(nextval('live') + 0 * i) e;
    COMMIT;
    ahead := t::float8 / rate - extract(epoch FROM clock_timestamp() - began);
    IF ahead > 0.0005 THEN PERFORM pg_sleep(ahead); END IF;
  END LOOP;
END $$`

// newWorld gives a world that is to be closed also after an error.
func newWorld(ctx context.Context, over []string, rows int) (*world, error) {
	w := &world{rows: rows}
	return w, w.start(ctx, over)
}

func (w *world) start(ctx context.Context, over []string) (err error) {
	var far *testkit.Veth
	o := embedded.PostgresOptions{Unix: true, TLS: true, Params: map[string]string{
		"fsync": "off", "synchronous_commit": "off", "autovacuum": "off", "wal_sender_timeout": "0", "shared_buffers": "512MB",
		"max_wal_size": "8GB", "checkpoint_timeout": "30min", "logical_decoding_work_mem": "64MB", "jit": "off", "enable_seqscan": "off",
	}}
	for _, name := range over {
		if name == "veth" {
			if far, err = testkit.NewVeth(ctx); err != nil {
				return err
			}
			w.closers = append(w.closers, far.Close)
			o.Listen = []string{far.Near}
		}
	}
	if w.pg, err = embedded.StartPostgres(ctx, o); err != nil {
		return err
	}
	w.closers = append(w.closers, w.pg.Stop)
	if err := w.pg.CreateDatabase(ctx, "bench"); err != nil {
		return err
	}
	for _, name := range over {
		x := way{name: name, dsn: w.pg.DSN("bench")}
		switch name {
		case "tcp":
		case "unix":
			x.dsn = w.pg.UnixDSN("bench")
		case "tls":
			x.dsn = w.pg.TLSDSN("bench")
		case "delay":
			addr, err := w.relay(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(w.pg.Port)))
			if err != nil {
				return err
			}
			x.dsn = "postgres://postgres@" + addr + "/bench?sslmode=disable"
		case "veth":
			x.dsn = fmt.Sprintf("postgres://postgres@%s:%d/bench?sslmode=disable", far.Near, w.pg.Port)
			x.dial = far.Dial
		default:
			return fmt.Errorf("unknown transport %q", name)
		}
		w.ways = append(w.ways, x)
	}
	// Slots first, backlogs second. A slot has to pass the WAL of the other
	// backlog too, so B's is made after A.
	if err := w.exec(ctx, schema); err != nil {
		return err
	}
	for _, b := range []struct{ slot, fill string }{{"base_a", "bulk"}, {"base_b", "oltp"}} {
		if err := w.exec(ctx, "SELECT pg_create_logical_replication_slot('"+b.slot+"', 'pgoutput')"); err != nil {
			return err
		}
		if err := w.exec(ctx, fmt.Sprintf("CALL %s(%d)", b.fill, w.rows)); err != nil {
			return err
		}
	}
	return w.exec(ctx, "CHECKPOINT")
}

func (w *world) exec(ctx context.Context, sql string) error { return w.pg.Exec(ctx, "bench", sql) }

// drop drops a slot as soon as its walsender has ended.
func (w *world) drop(ctx context.Context, slot string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := w.exec(ctx, "SELECT pg_drop_replication_slot('"+slot+"')")
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "55006" { // object_in_use
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// close stops everything, the last started first.
func (w *world) close() error {
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	return errors.Join(errs...)
}

// relayTo, in the environment, makes this program the forwarder: in a process of
// its own its CPU does not count.
const relayTo = "TALLYWIRE_BENCH_RELAY_TO"

func relayed() bool {
	target := os.Getenv(relayTo)
	if target == "" {
		return false
	}
	d, err := testkit.NewDelay(target, time.Millisecond)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(d.Addr())
	var b [1]byte
	_, _ = os.Stdin.Read(b[:]) // until the parent is gone
	return true
}

// relay starts a forwarder that delays by 1 ms each way.
func (w *world) relay(ctx context.Context, target string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), relayTo+"="+target)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	w.closers = append(w.closers, func() error { return errors.Join(in.Close(), cmd.Wait()) })
	b := make([]byte, 64)
	n, err := out.Read(b)
	return strings.TrimSpace(string(b[:n])), err
}
