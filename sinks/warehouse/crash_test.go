package warehouse

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
)

// run writes as the engine does: claim, write on from the stored offset, and
// after any error claim again. It ends at offset end, or when ctx does.
func run(ctx context.Context, s *Sink, owner string, f *feed, end int64, turn func(next int64)) error {
	for gen := 0; ; gen++ {
		me := fmt.Sprintf("%s/%d", owner, gen)
		offsets, err := s.Claim(ctx, me, at(f.topic))
		if err == nil && offsets[0] < 0 {
			offsets[0] = 0
			err = s.SetOffsets(ctx, me, at(f.topic))
		}
		for err == nil && offsets[0] < end {
			f.next = offsets[0]
			size := int64(1)
			if f.next%7 == 0 {
				size = 3 * few // the other path
			}
			var rows []map[string]any
			for n := f.next; n < min(f.next+size, end); n++ {
				rows = append(rows, m{"customer_id": fmt.Sprint(n % 499), "name": fmt.Sprint(n)})
			}
			b := f.batch(rows...)
			_, err = s.WriteWithOffsets(ctx, me, b)
			b.Release()
			if err == nil {
				offsets[0] = f.next
				turn(f.next)
			}
		}
		if err == nil || ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop
		}
		if pipeline.Classify(err) != problem.Retry && !problem.Has(err, pipeline.ErrFenced) {
			return err
		}
	}
}

// consistent holds when the rows are exactly those of the records before the
// stored offset.
func consistent(tb testing.TB, conn *pgx.Conn) (next int64) {
	tb.Helper()
	var rows, newest, wrong int64
	err := conn.QueryRow(tb.Context(), `WITH o AS MATERIALIZED (SELECT next_offset AS n FROM _tallywire.offsets)
		SELECT (SELECT n FROM o), (SELECT count(*) FROM ps.customer), (SELECT COALESCE(max(_offset), -1) FROM ps.customer),
		(SELECT count(*) FROM ps.customer, o WHERE name <> _offset::text OR _offset % 499 <> customer_id::bigint OR _offset + 499 < n OR _offset >= n)`).
		Scan(&next, &rows, &newest, &wrong)
	if err != nil {
		tb.Fatal(err)
	}
	if rows != min(max(next, 0), 499) || newest != max(next, 0)-1 || wrong != 0 {
		tb.Fatalf("at offset %d: %d rows, the newest of offset %d, %d wrong", next, rows, newest, wrong)
	}
	return next
}

// Would be lost: rows without their offsets, or offsets without their rows,
// when the server dies under a transaction; also when it dies while it
// commits, and the outcome is not known here (invariants 10, 14).
func TestServerKilledAtRandomMoments(t *testing.T) {
	server := testkit.NewPostgres(t, "")
	if err := server.CreateDatabase(t.Context(), "warehouse"); err != nil {
		t.Fatal(err)
	}
	dsn := server.DSN("warehouse")
	s, f := open(t, dsn, "ps.customer"), newFeed("ps.customer", 1)
	const end, kills = 200_000, 6
	progress := make(chan int64, 1)
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, s, "a", f, end, func(n int64) {
			select {
			case progress <- n:
			default:
			}
		})
	}()
	rnd := rand.New(rand.NewPCG(1, 2))
	last := int64(0)
	for range kills {
		for n := range rnd.IntN(20) + 5 { // some writes later
			select {
			case <-progress:
			case err := <-done:
				t.Fatalf("it ended in write %d: %v", n, err)
			}
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		next := consistent(t, conn)
		if next < last {
			t.Fatalf("offset %d after %d", next, last)
		}
		last = next
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Would be lost: rows, or their order, when a partition moves while its old
// owner still writes.
func TestOwnersTakeEachOthersPlace(t *testing.T) {
	dsn, conn := fresh(t)
	const end = 40_000
	if err := open(t, dsn, "ps.customer").Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 3 {
		s, f := open(t, dsn, "ps.customer"), newFeed("ps.customer", 1)
		wg.Go(func() {
			// Each claims again as soon as it is fenced: a worst case of
			// rebalances. At the end all find the same offset.
			if err := run(t.Context(), s, fmt.Sprint(i), f, end, func(int64) {}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if next := consistent(t, conn); next != end {
		t.Errorf("ended at offset %d", next)
	}
}

// Would be lost: one partition's rows or offsets, when a batch covers several
// partitions of several topics, in pieces.
func TestManyPartitionsInOneBatch(t *testing.T) {
	dsn, conn := fresh(t)
	s := open(t, dsn, "ps.customer", "ps.project")
	fs := []*feed{newFeed("ps.customer", 1), newFeed("ps.project", 2)}
	var parts []change.Coord
	for _, f := range fs {
		for p := range int32(3) {
			parts = append(parts, change.Coord{Topic: f.topic, Partition: p})
		}
	}
	if _, err := s.Claim(t.Context(), "a", parts); err != nil {
		t.Fatal(err)
	}
	if err := s.SetOffsets(t.Context(), "a", parts); err != nil {
		t.Fatal(err)
	}
	b := fs[0].batch(m{"customer_id": "1", "name": "x"}, m{"customer_id": "2", "name": "y"})
	b2 := fs[1].batch(m{"project_id": "1", "name": "p"})
	b.Ranges = append(b.Ranges[:0],
		change.Range{Topic: fs[1].topic, Partition: 2, From: 0, To: 1},
		change.Range{Topic: fs[0].topic, Partition: 1, From: 0, To: 1},
		change.Range{Topic: fs[0].topic, Partition: 0, From: 0, To: 7}, // 1 to 6 were dropped on the way
		change.Range{Topic: fs[0].topic, Partition: 1, From: 1, To: 2})
	b.AppendFrom(b2, &b2.Changes[0])
	b2.Release()
	write(t, s, "a", b)
	want(t, conn, "SELECT topic, partition, next_offset FROM _tallywire.offsets ORDER BY 1, 2",
		"ps.customer|0|7\nps.customer|1|2\nps.customer|2|0\nps.project|0|0\nps.project|1|0\nps.project|2|1")
	want(t, conn, "SELECT (SELECT count(*) FROM ps.customer), (SELECT count(*) FROM ps.project)", "2|1")
}
