package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline/pipelinetest/history"
)

const (
	ledger         = "public.ledger"
	ledgerRaw      = "psa." + ledger
	ledgerOut      = "ps.ledger"
	ledgerNotes    = "_tallywire.tables.psa"
	ledgerGroup    = "tallywire.canonical"
	ledgerParts    = 4
	ledgerRange    = 100_000 // ids of a partition
	ledgerRows     = 5_000   // of each partition, in the beginning: two chunks and more
	ledgerSessions = 3
)

const ledgerContract = `{"type": "record", "name": "Ledger", "namespace": "ps", "doc": "What was posted.", "topic": "ps.ledger", "key": ["entry_id"], "owner": "finance",
  "fields": [
    {"name": "entry_id", "type": "string", "doc": "The entry.", "owner": "finance", "sensitivity": "internal"},
    {"name": "amount", "type": "string", "doc": "What it is of.", "owner": "finance", "sensitivity": "internal"},
    {"name": "note", "type": ["null", "string"], "default": null, "doc": "Why.", "owner": "finance", "sensitivity": "internal"},
    {"name": "body", "type": ["null", "string"], "default": null, "doc": "Its text, which may be long.", "owner": "finance", "sensitivity": "internal"},
    {"name": "grade", "type": ["null", "string"], "default": null, "doc": "What the table has of it only later.", "owner": "finance", "sensitivity": "internal"}]}`

var ledgerShop = shop{
	tables:   ledger,
	keys:     map[string][]string{ledger: {"id"}},
	contract: ledgerContract,
	transforms: `
      - {from: psa.public.ledger, to: ps.ledger, fields: {entry_id: id}}`,
	compared: []compared{{
		ledgerOut, `select id::text, concat_ws('|', amount, coalesce(note, '-'), md5(coalesce(body, '-')), grade) from ledger`,
		`select entry_id, concat_ws('|', amount, coalesce(note, '-'), md5(coalesce(body, '-')), grade) from ps.ledger`,
	}},
}

// vanishing has rows of a partition go without a change that says so.
type vanishing struct {
	*stack
	made int            // partitions so far
	now  map[int]string // which table holds which range
}

func (v *vanishing) create(q interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
}, i int,
) error {
	v.made++
	name := fmt.Sprintf("ledger_%d", v.made)
	v.firm.Partitions(ledger, "public."+name)
	_, err := q.Exec(v.t.Context(), fmt.Sprintf("create table %s partition of ledger for values from (%d) to (%d)", name, i*ledgerRange, (i+1)*ledgerRange))
	if err == nil { // or a change that does not send the text again is parked, and no sweep is done before it is mended
		_, err = q.Exec(v.t.Context(), "alter table "+name+" replica identity full")
	}
	v.now[i] = name
	return err
}

// say has the history know of what a transaction does to the ledger, at its place in
// the log. The transaction has the table locked.
func (v *vanishing) say(tx pgx.Tx, what string) error {
	_, err := tx.Exec(v.t.Context(), "select pg_logical_emit_message(true, 'history', (jsonb_build_object('table', '"+ledger+"') || "+what+")::text)")
	return err
}

// alone does something to the ledger when nobody else uses it.
func (v *vanishing) alone(do func(tx pgx.Tx) error) {
	v.t.Helper()
	ctx := v.t.Context()
	for {
		err := pgx.BeginFunc(ctx, v.psaPool, func(tx pgx.Tx) error {
			// The table before its partitions, as everybody does, so that nobody waits in a circle.
			if _, err := tx.Exec(ctx, "lock table ledger in access exclusive mode"); err != nil {
				return err
			}
			return do(tx)
		})
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "40P01" { // deadlock_detected
			continue
		}
		if err != nil {
			v.t.Fatal(err)
		}
		return
	}
}

// vanish has the rows of a range go: its partition is detached, and an empty one takes
// its place, or it is truncated by itself.
func (v *vanishing) vanish(i int, detach bool) (gone int) {
	v.t.Helper()
	ctx := v.t.Context()
	v.alone(func(tx pgx.Tx) error {
		name := v.now[i]
		if err := tx.QueryRow(ctx, "select count(*) from "+name).Scan(&gone); err != nil {
			return err
		}
		if err := v.say(tx, "jsonb_build_object('gone', coalesce((select jsonb_agg(jsonb_build_object('id', id::text)) from "+name+"), '[]'))"); err != nil {
			return err
		}
		if !detach {
			_, err := tx.Exec(ctx, "truncate "+name)
			return err
		}
		if _, err := tx.Exec(ctx, "alter table ledger detach partition "+name); err != nil {
			return err
		}
		return v.create(tx, i)
	})
	return gone
}

// fill adds a column with a default.
func (v *vanishing) fill() {
	v.t.Helper()
	v.alone(func(tx pgx.Tx) error {
		if _, err := tx.Exec(v.t.Context(), "alter table ledger add column grade text default 'plain'"); err != nil {
			return err
		}
		return v.say(tx, `'{"filled": {"grade": "plain"}}'::jsonb`)
	})
}

// refill writes rows to a range, so that there is something to go.
func (v *vanishing) refill(i, n int) {
	v.t.Helper()
	v.sql(v.psaPool, fmt.Sprintf(`insert into ledger select i, i %% 97, 'refilled', repeat(md5(i::text), 12) from generate_series(%d, %d) i on conflict do nothing`, i*ledgerRange, i*ledgerRange+n-1))
}

// post is one transaction of a writer.
func post(ctx context.Context, t *testing.T, pool *pgxpool.Pool, rng *rand.Rand) {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
		exec := func(sql string, args ...any) {
			if err == nil {
				_, err = tx.Exec(ctx, sql, args...)
			}
		}
		for range 1 + rng.IntN(4) {
			id := rng.IntN(ledgerParts)*ledgerRange + rng.IntN(ledgerRows+500)
			amount := rng.IntN(100_000)
			switch rng.IntN(8) {
			case 0, 1: // the text is stored out of line
				exec(`insert into ledger (id, amount, note, body) values ($1, $2, 'posted', (select string_agg(md5(random()::text), '') from generate_series(1, 120)))
					on conflict (id) do update set amount = excluded.amount, body = excluded.body`, id, amount)
			case 2:
				exec("delete from ledger where id = $1", id)
			case 3:
				exec("update ledger set note = null where id = $1", id)
			case 4: // another key, in the same partition
				exec("update ledger set id = $2 where id = $1 and not exists (select from ledger where id = $2)", id, id/ledgerRange*ledgerRange+rng.IntN(ledgerRows+500))
			default: // the text is left alone
				exec("update ledger set amount = $2, note = 'corrected' where id = $1", id, amount)
			}
		}
		return err
	})
	var pg *pgconn.PgError
	if err != nil && ctx.Err() == nil && (!errors.As(err, &pg) || pg.Code != "40P01" && pg.Code != "23505") { // deadlock_detected, unique_violation
		t.Error(err)
	}
}

// progress is what the source says of itself; "" while it does not answer.
func (s *stack) progress(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+"/api/status", nil)
	if err != nil {
		return ""
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return ""
	}
	var st struct {
		Components []struct{ Kind, Name, Progress string }
	}
	if json.Unmarshal(body, &st) != nil {
		return ""
	}
	for _, c := range st.Components {
		if c.Name == "psa" {
			return c.Progress
		}
	}
	return ""
}

// ledgerLoad is how far the ledger is read, as the source noted it.
type ledgerLoad struct {
	After  []string `json:"after"`
	Rows   int64    `json:"rows"`
	Sweep  bool     `json:"sweep"`
	Before []byte   `json:"before"`
}

// noted reads a record of the source's notes; is tells whether it is of the ledger.
func noted(r *kgo.Record) (load *ledgerLoad, is bool) {
	var m struct {
		Schema, Name string
		Load         *ledgerLoad
	}
	if r.Topic != ledgerNotes || !strings.HasPrefix(string(r.Key), "source/") || json.Unmarshal(r.Value, &m) != nil {
		return nil, false
	}
	return m.Load, m.Schema+"."+m.Name == ledger
}

// isSweep reports whether a raw record is a sweep.
func isSweep(r *kgo.Record) bool {
	for _, h := range r.Headers {
		if h.Key == "tw.before" && r.Topic == ledgerRaw {
			return true
		}
	}
	return false
}

// watch calls f with what is written to topics from now on, until it is true: that is the
// moment. Uncommitted: what a transaction has written that is still open, too.
func (s *stack) watch(what string, uncommitted bool, act func(), f func(*kgo.Record) bool, topics ...string) {
	s.t.Helper()
	ctx := s.t.Context()
	ends, err := s.cluster.Admin().ListEndOffsets(ctx, topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	parts := map[string]map[int32]kgo.Offset{}
	for topic, ps := range ends {
		parts[topic] = map[int32]kgo.Offset{}
		for p, o := range ps {
			parts[topic][p] = kgo.NewOffset().At(o.Offset)
		}
	}
	level := kgo.ReadCommitted()
	if uncommitted {
		level = kgo.ReadUncommitted()
	}
	cl, err := s.cluster.Client(kgo.ConsumePartitions(parts), kgo.FetchIsolationLevel(level))
	if err != nil {
		s.t.Fatal(err)
	}
	defer cl.Close()
	act()
	s.until(patience, what, func(ctx context.Context) (bool, string) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		fs := cl.PollFetches(ctx)
		for it := fs.RecordIter(); !it.Done(); {
			if f(it.Next()) {
				return true, ""
			}
		}
		return false, s.progress(s.t.Context())
	})
}

// standing is where a process was that is dead: what it has decided.
type standing struct {
	load  *ledgerLoad // nil: the ledger is read
	swept int         // partitions whose last sweep the transform has not passed
}

func (s *stack) standing() (now standing) {
	s.t.Helper()
	ctx := s.t.Context()
	scan := func(topic string, f func(*kgo.Record)) {
		s.t.Helper()
		meta, err := s.cluster.Topic(ctx, topic)
		if problem.Has(err, kafka.ErrNoTopic) {
			return
		}
		if err != nil {
			s.t.Fatal(err)
		}
		stable, err := s.cluster.Admin().ListCommittedOffsets(ctx, topic)
		if err != nil {
			s.t.Fatal(err)
		}
		cl, err := s.cluster.Client()
		if err != nil {
			s.t.Fatal(err)
		}
		defer cl.Close()
		for p := range meta.Partitions {
			start, err := s.cluster.StartOf(ctx, meta, p)
			if err != nil {
				s.t.Fatal(err)
			}
			end, _ := stable.Lookup(topic, p)
			if err := kafka.Scan(ctx, cl, meta, p, start, end.Offset, func(r *kgo.Record) error { f(r); return nil }); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	scan(ledgerNotes, func(r *kgo.Record) {
		if load, is := noted(r); is {
			now.load = load
		}
	})
	sweeps := map[int32]int64{}
	scan(ledgerRaw, func(r *kgo.Record) {
		if isSweep(r) {
			sweeps[r.Partition] = r.Offset
		}
	})
	passed, err := s.cluster.Admin().FetchOffsets(ctx, ledgerGroup)
	if err != nil {
		s.t.Fatal(err)
	}
	for p, at := range sweeps {
		if o, is := passed.Lookup(ledgerRaw, p); !is || o.At <= at {
			now.swept++
		}
	}
	return now
}

func (n standing) String() string {
	switch {
	case n.load == nil:
		return fmt.Sprintf("the ledger is read, and its sweep is not done in %d partitions", n.swept)
	case n.load.Sweep:
		return fmt.Sprintf("read for a sweep: %d rows, %v begun; an older sweep is not done in %d partitions", n.load.Rows, n.load.Before != nil, n.swept)
	}
	return fmt.Sprintf("loading: %d rows beside the stream", n.load.Rows)
}

// TestChaosSweep: while an application writes, partitions of a table are detached or
// truncated by themselves, a column with a default is added, and the table is read anew
// with a sweep; the process is killed in the load, while it reads anew, while it says
// that it has, and while that is carried out. In the end every topic and the warehouse
// hold what is there: no ghost of a row that is gone, no row less.
func TestChaosSweep(t *testing.T) {
	kills := 12
	if n, err := strconv.Atoi(os.Getenv("CHAOS_KILLS")); err == nil {
		kills = n
	}
	rng := seeded(t)
	s := newStack(t)
	ctx := t.Context()
	v := &vanishing{stack: s, now: map[int]string{}}
	s.firm = history.New(ledgerShop.keys)
	s.sql(s.psaPool, "create table ledger (id int primary key, amount int not null, note text, body text) partition by range (id)")
	for i := range ledgerParts {
		if err := v.create(s.psaPool, i); err != nil {
			t.Fatal(err)
		}
		v.refill(i, ledgerRows)
	}
	s.sql(s.psaPool, "analyze ledger")
	if _, err := history.New(nil).Witness(ctx, s.psaPool, "truth"); err != nil {
		t.Fatal(err)
	}
	if err := s.firm.BaseOf(ctx, s.psaPool); err != nil {
		t.Fatal(err)
	}
	s.config = s.configurations(ledgerShop)("chaos", s.http)

	writing, stop := context.WithCancel(ctx)
	var busy sync.WaitGroup
	end := func() { stop(); busy.Wait() }
	defer end()
	for i := range ledgerSessions {
		own := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		busy.Go(func() {
			for writing.Err() == nil {
				post(writing, t, s.psaPool, own)
				s.pause(10 * time.Millisecond)
			}
		})
	}

	// In the load: first where it copies, then in what is left, which is read beside the
	// stream. Rows go meanwhile that it has read, and that it has not.
	hit := map[string]int{}
	for i := range 3 {
		s.start()
		s.until(patience, "rows of the ledger are loaded", func(ctx context.Context) (bool, string) {
			p := s.progress(ctx)
			return strings.Contains(p, "rows of "+ledger) || p == "" && hit["load"] > 0 && s.standing().load == nil, p
		})
		said := s.progress(ctx)
		gone := v.vanish(i, i%2 == 0)
		s.kill()
		now := s.standing()
		t.Logf("killed in the load, at %q, when %d rows had gone: %s", said, gone, now)
		if now.load != nil {
			hit["load"]++
		}
		v.refill(i, ledgerRows)
	}
	s.start()
	s.until(patience, "the load is over", func(ctx context.Context) (bool, string) {
		now := s.standing()
		return now.load == nil, now.String()
	})
	if _, err := s.firm.Witness(ctx, s.psaPool, "truth"); err != nil {
		t.Fatal(err)
	}
	s.firm.Loaded()

	reload := func(wait time.Duration) (out string) {
		t.Helper()
		out, stderr, code := command(ctx, "reload", "psa", ledger, "--sweep", "--yes", "--wait", wait.String(), "--output", "json", "-c", s.config)
		if code != 0 {
			t.Fatalf("reload: exit code %d: %s%s", code, out, stderr)
		}
		return out
	}
	steps := []struct {
		name        string
		uncommitted bool
		moment      func(*kgo.Record) bool
		landed      func(standing) bool
	}{
		{"taken up", true, func(r *kgo.Record) bool { l, is := noted(r); return is && l != nil && l.Sweep }, func(n standing) bool { return n.load != nil && n.load.Sweep }},
		{"begun", false, func(r *kgo.Record) bool { l, is := noted(r); return is && l != nil && l.Before != nil }, func(n standing) bool { return n.load != nil && n.load.Before != nil }},
		{"reading", true, func(r *kgo.Record) bool { l, is := noted(r); return is && l != nil && l.Sweep && l.Rows > 0 }, func(n standing) bool { return n.load != nil && n.load.Sweep }},
		// It is decided, or not: either may be.
		{"said", true, isSweep, func(n standing) bool { return n.swept > 0 || n.load != nil }},
		{"carried out", false, isSweep, func(n standing) bool { return n.load == nil && n.swept > 0 }},
	}
	const more = 20 // tries, where a kill comes too late
	for i := 0; ; i++ {
		step := steps[i%len(steps)]
		if i >= kills {
			// What was not met yet.
			missed := false
			for _, st := range steps {
				if hit[st.name] == 0 {
					step, missed = st, true
				}
			}
			if !missed {
				break
			}
			if i >= kills+more {
				t.Fatalf("no kill came while the sweep was %s: %v", step.name, hit)
			}
		}
		part := rng.IntN(ledgerParts)
		gone := v.vanish(part, rng.IntN(2) == 0)
		s.watch("the sweep is "+step.name, step.uncommitted, func() { reload(0) }, step.moment, ledgerNotes, ledgerRaw)
		if i == 2 { // its default is in rows that are read by then, and in others
			v.fill()
		}
		if rng.IntN(2) == 0 { // more go that it has read by then
			v.refill(part, rng.IntN(ledgerRows))
			gone += v.vanish(rng.IntN(ledgerParts), rng.IntN(2) == 0)
		}
		s.kill()
		now := s.standing()
		t.Logf("kill %d, for %s, when %d rows had gone: %s", i+1, step.name, gone, now)
		if step.landed(now) {
			hit[step.name]++
		}
		v.refill(part, ledgerRows/2+rng.IntN(ledgerRows/2))
		s.start()
	}
	t.Logf("kills landed: %v", hit)
	if hit["load"] == 0 {
		t.Error("no kill came while the ledger was loaded: this proves nothing of it")
	}
	end()

	// What went after the last sweep began is known by another one.
	if out := reload(patience); !strings.Contains(out, `"taken_up": true`) {
		t.Errorf("the last sweep is not taken up: %s", out)
	}
	s.until(patience, "the last sweep is done", func(context.Context) (bool, string) {
		now := s.standing()
		return now.load == nil && now.swept == 0, now.String()
	})
	out, stderr, code := command(ctx, "parked", "list", "-c", s.config, "--output", "json")
	if code != 0 || strings.TrimSpace(out) != "[]" {
		t.Fatalf("parked list: exit code %d: %s%s", code, out[:min(len(out), 2000)], stderr)
	}
	s.until(patience, "the warehouse to have what the table has", func(ctx context.Context) (bool, string) { return s.same(ctx, ledgerShop.compared) })
	s.sweptExact()
}

// sweptExact holds the table itself, its raw and canonical topic and the warehouse
// against what was committed.
func (s *stack) sweptExact() {
	s.t.Helper()
	ctx := s.t.Context()
	s.rawExact(s.firm, history.Options{LoadResumed: true})
	// The judge is judged: what it takes for the table is what psql says.
	table, err := history.ReadTable(ctx, s.psaPool, "select * from ledger")
	if err != nil {
		s.t.Fatal(err)
	}
	var truth []history.SinkRow
	for _, r := range table {
		truth = append(truth, history.SinkRow{Key: r["id"], Row: r})
	}
	if len(truth) == 0 {
		s.t.Error("the table is empty: the test proves nothing")
	}
	s.none(s.firm.CheckSink(ledger, truth, func(r history.Row) (string, history.Row, bool) { return r["id"], r, true }))
	canonical := func(r history.Row) (string, history.Row, bool) {
		want := history.Row{"entry_id": r["id"]}
		for _, name := range []string{"amount", "note", "body", "grade"} {
			want[name] = r[name]
		}
		return r["id"], want, true
	}
	out, err := history.ReadState(ctx, s.cluster, s.registry.SchemaByID, ledgerOut)
	if err != nil {
		s.t.Fatal(err)
	}
	s.none(s.firm.CheckSink(ledger, out, canonical))
	rows, err := history.ReadTable(ctx, s.warehouse, "select entry_id, amount, note, body, grade from ps.ledger")
	if err != nil {
		s.t.Fatal(err)
	}
	var held []history.SinkRow
	for _, r := range rows {
		held = append(held, history.SinkRow{Key: r["entry_id"], Row: r})
	}
	s.none(s.firm.CheckSink(ledger, held, canonical))
	s.t.Logf("%d rows in the table, %d in %s, %d in the warehouse", len(truth), len(out), ledgerOut, len(held))
}
