package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
)

// sweeps counts those of a table.
func sweeps(recs []rec, topic string) (n int) {
	for _, x := range recs {
		if x.op == change.Sweep && x.topic == topic {
			n++
		}
	}
	return n
}

// upheaval is what no change tells, of tables of 1 to 149.
const upheaval = `TRUNCATE parts1; INSERT INTO parts VALUES (3, 'later');
	CREATE TABLE loose(id int PRIMARY KEY, v text); INSERT INTO loose SELECT i, 'x' || i FROM generate_series(150, 199) i;
	ALTER TABLE parts ATTACH PARTITION loose FOR VALUES FROM (150) TO (200);
	ALTER TABLE parts DETACH PARTITION parts2;
	DROP TABLE anew; CREATE TABLE anew(id int PRIMARY KEY, v text); INSERT INTO anew SELECT i, 'w' || i FROM generate_series(20, 40) i;
	CREATE TABLE swap_new(id int PRIMARY KEY, v text); INSERT INTO swap_new SELECT i, 'w' || i FROM generate_series(20, 40) i; ALTER TABLE swap RENAME TO swap_old; ALTER TABLE swap_new RENAME TO swap;
	CREATE TABLE turn_new(id int PRIMARY KEY, v text); INSERT INTO turn_new SELECT i, 'w' || i FROM generate_series(20, 40) i; ALTER TABLE turn RENAME TO turn_old; ALTER TABLE turn_new RENAME TO turn;
	ALTER TABLE renamed RENAME TO called;
	ALTER TABLE wide ADD COLUMN w int DEFAULT 7`

func heaves(d *db) { // each line by itself
	for sql := range strings.SplitSeq(upheaval, "\n") {
		d.sql("%s", sql)
	}
}

func heavals(d *db) {
	d.sql(`CREATE TABLE parts(id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (50); CREATE TABLE parts2 PARTITION OF parts FOR VALUES FROM (50) TO (100);
		CREATE TABLE parts3 PARTITION OF parts FOR VALUES FROM (100) TO (150); INSERT INTO parts SELECT i, 'v' || i FROM generate_series(0, 149) i`)
	for _, table := range []string{"anew", "swap", "turn", "renamed", "wide", "out", "other"} {
		d.sql("CREATE TABLE %[1]s(id int PRIMARY KEY, v text); INSERT INTO %[1]s SELECT i, 'v' || i FROM generate_series(1, 30) i", table)
	}
}

// Lost if this fails: a table that is dropped and made anew, swapped, cut or joined by
// partitions has rows that its topic has not, or the reverse, until somebody looks; or
// what somebody is to be asked about is done by itself (F7).
func TestHeals(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		pg := testkit.NewPostgres(t, version)
		for name, looks := range map[string]bool{"while it runs": true, "while nobody looks": false} {
			t.Run(version+"/"+name, func(t *testing.T) {
				d := newDB(t, pg)
				heavals(d)
				s, o := d.source(func(c *Config) {
					c.Tables = append(c.Tables, "!public.swap_*", "!public.parts2", "!public.loose")
					c.Policy = map[string]string{"detached": Heal, "missed": Heal, "column": Heal}
				}), newOutlet()
				looksOften(s)
				s.chunkRows = 7
				r := loaded(t, s, o)
				if !looks {
					r.stop()
					d.free(s.cfg.Slot)
				}
				heaves(d)
				d.sql("ALTER PUBLICATION %[1]s DROP TABLE out; DELETE FROM out WHERE id < 10; INSERT INTO out VALUES (99, 'v99')", s.cfg.Publication)
				if looks {
					awaitLook(t, d, o)
				}
				d.sql("ALTER PUBLICATION %[1]s ADD TABLE out", s.cfg.Publication)
				if !looks {
					r = start(t, s, o)
				}
				d.sql("UPDATE parts SET v = 'new' WHERE id = 3; DELETE FROM anew WHERE id = 40; INSERT INTO swap VALUES (41, 'w41')")
				awaitLook(t, d, o)
				tables := []string{"parts", "anew", "swap", "turn", "turn_old", "called", "wide", "out", "other"}
				o.until(t, "all tables to be as they are", func() bool {
					recs := o.records()
					for _, table := range tables {
						if len(state(recs, "psa.public."+table)) != len(rows(d, table, "id", "id")) {
							return false
						}
					}
					return o.isReloaded(t, "public.parts", "public.anew", "public.swap", "public.turn", "public.turn_old", "public.called", "public.wide", "public.out")
				})
				r.stop()
				recs := o.records()
				for _, table := range tables {
					columns := []string{"id", "v"}
					if table == "wide" {
						columns = append(columns, "w")
					}
					sameState(t, state(recs, "psa.public."+table), rows(d, table, "id", columns...))
				}
				for _, table := range []string{"turn_old", "called", "wide", "other"} {
					if n := sweeps(recs, "psa.public."+table); n > 0 {
						t.Errorf("%s was swept %d times, of which nothing went", table, n)
					}
				}
				says(t, s, "public.called: was renamed from public.renamed*the topic of that name keeps its rows of before")
			})
		}
	}
}

// Lost if this fails: what a firm wants to be asked about is done by itself, or said
// only when it is too late to halt.
func TestPolicies(t *testing.T) {
	d := newDB(t, shared(t))
	heavals(d)
	s, o := d.source(func(c *Config) {
		c.Tables = append(c.Tables, "!public.swap_*", "!public.turn_*", "!public.parts2", "!public.loose")
		c.Policy = map[string]string{"recreated": Ask, "attached": Ask, "truncated": Ask, "renamed": Ask, "dropped": Halt}
	}), newOutlet()
	looksOften(s)
	r := loaded(t, s, o)
	heaves(d)
	awaitLook(t, d, o)
	want := []string{
		"public.parts: partition public.parts1 has another file after */* and before */*",
		"public.parts: partition public.loose was attached after */*",
		"public.parts: partition public.parts2 was detached or dropped after */*",
		"public.anew: another table has that name after */*; rows of the former one are still in its topic",
		"public.swap: another table has that name",
		"public.turn: another table has that name",
		"public.called: was renamed from public.renamed after */*",
		"public.wide: column w was added with a default",
	}
	// The rows of a new table come all the same.
	o.until(t, "the new tables", func() bool { return o.isReloaded(t, "public.anew", "public.swap", "public.turn") })
	says(t, s, want...)
	if n := sweeps(o.records(), "psa.public.parts"); n > 0 {
		t.Errorf("parts were swept %d times", n)
	}
	d.sql("DROP TABLE out")
	for range 2 { // again at the next start
		if err := r.fails(); !problem.Has(err, ErrPolicy) || !strings.Contains(err.Error(), "public.out: was dropped") || !strings.Contains(err.Error(), "policy.dropped") {
			t.Fatalf("%v, want TW-PG-POLICY", err)
		}
		o.ended = nil
		d.free(s.cfg.Slot)
		r = start(t, s, o)
	}
	if err := r.fails(); !problem.Has(err, ErrPolicy) {
		t.Fatalf("%v, want TW-PG-POLICY", err)
	}
	o.ended = nil
	d.free(s.cfg.Slot)
	c := s.cfg // Remedy: TW-PG-POLICY
	c.Policy = map[string]string{"recreated": Ask, "attached": Ask, "truncated": Ask, "renamed": Ask, "dropped": Ask}
	asks, err := New(c, "psa", s.comp)
	if err != nil {
		t.Fatal(err)
	}
	looksOften(asks)
	r = start(t, asks, o)
	says(t, asks, append(want, "public.out: was dropped after */*; its rows stay in its topic")...)
	o.askSweep(t, asks, "public.parts")
	o.reloaded(t, "public.parts")
	sameState(t, state(o.records(), "psa.public.parts"), rows(d, "parts", "id", "id", "v"))
	r.stop()

	for policy, want := range map[[2]string]string{
		{"attach", Ask}: "none of attached, column, detached", {"attached", "do"}: "none of heal, ask, halt", {"dropped", Heal}: "want ask or halt",
	} {
		c := s.cfg
		c.Policy = map[string]string{policy[0]: policy[1]}
		if _, err := New(c, "psa", s.comp); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", policy, err)
		}
	}
}

// Lost if this fails: a table that is emptied and filled anew each night is read anew
// each night, too; or a partition that was emptied by itself, near that, keeps its rows.
func TestWholeTruncateIsNoRewrite(t *testing.T) {
	d := newDB(t, shared(t))
	heavals(d)
	s, o := d.source(), newOutlet()
	looksOften(s)
	r := loaded(t, s, o)
	for n := range 3 {
		d.sql("BEGIN; TRUNCATE parts; INSERT INTO parts SELECT i, 'n%d' FROM generate_series(0, 149) i; COMMIT", n)
		awaitLook(t, d, o)
	}
	d.sql("INSERT INTO other VALUES (50, 'v')")
	o.until(t, "another row", func() bool { return len(state(o.records(), "psa.public.other")) == 31 })
	o.until(t, "what was seen to be settled", func() bool { return o.isReloaded(t, "public.parts") })
	if n := sweeps(o.records(), "psa.public.parts"); n > 0 {
		t.Errorf("it was swept %d times", n)
	}
	d.sql("BEGIN; TRUNCATE parts; INSERT INTO parts SELECT i, 'm' FROM generate_series(0, 149) i; COMMIT")
	d.sql("TRUNCATE parts1")
	awaitLook(t, d, o)
	o.until(t, "a sweep", func() bool { return sweeps(o.records(), "psa.public.parts") > 0 })
	sameState(t, state(o.records(), "psa.public.parts"), rows(d, "parts", "id", "id", "v"))
	if recs := o.records(); slices.ContainsFunc(recs, func(x rec) bool { return x.op == change.Delete }) {
		t.Error("there is a delete")
	}
	says(t, s)
	r.stop()
}
