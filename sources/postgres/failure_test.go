package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// want checks an error's code, its class and what its text names.
func want(t *testing.T, err error, code problem.Code, names ...string) {
	t.Helper()
	e := problem.Of(err)
	if e == nil || e.ID != code.ID {
		t.Fatalf("got %v, want %s", err, code.ID)
	}
	for _, n := range names {
		if !strings.Contains(e.Text, n) {
			t.Errorf("%s: the text %q does not name %q", e.ID, e.Text, n)
		}
	}
	if e.WhatToDo() == "" {
		t.Errorf("%s: no remedy", e.ID)
	}
}

// Lost if this fails: two readers of one slot, or a fenced predecessor before
// the lock is held.
func TestSlotInUse(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY)")
	s, o := d.source(), newOutlet()
	r := loaded(t, s, o)
	pid := d.one("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '" + s.cfg.Slot + "'")
	second := newOutlet()
	err := start(t, d.source(), second).fails()
	want(t, err, ErrSlotInUse, s.cfg.Slot, pid)
	if problem.Of(err).Class != problem.Retry || second.resumed != 0 {
		t.Errorf("class %s, fenced %d times, want retry and 0", problem.Of(err).Class, second.resumed)
	}
	d.sql("INSERT INTO a VALUES (1)") // the first goes on
	o.untilCount(t, 1)
	r.stop()
}

func TestWALLevelReplica(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	pg, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Dir: dir, Params: map[string]string{"wal_level": "replica", "fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pg.Stop() })
	d := newDB(t, pg)
	d.sql("CREATE TABLE a(id int PRIMARY KEY)")
	want(t, start(t, d.source(), newOutlet()).fails(), ErrWALLevel, "replica")
	if d.one("SELECT count(*)::text FROM pg_publication") != "0" {
		t.Error("a publication was made")
	}
	var bad []string
	for _, f := range d.source().Doctor(t.Context()) {
		if f.Err != nil {
			bad = append(bad, problem.Of(f.Err).ID)
		}
	}
	if fmt.Sprint(bad) != "[TW-PG-WAL-LEVEL]" {
		t.Errorf("doctor finds %v", bad)
	}
	// Remedy: TW-PG-WAL-LEVEL
	d.Close(context.Background())
	if err := pg.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	logical, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Dir: dir, Params: map[string]string{"wal_level": "logical", "fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { logical.Stop() })
	d.pg = logical
	d = newDBConn(t, d)
	startedOver(t, d, d.source(), "INSERT INTO a VALUES (1)", "id")
}

func TestRights(t *testing.T) {
	d := newDB(t, shared(t))
	role := "clerk_" + d.name
	d.sql("CREATE TABLE a(id int PRIMARY KEY); CREATE ROLE %s LOGIN", role)
	as := func(c *Config) { c.DSN = secret.DSNOf(d.pg.DSNAs(role, d.name)) }
	want(t, start(t, d.source(as), newOutlet()).fails(), ErrNoReplication, role)
	d.sql("ALTER ROLE %s REPLICATION", role) // Remedy: TW-PG-NO-REPLICATION
	err := start(t, d.source(as), newOutlet()).fails()
	want(t, err, ErrPublication)
	d.sql("%s", statement(t, err)) // Remedy: TW-PG-PUBLICATION
	err = start(t, d.source(as), newOutlet()).fails()
	want(t, err, ErrRefused, "public.a")
	var bad []string
	for _, f := range d.source(as).Doctor(t.Context()) {
		if f.Err != nil {
			bad = append(bad, problem.Of(f.Err).ID+" "+problem.Of(f.Err).WhatToDo())
		}
	}
	if len(bad) != 1 || !strings.Contains(bad[0], "GRANT SELECT ON") {
		t.Errorf("doctor finds %q", bad)
	}
	d.sql("GRANT SELECT ON a TO %s; INSERT INTO a VALUES (1)", role) // Remedy: TW-PG-REFUSED
	d.free("tallywire_" + d.name)
	o := newOutlet()
	r := loaded(t, d.source(as), o)
	// The slot is older than the row: the load has it, and the stream once more.
	o.until(t, "the row", func() bool { return len(state(o.records(), "psa.public.a")) == 1 })
	r.stop()
	sameState(t, state(o.records(), "psa.public.a"), map[string]string{"1": "id=1"})
	for _, f := range d.source(as).Doctor(t.Context()) {
		if f.Err != nil {
			t.Errorf("doctor: %s: %v", f.What, problem.Of(f.Err))
		}
	}
	want(t, start(t, d.source(func(c *Config) { c.DSN = secret.DSNOf(d.pg.DSNAs("nobody_here", d.name)) }), newOutlet()).fails(), ErrRefused, "nobody_here")
	want(t, start(t, d.source(func(c *Config) { c.DSN = secret.DSNOf(d.pg.DSN("no_such_db")) }), newOutlet()).fails(), ErrRefused, "no_such_db")
}

// Lost if this fails: a gap passes in silence (invariant 3).
func TestLostSlot(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY)")
	s, o := d.source(), newOutlet()
	r := loaded(t, s, o)
	d.sql("INSERT INTO a VALUES (1)")
	o.untilCount(t, 1)
	r.stop()
	d.free(s.cfg.Slot)
	at := o.last(t).LSN.String()
	o.ended = nil

	d.sql("SELECT pg_drop_replication_slot('%s')", s.cfg.Slot)
	d.sql("INSERT INTO a VALUES (2)")
	for range 2 { // the answer stays the same
		want(t, start(t, s, o).fails(), ErrSlotMissing, s.cfg.Slot, at)
		if n := d.one("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '" + s.cfg.Slot + "'"); n != "0" {
			t.Fatal("a slot was left that hides the loss")
		}
	}

	// Made anew by somebody: it begins after our position.
	d.sql("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", s.cfg.Slot)
	want(t, start(t, s, o).fails(), ErrGap, s.cfg.Slot, at)
	d.free(s.cfg.Slot)

	// Another cluster.
	p := o.last(t)
	p.System++
	other := newOutlet()
	other.position = p.resume()
	want(t, start(t, s, other).fails(), ErrOtherSystem)
	d.free(s.cfg.Slot)

	// A server that was promoted to a timeline that we know nothing of.
	p = o.last(t)
	p.Timeline = 7
	other.position = p.resume()
	want(t, start(t, s, other).fails(), ErrTimeline, "7")

	if n := len(o.records()); n != 1 {
		t.Errorf("%d records were sent in spite of it", n-1)
	}
	// Remedy: TW-PG-SLOT-MISSING, TW-PG-OTHER-SYSTEM, TW-PG-TIMELINE
	startedOver(t, d, s, "INSERT INTO a VALUES (3)", "id")
}

// Lost if this fails: what is committed while the publication is missing, which
// no stream tells of: up to version 17 it fails for ever, in 18 it has a hole.
func TestPublicationWasDropped(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql("CREATE TABLE a(id int PRIMARY KEY)")
			s, o := d.source(), newOutlet()
			r := loaded(t, s, o)
			d.sql("INSERT INTO a VALUES (1)")
			o.untilCount(t, 1)
			r.stop()
			d.free(s.cfg.Slot)
			o.ended = nil
			d.sql("DROP PUBLICATION %s", s.cfg.Publication)
			d.sql("INSERT INTO a VALUES (2)")
			for range 2 { // the answer stays the same
				want(t, start(t, s, o).fails(), ErrPublication, s.cfg.Publication, s.cfg.Slot)
			}
			var found error
			for _, f := range s.Doctor(t.Context()) {
				found = cmp.Or(found, f.Err)
			}
			want(t, found, ErrPublication, s.cfg.Publication, s.cfg.Slot)
			startedOver(t, d, s, "INSERT INTO a VALUES (3)", "id")
		})
	}
}

// Lost if this fails: what was committed while the publication was away, by a
// server that says nothing of it.
func TestPublicationWasMadeAnew(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql("CREATE TABLE a(id int PRIMARY KEY)")
			s := d.source()
			n := 0
			// captured is a source that has just captured a row.
			captured := func() (*outlet, *running) {
				d.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '%s'", s.cfg.Slot)
				o := newOutlet()
				r := loaded(t, s, o)
				n++
				d.sql("INSERT INTO a VALUES (%d)", n)
				o.until(t, "the row", func() bool { return state(o.records(), "psa.public.a")[fmt.Sprint(n)] != "" })
				return o, r
			}
			drop := func() { d.sql("DROP PUBLICATION %s", s.cfg.Publication) }
			create := func() {
				d.sql("CREATE PUBLICATION %s FOR TABLE a WITH (publish_via_partition_root = true)", s.cfg.Publication)
			}
			halts := func(o *outlet, says string) {
				t.Helper()
				for range 2 { // the answer stays the same
					d.free(s.cfg.Slot)
					o.ended = nil
					want(t, start(t, s, o).fails(), ErrPublication, s.cfg.Publication, says)
				}
				d.free(s.cfg.Slot)
			}

			// While nothing runs.
			o, r := captured()
			r.stop()
			drop()
			create()
			at := o.last(t)
			halts(o, at.LSN.String())
			older := newOutlet()
			at.Publication = 0 // as an older version wrote it
			older.position = at.resume()
			r = start(t, s, older)
			n++
			d.sql("INSERT INTO a VALUES (%d)", n)
			older.untilCount(t, 1)
			r.stop()
			d.free(s.cfg.Slot)

			// While it streams.
			s.keepEvery = time.Millisecond
			o, r = captured()
			drop()
			create()
			want(t, r.fails(), ErrPublication, s.cfg.Publication, "was made anew after")
			halts(o, "is not the one")

			// Between two looks: the stream itself tells, but that of 18, which goes
			// on without the row.
			s.keepEvery = time.Hour
			o, r = captured()
			drop()
			d.sql("INSERT INTO a VALUES (1001)")
			create()
			d.sql("INSERT INTO a VALUES (1002)")
			if version == embedded.Postgres18 {
				o.until(t, "what came later", func() bool { return state(o.records(), "psa.public.a")["1002"] != "" })
				r.stop()
				halts(o, "is not the one")
			} else {
				want(t, r.fails(), ErrPublication, s.cfg.Publication, "did not exist")
				halts(o, "is not the one")
			}
			startedOver(t, d, s, "INSERT INTO a VALUES (1003)", "id")
		})
	}
}

func TestAdvancedSlot(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY)")
	s, o := d.source(), newOutlet()
	loaded(t, s, o).stop()
	d.free(s.cfg.Slot)
	at := o.last(t).LSN.String()
	d.sql("INSERT INTO a VALUES (1)")
	d.sql("SELECT pg_replication_slot_advance('%s', pg_current_wal_lsn())", s.cfg.Slot)
	o.ended = nil
	want(t, start(t, s, o).fails(), ErrGap, at)
	startedOver(t, d, s, "INSERT INTO a VALUES (2)", "id") // Remedy: TW-PG-GAP
}

func TestForeignSlot(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY)")
	d.sql("SELECT pg_create_logical_replication_slot('%s_td', 'test_decoding')", d.name)
	want(t, start(t, d.source(func(c *Config) { c.Slot = d.name + "_td" }), newOutlet()).fails(), ErrSlotInvalid, "test_decoding")
	d.sql("SELECT pg_create_logical_replication_slot('%s_2p', 'pgoutput', false, true)", d.name)
	s := d.source(func(c *Config) { c.Slot = d.name + "_2p" })
	want(t, start(t, s, newOutlet()).fails(), ErrSlotInvalid, "two_phase")
	startedOver(t, d, s, "INSERT INTO a VALUES (1)", "id") // Remedy: TW-PG-SLOT-INVALID
}

func TestTimelineHistory(t *testing.T) {
	history := []byte("1\t0/3000000\tno recovery target specified\n2\t0/5000000\tx\n")
	sys := &system{id: 1, timeline: 3}
	for _, c := range []struct {
		timeline int32
		at       lsn
		ok       bool
	}{{1, 0x2FFFFFF, true}, {1, 0x3000000, true}, {1, 0x3000001, false}, {2, 0x4000000, true}, {2, 0x6000000, false}, {3, 0x9000000, true}, {4, 1, false}} {
		err := checkPosition(&position{System: 1, Timeline: c.timeline, Slot: "s", LSN: c.at}, sys, "s", 0, history)
		if (err == nil) != c.ok {
			t.Errorf("position %s on timeline %d: %v", c.at, c.timeline, err)
		}
	}
	if err := checkPosition(&position{System: 1, Timeline: 1, Slot: "s", LSN: 1}, sys, "s", 0, []byte("2\t0/5000000\tx\n")); !problem.Has(err, ErrTimeline) {
		t.Errorf("a timeline that the history does not know: %v", err)
	}
}

// Lost if this fails: what the former slot still had to send, in silence; the
// other one's position says nothing about it (invariant 3).
func TestPositionOfAnotherSlot(t *testing.T) {
	err := checkPosition(&position{System: 1, Timeline: 1, Slot: "before", LSN: 0x2000000}, &system{id: 1, timeline: 1}, "now", 0x1000000, nil)
	want(t, err, ErrGap, `"before"`, `"now"`, "0/2000000")
}

// Lost if this fails: all that a server commits after it was set back to a copy
// of its disk, up to where it had been before: each commit lies before the
// position, and is skipped and acknowledged (B7).
func TestServerThatWasSetBack(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			dir := t.TempDir()
			pg, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Version: version, Dir: filepath.Join(dir, "server"), Params: map[string]string{"fsync": "off", "autovacuum": "off"}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = pg.Stop() })
			d := newDB(t, pg)
			// again ends the server and starts it anew, after what changes its disk.
			again := func(end func() error, change func() error) {
				t.Helper()
				d.Close(context.Background())
				for _, do := range []func() error{end, change, func() error { return pg.Start(t.Context()) }} {
					if err := do(); err != nil {
						t.Fatal(err)
					}
				}
				d = newDBConn(t, d)
			}
			down, nothing := func() error { return pg.Down(t.Context()) }, func() error { return nil }
			data, before := filepath.Join(pg.Dir, "data"), filepath.Join(dir, "before")
			d.sql("CREATE TABLE a(id int PRIMARY KEY)")
			s, o := d.source(), newOutlet()
			loaded(t, s, o).stop()
			d.free(s.cfg.Slot)
			again(down, func() error { return os.CopyFS(before, os.DirFS(data)) })
			r := start(t, s, o)
			d.sql("INSERT INTO a SELECT generate_series(1, 100)")
			o.untilCount(t, 100)
			r.stop()
			d.free(s.cfg.Slot)
			// A plain restart, and a crash, lose nothing.
			again(down, nothing)
			r = start(t, s, o)
			d.sql("INSERT INTO a SELECT generate_series(101, 300)")
			o.untilCount(t, 300)
			r.stop()
			again(pg.Kill, nothing)
			r = start(t, s, o)
			d.sql("INSERT INTO a VALUES (301)")
			o.untilCount(t, 301)
			r.stop()
			d.free(s.cfg.Slot)
			at := o.last(t).LSN
			again(down, func() error {
				return errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(before)), os.Chmod(data, 0o700))
			})
			o.ended = nil
			for range 2 { // the answer stays the same
				want(t, start(t, s, o).fails(), ErrAhead, at.String())
				d.free(s.cfg.Slot)
			}
			p, older := o.last(t), newOutlet()
			p.XID = 0 // as an older version wrote it
			older.position = p.resume()
			want(t, start(t, s, older).fails(), ErrAhead, at.String())
			d.free(s.cfg.Slot)
			d.sql("INSERT INTO a VALUES (1001)")
			want(t, start(t, s, o).fails(), ErrAhead, at.String())
			// It writes on, past the position: its transactions tell.
			d.free(s.cfg.Slot)
			for d.one("SELECT (pg_current_wal_flush_lsn() > '"+at.String()+"')::text") != "true" {
				d.sql("SELECT pg_logical_emit_message(false, 'a test', 'takes no transaction id'); SELECT pg_switch_wal()")
			}
			want(t, start(t, s, o).fails(), ErrAhead, at.String(), fmt.Sprint(uint64(o.last(t).XID)), "has not given out")
			d.free(s.cfg.Slot)
			for d.one(fmt.Sprintf("SELECT (pg_snapshot_xmax(pg_current_snapshot()) > '%d'::xid8)::text", o.last(t).XID)) != "true" {
				d.sql("BEGIN; SELECT pg_current_xact_id(); ROLLBACK")
			}
			want(t, start(t, s, o).fails(), ErrAhead, at.String(), "is aborted on the server")
			if n := len(o.records()); n != 301 {
				t.Errorf("%d records were sent in spite of it", n-301)
			}
			if confirmed := d.one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '" + s.cfg.Slot + "'"); confirmed == at.String() {
				t.Error("the position was acknowledged to it")
			}
			startedOver(t, d, s, "INSERT INTO a VALUES (1002)", "id") // Remedy: TW-PG-AHEAD
		})
	}
}

// Lost if this fails: the secrecy of what the server quotes (invariant 13).
func TestErrorsInDataAreNotQuoted(t *testing.T) {
	for _, code := range []string{"22P02", "23514"} {
		err := classify("loading public.a", &pgconn.PgError{Code: code, Message: `invalid input syntax: "98765"`, Detail: "Failing row contains (98765)."})
		want(t, err, ErrFailed, "loading public.a", code)
		if text := err.Error() + problem.Format(err); strings.Contains(text, "98765") {
			t.Errorf("the data is in %q", text)
		}
	}
}

// Lost if this fails: memory that does not grow with a table or a transaction
// (invariant 12).
func TestBatchesAreBoundedInOctets(t *testing.T) {
	const rows, width = 20, 100_000
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY, v text)")
	d.sql("INSERT INTO a SELECT n, repeat('x', %d) FROM generate_series(1, %d) n", width, rows)
	s, o := d.source(), newOutlet()
	o.onSend = func(_ context.Context, b *change.Batch) error {
		octets := 0
		for i := range b.Changes {
			octets += len(b.AppendText(nil, b.Changes[i].New[1]))
		}
		if octets > batchBytes+width {
			return fmt.Errorf("a batch holds %d octets in %d rows", octets, b.Len())
		}
		return nil
	}
	r := loaded(t, s, o)
	o.untilCount(t, rows)
	d.sql("INSERT INTO a SELECT n, repeat('x', %d) FROM generate_series(%d, %d) n", width, rows+1, 2*rows)
	o.untilCount(t, 2*rows)
	r.stop()
}

// Lost if this fails: deletes and updates of a table without a key have nowhere
// to go; or, published without one, the application's updates fail.
func TestTableWithoutKey(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY); CREATE TABLE log(line text); CREATE TABLE full_log(line text); ALTER TABLE full_log REPLICA IDENTITY FULL;
		CREATE TABLE mute(id int PRIMARY KEY); ALTER TABLE mute REPLICA IDENTITY NOTHING`)
	for _, table := range []string{"log", "full_log", "mute"} {
		err := start(t, d.source(func(c *Config) { c.Tables = []string{"public.a", "public." + table} }), newOutlet()).fails()
		want(t, err, ErrNoKey, "public."+table)
		if !strings.Contains(problem.Of(err).WhatToDo(), "!public."+table) {
			t.Errorf("the remedy %q does not say how to leave it out", problem.Of(err).WhatToDo())
		}
	}
	o := newOutlet()
	r := loaded(t, d.source(), o)
	d.sql(`INSERT INTO log VALUES ('x'); INSERT INTO mute VALUES (1); UPDATE log SET line = 'y'; UPDATE mute SET id = 2; DELETE FROM log; INSERT INTO a VALUES (1)`)
	o.untilCount(t, 1)
	r.stop()
	var keys []string
	for _, f := range d.source().Doctor(t.Context()) {
		if f.Err != nil {
			keys = append(keys, problem.Of(f.Err).Text)
		}
	}
	if len(keys) != 1 || !strings.Contains(keys[0], "public.full_log, public.log, public.mute") {
		t.Errorf("doctor finds %q", keys)
	}
	// Remedy: TW-PG-NO-KEY
	d.sql("ALTER TABLE log ADD id serial PRIMARY KEY; ALTER TABLE full_log ADD id int NOT NULL UNIQUE; ALTER TABLE full_log REPLICA IDENTITY USING INDEX full_log_id_key; ALTER TABLE mute REPLICA IDENTITY DEFAULT")
	fresh := func(n int, tables ...string) *Source {
		return d.source(func(c *Config) { c.Tables, c.Slot = tables, fmt.Sprintf("%s_%d", d.name, n); c.Publication = c.Slot })
	}
	o = newOutlet()
	r = loaded(t, fresh(1, "public.a", "public.log", "public.full_log", "public.mute"), o)
	d.sql("INSERT INTO log VALUES ('z'); INSERT INTO full_log VALUES ('z', 1); INSERT INTO mute VALUES (3)")
	o.until(t, "rows of each", func() bool {
		all := o.records()
		return len(state(all, "psa.public.log")) == 1 && len(state(all, "psa.public.full_log")) == 1 && len(state(all, "psa.public.mute")) == 2
	})
	r.stop()
	d.sql("CREATE TABLE log_2(line text)")
	want(t, start(t, fresh(2, "public.*", "public.log_2"), newOutlet()).fails(), ErrNoKey, "public.log_2")
	loaded(t, fresh(2, "public.*", "!public.log_2"), newOutlet()).stop()

	want(t, start(t, fresh(3, "nothing.*"), newOutlet()).fails(), ErrNoTables, "nothing.*")
	loaded(t, fresh(3, "public.a"), newOutlet()).stop() // Remedy: TW-PG-NO-TABLES
}

// If this failed, an error of the database that is mended would stay, or cost
// what was captured.
func TestErrorOfTheDatabaseIsMended(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (0), (1); CREATE PUBLICATION %s FOR TABLE a WHERE (100 / id > 0)", d.config().Publication)
	s, o := d.source(), newOutlet()
	want(t, start(t, s, o).fails(), ErrFailed, "22012")
	d.free(s.cfg.Slot)
	d.sql("ALTER PUBLICATION %s SET TABLE a", s.cfg.Publication) // Remedy: TW-PG-ERROR
	o.ended = nil
	r := loaded(t, s, o)
	d.sql("INSERT INTO a VALUES (2)")
	o.until(t, "all rows", func() bool { return len(state(o.records(), "psa.public.a")) == 3 })
	r.stop()
}

// Lost if this fails: what we publish makes the application's updates and
// deletes fail. A deferrable key is none for Postgres; the partitions' own
// identities count.
func TestWhatHasNoIdentityIsNotPublished(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql(`CREATE TABLE a(id int PRIMARY KEY);
				CREATE TABLE late(id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n int); INSERT INTO late VALUES (1, 1), (2, 1);
				CREATE TABLE late_full(id int PRIMARY KEY DEFERRABLE, n int); ALTER TABLE late_full REPLICA IDENTITY FULL; INSERT INTO late_full VALUES (1, 1), (2, 1);
				CREATE TABLE hour(id int, month int, n int, PRIMARY KEY (id, month)) PARTITION BY LIST (month);
				CREATE TABLE hour_1 PARTITION OF hour FOR VALUES IN (1); CREATE TABLE hour_2 PARTITION OF hour FOR VALUES IN (2);
				ALTER TABLE hour_2 REPLICA IDENTITY NOTHING; INSERT INTO hour VALUES (1, 1, 1), (2, 2, 1)`)
			for table, words := range map[string][]string{"late": {"public.late", "DEFERRABLE"}, "late_full": {"public.late_full", "DEFERRABLE"}, "hour": {"public.hour", "partitions public.hour_2"}} {
				err := start(t, d.source(func(c *Config) { c.Tables = []string{"public.a", "public." + table} }), newOutlet()).fails()
				want(t, err, ErrNoKey, words...)
			}
			o := newOutlet()
			r := loaded(t, d.source(), o)
			d.sql(`UPDATE late SET n = 2; UPDATE late_full SET id = id + 1; UPDATE hour SET n = 2; DELETE FROM late; DELETE FROM hour; INSERT INTO a VALUES (1)`)
			o.untilCount(t, 1)
			r.stop()
		})
	}
}

// Lost if this fails: a limit that database or role have for their sessions ends
// each load, and each next one, or the connection beside the stream.
func TestSessionsHaveNoTimeLimit(t *testing.T) {
	for version, limits := range map[string][]string{
		embedded.Postgres15: {"statement_timeout", "lock_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout"},
		embedded.Postgres18: {"statement_timeout", "lock_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"},
	} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql(`CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i`)
			for _, l := range limits {
				d.sql("ALTER DATABASE %s SET %s = '2s'", d.name, l)
			}
			s, o := d.source(), newOutlet()
			q, err := s.cfg.connect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer closeConn(q)
			r, err := s.cfg.connectReplication(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer r.close()
			for _, l := range limits {
				var plain string
				if err := q.QueryRow(t.Context(), "SHOW "+l).Scan(&plain); err != nil {
					t.Fatal(err)
				}
				res := r.Exec(t.Context(), "SHOW "+l)
				all, err := res.ReadAll()
				if err != nil {
					t.Fatal(err)
				}
				if replicating := string(all[0].Rows[0][0]); plain != "0" || replicating != "0" {
					t.Errorf("%s is %s, and %s where it replicates", l, plain, replicating)
				}
			}
			run := loaded(t, s, o)
			o.untilCount(t, 20_000)
			run.stop()
		})
	}
}

// Lost if this fails: somebody drops a key, and the application's updates fail
// for as long as the table is published.
func TestTableLeavesThePublicationWithItsKey(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, n int); CREATE TABLE b(id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1)`)
	s := d.source()
	s.keepEvery = time.Millisecond
	o := newOutlet()
	r := loaded(t, s, o)
	d.sql(`ALTER TABLE a DROP CONSTRAINT a_pkey`)
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	failed := 0
	for {
		_, err := d.Exec(ctx, "UPDATE a SET n = n + 1")
		if err == nil {
			break
		}
		failed++
		select {
		case <-ctx.Done():
			t.Fatal("the application's updates fail for ever: ", err)
		case <-tick.C:
		}
	}
	d.sql(`DELETE FROM a; UPDATE b SET n = 2`)
	o.untilCount(t, 3) // both rows of the load, and the update of b
	if v := s.comp.View(); v.State != obs.Running || !strings.Contains(v.Reason, "public.a has left publication") {
		t.Errorf("the state is %s: %s", v.State, v.Reason)
	}
	r.stop()
	t.Logf("%d updates failed", failed)

	// One that others made is theirs.
	plain := "plain_" + d.name
	d.sql(`ALTER TABLE b DROP CONSTRAINT b_pkey; CREATE ROLE %s LOGIN`, plain)
	t.Cleanup(func() {
		if _, err := d.Exec(context.Background(), "DROP ROLE "+plain); err != nil {
			t.Error(err)
		}
	})
	mayNot := &session{Source: s}
	q, err := pgx.Connect(ctx, d.pg.DSNAs(plain, d.name))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close(ctx)
	if err := mayNot.keepIdentities(ctx, q); err != nil {
		t.Error(err)
	}
	if n := d.one("SELECT count(*)::text FROM pg_publication_tables"); n != "1" {
		t.Errorf("%s tables are published, want 1", n)
	}
}

// Lost if this fails: a restart of the source database stops capture, or
// repeats or loses what lay around it.
func TestPostgresRestart(t *testing.T) {
	pg := testkit.NewPostgres(t, embedded.Postgres17)
	d := newDB(t, pg)
	d.sql("CREATE TABLE a(id int PRIMARY KEY, v int)")
	s, o := d.source(), newOutlet()
	r := loaded(t, s, o)
	n := 0
	for round, stop := range []func() error{func() error { return pg.Down(context.Background()) }, pg.Kill} {
		for range 20 {
			n++
			d.sql("INSERT INTO a VALUES (%d, 0)", n)
		}
		o.untilCount(t, n)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		err := r.fails()
		if e := problem.Of(err); e == nil || e.Class != problem.Retry {
			t.Fatalf("round %d: %v, want a retry", round, err)
		}
		o.ended = nil
		err = start(t, s, o).fails() // while it is down
		want(t, err, ErrUnavailable)
		o.ended = nil
		// Remedy: TW-PG-UNAVAILABLE
		if err := pg.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		conn, err := d.connect()
		if err != nil {
			t.Fatal(err)
		}
		d.Conn = conn
		r = start(t, s, o)
		n++
		d.sql("INSERT INTO a VALUES (%d, 1)", n)
		o.untilCount(t, n)
	}
	r.stop()
	d.Close(context.Background())
	rising(t, o.records())
}

// Lost if this fails: a column of a type that has no binary form here stops the
// stream, or comes as garbage; or the stream that is opened again repeats.
func TestNewColumns(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY, v text)")
	s, o := d.source(), newOutlet()
	r := loaded(t, s, o)
	d.sql("INSERT INTO a VALUES (1, 'x')")
	d.sql("ALTER TABLE a ADD COLUMN n numeric(6,2) DEFAULT 1.5; INSERT INTO a VALUES (2, 'y', 2.5)")
	o.untilCount(t, 2)
	d.sql("INSERT INTO a VALUES (3, 'z', 3); ALTER TABLE a ADD COLUMN ip inet; INSERT INTO a VALUES (4, 'i', 4, '10.0.0.1/8')")
	err := r.fails()
	want(t, err, pgoutput.ErrText, "ip", "psa.public.a", "inet")
	if problem.Of(err).Class != problem.Retry {
		t.Error("not a retry")
	}
	o.ended = nil
	d.free(s.cfg.Slot)
	r = start(t, s, o) // Remedy: TW-PG-TEXT
	o.untilCount(t, 4)
	d.sql("ALTER TABLE a DROP COLUMN v; INSERT INTO a VALUES (5, 5, NULL)")
	o.untilCount(t, 5)
	r.stop()
	rising(t, o.records())
	for i, w := range []string{"id=1|v=x", "id=2|v=y|n=2.50", "id=3|v=z|n=3.00", "id=4|v=i|n=4.00|ip=10.0.0.1/8", "id=5|n=5.00|ip=<null>"} {
		if g := o.records()[i].new; g != w {
			t.Errorf("record %d is %s, want %s", i, g, w)
		}
	}
}

// Lost if this fails: an out-of-line value that an update did not touch turns
// into null, or into a magic string.
func TestUnchangedColumn(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v int, big text); ALTER TABLE a ALTER big SET STORAGE EXTERNAL`)
	s, o := d.source(), newOutlet()
	r := loaded(t, s, o)
	d.sql("INSERT INTO a VALUES (1, 1, repeat('x', 5000)); UPDATE a SET v = 2; UPDATE a SET big = NULL")
	o.untilCount(t, 3)
	r.stop()
	if g := o.records()[1].new; g != "id=1|v=2|big=<unchanged>" {
		t.Errorf("the update is %.100s", g)
	}
	if g := o.records()[2].new; g != "id=1|v=2|big=<null>" {
		t.Errorf("the second update is %.100s", g)
	}
}

// Lost if this fails: what a publication leaves out comes with the load.
func TestPublicationsColumnsAndFilter(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v int, secret text); CREATE PUBLICATION mine FOR TABLE a (id, v) WHERE (id < 10);
		CREATE PUBLICATION inserts FOR TABLE a WITH (publish = 'insert');
		INSERT INTO a VALUES (1, 1, 's'), (11, 1, 's')`)
	want(t, start(t, d.source(func(c *Config) { c.Publication = "inserts" }), newOutlet()).fails(), ErrPublication, "inserts")
	s, o := d.source(func(c *Config) { c.Publication = "mine"; c.Tables = []string{"public.a"} }), newOutlet()
	r := loaded(t, s, o)
	d.sql("INSERT INTO a VALUES (12, 1, 's'), (2, 2, 's')")
	o.untilCount(t, 2)
	r.stop()
	for i, w := range []string{"id=1|v=1", "id=2|v=2"} {
		if g := o.records()[i].new; g != w {
			t.Errorf("record %d is %s, want %s", i, g, w)
		}
	}
}

// Lost if this fails: partitions appear as tables of their own, or not at all.
func TestPartitionedTable(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE p(id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
		CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (1, 1), (11, 1)`)
	s, o := d.source(), newOutlet()
	r := loaded(t, s, o)
	d.sql("UPDATE p SET v = 2 WHERE id = 11; UPDATE p SET id = 12 WHERE id = 1")
	o.untilCount(t, 5)
	r.stop()
	for _, rec := range o.records() {
		if rec.topic != "psa.public.p" {
			t.Errorf("topic %s", rec.topic)
		}
	}
	sameState(t, state(o.records(), "psa.public.p"), rows(d, "p", "id", "id", "v"))
}

// Lost if this fails: a supported version of Postgres is not captured from.
func TestVersions(t *testing.T) {
	for _, v := range []string{embedded.Postgres15, embedded.Postgres16, embedded.Postgres18} {
		t.Run(v, func(t *testing.T) {
			pg := testkit.NewPostgres(t, v)
			d := newDB(t, pg)
			d.sql(`CREATE TABLE a(id int PRIMARY KEY, n numeric(10,2), at timestamptz); ALTER TABLE a REPLICA IDENTITY FULL; INSERT INTO a VALUES (1, 1.5, 'infinity')`)
			s, o := d.source(), newOutlet()
			r := loaded(t, s, o)
			d.sql("BEGIN; INSERT INTO a VALUES (2, NULL, '2024-01-01 00:00+00'); UPDATE a SET n = 3 WHERE id = 1; DELETE FROM a WHERE id = 2; COMMIT")
			o.untilCount(t, 4)
			r.stop()
			d.free(s.cfg.Slot)
			d.sql("INSERT INTO a VALUES (3)")
			r = start(t, s, o)
			o.untilCount(t, 5)
			second := newOutlet()
			want(t, start(t, d.source(), second).fails(), ErrSlotInUse)
			r.stop()
			d.sql("CREATE ROLE clerk LOGIN")
			want(t, start(t, d.source(func(c *Config) { c.DSN = secret.DSNOf(pg.DSNAs("clerk", d.name)) }), newOutlet()).fails(), ErrNoReplication, "clerk")
			d.Close(context.Background())
			rising(t, o.records())
			ops := ""
			for _, r := range o.records() {
				ops += string(rune(r.op))
			}
			if ops != "rcudc" {
				t.Errorf("operations are %q, want rcudc", ops)
			}
			sameState(t, state(o.records(), "psa.public.a"), map[string]string{"1": "id=1|n=3.00|at=infinity", "3": "id=3|n=<null>|at=<null>"})
			sameTypes(t, pg, typeCases, true)
		})
	}
}
