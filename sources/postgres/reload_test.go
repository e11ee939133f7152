package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// folded replays records as a reader does that takes what was not sent again from
// the row that it has.
func folded(recs []rec, topic string) map[string]string {
	m, at := map[string]string{}, map[string]change.Pos{}
	for _, r := range recs {
		switch {
		case r.topic != topic:
		case r.op == change.Delete:
			delete(m, r.key)
		case r.op == change.Truncate:
			clear(m)
		case r.op == change.Sweep:
			sweep(m, at, r)
		default:
			at[r.key] = r.pos
			from := m[r.key]
			if r.oldKey != "" {
				from = m[r.oldKey]
				delete(m, r.oldKey)
			}
			cells, was := strings.Split(r.new, "|"), strings.Split(from, "|")
			for i, c := range cells {
				if strings.HasSuffix(c, "=<unchanged>") && len(was) == len(cells) {
					cells[i] = was[i]
				}
			}
			m[r.key] = strings.Join(cells, "|")
		}
	}
	return m
}

func (o *outlet) loadOf(t *testing.T, table string) *tableLoad {
	t.Helper()
	ms, err := parseMembers(o.Notes())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms.of {
		if m.String() == table {
			return m.Load
		}
	}
	t.Fatalf("nothing is noted of %s", table)
	return nil
}

func (o *outlet) reload(t *testing.T, s *Source, where string, tables ...string) {
	t.Helper()
	o.askReload(t, s, where, tables...)
	o.reloaded(t, tables...)
}

func (o *outlet) askReload(t *testing.T, s *Source, where string, tables ...string) {
	t.Helper()
	o.askFor(t, s, where, false, tables...)
}

// askSweep asks for all rows of tables, and that what is not there any more ends.
func (o *outlet) askSweep(t *testing.T, s *Source, tables ...string) {
	t.Helper()
	o.askFor(t, s, "", true, tables...)
}

func (o *outlet) askFor(t *testing.T, s *Source, where string, sweep bool, tables ...string) {
	t.Helper()
	ask, _, err := s.PlanReload(t.Context(), tables, where, sweep)
	if err != nil {
		t.Fatal(err)
	}
	o.asking = o.ask(string(ask))
}

// reloaded waits until what was asked last is done.
func (o *outlet) reloaded(t *testing.T, tables ...string) {
	t.Helper()
	o.until(t, "what was asked to be done", func() bool { return o.isReloaded(t, tables...) })
}

// isReloaded reports whether that is written down.
func (o *outlet) isReloaded(t *testing.T, tables ...string) bool {
	t.Helper()
	o.mu.Lock()
	_, asked := o.asks[o.asking]
	o.mu.Unlock()
	return !asked && !slices.ContainsFunc(tables, func(table string) bool { return o.loadOf(t, table) != nil })
}

func reads(recs []rec, topic string) (n int) {
	for _, r := range recs {
		if r.topic == topic && r.op == change.Read {
			n++
		}
	}
	return n
}

// Lost if this fails: rows of before a table was published never come, or the value
// of a column that was added with a default; or one who has reloaded it is still
// told to.
func TestReload(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql(`CREATE TABLE other(id int PRIMARY KEY); CREATE TABLE filled(id int PRIMARY KEY); INSERT INTO filled SELECT generate_series(1, 50);
				CREATE TABLE parts(id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (50); INSERT INTO parts VALUES (1)`)
			s, o := d.source(func(c *Config) { c.Load = LoadNever }), newOutlet()
			looksOften(s)
			s.askEvery, s.chunkRows = 10*time.Millisecond, 7
			r := loaded(t, s, o)
			d.sql(`CREATE TABLE fresh(a text, b numeric, v text, PRIMARY KEY (b, a)); INSERT INTO fresh SELECT 'é' || i, i / 7.0, 'v' || i FROM generate_series(1, 100) i;
				CREATE TABLE empty(id int PRIMARY KEY)`)
			d.sql("ALTER TABLE filled ADD COLUMN w timestamptz NOT NULL DEFAULT clock_timestamp()")
			d.sql("CREATE TABLE more(id int PRIMARY KEY); INSERT INTO more SELECT generate_series(50, 99)")
			d.sql("ALTER TABLE parts ATTACH PARTITION more FOR VALUES FROM (50) TO (100)")
			says(t, s, "public.parts: partition public.more was attached", "public.empty: the rows that were there when it was published", "public.fresh: the rows that were there when it was published", "public.filled: column w was added")
			if n := reads(o.records(), "psa.public.fresh"); n != 0 {
				t.Fatalf("%d rows of fresh came by themselves", n)
			}
			o.reload(t, s, "", "public.fresh", "public.empty", "public.filled", "public.parts") // Remedy: TW-PG-TABLE
			says(t, s)
			sameState(t, state(o.records(), "psa.public.fresh"), rows(d, "fresh", `(b || E'\x1f' || a)`, "a", "b", "v"))
			sameState(t, state(o.records(), "psa.public.filled"), rows(d, "filled", "id", "id", "w"))
			sameState(t, state(o.records(), "psa.public.parts"), rows(d, "parts", "id", "id"))
			// Some rows only.
			n := reads(o.records(), "psa.public.fresh")
			o.reload(t, s, "b < 1 and b > 0", "public.fresh")
			if got := reads(o.records(), "psa.public.fresh") - n; got != 6 {
				t.Errorf("%d rows were read anew, want 6", got)
			}
			rising(t, o.records())
			r.stop()
		})
	}
}

// What cannot be read anew is refused at once, or given up, and the others go on.
func TestReloadThatCannotBe(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b(id int PRIMARY KEY); INSERT INTO b VALUES (1); CREATE TABLE fresh(id int PRIMARY KEY)`)
	s, o := d.source(), newOutlet()
	looksOften(s)
	s.askEvery = 10 * time.Millisecond
	r := loaded(t, s, o)
	d.sql("ALTER PUBLICATION %s DROP TABLE fresh", s.cfg.Publication)
	for name, c := range map[string]struct{ table, where, says string }{
		"no such table":   {"public.nothing", "", `no captured table is "public.nothing"`},
		"not published":   {"public.fresh", "", `public.fresh is not in publication "*"`},
		"no such column":  {"public.a", "x = 1", `the condition "x = 1" on public.a: column "x" does not exist (SQLSTATE 42703)`},
		"two statements":  {"public.a", "true); DELETE FROM a; SELECT (1", `the condition "*" on public.a: cannot insert multiple commands into a prepared statement *`},
		"no condition":    {"public.a", "1", `the condition "1" on public.a: argument of WHERE must be type boolean*`},
		"a bad condition": {"public.a", "id = 'x'", `the condition "*" on public.a: invalid input syntax*`},
	} {
		if _, _, err := s.PlanReload(t.Context(), []string{c.table}, c.where, false); !problem.Has(err, ErrReload) || !matches("*"+c.says, err.Error()) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	if d.one("SELECT count(*)::text FROM a") != "1" {
		t.Fatal("a condition deleted rows")
	}
	d.sql("ALTER PUBLICATION %s ADD TABLE fresh", s.cfg.Publication) // Remedy: TW-PG-RELOAD
	o.reload(t, s, "", "public.fresh")
	o.ask(`{"v":3}`)
	o.ask(`{"v":1,"tables":["public.nothing"]}`)
	o.ask(`{"v":1,"tables":["public.a"],"where":"1/(id-1) > 0"}`) // it is told by the first row only
	o.reload(t, s, "", "public.b")
	o.until(t, "what cannot be done to be given up", func() bool {
		asked, _ := o.Asked(t.Context())
		return len(asked) == 1 && o.loadOf(t, "public.a") == nil
	})
	if n := reads(o.records(), "psa.public.b"); n != 2 {
		t.Errorf("%d rows of b were read, want 2", n)
	}
	r.stop()
}

// Lost if this fails: a row that is read beside the stream comes after a newer one of
// the stream, or a large value that the stream does not send again never comes; or
// what was under way when the process died (C1, C3, C6).
func TestReloadBesideChanges(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		for _, how := range []string{"binary", "text", "sweep"} {
			t.Run(version+"/"+how, func(t *testing.T) { reloadBesideChanges(t, version, how) })
		}
	}
}

func reloadBesideChanges(t *testing.T, version, how string) {
	const keys = 400
	d := newDB(t, testkit.NewPostgres(t, version))
	more := ""
	if how == "text" {
		more = ", box box DEFAULT '(1,1),(0,0)'" // it has no decoder
	}
	d.sql(`CREATE TABLE other(id int PRIMARY KEY%[1]s);
		CREATE TABLE doc(id int PRIMARY KEY, v int NOT NULL, big text%[1]s); ALTER TABLE doc ALTER big SET STORAGE EXTERNAL;
		CREATE FUNCTION large(seed text) RETURNS text LANGUAGE sql AS $$ SELECT repeat(md5(seed), 80) $$;
		INSERT INTO doc SELECT i, 0, large(i::text) FROM generate_series(1, %[2]d) i`, more, keys)
	s, o := d.source(), newOutlet()
	looksOften(s)
	s.askEvery, s.chunkRows, s.batchChanges = 5*time.Millisecond, 5, 9
	s.cfg.Load = LoadNever
	r := loaded(t, s, o)
	if how == "sweep" {
		o.reload(t, s, "", "public.doc")
		d.sql("ALTER PUBLICATION %[1]s DROP TABLE doc; DELETE FROM doc WHERE id %% 3 = 0; ALTER PUBLICATION %[1]s ADD TABLE doc", s.cfg.Publication)
	}
	var writes atomic.Int64
	writing, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop()
	for w := range 4 {
		c := newDBConn(t, d)
		writers.Go(func() {
			if err := writesTo(writing, c, rand.New(rand.NewPCG(uint64(w), 1)), keys, &writes); err != nil {
				t.Error(err)
			}
		})
	}
	o.askFor(t, s, "", how == "sweep", "public.doc")
	// The process dies: what it was about to write is not there.
	died := errors.New("it dies")
	deaths := 0
	for range 4 {
		var left atomic.Int64
		left.Store(int64(1 + rand.IntN(4)))
		o.mu.Lock()
		o.onSend = func(_ context.Context, b *change.Batch) error {
			if b.Beside && left.Add(-1) < 0 {
				return died
			}
			return nil
		}
		o.mu.Unlock()
		if !r.diesUnless(func() bool { return o.isReloaded(t, "public.doc") }, died) {
			break // it was emptied, and there is little to read
		}
		deaths++
		o.mu.Lock()
		o.onSend, o.ended = nil, nil
		o.mu.Unlock()
		d.free(s.cfg.Slot)
		r = start(t, s, o)
	}
	o.mu.Lock()
	o.onSend = nil
	o.mu.Unlock()
	o.reloaded(t, "public.doc")
	stop()
	writers.Wait()
	d.sql("INSERT INTO other VALUES (1)")
	o.until(t, "the last change", func() bool { return len(state(o.records(), "psa.public.other")) == 1 })
	r.stop()
	columns := []string{"id", "v", "big"}
	if more != "" {
		columns = append(columns, "box")
	}
	recs := o.records()
	rising(t, recs)
	sameState(t, folded(recs, "psa.public.doc"), rows(d, "doc", "id", columns...))
	t.Logf("%d transactions, %d rows read beside them, %d deaths", writes.Load(), reads(recs, "psa.public.doc"), deaths)
}

// diesUnless waits until a run ends with an error, or done says that it need not.
func (r *running) diesUnless(done func() bool, with error) bool {
	r.t.Helper()
	late := time.After(testkit.Patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-r.err:
			if !errors.Is(err, with) {
				r.t.Fatalf("%v, want %v", err, with)
			}
			return true
		case <-late:
			r.t.Fatal("Run does not end")
		case <-tick.C:
			if done() {
				return false
			}
		}
	}
}

// writesTo changes rows of doc until ctx ends, in transactions that stay open for a
// moment, so that they become visible in another order than they began. It ends
// between two of them: what is canceled may be committed after all, and later.
func writesTo(ctx context.Context, d *db, r *rand.Rand, keys int, writes *atomic.Int64) error {
	key := func() int { return 1 + r.IntN(keys) }
	for ctx.Err() == nil {
		sql := "BEGIN;"
		for range 1 + r.IntN(3) {
			switch r.IntN(10) {
			case 0:
				sql += fmt.Sprintf("DELETE FROM doc WHERE id = %d;", key())
			case 1:
				sql += fmt.Sprintf("INSERT INTO doc VALUES (%d, 1, large('%d')) ON CONFLICT DO NOTHING;", key(), r.Int())
			case 2:
				sql += fmt.Sprintf("UPDATE doc SET big = large('%d') WHERE id = %d;", r.Int(), key())
			case 3: // not for ever: as long as rows move, the table is read once more
				if writes.Load() > 1000 {
					continue
				}
				k := key()
				sql += fmt.Sprintf("DELETE FROM doc WHERE id = %d; UPDATE doc SET id = %d WHERE id = %d;", k, k, key())
			case 4:
				if r.IntN(500) == 0 {
					sql += "TRUNCATE doc;"
				}
			default:
				sql += fmt.Sprintf("UPDATE doc SET v = v + 1 WHERE id = %d;", key())
			}
		}
		if r.IntN(4) == 0 {
			sql += fmt.Sprintf("SELECT pg_sleep(%.3f);", r.Float64()/50)
		}
		end := "COMMIT"
		if r.IntN(10) == 0 {
			end = "ROLLBACK"
		}
		whole := context.WithoutCancel(ctx)
		if _, err := d.Conn.PgConn().Exec(whole, sql+end).ReadAll(); err != nil {
			if _, err := d.Conn.PgConn().Exec(whole, "ROLLBACK").ReadAll(); err != nil { // a deadlock
				return err
			}
		}
		writes.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(r.IntN(3)) * time.Millisecond):
		}
	}
	return nil
}

// What is noted of a load is read by the next session, and a version that does not
// know it keeps the rest.
func TestLoadIsNoted(t *testing.T) {
	m := &member{Form: memberForm, Schema: "public", Name: "a", Load: &tableLoad{From: 7, After: []string{"é", "2"}, Rows: 3, Of: 10, Where: "true", Again: true}}
	ms, err := parseMembers(map[string][]byte{"7": encodeNote(m)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(ms.of[7])
	if err != nil || string(got) != string(encodeNote(m)) {
		t.Errorf("%s, want %s (%v)", got, encodeNote(m), err)
	}
}

// besideOnce calls do with the n-th batch beside the stream, before it is taken.
func (o *outlet) besideOnce(n int64, do func() error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.onSend = func(_ context.Context, b *change.Batch) error {
		if b.Beside {
			if n--; n == 0 {
				return do()
			}
		}
		return nil
	}
}

// docs is a source whose table doc has 20 rows of before it was published.
func docs(t *testing.T) (*db, *Source, *outlet, *running) {
	t.Helper()
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE other(id int PRIMARY KEY); CREATE TABLE doc(id int PRIMARY KEY, v int, big text); ALTER TABLE doc ALTER big SET STORAGE EXTERNAL;
		INSERT INTO doc SELECT i, 0, repeat(md5(i::text), 80) FROM generate_series(1, 20) i`)
	s, o := d.source(func(c *Config) { c.Load = LoadNever }), newOutlet()
	looksOften(s)
	s.askEvery, s.chunkRows = 5*time.Millisecond, 5
	return d, s, o, loaded(t, s, o)
}

// Lost if this fails: the large value of a row that gets another key while its table
// is read, from one that is still to be read to one that is read by then.
func TestReloadOfARowThatMoves(t *testing.T) {
	d, s, o, r := docs(t)
	other := newDBConn(t, d)
	o.besideOnce(1, func() error {
		other.sql("UPDATE doc SET id = 0 WHERE id = 20")
		return nil
	})
	o.reload(t, s, "", "public.doc")
	d.sql("INSERT INTO other VALUES (1)")
	o.until(t, "the last change", func() bool { return len(state(o.records(), "psa.public.other")) == 1 })
	r.stop()
	if got := folded(o.records(), "psa.public.doc"); len(got) != 20 {
		t.Errorf("%d rows, want 20", len(got))
	} else {
		sameState(t, got, rows(d, "doc", "id", "id", "v", "big"))
	}
}

// A reload goes on where it was when the process died: with the rows lies how far it
// is.
func TestReloadGoesOn(t *testing.T) {
	d, s, o, r := docs(t)
	died := errors.New("it dies")
	o.besideOnce(2, func() error { return died })
	o.askReload(t, s, "", "public.doc")
	if err := r.fails(); !errors.Is(err, died) {
		t.Fatal(err)
	}
	o.ended = nil
	if l := o.loadOf(t, "public.doc"); l == nil || len(l.After) != 1 || l.After[0] != "5" {
		t.Errorf("it is noted as %+v, want all up to key 5", l)
	}
	d.free(s.cfg.Slot)
	r = start(t, s, o)
	o.reloaded(t, "public.doc")
	r.stop()
	if n := reads(o.records(), "psa.public.doc"); n != 20 {
		t.Errorf("%d rows were read, want 20: each once", n)
	}
	sameState(t, folded(o.records(), "psa.public.doc"), rows(d, "doc", "id", "id", "v", "big"))
}

// A column that is read as text only has the stream opened again in text.
func TestReloadInText(t *testing.T) {
	d, s, o, r := docs(t)
	d.sql("CREATE TABLE boxes(id int PRIMARY KEY, b box); INSERT INTO boxes VALUES (1, '(1,1),(0,0)'), (2, NULL)")
	o.until(t, "it to be listed", func() bool {
		return d.one("SELECT count(*)::text FROM pg_publication_tables WHERE tablename = 'boxes'") == "1"
	})
	o.askReload(t, s, "", "public.boxes")
	if err := r.fails(); !problem.Has(err, pgoutput.ErrText) {
		t.Fatalf("%v, want TW-PG-TEXT", err)
	}
	o.ended = nil
	d.free(s.cfg.Slot)
	r = start(t, s, o)
	o.reloaded(t, "public.boxes")
	r.stop()
	sameState(t, state(o.records(), "psa.public.boxes"), rows(d, "boxes", "id", "id", "b"))
}
