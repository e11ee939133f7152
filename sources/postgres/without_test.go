package postgres

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit"
)

// advised gives what doctor advises, and fails where it finds something wrong.
func advised(t *testing.T, s *Source) string {
	t.Helper()
	var says []string
	for _, f := range s.Doctor(t.Context()) {
		if f.Err != nil {
			t.Errorf("doctor: %v", f.Err)
		}
		if f.Advice != "" {
			says = append(says, f.What+": "+f.Advice)
		}
	}
	return strings.Join(says, "\n")
}

// refusedBy gives what doctor finds wrong.
func refusedBy(t *testing.T, s *Source) (says string) {
	t.Helper()
	for _, f := range s.Doctor(t.Context()) {
		if f.Err != nil {
			says += f.Err.Error() + "\n"
		}
	}
	return says
}

// without fails where a record shows any of words.
func withoutWords(t *testing.T, recs []rec, words ...string) {
	t.Helper()
	for _, r := range recs {
		for _, w := range words {
			if strings.Contains(r.String(), w) || strings.Contains(r.key+r.oldKey, w) {
				t.Errorf("%q went out: %s", w, r)
			}
		}
	}
}

// Lost if this fails: a password leaves the database, because its column was
// misspelt, or a publication had it already; or the application cannot write.
func TestWithoutColumns(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v int, pass text, up text GENERATED ALWAYS AS (upper(pass)) STORED, "Nacl" text);
		CREATE TABLE b(pass text, id int PRIMARY KEY, v int); INSERT INTO a (id, v, pass, "Nacl") VALUES (1, 1, 'hush', 'hush'); INSERT INTO b VALUES ('hush', 1, 1);
		CREATE TABLE c(x int, y int, id int PRIMARY KEY, z int); INSERT INTO c VALUES (1, 2, 3, 4);
		ALTER TABLE b REPLICA IDENTITY FULL`)
	without := func(names ...string) func(*Config) { return func(c *Config) { c.Without = names } }
	for _, c := range []struct{ name, says, remedy string }{
		{"public.a.pas", "no table that is captured has a column public.a.pas", "Did you mean public.a.pass?"},
		{"!public.a.pas", "no table that is captured has a column public.a.pas", "Did you mean public.a.pass?"},
		{"public.a.id", "column id of public.a is of its key", `"!public.a"`},
	} {
		err := start(t, d.source(without("public.*.Nacl", c.name)), newOutlet()).fails()
		want(t, err, errConfig, c.says)
		if !strings.Contains(problem.Of(err).WhatToDo(), c.remedy) {
			t.Errorf("%s: the remedy is %s", c.name, problem.Of(err).WhatToDo())
		}
		if says := refusedBy(t, d.source(without(c.name))); !strings.Contains(says, c.says) {
			t.Errorf("doctor does not say %q: %s", c.says, says)
		}
	}

	// What a publication of others has is passed over; what is said keeps it at home.
	d.sql("CREATE PUBLICATION %s FOR TABLE a, b, c WITH (publish_via_partition_root = true)", d.config().Publication)
	s := d.source(without("*.pass", "public.*.Nacl", "*.nothing", "public.c.*", "!public.c.id", "!public.c.y"))
	o := newOutlet()
	advice := advised(t, s)
	if !strings.Contains(advice, "public.a.pass, public.a.Nacl, public.b.pass, public.c.x, public.c.z") || !strings.Contains(advice, "public.b has REPLICA IDENTITY FULL") || !strings.Contains(advice, `ADD TABLE "public"."c" ("y", "id"); COMMIT`) {
		t.Errorf("doctor advises %s", advice)
	}
	r := loaded(t, s, o)
	changes := func(n int) {
		t.Helper()
		d.sql("UPDATE a SET pass = 'hush2', v = 2; INSERT INTO a (id, v, pass) VALUES (2, 1, 'hush'); DELETE FROM a WHERE id = 2")
		d.sql("UPDATE b SET pass = 'hush2', v = 2; UPDATE b SET id = 7; UPDATE c SET x = 9, y = 8")
		o.untilCount(t, n)
		sameState(t, state(o.records(), "psa.public.a"), map[string]string{"1": "id=1|v=2"})
		sameState(t, state(o.records(), "psa.public.b"), map[string]string{"7": "id=7|v=2"})
		sameState(t, state(o.records(), "psa.public.c"), map[string]string{"3": "y=8|id=3"})
		withoutWords(t, o.records(), "hush")
	}
	changes(3 + 3 + 3)
	rising(t, o.records())
	r.stop()
	var full bool
	for _, x := range o.records() {
		full = full || x.topic == "psa.public.b" && x.op == change.Update && x.old == "id=1|v=2"
	}
	if !full {
		t.Error("the row before an update is not whole, but for what is left out")
	}

	// What is advised, and then the one that is made, do not have them.
	_, sql, _ := strings.Cut(advice, "BEGIN; ALTER PUBLICATION "+`"`+s.cfg.Publication+`" DROP TABLE "public"."a"`)
	sql, _, _ = strings.Cut(sql, "COMMIT")
	d.sql("%s", "BEGIN; ALTER PUBLICATION "+s.cfg.Publication+" DROP TABLE a"+sql+"COMMIT")
	if advice := advised(t, s); strings.Contains(advice, "public.a.pass") || !strings.Contains(advice, "public.b.pass") {
		t.Errorf("doctor advises %s", advice)
	}
	d.free(s.cfg.Slot)
	d.sql("SELECT pg_drop_replication_slot('%s')", s.cfg.Slot)
	d.sql("DROP PUBLICATION %s; UPDATE b SET id = 1", s.cfg.Publication)
	s, o = d.source(without("*.pass", "public.*.Nacl", "public.c.*", "!public.c.id", "!public.c.y")), newOutlet()
	r = loaded(t, s, o)
	changes(3 + 3 + 3)
	r.stop()
	if got := d.one("SELECT string_agg(tablename || ':' || array_length(attnames, 1), ' ' ORDER BY 1) FROM pg_publication_tables"); got != "a:2 b:3 c:2" {
		t.Errorf("the publication that is made lists %s", got)
	}
	tables, err := s.Tables(t.Context())
	if err != nil || len(tables) != 3 || !tables[0].Partial || tables[1].Partial || !tables[2].Partial || tables[1].Column("pass") >= 0 {
		t.Errorf("of a and c, and not of b, the publication leaves out columns: %v, %v", tables, err)
	}
}

// Lost if this fails: public.* takes passwords, tokens and sessions to Kafka.
func TestSecretsStayOut(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) { secretsStayOut(t, testkit.NewPostgres(t, version)) })
	}
}

func secretsStayOut(t *testing.T, pg *embedded.Postgres) {
	d := newDB(t, pg)
	d.sql(`CREATE DOMAIN secret_text AS text; CREATE DOMAIN secret_since AS timestamptz;
		CREATE TABLE users(hashed_password text, id int, name text, reset_token secret_text, password_since secret_since, token_count int, PRIMARY KEY (id));
		CREATE TABLE sessions(sid text PRIMARY KEY, data jsonb);
		CREATE TABLE api_tokens(id int PRIMARY KEY, value text);
		CREATE TABLE pairs(token text PRIMARY KEY, v int);
		CREATE TABLE training_session(id int PRIMARY KEY, title text);
		INSERT INTO users VALUES ('hush', 1, 'a', 'hush', NULL, 3); INSERT INTO sessions VALUES ('hush', '{"k": "hush"}'); INSERT INTO api_tokens VALUES (1, 'hush');
		INSERT INTO pairs VALUES ('t', 1); INSERT INTO training_session VALUES (1, 'sums');
		CREATE PUBLICATION everything FOR ALL TABLES`)
	named := []string{"public.*"}
	source := func(without ...string) *Source {
		s := d.source(func(c *Config) { c.Tables, c.Publication, c.Without = named, "everything", without })
		looksOften(s)
		s.askEvery = 10 * time.Millisecond
		return s
	}
	s, o := source(), newOutlet()
	if advice := advised(t, s); !strings.Contains(advice, "table public.api_tokens (it is called like a table of secrets), table public.sessions (it looks like a store of who is logged in), column public.users.hashed_password, column public.users.reset_token, column public.users.token_count") {
		t.Errorf("doctor advises %s", advice)
	}
	r := loaded(t, s, o)
	d.sql("INSERT INTO users VALUES ('hush', 2, 'b', 'hush', NULL, 4); UPDATE users SET hashed_password = 'hush2', reset_token = NULL, name = 'c' WHERE id = 1")
	d.sql("INSERT INTO sessions VALUES ('hush3', '{}'); UPDATE api_tokens SET value = 'hush4'; INSERT INTO training_session VALUES (2, 'hours')")
	d.sql("CREATE TABLE user_sessions(id int PRIMARY KEY, cookie text); INSERT INTO user_sessions VALUES (1, 'hush')") // new while it runs
	d.sql("CREATE TABLE later(id int PRIMARY KEY, api_key text, v int); INSERT INTO later VALUES (1, 'hush', 5)")
	o.untilCount(t, 3+2+1+1)
	o.reload(t, s, "", "public.users")
	o.reloaded(t, "public.users")
	users := map[string]string{"1": "id=1|name=c|password_since=<null>", "2": "id=2|name=b|password_since=<null>"}
	sameState(t, state(o.records(), "psa.public.users"), users)
	sameState(t, state(o.records(), "psa.public.later"), map[string]string{"1": "id=1|v=5"})
	sameState(t, state(o.records(), "psa.public.pairs"), map[string]string{"t": "token=t|v=1"})
	withoutWords(t, o.records(), "hush", "token_count")
	awaitLook(t, d, o)
	says(t, s)
	r.stop()
	for _, x := range o.records() {
		if strings.Contains(x.topic, "sessions") || strings.Contains(x.topic, "tokens") {
			t.Errorf("there is %s", x)
		}
	}
	d.free(s.cfg.Slot)

	// A column is taken in again, and a table by its name: with what was there before.
	named = []string{"public.*", "public.user_sessions"}
	s = source("!public.users.token_count")
	r = start(t, s, o)
	d.sql("INSERT INTO user_sessions VALUES (2, 'cookie')")
	o.until(t, "the row of before, and the new one", func() bool { return len(state(o.records(), "psa.public.user_sessions")) == 2 })
	says(t, s, "public.users: column token_count is captured otherwise than before")
	o.reload(t, s, "", "public.users")
	o.reloaded(t, "public.users")
	sameState(t, state(o.records(), "psa.public.users"), map[string]string{"1": "id=1|name=c|password_since=<null>|token_count=3", "2": "id=2|name=b|password_since=<null>|token_count=4"})
	sameState(t, state(o.records(), "psa.public.user_sessions"), map[string]string{"1": "id=1|cookie=hush", "2": "id=2|cookie=cookie"})
	awaitLook(t, d, o)
	says(t, s)
	r.stop()
	d.free(s.cfg.Slot)

	// What was captured, and is not any more, is said until somebody decides.
	// Remedy: TW-PG-SECRET
	named = []string{"public.*"}
	s = source()
	r = start(t, s, o)
	awaitLook(t, d, o)
	says(t, s, "public.user_sessions: it looks like a store of who is logged in: changes that are committed after", "public.users: column token_count is captured otherwise than before")
	n := len(o.records())
	d.sql("INSERT INTO user_sessions VALUES (3, 'hush5'); INSERT INTO training_session VALUES (3, 'x')")
	o.untilCount(t, n+1)
	withoutWords(t, o.records(), "hush5")
	r.stop()
	d.free(s.cfg.Slot)
	named = []string{"public.*", "!public.user_sessions"}
	s = source("!public.users.token_count")
	r = start(t, s, o)
	awaitLook(t, d, o)
	o.until(t, "nothing of it to be said", func() bool {
		return !slices.ContainsFunc(noticed(s), func(x string) bool { return strings.Contains(x, "sessions") })
	})
	r.stop()
}

// Lost if this fails: what is to be hashed goes out as it is, or is another hash in the
// load than in the stream, so that nothing joins any more.
func TestMaskAndHash(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) { maskAndHash(t, testkit.NewPostgres(t, version)) })
	}
}

const saltOfTest = "0123456789abcdef-"

func hashOf(text string) string {
	mac := hmac.New(sha256.New, []byte(saltOfTest))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

func maskAndHash(t *testing.T, pg *embedded.Postgres) {
	d := newDB(t, pg)
	d.sql(`CREATE TABLE person(gone text, tax_id text PRIMARY KEY, iban text, born timestamptz, pay numeric(10,2), api_token text, big text); ALTER TABLE person ALTER big SET STORAGE EXTERNAL;
		CREATE TABLE entry(id int PRIMARY KEY, tax_id text);
		INSERT INTO person SELECT 'x', 'plain' || i, 'DE1', '2000-01-01 00:00:00+00', 10.50, 'plain', repeat('plain', 2000) FROM generate_series(1, 3) i;
		UPDATE person SET iban = NULL, born = NULL WHERE tax_id = 'plain3'; INSERT INTO entry VALUES (1, 'plain1')`)
	source := func(edit func(*Config)) *Source {
		s := d.source(func(c *Config) {
			c.Mask, c.Hash.Columns, c.Hash.Salt = []string{"public.person.iban"}, []string{"*.tax_id", "public.person.born", "public.person.pay", "public.person.api_token", "public.person.big"}, secret.Of(saltOfTest)
			c.Without = []string{"public.person.gone"}
		}, edit)
		s.askEvery, s.chunkRows = 10*time.Millisecond, 2
		return s
	}
	want := map[string]string{}
	for i, row := range [][3]string{{"iban=***", "born=" + hashOf("2000-01-01 00:00:00+00")}, {"iban=***", "born=" + hashOf("2000-01-01 00:00:00+00")}, {"iban=<null>", "born=<null>"}} {
		key := hashOf(fmt.Sprint("plain", i+1))
		want[key] = strings.Join([]string{"tax_id=" + key, row[0], row[1], "pay=" + hashOf("10.50"), "api_token=" + hashOf("plain"), "big=" + hashOf(strings.Repeat("plain", 2000))}, "|")
	}
	s, o := source(func(*Config) {}), newOutlet()
	r := loaded(t, s, o)
	sameState(t, state(o.records(), "psa.public.person"), want)
	sameState(t, state(o.records(), "psa.public.entry"), map[string]string{"1": "id=1|tax_id=" + hashOf("plain1")})
	// A key that moves, a large value that is not sent again, and one that comes.
	d.sql("UPDATE person SET tax_id = 'plain4' WHERE tax_id = 'plain1'; INSERT INTO person SELECT gone, 'plain5', iban, born, pay, api_token, big FROM person WHERE tax_id = 'plain2'; DELETE FROM person WHERE tax_id = 'plain3'")
	o.untilCount(t, 4+3)
	got := state(o.records(), "psa.public.person")
	if row := got[hashOf("plain4")]; len(got) != 3 || !strings.HasSuffix(row, "big="+hashOf(strings.Repeat("plain", 2000))) && !strings.HasSuffix(row, "big=<unchanged>") {
		t.Errorf("after the changes there are %v", got)
	}
	o.reload(t, s, "", "public.person")
	o.reloaded(t, "public.person")
	as := func(from, key string) string {
		return strings.Replace(want[hashOf(from)], hashOf(from), hashOf(key), 1)
	}
	sameState(t, folded(o.records(), "psa.public.person"), map[string]string{
		hashOf("plain2"): want[hashOf("plain2")], hashOf("plain4"): as("plain1", "plain4"), hashOf("plain5"): as("plain2", "plain5"),
	})
	withoutWords(t, o.records(), "plain", "DE1", "10.50")
	rising(t, o.records())
	r.stop()
	if tables, err := s.Tables(t.Context()); err != nil || len(tables) != 2 || tables[1].Columns[2].Kind != change.String {
		t.Errorf("tables: %v, %v", tables, err)
	}
	for name, edit := range map[string]func(*Config){
		"column tax_id of public.person is of its key": func(c *Config) { c.Mask = []string{"public.person.tax_id"} },
		"has 5 octets, want 16":                        func(c *Config) { c.Hash.Salt = secret.Of("short") },
		"has a column public.person.ibann":             func(c *Config) { c.Mask = []string{"public.person.ibann"} },
	} {
		if says := refusedBy(t, source(edit)); !strings.Contains(says, name) {
			t.Errorf("doctor does not say %q: %s", name, says)
		}
	}
}

// Lost if this fails: rows of another company are captured; or a row that is no longer
// of this one stays; or the application's updates fail for a condition.
func TestWhere(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) { where(t, testkit.NewPostgres(t, version)) })
	}
}

func where(t *testing.T, pg *embedded.Postgres) {
	d := newDB(t, pg)
	d.sql(`CREATE TABLE entry(id int, company int, v int, PRIMARY KEY (id, company)); INSERT INTO entry SELECT i, i %% 2, i FROM generate_series(1, 10) i;
		CREATE TABLE other(id int PRIMARY KEY, company int); INSERT INTO other VALUES (1, 1)`)
	source := func(table, cond string) *Source {
		s := d.source(func(c *Config) { c.Where = map[string]string{table: cond} })
		looksOften(s)
		s.askEvery, s.chunkRows = 10*time.Millisecond, 3
		return s
	}
	for _, c := range []struct{ table, cond, says, remedy string }{
		{"public.entry", "compny = 1", `column "compny" does not exist`, ""},
		{"public.entry", "company = = 1", "syntax error", ""},
		{"public.entri", "company = 1", "no table that is captured is called public.entri", "Did you mean public.entry?"},
		{"public.entry", "v > 1", "is not of the replica identity (id, company)", `ALTER TABLE "public"."entry" REPLICA IDENTITY FULL`},
	} {
		err := start(t, source(c.table, c.cond), newOutlet()).fails()
		want(t, err, errConfig, c.says)
		if !strings.Contains(problem.Of(err).WhatToDo(), c.remedy) {
			t.Errorf("%s: the remedy is %s", c.cond, problem.Of(err).WhatToDo())
		}
		if says := refusedBy(t, source(c.table, c.cond)); !strings.Contains(says, c.says) {
			t.Errorf("doctor does not say %q: %s", c.says, says)
		}
	}
	d.sql("ALTER TABLE entry REPLICA IDENTITY FULL")
	if says := refusedBy(t, source("public.entry", "entry.v > 1")); says != "" {
		t.Errorf("with whole old rows a condition may name any column: %s", says)
	}
	d.sql("ALTER TABLE entry REPLICA IDENTITY DEFAULT; CREATE PUBLICATION %s FOR TABLE entry, other WITH (publish_via_partition_root = true)", d.config().Publication)
	s := source("public.entry", "company = 1")
	err := start(t, s, newOutlet()).fails()
	want(t, err, ErrPublication, "has all rows of public.entry")
	if says := refusedBy(t, s); !strings.Contains(says, "has all rows of public.entry") {
		t.Errorf("doctor says %s", says)
	}
	sql, _, _ := strings.Cut(problem.Of(err).WhatToDo(), "\n")
	d.sql("%s", sql)

	o := newOutlet()
	r := loaded(t, s, o)
	d.sql("INSERT INTO entry VALUES (11, 1, 11), (12, 0, 12); UPDATE entry SET v = -1 WHERE id IN (1, 2)")
	d.sql("UPDATE entry SET company = 0 WHERE id = 3; UPDATE entry SET company = 1 WHERE id = 4; DELETE FROM entry WHERE id IN (5, 6)")
	o.untilCount(t, 6+2+2+1)
	is := func(cond string) map[string]string {
		return rows(d, "(SELECT * FROM entry WHERE "+cond+") x", "concat_ws(',', id, company)", "id", "company", "v")
	}
	keyed := func() map[string]string {
		m := map[string]string{}
		for _, row := range folded(o.records(), "psa.public.entry") {
			var id, company int
			if _, err := fmt.Sscanf(strings.ReplaceAll(row, "|", " "), "id=%d company=%d", &id, &company); err != nil {
				t.Fatal(row, err)
			}
			m[fmt.Sprintf("%d,%d", id, company)] = row
		}
		return m
	}
	sameState(t, keyed(), is("company = 1"))
	o.reload(t, s, "", "public.entry")
	o.reloaded(t, "public.entry")
	sameState(t, keyed(), is("company = 1"))
	awaitLook(t, d, o)
	says(t, s)
	r.stop()
	d.free(s.cfg.Slot)

	// Another condition: what is to be run is said, and then what is to be read.
	s = source("public.entry", "company = 0")
	r = start(t, s, o)
	awaitLook(t, d, o)
	says(t, s, "public.entry: the publication has another condition than is configured now (company = 0)")
	d.sql("BEGIN; ALTER PUBLICATION %[1]s DROP TABLE entry; ALTER PUBLICATION %[1]s ADD TABLE entry WHERE (company = 0); COMMIT", s.cfg.Publication)
	o.until(t, "another filter", func() bool {
		return slices.ContainsFunc(noticed(s), func(x string) bool { return strings.Contains(x, "another row filter") })
	})
	o.askSweep(t, s, "public.entry")
	o.reloaded(t, "public.entry")
	sameState(t, keyed(), is("company = 0"))
	awaitLook(t, d, o)
	says(t, s)
	r.stop()
	d.free(s.cfg.Slot)

	// The one that is made has it.
	d.sql("SELECT pg_drop_replication_slot('%s')", s.cfg.Slot)
	d.sql("DROP PUBLICATION %s", s.cfg.Publication)
	o = newOutlet()
	r = loaded(t, s, o)
	d.sql("UPDATE entry SET company = 1 - company")
	o.until(t, "what moved", func() bool { return maps.Equal(keyed(), is("company = 0")) })
	r.stop()
}
