package postgres

import (
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/problem"
)

// Lost if this fails: a password leaves the database, because its column was
// misspelt, or a publication had it already; or the application cannot write.
func TestWithoutColumns(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v int, pass text, up text GENERATED ALWAYS AS (upper(pass)) STORED, "Salt" text);
		CREATE TABLE b(id int PRIMARY KEY, v int, pass text); INSERT INTO a (id, v, pass, "Salt") VALUES (1, 1, 's', 's'); INSERT INTO b VALUES (1, 1, 's')`)
	without := func(names ...string) func(*Config) { return func(c *Config) { c.Without = names } }
	for _, c := range []struct {
		before, name, says, remedy string
		code                       problem.Code
	}{
		{"", "public.a.pas", "no table that is captured has a column public.a.pas", "Did you mean public.a.pass?", errConfig},
		{"", "public.a.id", "column id of public.a is of its key", "", errConfig},
		{"ALTER TABLE b REPLICA IDENTITY FULL", "public.b.pass", "public.b has REPLICA IDENTITY FULL", "ALTER TABLE public.b REPLICA IDENTITY DEFAULT", errConfig},
	} {
		if c.before != "" {
			d.sql("%s", c.before)
		}
		err := start(t, d.source(without("public.*.Salt", c.name)), newOutlet()).fails()
		want(t, err, c.code, c.says)
		if c.remedy != "" && !strings.Contains(problem.Of(err).WhatToDo(), c.remedy) {
			t.Errorf("%s: the remedy is %s", c.name, problem.Of(err).WhatToDo())
		}
		findings := ""
		for _, f := range d.source(without(c.name)).Doctor(t.Context()) {
			if f.Err != nil {
				findings += f.Err.Error()
			}
		}
		if !strings.Contains(findings, c.says) {
			t.Errorf("doctor does not say %q: %s", c.says, findings)
		}
	}
	d.sql("ALTER TABLE b REPLICA IDENTITY DEFAULT")

	// One that is there and has them is not taken; what is said mends it.
	d.sql("CREATE PUBLICATION %s FOR TABLE a, b WITH (publish_via_partition_root = true)", d.config().Publication)
	s := d.source(without("public.a.pass", "public.*.Salt", "*.nothing"))
	err := start(t, s, newOutlet()).fails()
	want(t, err, ErrPublication, "has column pass of public.a")
	d.sql("%s", problem.Of(err).WhatToDo())
	o := newOutlet()
	r := loaded(t, s, o)
	d.sql("UPDATE a SET pass = 't', v = 2; INSERT INTO a (id, v, pass) VALUES (2, 1, 's'); DELETE FROM a WHERE id = 2")
	o.untilCount(t, 5)
	r.stop()
	sameState(t, state(o.records(), "psa.public.a"), map[string]string{"1": "id=1|v=2"})
	sameState(t, state(o.records(), "psa.public.b"), map[string]string{"1": "id=1|v=1|pass=s"})
	for _, f := range s.Doctor(t.Context()) {
		if f.Err != nil {
			t.Errorf("doctor: %v", f.Err)
		}
	}

	tables, err := s.Tables(t.Context())
	if err != nil || len(tables) != 2 || !tables[0].Partial || tables[1].Partial {
		t.Errorf("of a, and of it alone, columns are left out: %v, %v", tables, err)
	}

	// The one that is made does not have them.
	d.free(s.cfg.Slot)
	d.sql("SELECT pg_drop_replication_slot('%s')", s.cfg.Slot)
	d.sql("DROP PUBLICATION %s", s.cfg.Publication)
	s, o = d.source(without("public.*.pass", "public.a.Salt")), newOutlet()
	r = loaded(t, s, o)
	r.stop()
	sameState(t, state(o.records(), "psa.public.a"), map[string]string{"1": "id=1|v=2"})
	sameState(t, state(o.records(), "psa.public.b"), map[string]string{"1": "id=1|v=1"})
}
