package postgres

import (
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

// Lost if this fails: rows that went at the source without a change that says so stay
// in every dashboard, whatever somebody asks for (F7).
func TestSweep(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql(`CREATE TABLE parts(id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
				CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (50); CREATE TABLE parts2 PARTITION OF parts FOR VALUES FROM (50) TO (100);
				CREATE TABLE parts3 PARTITION OF parts FOR VALUES FROM (100) TO (150); INSERT INTO parts SELECT i, 'v' || i FROM generate_series(0, 149) i;
				CREATE TABLE anew(id int PRIMARY KEY, v text); INSERT INTO anew SELECT i, 'v' || i FROM generate_series(1, 30) i;
				CREATE TABLE swap(id int PRIMARY KEY, v text); INSERT INTO swap SELECT i, 'v' || i FROM generate_series(1, 30) i;
				CREATE TABLE other(id int PRIMARY KEY, v text); INSERT INTO other SELECT i, 'v' || i FROM generate_series(1, 30) i`)
			s, o := d.source(func(c *Config) {
				c.Tables = append(c.Tables, "!public.swap_*", "!public.parts2")
				c.Policy = map[string]string{"recreated": Ask, "truncated": Ask}
			}), newOutlet()
			looksOften(s)
			s.askEvery, s.chunkRows = 10*time.Millisecond, 7
			r := loaded(t, s, o)
			d.sql("TRUNCATE parts1; INSERT INTO parts VALUES (3, 'later')")
			d.sql("ALTER TABLE parts DETACH PARTITION parts2")
			d.sql("DROP TABLE anew; CREATE TABLE anew(id int PRIMARY KEY, v text); INSERT INTO anew SELECT i, 'w' || i FROM generate_series(20, 40) i")
			d.sql("CREATE TABLE swap_new(id int PRIMARY KEY, v text); INSERT INTO swap_new SELECT i, 'w' || i FROM generate_series(20, 40) i; ALTER TABLE swap RENAME TO swap_old; ALTER TABLE swap_new RENAME TO swap")
			o.until(t, "the new tables to be read", func() bool {
				recs := o.records()
				return len(state(recs, "psa.public.anew")) == 40 && len(state(recs, "psa.public.swap")) == 40 && o.isReloaded(t, "public.anew", "public.swap")
			})
			tables := []string{"public.parts", "public.anew", "public.swap", "public.other"}
			for _, table := range tables[:3] {
				o.askSweep(t, s, table)
				o.reloaded(t, table)
			}
			o.askSweep(t, s, "public.other")
			o.reloaded(t, "public.other")
			for _, table := range tables {
				sameState(t, state(o.records(), "psa."+table), rows(d, table[len("public."):], "id", "id", "v"))
			}
			says(t, s)
			n := 0
			for _, x := range o.records() {
				if x.op == change.Sweep {
					n++
				}
			}
			if n != len(tables) {
				t.Errorf("%d sweeps, want one for each of %v", n, tables)
			}
			rising(t, o.records())
			r.stop()
			if recs := o.records(); slices.ContainsFunc(recs, func(x rec) bool { return x.op == change.Delete }) {
				t.Error("there is a delete")
			}
		})
	}
}

// Lost if this fails: the process dies while a table is swept, and rows that it had
// read by then are deleted; or what is gone stays.
func TestSweepGoesOn(t *testing.T) {
	for n := range int64(3) { // two batches of rows, and the sweep
		t.Run(strconv.FormatInt(n, 10), func(t *testing.T) {
			d, s, o, r := docs(t)
			o.reload(t, s, "", "public.doc")
			d.sql("ALTER PUBLICATION %[1]s DROP TABLE doc; DELETE FROM doc WHERE id <= 10; ALTER PUBLICATION %[1]s ADD TABLE doc", s.cfg.Publication)
			r.stop() // its chunks have grown
			o.ended = nil
			d.free(s.cfg.Slot)
			r = start(t, s, o)
			died := errors.New("it dies")
			o.besideOnce(n+1, func() error { return died })
			o.askSweep(t, s, "public.doc")
			if err := r.fails(); !errors.Is(err, died) {
				t.Fatal(err)
			}
			o.ended = nil
			d.free(s.cfg.Slot)
			d.sql("INSERT INTO other VALUES (1)")
			d.sql("UPDATE doc SET v = 1 WHERE id = 15")
			r = start(t, s, o)
			o.reloaded(t, "public.doc")
			says(t, s)
			r.stop()
			sameState(t, folded(o.records(), "psa.public.doc"), rows(d, "doc", "id", "id", "v", "big"))
			rising(t, o.records())
		})
	}
}
