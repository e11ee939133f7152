package postgres

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/draft"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

func surveyOf(t *testing.T, dsn string, schemas ...string) (*draft.Database, map[string]*draft.Table) {
	t.Helper()
	d, err := Survey(t.Context(), secret.DSNOf(dsn), "psa", schemas)
	if err != nil {
		t.Fatal(err)
	}
	of := map[string]*draft.Table{}
	for _, x := range d.Tables {
		of[x.Full()] = x
	}
	return d, of
}

// Lost if this fails: a draft leaves a table out without a word, takes one in
// that stops the source, or captures what is not to leave the database.
func TestSurvey(t *testing.T) {
	pg := shared(t)
	d := newDB(t, pg)
	d.sql(`CREATE TABLE users (id int PRIMARY KEY, login text NOT NULL, hashed_password text, salt text, "API Key" text, password_changed_at timestamptz, shown text GENERATED ALWAYS AS (upper(login)) STORED);
		CREATE TABLE hour (id int PRIMARY KEY, by_user int NOT NULL REFERENCES users, state text NOT NULL);
		INSERT INTO users VALUES (1, 'x'); INSERT INTO hour SELECT i, 1, CASE WHEN i %% 3 = 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 300) i;
		CREATE TABLE no_key (n int); CREATE TABLE pair (a int NOT NULL, b int NOT NULL); CREATE UNIQUE INDEX pair_ab ON pair (a, b);
		CREATE TABLE loose (a int, UNIQUE (a));
		CREATE TABLE session (token text PRIMARY KEY, n int);
		CREATE TABLE whole (id int PRIMARY KEY, secret text); ALTER TABLE whole REPLICA IDENTITY FULL;
		CREATE TABLE in_part (id int PRIMARY KEY, secret text) PARTITION BY RANGE (id); CREATE TABLE in_part_1 PARTITION OF in_part FOR VALUES FROM (0) TO (10); ALTER TABLE in_part_1 REPLICA IDENTITY FULL;
		CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
		CREATE VIEW seen AS SELECT * FROM hour; CREATE MATERIALIZED VIEW kept AS SELECT * FROM hour;
		CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE abroad (id int) SERVER far;
		CREATE UNLOGGED TABLE brief (id int PRIMARY KEY); CREATE TEMPORARY TABLE passing (id int PRIMARY KEY);
		CREATE TABLE loose_parts (id int) PARTITION BY RANGE (id); CREATE UNLOGGED TABLE part_2 PARTITION OF loose_parts FOR VALUES FROM (0) TO (10);
		CREATE TABLE of_extension (id int PRIMARY KEY); ALTER EXTENSION plpgsql ADD TABLE of_extension;
		CREATE SCHEMA other; CREATE TABLE other.thing (id int PRIMARY KEY); ANALYZE`)
	// Who would read a row would wait for this lock. (The partitions of a table are
	// listed under a lock of the server's own.)
	d.sql("BEGIN; LOCK TABLE users, hour, no_key, pair, whole, other.thing IN ACCESS EXCLUSIVE MODE")
	db, of := surveyOf(t, pg.DSN(d.name))
	d.sql("ROLLBACK")
	var names []string
	for _, x := range db.Tables {
		names = append(names, x.Full())
	}
	if want := "other.thing public.hour public.in_part public.loose public.loose_parts public.no_key public.pair public.part public.session public.users public.whole"; strings.Join(names, " ") != want {
		t.Errorf("tables are %v, want %s", names, want)
	}
	var others []string
	temporary := regexp.MustCompile(`^pg_temp_\d+`)
	for _, o := range db.Others {
		others = append(others, temporary.ReplaceAllString(o.Name, "pg_temp")+": "+o.Why)
		if o.Remedy == "" {
			t.Errorf("%s is not captured, and there is no remedy", o.Name)
		}
	}
	if want := []string{
		"pg_temp.passing: it is temporary, and its session's own",
		"public.abroad: it is a foreign table, whose changes are in another server's WAL",
		"public.brief: it is unlogged: its changes are not in the WAL",
		"public.kept: it is a materialized view",
		"public.part_2: of a partitioned table, and it is unlogged: its changes are not in the WAL",
		"public.seen: it is a view",
	}; !slices.Equal(others, want) {
		t.Errorf("what is no table is %q, want %q", others, want)
	}
	if len(db.Problems) > 0 || db.Name != d.name || !strings.HasPrefix(db.Server, "PostgreSQL 1") {
		t.Errorf("%v, %s, %s", db.Problems, db.Name, db.Server)
	}
	u, h := of["public.users"], of["public.hour"]
	if got := strings.Join(u.Secrets, " "); got != "hashed_password salt API Key" || u.Bound != "" || u.Left != nil || !u.Taken() {
		t.Errorf("secrets of users are %s, bound %q, left %v", got, u.Bound, u.Left)
	}
	if !u.Hidden["shown"] || !u.Hidden["salt"] || u.Hidden["login"] {
		t.Errorf("hidden are %v", u.Hidden)
	}
	if h.References["by_user"] != "public.users" || h.Distinct["state"] != 2 || h.Rows != 300 || !h.Taken() {
		t.Errorf("%v %v %d", h.References, h.Distinct, h.Rows)
	}
	if of["public.session"].Bound == "" || !of["public.part"].Partitioned {
		t.Error("a secret in the key, or a partitioned table is not seen as such")
	}
	for _, name := range []string{"public.whole", "public.in_part"} {
		if !of[name].Taken() || !slices.Equal(of[name].Secrets, []string{"secret"}) {
			t.Errorf("%s, with REPLICA IDENTITY FULL, is not taken without its secret", name)
		}
	}

	// What cannot be captured is captured when what is said was done.
	for table, remedy := range map[string]string{"no_key": "ADD PRIMARY KEY", "loose": "ADD PRIMARY KEY", "pair": `ALTER TABLE "public"."pair" REPLICA IDENTITY USING INDEX "pair_ab"`} {
		if l := of["public."+table].Left; l == nil || l.ID != ErrNoKey.ID || !strings.Contains(l.WhatToDo(), remedy) {
			t.Errorf("%s: %v, want a remedy with %s", table, l, remedy)
		}
	}
	d.sql("%s", of["public.pair"].Left.WhatToDo())
	d.sql("%s", db.Others[slices.Index(others, "public.brief: it is unlogged: its changes are not in the WAL")].Remedy)
	if _, of := surveyOf(t, pg.DSN(d.name), "public"); !of["public.pair"].Taken() || !of["public.brief"].Taken() || of["other.thing"] != nil {
		t.Error("the remedies do not help, or the schema is not kept to")
	}
	if db, _ := surveyOf(t, pg.DSN(d.name), "other"); len(db.Others) > 0 {
		t.Errorf("of another schema it names %v", db.Others)
	}

	// A source that leaves out what looks like secrets captures the rest.
	src := d.source(func(c *Config) {
		c.Tables = []string{"public.users", "public.hour"}
		for _, name := range u.Secrets {
			c.Without = append(c.Without, "public.users."+name)
		}
	})
	tables, err := src.Tables(t.Context())
	if err != nil || len(tables) != 2 {
		t.Fatal(tables, err)
	}
	var cols []string
	for _, c := range tables[1].Columns {
		cols = append(cols, c.Name)
	}
	if got := strings.Join(cols, " "); got != "id login password_changed_at" {
		t.Errorf("captured of users are %s", got)
	}
	d.sql("%s", src.cfg.publicationSQL([]string{"users (id, login, password_changed_at)", "hour"}))
	again, err := Survey(t.Context(), secret.DSNOf(pg.DSN(d.name)), strings.TrimPrefix(src.cfg.Publication, "tallywire_"), []string{"public"})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range again.Tables {
		if want := map[string]string{"users": "hashed_password salt API Key"}[x.Name]; strings.Join(x.Without, " ") != want {
			t.Errorf("the publication has %s without %v, want %s", x.Name, x.Without, want)
		}
	}
	d.sql("UPDATE users SET login = 'y'; DELETE FROM hour; DELETE FROM users") // the application goes on
}

// Lost if this fails: the first run finds what the draft could have told.
func TestSurveyTellsWhatCaptureLacks(t *testing.T) {
	pg := shared(t)
	d := newDB(t, pg)
	d.sql(`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE ROLE plain_%[1]s LOGIN; GRANT SELECT ON a TO plain_%[1]s;
		CREATE SCHEMA "Own Schema"; CREATE TABLE "Own Schema".c (id int PRIMARY KEY); CREATE TABLE "Own Schema".d (id int PRIMARY KEY); GRANT SELECT ON "Own Schema".d TO plain_%[1]s`, d.name)
	defer d.sql("DROP OWNED BY plain_%[1]s; DROP ROLE plain_%[1]s", d.name)
	as := strings.Replace(pg.DSN(d.name), "//postgres@", "//plain_"+d.name+"@", 1)
	db, of := surveyOf(t, as)
	if len(db.Problems) != 1 || db.Problems[0].ID != ErrNoReplication.ID {
		t.Errorf("problems are %v", db.Problems)
	}
	if l := of["public.b"].Left; l == nil || l.ID != ErrRefused.ID || !strings.Contains(l.WhatToDo(), "GRANT SELECT") {
		t.Errorf("a table that may not be read: %v", l)
	}
	// A right to a table is none without one to its schema.
	for name, grants := range map[string]int{"public.a": 0, "public.b": 1, "Own Schema.c": 2, "Own Schema.d": 1} {
		if got := of[name].Grants; len(got) != grants {
			t.Errorf("to read %s it takes %q, want %d", name, got, grants)
		}
	}
	if got, want := of["Own Schema.c"].Left.WhatToDo(), fmt.Sprintf(`GRANT USAGE ON SCHEMA "Own Schema" TO "plain_%[1]s"; GRANT SELECT ON "Own Schema"."c" TO "plain_%[1]s"`, d.name); got != want {
		t.Errorf("the remedy is %s, want %s", got, want)
	}
	d.sql("%s", db.Problems[0].WhatToDo())
	d.sql("%s", of["public.b"].Left.WhatToDo())
	d.sql("%s", of["Own Schema.c"].Left.WhatToDo())
	if db, of := surveyOf(t, as); len(db.Problems) > 0 || !of["public.b"].Taken() || !of["Own Schema.c"].Taken() || !of["Own Schema.d"].Taken() {
		t.Errorf("the remedies do not help: %v", db.Problems)
	}
	// Where none may be read there is no draft, and all that is to be granted is told.
	d.sql("REVOKE ALL ON a, b FROM plain_%[1]s; REVOKE USAGE ON SCHEMA \"Own Schema\" FROM plain_%[1]s", d.name)
	_, err := Survey(t.Context(), secret.DSNOf(as), "psa", nil)
	if p := problem.Of(err); p == nil || p.ID != ErrNoTables.ID || !strings.Contains(p.Text, "may not read 4") || strings.Count(p.WhatToDo(), "GRANT ") != 3 {
		t.Errorf("no table may be read: %v", err)
	} else {
		d.sql("%s", p.WhatToDo())
		if _, of := surveyOf(t, as); !of["public.a"].Taken() || !of["Own Schema.d"].Taken() {
			t.Error("the remedy does not help")
		}
	}
	d.sql("CREATE SCHEMA views; CREATE VIEW views.v AS SELECT 1 AS n")
	if _, err := Survey(t.Context(), secret.DSNOf(pg.DSN(d.name)), "psa", []string{"views"}); !problem.Has(err, ErrNoTables) || !strings.Contains(err.Error(), "views.v cannot be captured: it is a view") {
		t.Errorf("there are only views: %v", err)
	}

	for name, c := range map[string]struct {
		dsn, schema string
		code        problem.Code
	}{
		"port":     {"postgres://u:hunter2@127.0.0.1:1/x", "", ErrUnavailable},
		"form":     {"postgres://u:hunter2@127.0.0.1:port/x", "", errConfig},
		"database": {strings.Replace(pg.DSN("nowhere"), "//postgres@", "//postgres:hunter2@", 1), "", ErrRefused},
		"schema":   {pg.DSN(d.name), "nope", ErrNoTables},
	} {
		_, err := Survey(t.Context(), secret.DSNOf(c.dsn), "psa", slices.DeleteFunc([]string{c.schema}, func(s string) bool { return s == "" }))
		p := problem.Of(err)
		if p == nil || p.ID != c.code.ID || strings.Contains(problem.Format(err), "hunter2") || strings.Contains(p.WhatToDo(), "slot keeps") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Lost if this fails: a server that writes no logical WAL is found out by the
// first run, after the file was filled in.
func TestSurveyTellsTheWALLevel(t *testing.T) {
	pg, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Params: map[string]string{"wal_level": "replica", "fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Stop()
	conn, err := pgx.Connect(t.Context(), pg.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "CREATE TABLE a (n int)"); err != nil {
		t.Fatal(err)
	}
	_, err = Survey(t.Context(), secret.DSNOf(pg.DSN("postgres")), "psa", nil)
	if !problem.Has(err, ErrNoTables) || !strings.Contains(problem.Of(err).WhatToDo(), "ADD PRIMARY KEY") {
		t.Errorf("no table can be captured: %v", err)
	}
	if _, err := conn.Exec(t.Context(), "ALTER TABLE a ADD PRIMARY KEY (n)"); err != nil {
		t.Fatal(err)
	}
	db, _ := surveyOf(t, pg.DSN("postgres"))
	if len(db.Problems) != 1 || db.Problems[0].ID != ErrWALLevel.ID {
		t.Errorf("problems are %v", db.Problems)
	}
}
