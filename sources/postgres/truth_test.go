package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

// Lost if this fails: under concurrent writers and restarts at random moments
// some change is missing, doubled or out of order. The truth is a second slot,
// read by SQL through test_decoding.
func TestEveryChangeOnceUnderRestarts(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE a(id int PRIMARY KEY, v text); ALTER TABLE a REPLICA IDENTITY FULL")
	s := d.source()
	s.batchChanges = 20
	o := newOutlet()
	loaded(t, s, o).stop()
	d.free(s.cfg.Slot)
	d.sql("SELECT pg_create_logical_replication_slot('%s_truth', 'test_decoding')", d.name)

	var writers sync.WaitGroup
	errs := make(chan error, 4)
	for w := range 4 {
		c, err := d.connect()
		if err != nil {
			t.Fatal(err)
		}
		writers.Go(func() {
			defer c.Close(context.Background())
			errs <- write(t.Context(), c, rand.New(rand.NewPCG(1, uint64(w))))
		})
	}
	crash, refuse := rand.New(rand.NewPCG(2, 2)), rand.New(rand.NewPCG(2, 3)) // one of the test's goroutine, one of Run's
	refused := problem.Error{Code: ErrUnavailable, Text: "the transaction was aborted"}
	o.onSend = func(context.Context, *change.Batch) error {
		if refuse.IntN(40) == 0 {
			return &refused
		}
		return nil
	}
	wrote := make(chan struct{})
	go func() { writers.Wait(); close(wrote) }()
	restarts, done := 0, false
	var want []string
	for !done {
		d.free(s.cfg.Slot)
		o.end(nil)
		r := start(t, s, o)
		moment := time.NewTimer(time.Duration(20+crash.IntN(200)) * time.Millisecond)
		select {
		case err := <-r.err:
			if !errors.Is(err, &refused) {
				t.Fatal(err)
			}
		case <-moment.C:
			r.stop()
		case <-wrote:
			close(errs)
			for err := range errs {
				if err != nil {
					t.Fatal(err)
				}
			}
			r.cancel()
			if err := <-r.err; err != nil && !errors.Is(err, &refused) {
				t.Fatal(err)
			}
			want = truth(t, d)
			d.free(s.cfg.Slot)
			o.end(nil)
			o.onSend = nil
			r = start(t, s, o)
			o.until(t, fmt.Sprintf("%d changes", len(want)), func() bool { return len(o.records()) >= len(want) })
			r.stop()
			done = true
		}
		restarts++
	}
	var got []string
	for _, r := range o.records() {
		got = append(got, fmt.Sprintf("%c %s %s", r.op, r.key, r.new))
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("after %d restarts: change %d of %d (truth: %d) differs:\n%v\n%v", restarts, i, len(got), len(want), got[i:min(i+2, len(got))], want[i:min(i+2, len(want))])
		}
	}
	rising(t, o.records())
	sameState(t, state(o.records(), "psa.public.a"), rows(d, "a", "id", "id", "v"))
	t.Logf("%d changes, %d restarts", len(got), restarts)
	d.sql("SELECT pg_drop_replication_slot('%s_truth')", d.name)
}

// write commits random transactions, some large, some rolled back.
func write(ctx context.Context, c *pgx.Conn, r *rand.Rand) error {
	for i := range 120 {
		tx, err := c.Begin(ctx)
		if err != nil {
			return err
		}
		for range []int{1, 2, 3, 60}[r.IntN(4)] {
			id := r.IntN(1000)*4 + r.IntN(4)
			sql := fmt.Sprintf("INSERT INTO a VALUES (%d, 'i%d') ON CONFLICT (id) DO NOTHING", id, i)
			switch r.IntN(3) {
			case 0:
				sql = fmt.Sprintf("UPDATE a SET v = 'u%d' WHERE id = %d", i, id)
			case 1:
				sql = fmt.Sprintf("DELETE FROM a WHERE id = %d", id)
			}
			if _, err = tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				break
			}
		}
		if err != nil && !strings.Contains(err.Error(), "deadlock") {
			return err
		}
		if err != nil || r.IntN(10) == 0 {
			err = tx.Rollback(ctx)
		} else {
			err = tx.Commit(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// truth reads the second slot: "op key row" of each change, in order.
func truth(t *testing.T, d *db) []string {
	t.Helper()
	rs, err := d.Query(t.Context(), "SELECT data FROM pg_logical_slot_peek_changes('"+d.name+"_truth', NULL, NULL, 'skip-empty-xacts', '1') WHERE data LIKE 'table %'")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rs, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range lines { // table public.a: UPDATE: old-key: … new-tuple: id[integer]:1 v[text]:'u3'
		_, l, _ = strings.Cut(l, ": ")
		op, row, _ := strings.Cut(l, ": ")
		if _, after, ok := strings.Cut(row, "new-tuple: "); ok {
			row = after
		}
		id, v, _ := strings.Cut(strings.TrimPrefix(row, "id[integer]:"), " v[text]:")
		v = strings.Trim(v, "'")
		switch op {
		case "INSERT":
			out = append(out, fmt.Sprintf("c %s id=%s|v=%s", id, id, v))
		case "UPDATE":
			out = append(out, fmt.Sprintf("u %s id=%s|v=%s", id, id, v))
		case "DELETE":
			out = append(out, fmt.Sprintf("d %s ", id))
		}
	}
	return out
}
