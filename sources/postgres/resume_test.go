package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// rows gives a table's rows as records print them.
func rows(d *db, table, key string, cols ...string) map[string]string {
	d.t.Helper()
	expr := ""
	for i, c := range cols {
		if i > 0 {
			expr += " || '|' || "
		}
		expr += fmt.Sprintf("'%s=' || coalesce(%s::text, '<null>')", c, c)
	}
	rs, err := d.Query(d.t.Context(), "SELECT "+key+"::text, "+expr+" FROM "+table)
	if err != nil {
		d.t.Fatal(err)
	}
	defer rs.Close()
	m := map[string]string{}
	for rs.Next() {
		var k, v string
		if err := rs.Scan(&k, &v); err != nil {
			d.t.Fatal(err)
		}
		m[k] = v
	}
	if rs.Err() != nil {
		d.t.Fatal(rs.Err())
	}
	return m
}

func sameState(t *testing.T, got, want map[string]string) {
	t.Helper()
	for k, w := range want {
		if got[k] != w {
			t.Errorf("key %s: replayed %q, the table has %q", k, got[k], w)
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("key %s: replayed %q, the table has no such row", k, g)
		}
	}
}

// loaded runs the source until the load is done.
func loaded(t *testing.T, s *Source, o *outlet) *running {
	t.Helper()
	r := start(t, s, o)
	o.until(t, "the load", func() bool { p := o.last(t); return p.LSN != 0 && p.State == "" })
	return r
}

// startedOver does what docs/recovery.md says, and holds what comes of it against
// table a, of columns, which insert changes once more. The position and the raw
// topics go with the outlet.
func startedOver(t *testing.T, d *db, s *Source, insert string, columns ...string) {
	t.Helper()
	d.free(s.cfg.Slot)
	d.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '%s'", s.cfg.Slot)
	o := newOutlet()
	r := loaded(t, s, o)
	d.sql("%s", insert)
	is := rows(d, "a", "id", columns...)
	o.until(t, "what came since", func() bool { return len(state(o.records(), "psa.public.a")) == len(is) })
	r.stop()
	sameState(t, state(o.records(), "psa.public.a"), is)
}

func moved(r pipeline.Resume, slot string) pipeline.Resume {
	p, err := parsePosition(r)
	if err != nil {
		panic(err)
	}
	p.Slot = slot
	return p.resume()
}

// Lost if this fails: a restart loses or repeats changes, at some boundary, also
// inside a transaction that was split (A9, B1, invariant 2).
func TestRestartAtEveryPosition(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v text); ALTER TABLE a REPLICA IDENTITY FULL; CREATE TABLE b(id int PRIMARY KEY, v int); CREATE TABLE other(id int PRIMARY KEY)`)
	edit := func(c *Config) { c.Tables = []string{"public.a", "public.b"}; c.IdleInterval = time.Hour }
	s := d.source(edit)
	s.batchChanges = 7
	o := newOutlet()
	loaded(t, s, o).stop()
	d.free(s.cfg.Slot)
	// other is published too: its changes count, and are not captured.
	d.sql("ALTER PUBLICATION %s ADD TABLE other", s.cfg.Publication)
	d.sql("SELECT pg_copy_logical_replication_slot('%s', '%s_base')", s.cfg.Slot, d.name)

	total := 0
	d.sql("INSERT INTO a SELECT g, 'x' FROM generate_series(1, 30) g")
	total += 30
	for i := range 12 {
		d.sql("BEGIN; INSERT INTO b VALUES (%d, %d); INSERT INTO other VALUES (%d); UPDATE a SET v = 'y%d' WHERE id = %d; COMMIT", i, i, i, i, i+1)
		total += 2
	}
	d.sql("DO $$ BEGIN FOR i IN 1..25 LOOP UPDATE a SET v = v || i WHERE id = 3; INSERT INTO other VALUES (100 + i); END LOOP; END $$")
	total += 25
	// Interleaved: a long transaction around short ones.
	long := newDBConn(t, d)
	long.sql("BEGIN; INSERT INTO a VALUES (100, 'long')")
	d.sql("INSERT INTO a VALUES (101, 'short')")
	long.sql("INSERT INTO b VALUES (100, 1)")
	d.sql("DELETE FROM a WHERE id = 5")
	long.sql("UPDATE a SET v = 'longer' WHERE id = 100; COMMIT")
	total += 5
	d.sql("TRUNCATE a, b")
	total += 2

	o.mu.Lock()
	o.recs, o.resumes, o.upTo = nil, nil, nil
	o.mu.Unlock()
	r := start(t, s, o)
	o.untilCount(t, total)
	r.stop()
	truth, resumes, upTo := o.records(), o.resumes, o.upTo
	rising(t, truth)
	inside := 0
	for i, at := range resumes {
		p, err := parsePosition(at)
		if err != nil {
			t.Fatal(err)
		}
		if p.Tx != nil {
			inside++
		}
		slot := fmt.Sprintf("%s_%d", d.name, i)
		d.sql("SELECT pg_copy_logical_replication_slot('%s_base', '%s')", d.name, slot)
		s2 := d.source(edit, func(c *Config) { c.Slot, c.Publication = slot, s.cfg.Publication })
		s2.batchChanges = 5
		o2 := newOutlet()
		o2.position = moved(at, slot)
		r2 := start(t, s2, o2)
		want := truth[upTo[i]:]
		o2.untilCount(t, len(want))
		if len(want) == 0 { // see that nothing comes: until the server has sent all
			end := d.one("SELECT pg_current_wal_lsn()::text")
			o2.until(t, "the slot to be read", func() bool {
				return d.one("SELECT EXISTS (SELECT FROM pg_stat_replication JOIN pg_replication_slots s ON s.active_pid = pid WHERE slot_name = '"+slot+"' AND sent_lsn >= '"+end+"')::text") == "true"
			})
		}
		r2.stop()
		for j, g := range o2.records() {
			if g != want[j] {
				t.Fatalf("resumed at %s: record %d is\n%v, want\n%v", at, j, g, want[j])
			}
		}
		d.free(slot)
		d.sql("SELECT pg_drop_replication_slot('%s')", slot)
	}
	if inside < 5 {
		t.Errorf("%d of %d positions lie inside a transaction; the test wants some", inside, len(resumes))
	}
	d.sql("SELECT pg_drop_replication_slot('%s_base')", d.name)
}

func newDBConn(t *testing.T, of *db) *db {
	t.Helper()
	d := *of
	conn, err := d.connect()
	if err != nil {
		t.Fatal(err)
	}
	d.Conn = conn
	t.Cleanup(func() { conn.Close(context.Background()) })
	return &d
}

// Lost if this fails: a prefix that was delivered under another history is
// taken for ours, and the rest of the transaction is misplaced.
func TestSplitTransactionMustRepeat(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v text)`)
	s := d.source()
	s.batchChanges = 10
	o := newOutlet()
	loaded(t, s, o).stop()
	d.free(s.cfg.Slot)
	d.sql("INSERT INTO a SELECT g, 'x' FROM generate_series(1, 25) g")
	boom := problem.Error{Code: ErrUnavailable, Text: "stopped by the test"}
	sent := 0
	o.onSend = func(context.Context, *change.Batch) error {
		if sent++; sent == 2 {
			return &boom
		}
		return nil
	}
	if err := start(t, s, o).fails(); !errors.Is(err, &boom) {
		t.Fatal(err)
	}
	p := o.last(t)
	if p.Tx == nil || p.Tx.Delivered != 10 {
		t.Fatalf("the position is %s, want one inside a transaction after 10 changes", o.position)
	}
	o.onSend, o.ended = nil, nil
	for what, wrong := range map[string]func(*txPart){
		"hash":        func(x *txPart) { x.Hash++ },
		"count":       func(x *txPart) { x.Delivered = 26 },
		"transaction": func(x *txPart) { x.Final += 8 },
	} {
		bad := p
		tx := *p.Tx
		wrong(&tx)
		bad.Tx = &tx
		ob := newOutlet()
		ob.position = bad.resume()
		ob.holdDurable = true
		d.free(s.cfg.Slot)
		if err := start(t, d.source(), ob).fails(); !problem.Has(err, ErrSplit) {
			t.Errorf("with another %s: %v", what, err)
		}
		if n := len(ob.records()); n != 0 {
			t.Errorf("with another %s: %d records sent", what, n)
		}
	}
	// The other form: the session is opened again in the form of the position.
	d.free(s.cfg.Slot)
	text := false
	s.form = &text
	if err := start(t, s, o).fails(); !problem.Has(err, pgoutput.ErrText) {
		t.Fatalf("in the other form: %v", err)
	}
	d.free(s.cfg.Slot)
	o.ended = nil
	r := start(t, s, o)
	o.untilCount(t, 25)
	r.stop()
	rising(t, o.records())
	sameState(t, state(o.records(), "psa.public.a"), rows(d, "a", "id", "id", "v"))
	startedOver(t, d, d.source(), "INSERT INTO a VALUES (1000, 'y')", "id", "v") // Remedy: TW-PG-SPLIT
}

// Lost if this fails: after a kill in the load, at any step of it, rows that changed
// meanwhile are wrong in Kafka for ever, or never come; or what was read is read again.
func TestKillDuringLoad(t *testing.T) {
	const rowsOfEach, tables = 60, 3
	for step := range 30 {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			d := newDB(t, shared(t))
			for i := range tables {
				d.sql("CREATE TABLE a%[1]d(id int PRIMARY KEY, v text, big text); ALTER TABLE a%[1]d ALTER big SET STORAGE EXTERNAL; INSERT INTO a%[1]d SELECT g, 'x', repeat(md5(g::text), 80) FROM generate_series(1, %[2]d) g", i, rowsOfEach)
			}
			d.sql("CREATE TABLE empty(id int PRIMARY KEY)")
			s, o := d.source(), newOutlet()
			looksOften(s)
			s.batchChanges, s.chunkRows, s.askEvery = 10, 9, time.Millisecond
			killed := &problem.Error{Code: ErrUnavailable, Text: "killed by the test"}
			// The first process dies at a step of the load, the second at one of what follows.
			kill := func(at, key int) {
				n := 0
				die := func() error {
					if n++; n <= at {
						return nil
					}
					for i := range tables {
						d.sql("DELETE FROM a%[1]d WHERE id = %[2]d; UPDATE a%[1]d SET v = 'new' WHERE id IN (%[2]d + 10, 59); UPDATE a%[1]d SET id = 200 + %[2]d WHERE id = 20 + %[2]d; INSERT INTO a%[1]d VALUES (300 + %[2]d, 'z')", i, key)
					}
					return killed
				}
				o.onSend = func(context.Context, *change.Batch) error { return die() }
				o.onCheckpoint = func(pipeline.Resume) error { return die() }
			}
			noted := func() (left int) {
				ms, err := parseMembers(o.Notes())
				if err != nil {
					t.Fatal(err)
				}
				if ms == nil {
					return tables + 1
				}
				return len(ms.loading())
			}
			kill(step, 1)
			r := start(t, s, o)
			whole := map[string]int{} // records of tables that were read by then
			if r.diesUnless(func() bool { return o.last(t).LSN != 0 && o.last(t).State == "" && noted() == 0 }, killed) {
				o.ended = nil
				for table := range tables {
					if name := fmt.Sprintf("public.a%d", table); o.noted != nil && o.loadOf(t, name) == nil {
						whole["psa."+name] = reads(o.records(), "psa."+name)
					}
				}
				d.free(s.cfg.Slot)
				kill(step/3, 2)
				r = start(t, s, o)
				if r.diesUnless(func() bool { return noted() == 0 }, killed) {
					o.ended = nil
					d.free(s.cfg.Slot)
					o.mu.Lock()
					o.onSend, o.onCheckpoint = nil, nil
					o.mu.Unlock()
					r = start(t, s, o)
				}
			}
			o.mu.Lock()
			o.onSend, o.onCheckpoint = nil, nil
			o.mu.Unlock()
			o.until(t, "the load", func() bool { return o.last(t).LSN != 0 && noted() == 0 })
			d.sql("INSERT INTO empty VALUES (1)")
			o.until(t, "the last change", func() bool { return len(state(o.records(), "psa.public.empty")) == 1 })
			says(t, s)
			r.stop()
			recs := o.records()
			rising(t, recs)
			for i := range tables {
				table := fmt.Sprintf("a%d", i)
				sameState(t, folded(recs, "psa.public."+table), rows(d, table, "id", "id", "v", "big"))
			}
			for topic, n := range whole {
				if got := reads(recs, topic); got != n {
					t.Errorf("%s, which was read when the process died, was read again: %d rows, then %d", topic, n, got)
				}
			}
		})
	}
}

// A load that an older version began, which noted no table, is begun again: beside the
// stream.
func TestLoadOfAnOlderVersion(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'x' FROM generate_series(1, 100) g`)
	s, o := d.source(), newOutlet()
	s.batchChanges = 10
	killed := &problem.Error{Code: ErrUnavailable, Text: "killed by the test"}
	sent := 0
	o.onSend = func(context.Context, *change.Batch) error {
		if sent++; sent == 3 {
			d.sql("DELETE FROM a WHERE id = 1; UPDATE a SET v = 'new' WHERE id IN (5, 99)")
			return killed
		}
		return nil
	}
	if err := start(t, s, o).fails(); !errors.Is(err, killed) {
		t.Fatal(err)
	}
	o.onSend, o.ended, o.noted = nil, nil, nil
	d.free(s.cfg.Slot)
	r := start(t, s, o)
	o.until(t, "the load", func() bool { return o.last(t).State == "" && o.noted != nil && o.loadOf(t, "public.a") == nil })
	r.stop()
	rising(t, o.records())
	sameState(t, state(o.records(), "psa.public.a"), rows(d, "a", "id", "id", "v"))
}

// Lost if this fails: a transaction that is slow to become visible (here: one that is
// still open) is in neither the rest of the load nor the stream.
func TestRestOfALoadWaitsForOpenTransactions(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)`)
	s := d.source()
	o := newOutlet()
	killed := problem.Error{Code: ErrUnavailable, Text: "killed by the test"}
	o.onSend = func(context.Context, *change.Batch) error { return &killed }
	if err := start(t, s, o).fails(); !errors.Is(err, &killed) {
		t.Fatal(err)
	}
	d.free(s.cfg.Slot)
	other := newDBConn(t, d)
	other.sql("BEGIN; INSERT INTO a VALUES (2)")
	o.onSend, o.ended = nil, nil
	r := start(t, s, o)
	o.until(t, "the load to wait", func() bool {
		return matches("*rows beside the stream: waiting for the transaction of server process *, idle in transaction, open for *s) to end*", s.comp.View().Progress)
	})
	if n := len(o.records()); n != 0 {
		t.Fatalf("%d records while a transaction is open", n)
	}
	other.sql("COMMIT")
	o.until(t, "both rows", func() bool { return len(state(o.records(), "psa.public.a")) == 2 })
	r.stop()
}

// Lost if this fails: the slot forgets changes that are not in Kafka (invariant 1).
func TestAcknowledgesOnlyWhatIsDurable(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY); CREATE TABLE other(id int)`)
	s := d.source(func(c *Config) { c.Tables = []string{"public.a"} })
	o := newOutlet()
	r := loaded(t, s, o)
	confirmed := func() lsn {
		v, err := pglogrepl.ParseLSN(d.one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '" + s.cfg.Slot + "'"))
		if err != nil {
			t.Fatal(err)
		}
		return lsn(v)
	}
	o.mu.Lock()
	o.holdDurable = true
	o.mu.Unlock()
	before := confirmed()
	d.sql("INSERT INTO a VALUES (1)")
	o.untilCount(t, 1)
	held := o.last(t)
	// The server asks for the position several times meanwhile (IdleInterval).
	replied := func() string {
		return d.one("SELECT reply_time::text FROM pg_stat_replication JOIN pg_replication_slots s ON s.active_pid = pid WHERE slot_name = '" + s.cfg.Slot + "'")
	}
	for range 3 {
		was := replied()
		o.until(t, "a status update", func() bool { return replied() != was })
	}
	if at := confirmed(); at >= held.LSN || at < before {
		t.Fatalf("confirmed %s while %s is not durable", at, held.LSN)
	}
	o.mu.Lock()
	o.holdDurable = false
	o.commit(bytes.Clone(o.position))
	o.mu.Unlock()
	o.until(t, "the acknowledgement", func() bool { return confirmed() >= held.LSN })

	// Others write: the slot moves on, and each position was a checkpoint first.
	d.sql("INSERT INTO other SELECT generate_series(1, 1000)")
	end, err := pglogrepl.ParseLSN(d.one("SELECT pg_current_wal_lsn()::text"))
	if err != nil {
		t.Fatal(err)
	}
	o.until(t, "the slot to move on while idle", func() bool { return confirmed() >= lsn(end) })
	if at, p := confirmed(), o.last(t); at > p.LSN {
		t.Fatalf("confirmed %s, checkpointed %s", at, p.LSN)
	}
	d.sql("INSERT INTO a VALUES (2)")
	o.untilCount(t, 2)
	r.stop()
	rising(t, o.records())
}

// Lost if this fails: a slow Kafka makes Postgres end the stream again and again.
func TestKeptAliveWhileSendBlocks(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v text); ALTER ROLE postgres IN DATABASE %s SET wal_sender_timeout = '3s'`, d.name)
	s := d.source()
	o := newOutlet()
	r := loaded(t, s, o)
	release := make(chan struct{})
	blocked := make(chan struct{}, 10)
	o.mu.Lock()
	o.onSend = func(ctx context.Context, _ *change.Batch) error {
		select {
		case blocked <- struct{}{}:
		default:
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	o.mu.Unlock()
	// More than all buffers hold, so that the walsender itself blocks.
	d.sql("INSERT INTO a SELECT g, repeat('x', 1000) FROM generate_series(1, 40000) g")
	<-blocked
	pid := d.one("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '" + s.cfg.Slot + "'")
	from := d.one("SELECT now()::text")
	o.until(t, "three times wal_sender_timeout", func() bool { return d.one("SELECT (now() > timestamptz '"+from+"' + interval '9s')::text") == "true" })
	if now := d.one("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '" + s.cfg.Slot + "'"); now != pid {
		t.Fatalf("the stream was of process %s, now %q", pid, now)
	}
	close(release)
	o.untilCount(t, 40000)
	r.stop()
}
