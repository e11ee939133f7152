package ingest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// plain is at-least-once with positions as often as may be.
var plain = pipeline.IngestLimits{Delivery: pipeline.AtLeastOnce, TxnTimeout: 10 * time.Second}

// outsideTransactions matches produce requests of records that go out outside of
// transactions.
func outsideTransactions(b *enginetest.Bed, r testkit.KafkaRequest) bool {
	return r.Key() == produce && !slices.ContainsFunc(TransactionalIDs(b.Source), r.Names)
}

// checkLeast fails unless the raw topic holds each change of txs, each seen
// first in the order of its key, and each key ends with its last change. It
// tells how many came again.
func checkLeast(b *enginetest.Bed, txs [][]enginetest.Row) (again int) {
	b.T.Helper()
	seen := map[change.Pos]bool{}
	newest, last := map[string]change.Pos{}, map[string]change.Pos{}
	for _, r := range b.Committed() {
		if r.Value == nil {
			continue
		}
		pos, key := posOf(b.T, r), string(r.Key)
		if seen[pos] {
			again++
		} else if pos.Compare(newest[key]) < 0 {
			b.T.Errorf("key %x: %v is seen first after %v", key, pos, newest[key])
		} else {
			newest[key] = pos
		}
		seen[pos], last[key] = true, pos
	}
	want := 0
	for _, tx := range txs {
		want += len(tx)
	}
	if len(seen) != want {
		b.T.Errorf("%d changes are in the topic, want %d", len(seen), want)
	}
	for key, pos := range last {
		if pos != newest[key] {
			b.T.Errorf("key %x ends with %v, its last change is %v", key, pos, newest[key])
		}
	}
	return again
}

func posOf(t testing.TB, r *kgo.Record) change.Pos {
	t.Helper()
	for _, h := range r.Headers {
		if h.Key == kafka.HeaderPos {
			pos, err := change.ParsePos(h.Value)
			if err != nil {
				t.Fatal(err)
			}
			return pos
		}
	}
	t.Fatal("a record without a position")
	return change.Pos{}
}

// If this failed, at-least-once would lose, reorder or repeat without any
// fault at all.
func TestIngestAtLeastOnceWithoutFault(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(60, 40)
		f := newFeed(b.Table(), txs)
		f.cut = true
		stop, _ := running(b, f, plain)
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, txs)
		f.check(t)

		// A restart sends nothing again; neither does one with the other
		// delivery, both ways.
		for _, limits := range []pipeline.IngestLimits{plain, {}, plain} {
			f.txs = append(f.txs, inserts(5, 10)...)
			f.all = make(chan struct{})
			stop, _ = running(b, f, limits)
			b.Await("the rest", f.all)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			checkOnce(b, f.txs)
			f.check(t)
		}
	})
}

// Records are held up on their way and then lost with the process. If this
// failed, their position would be in Kafka, and the source told to forget them.
// (invariant 1)
func TestIngestAtLeastOncePositionWaitsForRecords(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(40, 20)
		f := newFeed(b.Table(), txs)
		died := make(chan struct{})
		var hold *testkit.KafkaHold
		f.before = func(n int) {
			select {
			case <-died:
				return
			default:
			}
			switch n {
			case 10:
				hold = b.Proxy.Hold(func(r testkit.KafkaRequest) bool { return outsideTransactions(b, r) })
			case 20:
				b.Await("records to be held", hold.Held())
				// Time for several positions; none may come.
				<-time.After(4 * busyTxn)
				b.Proxy.Cut()
				hold.Release()
				close(died)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		dead := make(chan struct{})
		go func() {
			defer close(dead)
			if err := Run(ctx, b.Env, pipeline.IngestSpec{Name: b.Source, Source: f, IngestLimits: pipeline.IngestLimits{Delivery: pipeline.AtLeastOnce, TxnTimeout: 3 * time.Second}}); err != nil {
				t.Errorf("the dead one: %v", err)
			}
		}()
		b.Await("the death", died)
		cancel()

		stop, _ := running(b.Beside(), f, plain)
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkLeast(b, txs)
		f.check(t)
		b.Await("the end of the dead one", dead)
	})
}

// The end of a position's transaction is lost, or its reply. If this failed,
// an unknown position would be taken for durable, or the session go on behind
// it.
func TestIngestAtLeastOnceEndLost(t *testing.T) {
	for name, loss := range map[string]testkit.KafkaLoss{"request": testkit.LoseRequest, "reply": testkit.LoseReply} {
		t.Run(name, func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
				txs := inserts(40, 20)
				f := newFeed(b.Table(), txs)
				var lost <-chan struct{}
				f.before = func(n int) {
					if n == 10 && lost == nil {
						lost = b.Proxy.Lose(endTxn, loss, 3)
					}
				}
				stop, _ := running(b, f, plain)
				b.Await("all changes", f.all)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				b.Await("the loss", lost)
				checkLeast(b, txs)
				f.check(t)
				if f.runs < 2 {
					t.Errorf("the source ran %d times: the error of End was not taken as unknown", f.runs)
				}
			})
		})
	}
}

// If this failed, a consumer would wait for positions, which come a tenth of a
// second apart.
func TestIngestAtLeastOnceRecordsDoNotWaitForPositions(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(40, 20)
		f := newFeed(b.Table(), txs)
		hold := b.Proxy.Hold(func(r testkit.KafkaRequest) bool { return r.Key() == endTxn })
		stop, _ := running(b, f, plain)
		b.Await("a position", hold.Held())
		b.AwaitHigh(40 * 20)
		checkOnce(b, txs)
		if at := f.confirmedTo(); at != 0 {
			t.Errorf("the source was told that %d is durable while its position is not", at)
		}
		hold.Release()
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A process that was taken for dead comes back. If this failed, it would move
// the position under its successor. (A4)
func TestIngestAtLeastOnceFencedPredecessorHalts(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(3, 5)
		f := newFeed(b.Table(), txs)
		zombie := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
			if _, err := out.Resume(ctx); err != nil {
				return err
			}
			stop, _ := running(b, f, plain)
			b.Await("the successor's changes", f.all)
			if err := stop(); err != nil {
				t.Errorf("the successor: %v", err)
			}
			return out.Checkpoint(ctx, pipeline.Resume(`{"lsn":99}`))
		})
		err := runIngest(b, t.Context(), zombie, plain)
		if !problem.Has(err, pipeline.ErrFenced) {
			t.Errorf("the zombie ended with %v, want TW-FENCED", err)
		}
		checkOnce(b, txs)
	})
}

// Kafka is away for longer than a session bears it. If this failed, an outage
// would lose records, or stop the source.
func TestIngestAtLeastOnceOutage(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(30, 20)
		f := newFeed(b.Table(), txs)
		cut := false
		f.before = func(n int) {
			if n == 10 && !cut {
				cut = true
				b.Proxy.Cut()
				time.AfterFunc(5*time.Second, b.Proxy.Mend)
			}
		}
		stop, _ := running(b, f, pipeline.IngestLimits{Delivery: pipeline.AtLeastOnce, TxnTimeout: 3 * time.Second})
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkLeast(b, txs)
		f.check(t)
	})
}

// If this failed, at-least-once would park nothing, or for ever. (A3, G2)
func TestIngestAtLeastOnceParks(t *testing.T) {
	b := enginetest.NewBed(t, "")
	txs := [][]enginetest.Row{
		{{Op: change.Create, ID: 1, Val: "one"}, {Op: change.Create, ID: 2, Val: string(make([]byte, 4000))}},
		{{Op: change.Create, ID: 3, Val: string(make([]byte, 4000))}},
		{{Op: change.Update, ID: 2, Val: "two"}},
	}
	f := newFeed(b.Table(), txs)
	stop, _ := running(b, f, pipeline.IngestLimits{Delivery: pipeline.AtLeastOnce, MaxRecordBytes: 2000})
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n := len(b.Committed()); n != 2 {
		t.Errorf("%d records came through, want 2", n)
	}
	parked := heads(parkedOf(b))
	for _, p := range parked {
		if p.Key != "3" {
			t.Errorf("parked: %+v", p)
		}
	}
	if len(parked) != 1 {
		t.Errorf("%d records are parked, want 1", len(parked))
	}
}
