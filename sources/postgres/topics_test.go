package postgres

import (
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

// Lost if this fails: one table with a name that Kafka does not take halts all.
func TestTablesOfAnyName(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE SCHEMA "Ö.1"`)
	topics := map[string]string{
		`public.plain_x-1`:      "psa.public.plain_x-1",
		`public.grö`:            "psa.public.gr_x00F6_",
		`public.order items`:    "psa.public.order_x0020_items",
		`public.a.b`:            "psa.public.a_x002E_b",
		`public.😀`:              "psa.public._xD83D__xDE00_",
		`public._x0041_`:        "psa.public._x005F_x0041_",
		`Ö.1.say "so"`:          "psa._x00D6__x002E_1.say_x0020__x0022_so_x0022_",
		`public.` + fit("é", 8): "psa.public." + fit("_x00E9_", 8),
	}
	quoted := func(name string) string {
		schema, table := "public", strings.TrimPrefix(name, "public.")
		if rest, ok := strings.CutPrefix(name, "Ö.1."); ok {
			schema, table = "Ö.1", rest
		}
		return (&tableInfo{schema: schema, name: table}).sql()
	}
	for name := range topics {
		d.sql("CREATE TABLE %[1]s(id int PRIMARY KEY, v text); INSERT INTO %[1]s VALUES (1, 'loaded')", quoted(name))
	}
	s := d.source(func(c *Config) { c.Tables = []string{"public.*", "Ö.1.*"} })
	if e := found(t, s); e != nil {
		t.Errorf("doctor says %v", e)
	}
	o := newOutlet()
	r := start(t, s, o)
	o.until(t, "the load", func() bool { p := o.last(t); return p.LSN != 0 && p.State == "" })
	for name := range topics {
		d.sql("INSERT INTO %s VALUES (2, 'streamed')", quoted(name))
	}
	o.untilCount(t, 2*len(topics))
	says(t, s)
	r.stop()
	for name, topic := range topics {
		if why := change.TopicLegal(topic); why != "" {
			t.Errorf("%s: %s", name, why)
		}
		sameState(t, state(o.records(), topic), rows(d, quoted(name), "id", "id", "v"))
		source, schema, table, ok := change.ParseTopicName(topic)
		if !ok || source != "psa" || schema+"."+table != name {
			t.Errorf("%s is taken apart as %s.%s (%v)", topic, schema, table, ok)
		}
	}
	if got := o.topics(); len(got) != len(topics) {
		t.Errorf("topics prepared: %v", got)
	}
}

func fit(s string, n int) string { return strings.Repeat(s, n) }

// Lost if this fails: two tables whose topics Kafka does not have beside each other,
// or one whose topic is too long, halt a source with a remedy about rights.
func TestTablesWithoutATopic(t *testing.T) {
	d := newDB(t, shared(t))
	long := fit("😀", 15)
	d.sql(`CREATE SCHEMA a; CREATE SCHEMA a_b; CREATE SCHEMA "%[1]s";
		CREATE TABLE a_b.c(id int PRIMARY KEY, v int); INSERT INTO a_b.c VALUES (1, 1);
		CREATE TABLE a.b_c(id int PRIMARY KEY, v int); INSERT INTO a.b_c VALUES (1, 2);
		CREATE TABLE "%[1]s"."%[1]s"(id int PRIMARY KEY, v int); INSERT INTO "%[1]s"."%[1]s" VALUES (1, 3)`, long)
	all := func(c *Config) { c.Tables = []string{"a.*", "a_b.*", long + ".*"} }
	s := d.source(all)
	var wrong []string
	for _, f := range s.Doctor(t.Context()) {
		if problem.Has(f.Err, ErrTopic) {
			wrong = append(wrong, f.Err.Error())
		} else if f.Err != nil {
			t.Error(f.Err)
		}
	}
	if len(wrong) != 2 || !strings.Contains(wrong[0], `a.b_c: its topic "psa.a.b_c" cannot be beside "psa.a_b.c" of a_b.c`) || !strings.Contains(wrong[1], "has 425 octets") {
		t.Errorf("doctor says %q", wrong)
	}
	if tables, err := s.Tables(t.Context()); err != nil || len(tables) != 1 || tables[0].Topic != "psa.a_b.c" {
		t.Errorf("tables: %v, %v", tables, err)
	}
	o := newOutlet()
	r := start(t, s, o)
	o.untilCount(t, 1)
	d.sql("INSERT INTO a_b.c VALUES (2, 1); INSERT INTO a.b_c VALUES (2, 2)")
	o.untilCount(t, 2)
	says(t, s, `a.b_c: its topic "psa.a.b_c" cannot be beside`, "has 425 octets, and Kafka takes 249: its changes do not come")
	r.stop()
	d.free(s.cfg.Slot)
	named := d.source(all, func(c *Config) { c.Tables = append(c.Tables, "a.b_c") })
	if err := named.Run(t.Context(), newOutlet()); !problem.Has(err, ErrTopic) || !strings.Contains(problem.Of(err).WhatToDo(), `topics: {"a.b_c": psa.…}`) {
		t.Errorf("a table that is named, without a topic: %v", err)
	}
	// Remedy: TW-PG-TOPIC
	mended := d.source(all, func(c *Config) {
		c.Topics = map[string]string{"a.b_c": "psa.a.b_c-2", long + "." + long: "psa.smile"}
	})
	looksOften(mended)
	r = start(t, mended, o)
	for table, topic := range map[string]string{"a_b.c": "psa.a_b.c", "a.b_c": "psa.a.b_c-2", `"` + long + `"."` + long + `"`: "psa.smile"} {
		want := rows(d, table, "id", "id", "v")
		o.until(t, topic, func() bool { return maps.Equal(state(o.records(), topic), want) })
	}
	o.until(t, "nothing to say", func() bool { return len(noticed(mended)) == 0 })
	r.stop()
	if e := found(t, mended); e != nil {
		t.Errorf("doctor says %v", e)
	}
}

// Lost if this fails: a table that is given another topic, also by the names that an
// upgrade brings, has only what changes from then on in it.
func TestTopicOfATableMoves(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE "a.b"(id int PRIMARY KEY, v int); INSERT INTO "a.b" SELECT i, i FROM generate_series(1, 20) i; CREATE TABLE other(id int PRIMARY KEY, v int)`)
	before := d.source(func(c *Config) { c.Topics = map[string]string{"public.a.b": "psa.public.a.b"} }) // as it was called once
	o := newOutlet()
	r := start(t, before, o)
	o.untilCount(t, 20)
	r.stop()
	for _, note := range o.noted {
		if strings.Contains(string(note), `"topic"`) {
			t.Errorf("a topic that is called plainly is noted, as former versions did not: %s", note)
		}
	}
	d.free(before.cfg.Slot)
	d.sql(`UPDATE "a.b" SET v = 0 WHERE id <= 3; DELETE FROM "a.b" WHERE id = 20`)
	for _, now := range []struct {
		topic  string
		topics map[string]string
	}{{"psa.public.a_x002E_b", nil}, {"psa.ab", map[string]string{"public.a.b": "psa.ab"}}, {"psa.public.a_x002E_b", nil}} {
		o = &outlet{position: o.position, noted: o.noted, beside: o.beside, durable: o.durable, changed: o.changed}
		s := d.source(func(c *Config) { c.Topics = now.topics })
		looksOften(s)
		r = start(t, s, o)
		d.sql(`UPDATE "a.b" SET v = v + 1 WHERE id = 7`)
		want := rows(d, `"a.b"`, "id", "id", "v")
		o.until(t, now.topic, func() bool { return maps.Equal(state(o.records(), now.topic), want) })
		o.until(t, "nothing to say", func() bool { return len(noticed(s)) == 0 })
		r.stop()
		d.free(s.cfg.Slot)
	}
}

// Lost if this fails: a table that the application makes halts the source; or is never
// captured though nothing stands against it any more.
func TestNewTableWithoutATopic(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE SCHEMA a; CREATE SCHEMA a_b; CREATE TABLE a.b_c(id int PRIMARY KEY, v int); INSERT INTO a.b_c VALUES (1, 1); CREATE PUBLICATION everything FOR ALL TABLES`)
	s := d.source(func(c *Config) { c.Tables, c.Publication = []string{"a.*", "a_b.*"}, "everything" })
	looksOften(s)
	o := newOutlet()
	var reopened atomic.Int32
	stop := runs(t, d, s, o, &reopened)
	o.untilCount(t, 1)
	d.sql("CREATE TABLE a_b.c(id int PRIMARY KEY, v int); INSERT INTO a_b.c VALUES (1, 2)")
	d.sql("INSERT INTO a.b_c VALUES (2, 1)")
	o.untilCount(t, 2)
	says(t, s, `a_b.c: its topic "psa.a_b.c" cannot be beside "psa.a.b_c" of a.b_c`)
	d.sql("DROP TABLE a.b_c; INSERT INTO a_b.c VALUES (2, 2)")
	o.until(t, "its rows", func() bool { return len(state(o.records(), "psa.a_b.c")) == 2 })
	d.sql("INSERT INTO a_b.c VALUES (3, 3); DELETE FROM a_b.c WHERE id = 1")
	want := rows(d, "a_b.c", "id", "id", "v")
	o.until(t, "its changes", func() bool { return maps.Equal(state(o.records(), "psa.a_b.c"), want) })
	says(t, s, "a.b_c: was dropped")
	stop()
	if reopened.Load() == 0 {
		t.Error("the stream was not opened anew")
	}
}

// Lost if this fails: a table that is captured is left out, and the source halts, when
// an older one is given a key, or its name.
func TestCapturedTableKeepsItsTopic(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE SCHEMA a; CREATE SCHEMA a_b; CREATE TABLE a.b_c(id int NOT NULL, v int); CREATE TABLE a.renamed(id int PRIMARY KEY, v int);
		CREATE TABLE a_b.c(id int PRIMARY KEY, v int); INSERT INTO a_b.c VALUES (1, 1); INSERT INTO a.b_c VALUES (1, 1); INSERT INTO a.renamed VALUES (1, 1);
		CREATE TABLE a_b.d(id int PRIMARY KEY, v int); INSERT INTO a_b.d VALUES (1, 1);
		CREATE PUBLICATION everything FOR ALL TABLES`)
	o := newOutlet()
	var reopened atomic.Int32
	for round, named := range [][]string{{}, {}, {"a_b.c"}} {
		s := d.source(func(c *Config) { c.Tables, c.Publication = append([]string{"a.*", "a_b.*"}, named...), "everything" })
		looksOften(s)
		stop := runs(t, d, s, o, &reopened)
		if round == 0 {
			o.untilCount(t, 3)
			d.sql("ALTER TABLE a.b_c ADD PRIMARY KEY (id)")
			d.sql("ALTER TABLE a.renamed RENAME TO b_d")
			d.sql("INSERT INTO a.b_c VALUES (2, 2); INSERT INTO a.b_d VALUES (2, 2)")
		}
		d.sql("INSERT INTO a_b.c VALUES (%[1]d, 1); INSERT INTO a_b.d VALUES (%[1]d, 1)", 10+round)
		o.until(t, "the changes of those that were captured", func() bool {
			return maps.Equal(state(o.records(), "psa.a_b.c"), rows(d, "a_b.c", "id", "id", "v")) && maps.Equal(state(o.records(), "psa.a_b.d"), rows(d, "a_b.d", "id", "id", "v"))
		})
		says(t, s, "a.b_c: its topic", "a.b_d: its topic", "a.b_d: was renamed from a.renamed")
		stop()
		d.free(s.cfg.Slot)
		for _, topic := range []string{"psa.a.b_c", "psa.a.b_d"} {
			if got := state(o.records(), topic); len(got) > 0 {
				t.Errorf("topic %s has %v, and cannot be", topic, got)
			}
		}
	}
	if n := reopened.Load(); n != 2 {
		t.Errorf("%d times the stream was opened anew, want once for each start", n)
	}
}

func TestTopicsAreChecked(t *testing.T) {
	for _, c := range []struct {
		topics map[string]string
		want   string // "": good
	}{
		{map[string]string{"a.b": "psa.x", "a.c": "psa.y"}, ""},
		{map[string]string{"a": "psa.x"}, "of the form schema.table"},
		{map[string]string{"a.*": "psa.x"}, "of the form schema.table"},
		{map[string]string{"a.b": "psa.ö"}, "has 'ö'"},
		{map[string]string{"a.b": "ps.x"}, `does not begin with "psa."`},
		{map[string]string{"a.b": "psa.x.y", "a.c": "psa.x_y"}, "beside each other"},
		{map[string]string{"a.b": "psa." + fit("x", 246)}, "has 250 octets"},
	} {
		cfg := Default("psa")
		if err := cfg.DSN.UnmarshalText([]byte("host=127.0.0.1")); err != nil {
			t.Fatal(err)
		}
		cfg.Topics = c.topics
		if err := cfg.Validate(); (err == nil) != (c.want == "") || err != nil && (!problem.Has(err, errConfig) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v: %v, want %q", c.topics, err, c.want)
		}
	}
}
