package ingest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

const produce = 0

// requestOf matches requests of one kind that name one of the source's
// transactional ids, and remembers which was the first: all later ones must
// name the same.
type requestOf struct {
	key int16
	ids []string

	mu sync.Mutex
	id string
}

func newRequestOf(b *enginetest.Bed, key int16) *requestOf {
	return &requestOf{key: key, ids: TransactionalIDs(b.Source)}
}

func (m *requestOf) match(r testkit.KafkaRequest) bool {
	if r.Key() != m.key {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.id == "" {
		for _, id := range m.ids {
			if r.Names(id) {
				m.id = id
			}
		}
	}
	return m.id != "" && r.Names(m.id)
}

// The end of a transaction is held up while the next one is filled, and then
// one of the things happens that can happen. If this failed, the next one
// would be committed whatever became of the one before: a hole that its
// position declares to be whole. (decision 21, invariants 1 and 14)
func TestIngestEndHeldWhileTheNextFills(t *testing.T) {
	for _, c := range []struct {
		name string
		// end says what becomes of the end that is held.
		end func(b *enginetest.Bed, first *requestOf)
		// again: the session must have ended.
		again bool
	}{
		{name: "arrives late", end: func(*enginetest.Bed, *requestOf) {}},
		{name: "reply lost", again: true, end: func(b *enginetest.Bed, first *requestOf) {
			b.Proxy.LoseIf(first.match, testkit.LoseReply, 3)
		}},
		{name: "never arrives", again: true, end: func(b *enginetest.Bed, first *requestOf) {
			b.Proxy.LoseIf(first.match, testkit.LoseRequest, 3)
		}},
		{name: "connections cut", end: func(b *enginetest.Bed, _ *requestOf) {
			b.Proxy.Cut()
			b.Proxy.Mend()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
				txs := inserts(40, 20)
				f := newFeed(b.Table(), txs)
				var hold *testkit.KafkaHold
				over := false
				first := newRequestOf(b, endTxn)
				f.before = func(n int) {
					switch {
					case over:
					case n == 10:
						hold = b.Proxy.Hold(first.match)
					case n == 11:
						b.Await("an end to be held", hold.Held())
					case n == 30:
						over = true
						// All that came behind the held transaction is in
						// Kafka, and had time to be committed, which it may
						// not be.
						b.AwaitHigh(29 * 20)
						<-time.After(200 * time.Millisecond)
						c.end(b, first)
						hold.Release()
					}
				}
				stop, _ := running(b, f, pipeline.IngestLimits{TxnTimeout: 10 * time.Second})
				b.Await("all changes", f.all)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				checkOnce(b, txs)
				f.check(t)
				if c.again && f.runs < 2 {
					t.Errorf("the source ran %d times: the error of End was not taken as unknown", f.runs)
				}
			})
		})
	}
}

// A produce request is held up. If this failed, the records of the next
// transaction, which go out through another client, would overtake it.
// (decision 21, invariant 4)
func TestIngestNextTransactionDoesNotOvertake(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(60, 20)
		f := newFeed(b.Table(), txs)
		var hold *testkit.KafkaHold
		f.before = func(n int) {
			switch n % 20 {
			case 10:
				hold = b.Proxy.Hold(newRequestOf(b, produce).match)
			case 11:
				b.Await("a request to be held", hold.Held())
				// Time for others to overtake; they may not, so no signal of
				// theirs can be waited for.
				time.AfterFunc(300*time.Millisecond, hold.Release)
			}
		}
		stop, _ := running(b, f, small)
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, txs)
		f.check(t)
		if f.runs != 1 {
			t.Errorf("the source ran %d times", f.runs)
		}
	})
}

// A process that was taken for dead comes back with a transaction open on any
// of its ids, after its successor has read the position. If this failed, it
// would commit what the successor sends again. (A4)
func TestIngestZombieOnEachID(t *testing.T) {
	for n := range producerCount {
		t.Run(fmt.Sprint("after ", n, " transactions"), func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) { zombie(b, n) })
		})
	}
}

// zombie commits n transactions and leaves the next one open; its successor
// sends that one again, and then the zombie tries to commit it.
func zombie(b *enginetest.Bed, n int) {
	t, table := b.T, b.Table()
	txs := inserts(n+1, 3)
	send := func(ctx context.Context, out pipeline.SourceOutlet, lsn int, boundary bool) error {
		batch := change.Get()
		for i, r := range txs[lsn-1] {
			enginetest.AppendRow(batch, table, r, lsn, i)
		}
		if boundary {
			batch.Resume = fmt.Appendf(nil, `{"lsn":%d}`, lsn)
		}
		if err := out.Send(ctx, batch); err != nil || !boundary {
			return err
		}
		select {
		case <-out.Durable():
			return nil
		case <-ctx.Done():
			return nil
		}
	}
	resumed, over := make(chan struct{}), make(chan struct{})
	var once sync.Once
	successor := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
		at, err := out.Resume(ctx)
		if err != nil {
			return err
		}
		if want := fmt.Sprintf(`{"lsn":%d}`, n); n > 0 && string(at) != want || n == 0 && at != nil {
			t.Errorf("the successor resumes at %s after %d transactions", at, n)
		}
		once.Do(func() { close(resumed) })
		select {
		case <-over:
		case <-ctx.Done():
			return nil
		}
		return send(ctx, out, n+1, true)
	})
	var committed error
	zombie := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
		if _, err := out.Resume(ctx); err != nil {
			return err
		}
		for lsn := 1; lsn <= n; lsn++ {
			if err := send(ctx, out, lsn, true); err != nil {
				return err
			}
		}
		if err := send(ctx, out, n+1, false); err != nil {
			return err
		}
		b.AwaitHigh(int64(3*n + 3))
		stop, ended := running(b, successor, pipeline.IngestLimits{})
		b.Await("the successor", resumed)
		committed = out.Checkpoint(ctx, pipeline.Resume(fmt.Sprintf(`{"lsn":%d}`, n+1)))
		close(over)
		b.Await("the successor's end", ended)
		if err := stop(); err != nil {
			t.Errorf("the successor: %v", err)
		}
		return committed
	})
	err := runIngest(b, t.Context(), zombie, pipeline.IngestLimits{})
	if committed == nil {
		t.Error("the zombie committed after its successor had read the position")
	}
	if !problem.Has(err, pipeline.ErrFenced) {
		t.Errorf("the zombie ended with %v, want TW-FENCED", err)
	}
	checkOnce(b, txs)
}

// A process dies with two transactions open: the end of the first is sent and
// not answered, or was never sent, and the second has records. If this failed,
// the successor would lose or double them, or wait for a timeout. (A5)
func TestIngestKilledWithTwoOpenTransactions(t *testing.T) {
	for _, loss := range []testkit.KafkaLoss{testkit.LoseRequest, testkit.LoseReply} {
		name := map[testkit.KafkaLoss]string{testkit.LoseRequest: "end not sent", testkit.LoseReply: "end not answered"}[loss]
		t.Run(name, func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
				txs := inserts(12, 10)
				f := newFeed(b.Table(), txs)
				first := newRequestOf(b, endTxn)
				died := make(chan struct{})
				var hold *testkit.KafkaHold
				f.before = func(n int) {
					select {
					case <-died:
						return
					default:
					}
					switch n {
					case 5:
						hold = b.Proxy.Hold(first.match)
					case 6:
						b.Await("an end to be held", hold.Held())
					case 10: // dies when the next one is in Kafka
						b.AwaitHigh(9 * 10)
						lost := b.Proxy.LoseIf(first.match, loss, 1)
						hold.Release()
						b.Await("the end to be lost", lost)
						b.Proxy.Cut()
						close(died)
					}
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				dead := make(chan struct{})
				go func() {
					defer close(dead)
					if err := Run(ctx, b.Env, pipeline.IngestSpec{Name: b.Source, Source: f, IngestLimits: pipeline.IngestLimits{TxnTimeout: 30 * time.Second}}); err != nil {
						t.Errorf("the dead one: %v", err)
					}
				}()
				b.Await("the death", died)
				cancel()

				next := b.Beside()
				began := time.Now()
				stop, _ := running(next, f, pipeline.IngestLimits{})
				b.Await("all changes", f.all)
				if took := time.Since(began); took > 25*time.Second {
					t.Errorf("the successor needed %v: it waited for the timeout of 30 s", took)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				checkOnce(b, txs)
				f.check(t)
				b.Await("the end of the dead one", dead)
			})
		})
	}
}

// While the markers of a commit are written, Kafka answers InitProducerID with
// CONCURRENT_TRANSACTIONS. If this failed, a start at that moment would fail,
// or go on before the position is there.
func TestIngestFencingWaitsForMarkers(t *testing.T) {
	b := enginetest.NewBed(t, "")
	txs := inserts(3, 5)
	f := newFeed(b.Table(), txs)
	var pending []*kfake.FaultHandle
	for _, id := range TransactionalIDs(b.Source) {
		pending = append(pending, b.Fake.Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.InitProducerID}, TxnID: id, Err: kerr.ConcurrentTransactions, Count: 5,
		}))
	}
	stop, _ := running(b, f, pipeline.IngestLimits{})
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for i, p := range pending {
		if p.Hits() != 5 {
			t.Errorf("id %d was fenced after %d attempts, want 5 that wait", i, p.Hits())
		}
	}
	checkOnce(b, txs)
	if f.runs != 1 {
		t.Errorf("the source ran %d times", f.runs)
	}
}

// If this failed, ids would be used without turn: each transaction would wait
// for the markers of the one before.
func TestIngestTakesTurns(t *testing.T) {
	b := enginetest.NewBed(t, "")
	f := newFeed(b.Table(), inserts(50, 20))
	var mu sync.Mutex
	var ends []string
	b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Observe: true, Count: -1, When: func(r kmsg.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		ends = append(ends, r.(*kmsg.EndTxnRequest).TransactionalID)
		return true
	}})
	stop, _ := running(b, f, small)
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	ids := TransactionalIDs(b.Source)
	if len(ends) < 2*len(ids) {
		t.Fatalf("%d transactions: too few to tell", len(ends))
	}
	used := map[string]int{}
	for i, id := range ends {
		used[id]++
		if i > 0 && id == ends[i-1] && f.runs == 1 {
			t.Errorf("transactions %d and %d are both on %q", i-1, i, id)
		}
	}
	if len(used) != len(ids) {
		t.Errorf("small transactions in quick succession used %v of %v", used, ids)
	}
	if !slices.Equal(ids[:2], []string{"tallywire.ingest." + b.Source, "tallywire.ingest." + b.Source + ".1"}) {
		t.Errorf("the ids are %v: another version would not fence these", ids)
	}
}

// A row is parked, and its next version comes while the transaction that parked
// it ends. If this failed, it would stay parked for ever. (G2)
func TestIngestReleasesWhatTheEndingTransactionParked(t *testing.T) {
	b := enginetest.NewBed(t, "")
	txs := [][]enginetest.Row{
		{{Op: change.Create, ID: 1, Val: "one"}},
		{{Op: change.Create, ID: 2, Val: string(make([]byte, 4000))}},
		{{Op: change.Update, ID: 2, Val: "two"}},
	}
	f := newFeed(b.Table(), txs)
	first := newRequestOf(b, endTxn)
	var hold *testkit.KafkaHold
	f.before = func(n int) {
		switch n {
		case 2:
			for f.confirmedTo() < 1 {
				f.confirm(<-f.out.Durable())
			}
			hold = b.Proxy.Hold(first.match)
		case 3:
			b.Await("the end of what was parked", hold.Held())
			go func() {
				b.AwaitHigh(3) // the first, its marker, and the update
				hold.Release()
			}()
		}
	}
	stop, _ := running(b, f, pipeline.IngestLimits{MaxRecordBytes: 2000})
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if parked := parkedOf(b); len(parked) != 0 {
		t.Errorf("still parked: %+v", parked)
	}
}

// Markers are written some time after an end is confirmed, so positions of two
// ids can lie before the markers of both. If this failed, an aborted position
// would count, or hide the one that was committed.
func TestPositionsOfTwoTurnsInterleave(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		ctx := t.Context()
		topic, err := b.Direct.EnsureTopic(ctx, kafka.TopicSpec{Name: positionsTopicOf(b.Source), Partitions: 1, Compact: true})
		if err != nil {
			t.Fatal(err)
		}
		ids := TransactionalIDs(b.Source)
		write := func(id, token string) *kgo.Client {
			cl, err := b.Direct.Client(kgo.TransactionalID(id))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cl.Close)
			p := position{Source: b.Source}
			p.setResume(pipeline.Resume(token))
			if err := cl.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic.Name, Key: []byte(b.Source), Value: p.encode()}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			return cl
		}
		for i, second := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
			first := write(ids[2*i], fmt.Sprintf(`{"lsn":%d}`, 2*i+1))
			next := write(ids[2*i+1], fmt.Sprintf(`{"lsn":%d}`, 2*i+2))
			if err := first.EndTransaction(ctx, kgo.TryCommit); err != nil {
				t.Fatal(err)
			}
			if err := next.EndTransaction(ctx, second); err != nil {
				t.Fatal(err)
			}
			p, err := readPosition(ctx, next, b.Direct, topic)
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf(`{"lsn":%d}`, 2*i+1)
			if second == kgo.TryCommit {
				want = fmt.Sprintf(`{"lsn":%d}`, 2*i+2)
			}
			if p == nil || string(p.resume()) != want {
				t.Errorf("the last position is %+v, want %s", p, want)
			}
		}
	})
}
