package ingest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/records"
)

// later are the rows of a source that leaves them to a worker.
type later struct {
	table *change.Table
	rows  []enginetest.Row
	lsn   int
	err   error
}

func (l *later) Decode(b *change.Batch) error {
	for i, r := range l.rows {
		enginetest.AppendRow(b, l.table, r, l.lsn, i)
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
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		table := b.Table()
		good := []enginetest.Row{{Op: change.Create, ID: 1, Val: "one"}, {Op: change.Create, ID: 2, Val: "two"}}
		sent := false
		source := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
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
			bad := &later{table: table, rows: []enginetest.Row{{Op: change.Create, ID: 3, Val: "three"}}, lsn: 2, err: errMalformed.New("row 3")}
			if err := out.Send(ctx, bad.batch(`{"lsn":2}`)); err != nil {
				return err
			}
			sent = true
			<-ctx.Done()
			return ctx.Err()
		})
		err := runIngest(b, t.Context(), source, pipeline.IngestLimits{})
		if !sent || !problem.Has(err, errMalformed) {
			t.Fatalf("it ended with %v (all sent: %v), want %s", err, sent, errMalformed.ID)
		}
		if n := len(b.Committed()); n != len(good) {
			t.Errorf("%d records came through, want %d", n, len(good))
		}
		at := errors.New("none read")
		probe := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
			resume, err := out.Resume(ctx)
			if err == nil && string(resume) == `{"lsn":1}` {
				at = nil
			}
			return errors.Join(err, errMalformed.New("enough"))
		})
		if err := runIngest(b, t.Context(), probe, pipeline.IngestLimits{}); !problem.Has(err, errMalformed) {
			t.Fatal(err)
		}
		if at != nil {
			t.Error("the position is not that of the last good batch")
		}
	})
}

// If this failed, a record between the size of our batches and what its topic
// takes would be parked, or stop the source for good; or each of them would end
// a load, which then begins anew.
func TestIngestTakesARecordLargerThanItsBatches(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		big := strings.Repeat("large ", 400_000)
		for _, first := range []string{big, "small"} {
			b.Source += "-" + first[:1]
			if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.Topic(), Default: 3}); err != nil {
				t.Fatal(err)
			}
			enginetest.SetTopic(t, b.Direct, b.Topic(), "max.message.bytes", "4000000")
			f := newFeed(b.Table(), [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: "one"}, {Op: change.Create, ID: 2, Val: first}, {Op: change.Create, ID: 3, Val: "three"}}})
			run := func(what string, want int) {
				t.Helper()
				f.runs = 0
				stop, _ := running(b, f, pipeline.IngestLimits{})
				b.Await("all changes", f.all)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if f.runs != want {
					t.Errorf("%s: the source ran %d times, want %d", what, f.runs, want)
				}
			}
			small := line(b, records.ErrBatchTooSmall.ID)
			more := func() {
				f.txs = append(f.txs, []enginetest.Row{{Op: change.Create, ID: int64(len(f.txs)) + 3, Val: big}})
				f.all = make(chan struct{})
			}
			run("a source without a position", 1)
			more()
			if first == big {
				run("a topic that had one, in another process", 1)
			} else {
				run("the first of a topic", 2)
				b.Await("the reason to be told", small) // Remedy: TW-BATCH-TOO-SMALL
				more()
				run("the second of it", 1)
			}
			checkOnce(b, f.txs)
			f.check(t)
			if parked := parkedOf(b); len(parked) != 0 {
				t.Errorf("parked: %v", parked)
			}
		}
	})
}
