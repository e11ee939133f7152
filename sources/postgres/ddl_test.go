package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// Lost if this fails: a table that is altered while others are loaded comes
// without its rows, without a word, or stops the source; or migrations wait for
// the end of the load. (C5)
func TestDDLDuringLoad(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres17, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			var pg *embedded.Postgres
			if version == embedded.Postgres17 {
				pg = shared(t)
			} else {
				pg = testkit.NewPostgres(t, version)
			}
			d := newDB(t, pg)
			for _, name := range []string{"a", "rewritten", "narrower", "wider", "gone", "was", "emptied", "locked", "recomputed", "zz"} {
				d.sql(`CREATE TABLE %[1]s(id int PRIMARY KEY, v int, w int); INSERT INTO %[1]s SELECT g, g, 1 FROM generate_series(1, 50) g`, name)
			}
			d.sql(`CREATE TABLE parts(id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (25);
				CREATE TABLE parts2 PARTITION OF parts FOR VALUES FROM (25) TO (100); INSERT INTO parts SELECT g, g FROM generate_series(1, 50) g`)
			other, holder := newDBConn(t, d), newDBConn(t, d)
			s := d.source()
			s.batchChanges = 10
			o := newOutlet()
			seen := map[string]bool{}
			o.onSend = func(_ context.Context, b *change.Batch) error {
				topic := b.Changes[0].Table.Topic
				if seen[topic] {
					return nil
				}
				seen[topic] = true
				switch topic {
				case "psa.public.a": // the first
					other.sql("UPDATE rewritten SET v = -1 WHERE id = 1; UPDATE narrower SET v = -1 WHERE id = 1; INSERT INTO emptied VALUES (60, 60, 1)")
					other.sql("ALTER TABLE rewritten ALTER v TYPE bigint")
					other.sql("ALTER TABLE recomputed ALTER v TYPE int USING v + 1000")
					other.sql("ALTER TABLE narrower DROP COLUMN w")
					other.sql("ALTER TABLE wider ADD COLUMN x int NOT NULL DEFAULT 7")
					other.sql("DROP TABLE gone")
					other.sql("ALTER TABLE was RENAME TO isnow")
					other.sql("TRUNCATE emptied")
					other.sql("INSERT INTO emptied VALUES (70, 70, 1)")
					other.sql("VACUUM FULL parts2")
					other.sql("UPDATE rewritten SET v = 1::bigint << 40 WHERE id = 2; DELETE FROM rewritten WHERE id = 3; UPDATE narrower SET v = -2 WHERE id = 2")
					holder.sql("BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE; INSERT INTO locked VALUES (60, 60, 1)")
				case "psa.public.zz": // the last of those that could be read: no lock is left on the others
					other.sql("SET lock_timeout = '10s'; ALTER TABLE a ADD COLUMN late int")
				}
				return nil
			}
			r := start(t, s, o)
			o.until(t, "the load to wait for what is locked", func() bool {
				return strings.Contains(s.comp.View().Progress, "rows beside the stream: waiting for the transaction of server process ")
			})
			if !seen["psa.public.zz"] {
				t.Error("it waits before it has read what is not locked")
			}
			holder.sql("COMMIT")
			o.until(t, "the load", func() bool {
				ms, err := parseMembers(o.Notes())
				return err == nil && len(ms.loading()) == 0
			})
			d.sql("INSERT INTO zz VALUES (99, 99, 99)")
			o.until(t, "the end", func() bool { rs := o.records(); return len(rs) > 0 && rs[len(rs)-1].new == "id=99|v=99|w=99" })
			r.stop()
			rising(t, o.records())
			for table, cols := range map[string]string{
				"a": "id v w", "rewritten": "id v w", "narrower": "id v", "wider": "id v w x", "isnow": "id v w", "recomputed": "id v w", "emptied": "id v w", "locked": "id v w", "zz": "id v w", "parts": "id v",
			} {
				got := state(o.records(), "psa.public."+table)
				want := rows(d, table, "id", strings.Fields(cols)...)
				if len(got) != len(want) {
					t.Errorf("%s: %d rows, the table has %d", table, len(got), len(want))
				}
				sameState(t, got, want)
			}
			if n := len(state(o.records(), "psa.public.was")); n != 0 {
				t.Errorf("%d rows came under a name that was not the table's any more", n)
			}
		})
	}
}

// Lost if this fails: a column that is added just before the slot is made is in
// no record of the load.
func TestColumnAddedBeforeTheSlot(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1), (2); CREATE TABLE other(id int)`)
	busy := newDBConn(t, d)
	busy.sql("BEGIN; INSERT INTO other VALUES (1)")
	s, o := d.source(), newOutlet()
	r := start(t, s, o)
	o.until(t, "the slot to wait", func() bool { return strings.HasPrefix(s.comp.View().Reason, "making the slot") })
	d.sql("ALTER TABLE a ADD COLUMN v int DEFAULT 7")
	busy.sql("COMMIT")
	o.until(t, "the load", func() bool { p := o.last(t); return p.LSN != 0 && p.State == "" })
	r.stop()
	sameState(t, state(o.records(), "psa.public.a"), rows(d, "a", "id", "id", "v"))
	if n := len(o.records()); n != 2 {
		t.Errorf("%d records", n)
	}
}

// Lost if this fails: a transaction that was delivered in part, and in which a
// column comes up that is read as text, stops the source for ever.
func TestTextColumnLateInACutTransaction(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v text)`)
	s, o := d.source(), newOutlet()
	s.batchChanges = 10
	r := loaded(t, s, o)
	d.sql(`BEGIN; INSERT INTO a SELECT g, 'x' FROM generate_series(1, 37) g; ALTER TABLE a ADD COLUMN ip inet;
		INSERT INTO a SELECT g, 'y', '10.0.0.1/8' FROM generate_series(38, 80) g; COMMIT; INSERT INTO a VALUES (81, 'z', NULL)`)
	runs := 1
	for len(o.records()) < 81 {
		select {
		case err := <-r.err:
			if runs++; runs > 8 || !problem.Has(err, pgoutput.ErrText) {
				t.Fatalf("after %d runs, with %d records: %v", runs, len(o.records()), err)
			}
			d.free(s.cfg.Slot)
			o.ended = nil
			r = start(t, s, o)
		case <-o.changed:
		case <-time.After(testkit.Patience):
			t.Fatalf("%d records", len(o.records()))
		}
	}
	r.stop()
	rising(t, o.records())
	for i, rec := range o.records() {
		if want := fmt.Sprintf("id=%d|", i+1); !strings.HasPrefix(rec.new, want) {
			t.Fatalf("record %d is %s", i, rec.new)
		}
	}
	want := rows(d, "a", "id", "id", "v", "ip")
	for i := 1; i <= 37; i++ { // of before the column
		want[fmt.Sprint(i)] = fmt.Sprintf("id=%d|v=x", i)
	}
	sameState(t, state(o.records(), "psa.public.a"), want)
}
