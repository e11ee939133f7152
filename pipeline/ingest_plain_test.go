package pipeline

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
)

// plain is at-least-once with positions as often as may be.
var plain = IngestLimits{Delivery: AtLeastOnce, TxnTimeout: 10 * time.Second}

// outsideTransactions matches produce requests of records that go out outside of
// transactions.
func outsideTransactions(b *bed, r testkit.KafkaRequest) bool {
	return r.Key() == produce && !slices.ContainsFunc(IngestTransactionalIDs(b.source), r.Names)
}

// checkLeast fails unless the raw topic holds each change of txs, each seen
// first in the order of its key, and each key ends with its last change. It
// tells how many came again.
func checkLeast(b *bed, txs [][]row) (again int) {
	b.t.Helper()
	seen := map[change.Pos]bool{}
	newest, last := map[string]change.Pos{}, map[string]change.Pos{}
	for _, r := range b.committed() {
		if r.Value == nil {
			continue
		}
		pos, key := posOf(b.t, r), string(r.Key)
		if seen[pos] {
			again++
		} else if pos.Compare(newest[key]) < 0 {
			b.t.Errorf("key %x: %v is seen first after %v", key, pos, newest[key])
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
		b.t.Errorf("%d changes are in the topic, want %d", len(seen), want)
	}
	for key, pos := range last {
		if pos != newest[key] {
			b.t.Errorf("key %x ends with %v, its last change is %v", key, pos, newest[key])
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
	onBoth(t, func(t *testing.T, b *bed) {
		txs := inserts(60, 40)
		f := newFeed(b.table(), txs)
		f.cut = true
		stop, _ := running(b, f, plain)
		b.await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, txs)
		f.check(t)

		// A restart sends nothing again; neither does one with the other
		// delivery, both ways.
		for _, limits := range []IngestLimits{plain, {}, plain} {
			f.txs = append(f.txs, inserts(5, 10)...)
			f.all = make(chan struct{})
			stop, _ = running(b, f, limits)
			b.await("the rest", f.all)
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
	onBoth(t, func(t *testing.T, b *bed) {
		txs := inserts(40, 20)
		f := newFeed(b.table(), txs)
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
				hold = b.proxy.Hold(func(r testkit.KafkaRequest) bool { return outsideTransactions(b, r) })
			case 20:
				b.await("records to be held", hold.Held())
				// Time for several positions; none may come.
				<-time.After(4 * busyTxn)
				b.proxy.Cut()
				hold.Release()
				close(died)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		dead := make(chan struct{})
		go func() {
			defer close(dead)
			if err := RunIngest(ctx, b.env, IngestSpec{Name: b.source, Source: f, IngestLimits: IngestLimits{Delivery: AtLeastOnce, TxnTimeout: 3 * time.Second}}); err != nil {
				t.Errorf("the dead one: %v", err)
			}
		}()
		b.await("the death", died)
		cancel()

		stop, _ := running(b.beside(), f, plain)
		b.await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkLeast(b, txs)
		f.check(t)
		b.await("the end of the dead one", dead)
	})
}

// The end of a position's transaction is lost, or its reply. If this failed,
// an unknown position would be taken for durable, or the session go on behind
// it.
func TestIngestAtLeastOnceEndLost(t *testing.T) {
	for name, loss := range map[string]testkit.KafkaLoss{"request": testkit.LoseRequest, "reply": testkit.LoseReply} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b *bed) {
				txs := inserts(40, 20)
				f := newFeed(b.table(), txs)
				var lost <-chan struct{}
				f.before = func(n int) {
					if n == 10 && lost == nil {
						lost = b.proxy.Lose(endTxn, loss, 3)
					}
				}
				stop, _ := running(b, f, plain)
				b.await("all changes", f.all)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				b.await("the loss", lost)
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
	onBoth(t, func(t *testing.T, b *bed) {
		txs := inserts(40, 20)
		f := newFeed(b.table(), txs)
		hold := b.proxy.Hold(func(r testkit.KafkaRequest) bool { return r.Key() == endTxn })
		stop, _ := running(b, f, plain)
		b.await("a position", hold.Held())
		b.awaitHigh(40 * 20)
		checkOnce(b, txs)
		if at := f.confirmedTo(); at != 0 {
			t.Errorf("the source was told that %d is durable while its position is not", at)
		}
		hold.Release()
		b.await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A process that was taken for dead comes back. If this failed, it would move
// the position under its successor. (A4)
func TestIngestAtLeastOnceFencedPredecessorHalts(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		txs := inserts(3, 5)
		f := newFeed(b.table(), txs)
		zombie := scripted(func(ctx context.Context, out SourceOutlet) error {
			if _, err := out.Resume(ctx); err != nil {
				return err
			}
			stop, _ := running(b, f, plain)
			b.await("the successor's changes", f.all)
			if err := stop(); err != nil {
				t.Errorf("the successor: %v", err)
			}
			return out.Checkpoint(ctx, Resume(`{"lsn":99}`))
		})
		err := runIngest(b, t.Context(), zombie, plain)
		if !problem.Has(err, ErrFenced) {
			t.Errorf("the zombie ended with %v, want TW-FENCED", err)
		}
		checkOnce(b, txs)
	})
}

// Kafka is away for longer than a session bears it. If this failed, an outage
// would lose records, or stop the source.
func TestIngestAtLeastOnceOutage(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		txs := inserts(30, 20)
		f := newFeed(b.table(), txs)
		cut := false
		f.before = func(n int) {
			if n == 10 && !cut {
				cut = true
				b.proxy.Cut()
				time.AfterFunc(5*time.Second, b.proxy.Mend)
			}
		}
		stop, _ := running(b, f, IngestLimits{Delivery: AtLeastOnce, TxnTimeout: 3 * time.Second})
		b.await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkLeast(b, txs)
		f.check(t)
	})
}

// If this failed, at-least-once would park nothing, or for ever. (A3, G2)
func TestIngestAtLeastOnceParks(t *testing.T) {
	b := newBed(t, "")
	txs := [][]row{
		{{op: change.Create, id: 1, val: "one"}, {op: change.Create, id: 2, val: string(make([]byte, 4000))}},
		{{op: change.Create, id: 3, val: string(make([]byte, 4000))}},
		{{op: change.Update, id: 2, val: "two"}},
	}
	f := newFeed(b.table(), txs)
	stop, _ := running(b, f, IngestLimits{Delivery: AtLeastOnce, MaxRecordBytes: 2000})
	b.await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n := len(b.committed()); n != 2 {
		t.Errorf("%d records came through, want 2", n)
	}
	parked := parkedOf(b)
	for _, p := range parked {
		if p.Key != "3" {
			t.Errorf("parked: %+v", p)
		}
	}
	if len(parked) != 1 {
		t.Errorf("%d records are parked, want 1", len(parked))
	}
}
