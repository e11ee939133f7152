package pipeline

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
)

// later are the rows of a source that leaves them to a worker.
type later struct {
	table *change.Table
	rows  []row
	lsn   int
	err   error
}

func (l *later) Decode(b *change.Batch) error {
	for i, r := range l.rows {
		appendRow(b, l.table, r, l.lsn, i)
	}
	return l.err
}

func (l *later) batch(resume string) *change.Batch {
	b := change.Get()
	b.AppendRaw([]byte("what the source had"))
	b.Carry(l, len(l.rows), 2*len(l.rows), []*change.Table{l.table})
	b.Resume = []byte(resume)
	return b
}

var errMalformed = problem.Define("TW-TEST-MALFORMED", problem.Halt, "The test's row is malformed.", "Nothing.")

// If this failed, a row that cannot be read would be left out, or the position
// behind it committed; or what is wrong would be told otherwise than when the
// source reads by itself.
func TestIngestDecodesInTheWorkers(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		table := b.table()
		good := []row{{op: change.Create, id: 1, val: "one"}, {op: change.Create, id: 2, val: "two"}}
		sent := false
		source := scripted(func(ctx context.Context, out SourceOutlet) error {
			if _, err := out.Resume(ctx); err != nil {
				return err
			}
			if err := out.Send(ctx, (&later{table: table, rows: good, lsn: 1}).batch(`{"lsn":1}`)); err != nil {
				return err
			}
			select {
			case <-out.Durable():
			case <-ctx.Done():
				return ctx.Err()
			}
			bad := &later{table: table, rows: []row{{op: change.Create, id: 3, val: "three"}}, lsn: 2, err: errMalformed.New("row 3")}
			if err := out.Send(ctx, bad.batch(`{"lsn":2}`)); err != nil {
				return err
			}
			sent = true
			<-ctx.Done()
			return ctx.Err()
		})
		err := runIngest(b, t.Context(), source, IngestLimits{})
		if !sent || !problem.Has(err, errMalformed) {
			t.Fatalf("it ended with %v (all sent: %v), want %s", err, sent, errMalformed.ID)
		}
		if n := len(b.committed()); n != len(good) {
			t.Errorf("%d records came through, want %d", n, len(good))
		}
		at := errors.New("none read")
		probe := scripted(func(ctx context.Context, out SourceOutlet) error {
			resume, err := out.Resume(ctx)
			if err == nil && string(resume) == `{"lsn":1}` {
				at = nil
			}
			return errors.Join(err, errMalformed.New("enough"))
		})
		if err := runIngest(b, t.Context(), probe, IngestLimits{}); !problem.Has(err, errMalformed) {
			t.Fatal(err)
		}
		if at != nil {
			t.Error("the position is not that of the last good batch")
		}
	})
}

// If this failed, a record between the size of our batches and what its topic
// takes would be parked, or stop the source for good.
func TestIngestTakesARecordLargerThanItsBatches(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		if _, err := b.direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.topic(), Default: 3}); err != nil {
			t.Fatal(err)
		}
		setTopic(t, b.direct, b.topic(), "max.message.bytes", "4000000")
		big := strings.Repeat("large ", 400_000)
		txs := [][]row{
			{{op: change.Create, id: 1, val: "one"}, {op: change.Create, id: 2, val: big}, {op: change.Create, id: 3, val: "three"}},
			{{op: change.Create, id: 4, val: big}},
		}
		f := newFeed(b.table(), txs)
		stop, _ := running(b, f, IngestLimits{})
		b.await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, txs)
		f.check(t)
		if f.runs != 2 {
			t.Errorf("the source ran %d times, want once more for the first large record", f.runs)
		}
		if parked := parkedOf(b); len(parked) != 0 {
			t.Errorf("parked: %v", parked)
		}
	})
}
