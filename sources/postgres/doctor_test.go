package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit"
)

// found is the one thing that doctor finds wrong; nil: nothing.
func found(t *testing.T, s *Source) *problem.Error {
	t.Helper()
	var es []*problem.Error
	for _, f := range s.Doctor(t.Context()) {
		if f.Err != nil {
			es = append(es, problem.Of(f.Err))
		}
	}
	switch len(es) {
	case 0:
		return nil
	case 1:
		return es[0]
	}
	t.Fatalf("doctor finds %v, want one thing", es)
	return nil
}

// statement is the line of a remedy that somebody else runs.
func statement(t *testing.T, err error) string {
	t.Helper()
	lines := strings.Split(problem.Of(err).WhatToDo(), "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, " PUBLICATION ") && strings.HasSuffix(l, ";") })
	if i < 1 {
		t.Fatalf("the remedy has no statement on a line of its own: %q", lines)
	}
	return lines[i]
}

// Lost if this fails: doctor says that all is well, and the first run halts: for
// want of one right, and with that given, of the next.
func TestDoctorFindsWhoMayPublish(t *testing.T) {
	d := newDB(t, shared(t))
	role := "reader_" + d.name
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, pass text); CREATE TABLE b(id int PRIMARY KEY); CREATE TABLE own(id int PRIMARY KEY);
		CREATE ROLE %[1]s LOGIN REPLICATION; GRANT SELECT ON a, b TO %[1]s; ALTER TABLE own OWNER TO %[1]s`, role)
	s := d.source(func(c *Config) {
		c.DSN, c.Without = secret.DSNOf(d.pg.DSNAs(role, d.name)), []string{"public.a.pass"}
	})
	// both wants what doctor says to be what run halts with.
	both := func(names ...string) *problem.Error {
		t.Helper()
		e := found(t, s)
		if e == nil {
			t.Fatal("doctor finds nothing")
		}
		want(t, e, ErrPublication, names...)
		run := problem.Of(start(t, s, newOutlet()).fails())
		if run.Text != e.Text || run.WhatToDo() != e.WhatToDo() {
			t.Errorf("doctor says %q, %q\nrun says %q, %q", e.Text, e.WhatToDo(), run.Text, run.WhatToDo())
		}
		return e
	}
	e := both(role, `CREATE on database "`+d.name+`"`, "does not own public.a, public.b")
	if strings.Contains(e.Text, "public.own") {
		t.Errorf("it owns public.own: %s", e.Text)
	}
	d.sql("GRANT CREATE ON DATABASE %s TO %s", d.name, role)
	if e = both("does not own public.a, public.b"); strings.Contains(e.Text, "CREATE on") {
		t.Errorf("it has CREATE: %s", e.Text)
	}
	d.sql("REVOKE CREATE ON DATABASE %s FROM %s; GRANT %s TO %s", d.name, role, "postgres", role)
	if e := found(t, s); e != nil {
		t.Errorf("a member of the owner: %v", e)
	}
	d.sql("REVOKE postgres FROM %s", role)
	sql := statement(t, both(`CREATE on database "`+d.name+`"`))
	if !strings.Contains(sql, `"public"."a" ("id"), "public"."b", "public"."own"`) {
		t.Errorf("the statement is %s", sql)
	}
	d.sql("%s", sql) // Remedy: TW-PG-PUBLICATION
	if e := found(t, s); e != nil {
		t.Errorf("after its remedy: %v", e)
	}

	// A table that came before the first start is added to it.
	d.sql("CREATE TABLE c(id int PRIMARY KEY); INSERT INTO c VALUES (1); GRANT SELECT ON c TO %s", role)
	e = both("does not own the publication", "does not own public.c")
	if strings.Contains(e.WhatToDo(), "do not come") {
		t.Errorf("the load is still to come: %s", e.WhatToDo())
	}
	d.sql("%s", statement(t, e))
	if e := found(t, s); e != nil {
		t.Errorf("after its remedy: %v", e)
	}
	o := newOutlet()
	loaded(t, s, o).stop()
	sameState(t, state(o.records(), "psa.public.c"), map[string]string{"1": "id=1"})
}

// Lost if this fails: tables that nobody captures, found one per look; and the
// rows that they had, of which nobody says that they do not come.
func TestDoctorNamesAllTablesThatAreNotPublished(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY)")
	s, o := d.source(), newOutlet()
	loaded(t, s, o).stop()
	d.free(s.cfg.Slot)
	o.ended = nil
	d.sql("CREATE TABLE b(id int PRIMARY KEY, pass text); CREATE TABLE c(id int PRIMARY KEY); INSERT INTO b VALUES (1, 's')")
	without := func(c *Config) { c.Without = []string{"public.b.pass"} }
	s = d.source(without)
	e := found(t, s)
	if e == nil {
		t.Fatal("doctor finds nothing")
	}
	want(t, e, ErrPublication, "public.b, public.c")
	for _, says := range []string{"tallywire reload", `"!public.b"`} {
		if !strings.Contains(e.WhatToDo(), says) {
			t.Errorf("the remedy does not say %q: %s", says, e.WhatToDo())
		}
	}
	run := start(t, d.source(without, func(c *Config) { c.Tables = []string{"public.b", "public.c"} }), newOutlet()).fails()
	if want(t, run, ErrPublication, "public.b, public.c"); statement(t, run) != statement(t, e) {
		t.Errorf("run says %s", statement(t, run))
	}

	// It is as the remedy says: what comes from then on, and by a reload all.
	d.sql("%s", statement(t, e))
	if e := found(t, s); e != nil {
		t.Errorf("after its remedy: %v", e)
	}
	r := start(t, s, o)
	d.sql("INSERT INTO b VALUES (2, 's')")
	o.untilCount(t, 1)
	sameState(t, state(o.records(), "psa.public.b"), map[string]string{"2": "id=2"})
	o.reload(t, s, "", "public.b", "public.c")
	r.stop()
	sameState(t, state(o.records(), "psa.public.b"), map[string]string{"1": "id=1", "2": "id=2"})
}

// Lost if this fails: a publication of all tables, or of a schema, makes the
// application's writes to tables without a key fail, and doctor says that all is well.
func TestDoctorFindsWhoseWritesFail(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql(`CREATE TABLE a(id int PRIMARY KEY); CREATE TABLE log(n int, text text); CREATE TABLE "Order Line"(id int NOT NULL, n int, part int);
				CREATE UNIQUE INDEX ON "Order Line" (n); CREATE UNIQUE INDEX "By Id" ON "Order Line" (id);
				CREATE TABLE parts(id int) PARTITION BY RANGE (id); CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (50);
				CREATE TABLE parts2 PARTITION OF parts FOR VALUES FROM (50) TO (100); ALTER TABLE parts2 REPLICA IDENTITY FULL;
				CREATE SCHEMA s; CREATE TABLE s.alone(n int); CREATE TABLE s.only_inserted(n int); CREATE TABLE fine(n int)`)
			s := d.source(func(c *Config) { c.Tables = []string{"public.a"} })
			if e := found(t, s); e != nil {
				t.Fatal(e)
			}
			d.sql(`CREATE PUBLICATION most FOR TABLE log, "Order Line", parts WITH (publish_via_partition_root = true);
				CREATE PUBLICATION another FOR TABLE log WITH (publish = 'delete'); CREATE PUBLICATION schema FOR TABLES IN SCHEMA s;
				CREATE PUBLICATION inserts FOR TABLE fine WITH (publish = 'insert')`)
			e := found(t, s)
			if e == nil {
				t.Fatal("doctor finds nothing")
			}
			want(t, e, ErrWritesFail, `updates and deletes of public."Order Line", which most lists, fail`, "updates and deletes of public.log, which another, most lists, fail",
				"of public.parts1, which most lists", "of s.alone, which schema lists", "of s.only_inserted")
			for _, not := range []string{"fine", "public.a,", "parts2"} {
				if strings.Contains(e.Text, not) {
					t.Errorf("it names %s: %s", not, e.Text)
				}
			}
			d.sql(`INSERT INTO log VALUES (1, 'x')`)
			if _, err := d.Exec(t.Context(), "UPDATE log SET n = 2"); err == nil || !strings.Contains(err.Error(), "because it does not have a replica identity and publishes updates") {
				t.Errorf("the application gets %v", err)
			}
			// Remedy: TW-PG-WRITES-FAIL
			lines := strings.Split(e.WhatToDo(), "\n")
			if !slices.Contains(lines, `ALTER TABLE public."Order Line" REPLICA IDENTITY USING INDEX "By Id";`) {
				t.Errorf("the remedy names no index: %s", e.WhatToDo())
			}
			for _, l := range lines {
				if strings.HasPrefix(l, "ALTER TABLE ") {
					d.sql("%s", l)
				}
			}
			d.sql(`UPDATE log SET n = 2; DELETE FROM "Order Line"; DELETE FROM parts; UPDATE s.alone SET n = 1`)
			if e := found(t, s); e != nil {
				t.Fatal(e)
			}
		})
	}
}
