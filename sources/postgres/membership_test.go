package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
)

// noticed is what a source has to say, of each table by itself, sorted.
func noticed(s *Source) (texts []string) {
	for _, n := range s.comp.View().Notices {
		for _, table := range n.Subjects {
			texts = append(texts, strings.Replace(n.Text, strings.Join(n.Subjects, ", "), table, 1))
		}
	}
	slices.Sort(texts)
	return texts
}

// says waits until the source says just this, in any words around it, of which * is
// any.
func says(t *testing.T, s *Source, want ...string) {
	t.Helper()
	want = slices.Sorted(slices.Values(want))
	right := func() bool {
		got := noticed(s)
		if len(got) != len(want) {
			return false
		}
		for i, w := range want {
			if !matches("*"+w+"*", got[i]) {
				return false
			}
		}
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !right() {
		select {
		case <-ctx.Done():
			t.Fatalf("the source says\n%s\nand is to say\n%s", strings.Join(noticed(s), "\n"), strings.Join(want, "\n"))
		case <-tick.C:
		}
	}
}

// looksOften has a source compare its tables as soon as it can.
func looksOften(s *Source) {
	s.ladderEvery, s.keepEvery, s.compareEvery = 20*time.Millisecond, time.Millisecond, time.Millisecond
}

// awaitLook waits until a comparison has begun after all that was done.
func awaitLook(t *testing.T, d *db, o *outlet) {
	t.Helper()
	var head lsn
	if err := head.UnmarshalText([]byte(d.one("SELECT pg_current_wal_insert_lsn()::text"))); err != nil {
		t.Fatal(err)
	}
	d.sql("SELECT pg_switch_wal(); CHECKPOINT")
	o.until(t, "a look at the catalogue", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		value := o.noting[publicationNote]
		if value == nil {
			value = o.noted[publicationNote]
		}
		ms, err := parseMembers(map[string][]byte{publicationNote: value})
		return value != nil && err == nil && ms.pub.At >= head
	})
}

// course is what happens to tables of a publication.
type course struct {
	publication string   // made before, by others; "": made by the source
	sql         []string // $P is the publication; what is in one string is one transaction
	says        []string
	then        []string
	thenSays    []string
	whole       []string // tables whose rows are all in their topics then
}

var courses = map[string]course{
	"listed": {
		sql: []string{
			"CREATE TABLE fresh(id int PRIMARY KEY); INSERT INTO fresh VALUES (1)",
			"CREATE TABLE fresh_too(id int PRIMARY KEY); INSERT INTO fresh_too VALUES (1); ALTER PUBLICATION $P ADD TABLE fresh_too",
			"CREATE TABLE hidden_fresh(id int PRIMARY KEY)",
			"CREATE TABLE keyless(id int)",
			"DROP TABLE dropped",
			"DROP TABLE remade; CREATE TABLE remade(id int PRIMARY KEY, v int); INSERT INTO remade VALUES (2, 2)",
			"CREATE TABLE anew(id int PRIMARY KEY, v int); INSERT INTO anew VALUES (2, 2); ALTER TABLE swapped RENAME TO was; ALTER TABLE anew RENAME TO swapped",
			"ALTER TABLE gone RENAME TO hidden_gone",
			"ALTER PUBLICATION $P DROP TABLE taken",
			"ALTER PUBLICATION $P DROP TABLE again; INSERT INTO again VALUES (2, 2); ALTER PUBLICATION $P ADD TABLE again",
			"ALTER PUBLICATION $P SET (publish = 'insert'); UPDATE other SET v = 2; ALTER PUBLICATION $P SET (publish = 'insert, update, delete, truncate')",
			"ALTER TABLE filled ADD COLUMN w int NOT NULL DEFAULT 7, ADD COLUMN x int, ADD COLUMN y timestamptz DEFAULT clock_timestamp()",
			"ALTER TABLE plain ADD COLUMN x int; ALTER TABLE plain DROP COLUMN v",
			"VACUUM FULL rewritten",
			"CREATE TABLE hidden_p2(id int PRIMARY KEY, v int); INSERT INTO hidden_p2 VALUES (100, 1)",
			"ALTER TABLE parts ATTACH PARTITION hidden_p2 FOR VALUES FROM (100) TO (200)",
			"CREATE TABLE parts3 PARTITION OF parts FOR VALUES FROM (200) TO (300); INSERT INTO parts VALUES (200, 1)",
			"ALTER TABLE parts DETACH PARTITION hidden_p1",
			"DROP TABLE parts0",
		},
		says: []string{
			"publication *: was altered after */* and before */*: if it left out an operation",
			"public.again: was taken out of the publication and listed again after */* and before */*",
			"public.dropped: was dropped after */*; its rows stay in its topic",
			"public.filled: column w was added with a default after */* and before */*",
			"public.filled: column y was added with a default after */* and before */*",
			"public.gone: is public.hidden_gone now, which `tables` does not match: changes that are committed after */* do not come",
			"public.keyless: has no key",
			"public.parts: partition public.hidden_p1 was detached or dropped after */*",
			"public.parts: partition public.parts0 was detached or dropped after */*",
			`public.taken: is not in publication "*": changes that are committed after */* do not come`,
		},
		then: []string{
			"ALTER PUBLICATION $P ADD TABLE taken",
			"INSERT INTO keyless VALUES (1); ALTER TABLE keyless ADD PRIMARY KEY (id)",
			"ALTER TABLE hidden_gone RENAME TO gone",
		},
		thenSays: []string{
			"publication *: was altered after */* and before */*: if it left out an operation",
			"public.again: was taken out of the publication and listed again after */* and before */*",
			"public.dropped: was dropped after */*; its rows stay in its topic",
			"public.filled: column w was added with a default after */* and before */*",
			"public.filled: column y was added with a default after */* and before */*",
			"public.gone: had another name for a time; changes that were committed after */* and before */* are missing",
			"public.parts: partition public.hidden_p1 was detached or dropped after */*",
			"public.parts: partition public.parts0 was detached or dropped after */*",
			"public.taken: the publication did not have it for a time; changes that were committed after */* and before */* are missing",
		},
		whole: []string{"fresh", "fresh_too", "keyless", "remade", "swapped", "parts", "plain", "rewritten", "other"},
	},
	"all tables": {
		publication: "FOR ALL TABLES",
		sql: []string{
			"CREATE TABLE fresh(id int PRIMARY KEY, v int); INSERT INTO fresh VALUES (1)",
			"DROP TABLE remade; CREATE TABLE remade(id int PRIMARY KEY, v int); INSERT INTO remade VALUES (2, 2)",
			"ALTER TABLE hidden RENAME TO shown",
		},
		whole: []string{"fresh", "remade", "shown", "plain", "other"},
	},
	"filtered": {
		publication: "FOR TABLE plain WHERE (id > 0), other",
		sql:         []string{"ALTER PUBLICATION $P SET TABLE plain WHERE (id > 10), other"},
		says: []string{
			`public.again: is not in publication "*": changes that are committed after */* do not come`,
			`public.dropped: is not in publication "*": changes that are committed after */* do not come`,
			`public.filled: is not in publication "*": changes that are committed after */* do not come`,
			`public.gone: is not in publication "*": changes that are committed after */* do not come`,
			`public.parts: is not in publication "*": changes that are committed after */* do not come`,
			"public.plain: the publication has another row filter",
			"public.plain: was taken out of the publication and listed again",
			`public.remade: is not in publication "*": changes that are committed after */* do not come`,
			`public.rewritten: is not in publication "*": changes that are committed after */* do not come`,
			`public.swapped: is not in publication "*": changes that are committed after */* do not come`,
			`public.taken: is not in publication "*": changes that are committed after */* do not come`,
		},
	},
}

// Lost if this fails: a table comes, goes or is altered, while it is captured or while
// nobody looks, its topic does not hold what the table does, and nobody is told; or
// somebody is told of what is all right. The other tables go on.
func TestTablesComeAndGo(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		pg := testkit.NewPostgres(t, version)
		for name, c := range courses {
			for _, looks := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/looked at %v", version, name, looks), func(t *testing.T) { c.happens(t, pg, looks) })
			}
		}
	}
}

func (st course) happens(t *testing.T, pg *embedded.Postgres, looks bool) {
	d := newDB(t, pg)
	for _, name := range []string{"dropped", "remade", "swapped", "gone", "taken", "again", "filled", "plain", "rewritten", "other", "hidden"} {
		d.sql("CREATE TABLE %[1]s(id int PRIMARY KEY, v int); INSERT INTO %[1]s VALUES (1, 1)", name)
	}
	d.sql(`CREATE TABLE parts(id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE parts0 PARTITION OF parts FOR VALUES FROM (0) TO (50);
		CREATE TABLE hidden_p1 PARTITION OF parts FOR VALUES FROM (50) TO (100); INSERT INTO parts VALUES (1, 1), (60, 1)`)
	s := d.source(func(c *Config) { c.Tables = []string{"public.*", "!public.hidden*"} })
	looksOften(s)
	s.askEvery = 10 * time.Millisecond
	if st.publication != "" {
		d.sql("CREATE PUBLICATION %s %s WITH (publish_via_partition_root = true)", s.cfg.Publication, st.publication)
	}
	o := newOutlet()
	r := loaded(t, s, o)
	others := 1
	step := func(sql, want []string) {
		t.Helper()
		if !looks {
			r.stop()
			d.free(s.cfg.Slot)
		}
		for _, one := range sql {
			d.sql("%s", strings.ReplaceAll(one, "$P", s.cfg.Publication))
		}
		if !looks {
			r = start(t, s, o)
		}
		others++
		d.sql("INSERT INTO other VALUES (%d)", others)
		o.until(t, "a row of another table", func() bool { return len(state(o.records(), "psa.public.other")) == others })
		awaitLook(t, d, o)
		says(t, s, want...)
	}
	step(st.sql, st.says)
	want := st.says
	if st.then != nil { // Remedy: TW-PG-TABLE
		step(st.then, st.thenSays)
		want = st.thenSays
	}
	looks = false
	step(nil, want) // it is noted
	for _, table := range st.whole {
		all := rows(d, table, "id", "id")
		o.until(t, "all rows of "+table, func() bool {
			got := state(o.records(), "psa.public."+table)
			for key := range all {
				if got[key] == "" {
					return false
				}
			}
			return true
		})
	}
	// What nobody asks for any more is not said.
	c := s.cfg
	c.Tables = []string{"public.other"}
	only, err := New(c, "psa", s.comp)
	if err != nil {
		t.Fatal(err)
	}
	looksOften(only)
	r.stop()
	d.free(c.Slot)
	s = only
	r = start(t, s, o)
	says(t, s, slices.DeleteFunc(slices.Clone(want), func(w string) bool { return strings.HasPrefix(w, "public.") })...)
	r.stop()
}

// What was noted by a newer version, or by somebody else, is not taken for ours.
func TestNotesOfTablesOfAnotherForm(t *testing.T) {
	for _, notes := range []map[string][]byte{
		{"16384": []byte(`{"v":2,"schema":"public"}`)},
		{"16384": []byte(`what`)},
		{"table": []byte(`{"v":1}`)},
		{publicationNote: []byte(`{"v":2}`)},
	} {
		if _, err := parseMembers(notes); !problem.Has(err, ErrTablesForm) {
			t.Errorf("%s: %v, want TW-PG-TABLES-FORM", notes, err)
		}
	}
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)")
	s, o := d.source(), newOutlet()
	loaded(t, s, o).stop()
	d.free(s.cfg.Slot)
	o.noted[publicationNote] = []byte(`{"v":2}`)
	if err := start(t, s, o).fails(); !problem.Has(err, ErrTablesForm) {
		t.Fatalf("%v, want TW-PG-TABLES-FORM", err)
	}
	startedOver(t, d, s, "INSERT INTO a VALUES (2)", "id") // Remedy: TW-PG-TABLES-FORM
}

// A migration that makes 35 tables is one thing to do, without what is to be left out.
func TestTablesOfOneMigrationAreOneNotice(t *testing.T) {
	now := &catalogue{cut: true, after: 200, tables: map[uint32]*catalogued{}, publication: publicationMember{Form: memberForm, Last: 99, At: 150}}
	ms := &members{of: map[uint32]*member{}, pub: publicationMember{Form: memberForm, Last: 10, At: 100}}
	for i := range uint32(35) {
		name := fmt.Sprintf("module_%02d", i)
		now.tables[50+i] = &catalogued{schema: "public", name: name, item: `"public"."` + name + `" ("id")`}
	}
	if changed := ms.compare(now, func(string, string) (bool, bool) { return true, false }); len(changed) != 35 {
		t.Fatalf("%d tables are to be noted, want 35", len(changed))
	}
	ns := ms.notices("psa", "p")
	if len(ns) != 1 || len(ns[0].Subjects) != 35 || !strings.HasPrefix(ns[0].Text, "public.module_00, public.module_01,") ||
		!strings.HasSuffix(ns[0].Text, `public.module_34: is not in publication "p": changes that are committed after 0/64 do not come`) ||
		!strings.Contains(ns[0].Remedy, "\nALTER PUBLICATION \"p\" ADD TABLE \"public\".\"module_00\" (\"id\"), ") {
		t.Errorf("%+v", ns)
	}
	if changed := ms.compare(now, func(string, string) (bool, bool) { return true, false }); len(changed) != 0 {
		t.Errorf("%d tables are noted again", len(changed))
	}
	now.cut = false // what is to be left out cannot be told
	ms.compare(now, func(string, string) (bool, bool) { return true, false })
	if ns := ms.notices("psa", "p"); strings.Contains(ns[0].Remedy, "ALTER") {
		t.Errorf("columns that are to be left out are listed: %s", ns[0].Remedy)
	}
}

// If this failed, a table that was out of the publication while nobody looked would be
// taken for whole: what lists it is another entry.
func TestListedAgain(t *testing.T) {
	ms := &members{of: map[uint32]*member{7: {Form: memberForm, Schema: "public", Name: "a", Entry: 5}}, pub: publicationMember{Form: memberForm, Last: 10, At: 100}}
	now := &catalogue{after: 200, tables: map[uint32]*catalogued{7: {schema: "public", name: "a", entry: 6, published: true}}, publication: publicationMember{Form: memberForm, Last: 11, At: 190}}
	changed := ms.compare(now, func(string, string) (bool, bool) { return true, false })
	if got := ms.of[7].Missing; len(changed) != 1 || len(got) != 1 || got[0].Why != whyAgain || got[0].After != 100 || got[0].Until != 200 {
		t.Errorf("%v is to be noted, %+v is missing", changed, got)
	}
}

// Lost if this fails: an application that makes and drops tables all the time, which
// many do with temporary ones, holds up a start for ever; or of the others nothing is
// said meanwhile.
func TestTablesAreMadeAllTheTime(t *testing.T) {
	for _, publication := range []string{"", "FOR ALL TABLES"} {
		t.Run(cmp.Or(publication, "listed"), func(t *testing.T) {
			d := newDB(t, shared(t))
			d.sql("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b(id int PRIMARY KEY, v int)")
			s, o := d.source(), newOutlet()
			looksOften(s)
			if publication != "" {
				d.sql("CREATE PUBLICATION %s %s WITH (publish_via_partition_root = true)", s.cfg.Publication, publication)
			}
			loaded(t, s, o).stop()
			d.free(s.cfg.Slot)
			other, ctx := newDBConn(t, d), t.Context()
			ended := make(chan error, 1)
			stop := make(chan struct{})
			go func() {
				for {
					_, err := other.Exec(ctx, "CREATE TEMP TABLE x(id int); DROP TABLE x; CREATE TABLE busy(id int PRIMARY KEY)")
					if err == nil {
						_, err = other.Exec(ctx, "DROP TABLE busy")
					}
					select {
					case <-stop:
						ended <- err
						return
					default:
					}
					if err != nil {
						ended <- err
						return
					}
				}
			}()
			r := start(t, s, o)
			d.sql("INSERT INTO a VALUES (2); DROP TABLE b")
			o.until(t, "a row", func() bool { return len(state(o.records(), "psa.public.a")) == 2 })
			o.until(t, "what became of another table", func() bool {
				return slices.ContainsFunc(noticed(s), func(n string) bool { return strings.HasPrefix(n, "public.b: was dropped") })
			})
			close(stop)
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			awaitLook(t, d, o)
			for _, n := range noticed(s) {
				if strings.HasPrefix(n, "public.a:") {
					t.Errorf("it is said of a table that is as it was: %s", n)
				}
			}
			r.stop()
		})
	}
}

// If this failed, half of what a statement did would be taken for the whole: a table
// that was altered while the catalogue was read would be said to have left.
func TestWhatIsUnsureIsReadAgain(t *testing.T) {
	a := &catalogued{schema: "public", name: "a", published: true}
	b := &catalogued{schema: "public", name: "b", published: true}
	read := func(at, row lsn, tables map[uint32]*catalogued) *catalogue {
		return &catalogue{before: at, after: at + 1, tables: tables, publication: publicationMember{Form: memberForm, Row: decimal(row), Last: 10, At: at}}
	}
	ms := read(100, 7, map[uint32]*catalogued{1: a, 2: b}).fresh()
	all := func(string, string) (bool, bool) { return true, false }
	out := &catalogued{schema: "public", name: "a"}
	// a leaves the publication between two reads, b before.
	now := read(300, 8, map[uint32]*catalogued{1: out})
	now.since(read(200, 7, map[uint32]*catalogued{1: a}))
	if changed := ms.compare(now, all); !slices.Equal(changed, []uint32{2}) || len(ms.of[1].Missing) != 0 || len(ms.all) != 0 || ms.pub.At != 100 {
		t.Fatalf("%v is to be noted, %+v, %+v", changed, ms.of[1], ms.pub)
	}
	last := now
	now = read(400, 8, map[uint32]*catalogued{1: out})
	now.since(last)
	if changed := ms.compare(now, all); !slices.Equal(changed, []uint32{1}) || len(ms.of[1].Missing) != 1 || ms.of[1].Missing[0].After != 100 || len(ms.all) != 1 || ms.pub.At != 400 {
		t.Fatalf("%v is to be noted, %+v, %+v", changed, ms.of[1], ms.pub)
	}
}
