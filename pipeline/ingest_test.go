package pipeline

import (
	"context"
	"errors"
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
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

const endTxn = 26

// small makes many transactions of few records.
var small = IngestLimits{TxnBytes: 2 << 10, TxnTimeout: 10 * time.Second}

// If this failed, changes would be lost, doubled or out of order without any
// fault at all.
func TestIngestDeliversEachChangeOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		txs := inserts(60, 40)
		f := newFeed(b.table(), txs)
		f.cut = true
		stop, _ := running(b, f, small)
		b.await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, txs)
		f.check(t)

		// A restart sends nothing again and goes on where it was.
		f.txs = append(txs, inserts(5, 10)...)
		f.all = make(chan struct{})
		stop, _ = running(b, f, small)
		b.await("the rest", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, f.txs)
		f.check(t)
	})
}

// The commit happened and its reply was lost. If this failed, the transaction
// would be sent a second time. (A1)
func TestIngestReplyOfEndLost(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		txs := inserts(30, 20)
		f := newFeed(b.table(), txs)
		var lost <-chan struct{}
		f.before = func(n int) {
			if n == 10 && lost == nil {
				// Enough for kgo's own attempts: the engine must see an error.
				lost = b.proxy.Lose(endTxn, testkit.LoseReply, 3)
			}
		}
		stop, _ := running(b, f, small)
		b.await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.await("the loss", lost)
		checkOnce(b, txs)
		f.check(t)
	})
}

// The commit never reached Kafka. If this failed, what it held would be taken
// for committed: the session would go on behind it (End retried in place), the
// source be told to forget it (early acknowledgement), or the position point
// behind it (position outside the transaction). (A1, invariant 1)
func TestIngestEndNeverArrives(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		txs := inserts(30, 20)
		f := newFeed(b.table(), txs)
		var lost <-chan struct{}
		f.before = func(n int) {
			if n == 10 && lost == nil {
				lost = b.proxy.Lose(endTxn, testkit.LoseRequest, 3)
			}
		}
		stop, _ := running(b, f, small)
		b.await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.await("the loss", lost)
		checkOnce(b, txs)
		f.check(t)
		if f.runs < 2 {
			t.Errorf("the source ran %d times: the error of End was not taken as unknown", f.runs)
		}
	})
}

// If this failed, a record that Kafka refused would be missing while its
// position says that it is there. (A3)
func TestIngestProduceFailureAborts(t *testing.T) {
	b := newBed(t, "")
	txs := inserts(30, 20)
	f := newFeed(b.table(), txs)
	var refused *kfake.FaultHandle
	f.before = func(n int) {
		if n == 10 && refused == nil {
			refused = b.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: b.topic(), Err: kerr.MessageTooLarge})
		}
	}
	stop, _ := running(b, f, small)
	b.await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if refused.Hits() == 0 {
		t.Fatal("nothing was refused")
	}
	checkOnce(b, txs)
	f.check(t)
}

// scripted is a source that a test drives by hand.
type scripted func(ctx context.Context, out SourceOutlet) error

func (s scripted) Run(ctx context.Context, out SourceOutlet) error { return s(ctx, out) }

func oneRow(table *change.Table, lsn int, id int64, val string, boundary bool) *change.Batch {
	b := change.Get()
	appendRow(b, table, row{op: change.Create, id: id, val: val}, lsn, 0)
	if boundary {
		b.Resume = []byte(`{"lsn":1}`)
	}
	return b
}

// awaitHigh waits until the raw topic has n records, committed or not.
func (b *bed) awaitHigh(n int64) {
	b.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(b.t.Context(), testkit.Patience)
	defer cancel()
	for {
		var sum int64
		if ends, err := b.direct.Admin().ListEndOffsets(ctx, b.topic()); err == nil {
			for _, o := range ends[b.topic()] {
				if o.Err == nil {
					sum += o.Offset
				}
			}
		}
		if sum >= n {
			return
		}
		select {
		case <-ctx.Done():
			b.t.Fatalf("topic %q has %d records, want %d", b.topic(), sum, n)
		case <-tick.C:
		}
	}
}

// A process that was taken for dead comes back while its successor has read
// the position and sends the same again. If this failed, both would commit.
// (A4)
func TestIngestFencedPredecessorHalts(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		table := b.table()
		successorResumed, predecessorEnded := make(chan struct{}), make(chan struct{})
		var sent error
		var resumed sync.Once
		first := scripted(func(ctx context.Context, out SourceOutlet) error {
			if _, err := out.Resume(ctx); err != nil {
				return err
			}
			if err := out.Send(ctx, oneRow(table, 1, 1, "same", false)); err != nil {
				return err
			}
			b.awaitHigh(1) // it lies in Kafka, uncommitted
			second := scripted(func(ctx context.Context, out SourceOutlet) error {
				resume, err := out.Resume(ctx)
				if err != nil {
					return err
				}
				if resume != nil {
					t.Errorf("the successor resumes at %s", resume)
				}
				resumed.Do(func() { close(successorResumed) })
				select {
				case <-predecessorEnded:
				case <-ctx.Done():
					return nil
				}
				if err := out.Send(ctx, oneRow(table, 1, 1, "same", true)); err != nil {
					return err
				}
				select {
				case <-out.Durable():
				case <-ctx.Done():
				}
				return nil
			})
			stop, ended := running(b, second, IngestLimits{})
			b.await("the successor", successorResumed)
			sent = out.Checkpoint(ctx, Resume(`{"lsn":1}`))
			close(predecessorEnded)
			b.await("the successor's end", ended)
			if err := stop(); err != nil {
				t.Errorf("the successor: %v", err)
			}
			return sent
		})
		err := runIngest(b, t.Context(), first, IngestLimits{})
		if sent == nil {
			t.Error("the predecessor committed after its successor had read the position")
		}
		if !problem.Has(err, ErrFenced) {
			t.Errorf("the predecessor ended with %v, want TW-FENCED", err)
		}
		checkOnce(b, [][]row{{{id: 1, val: "same"}}})
	})
}

// If this failed, a transaction that somebody holds open on the positions
// topic would hide the last position, and all since the one before it would be
// sent again. (A6)
func TestPositionBehindAnOpenTransaction(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		f := newFeed(b.table(), inserts(1, 3))
		stop, _ := running(b, f, IngestLimits{})
		b.await("the first position", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		foreign, err := b.direct.Client(kgo.TransactionalID("foreign-"+b.source), kgo.TransactionTimeout(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		defer foreign.Close()
		if err := foreign.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := foreign.ProduceSync(t.Context(), &kgo.Record{Topic: PositionsTopicOf(b.source), Key: []byte("x"), Value: []byte("garbage")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		f.txs = append(f.txs, inserts(1, 3)...)
		f.all = make(chan struct{})
		// The source's next position is committed behind what is open.
		pos, err := b.direct.Topic(t.Context(), PositionsTopicOf(b.source))
		if err != nil {
			t.Fatal(err)
		}
		cl, err := b.direct.Client(kgo.TransactionalID("later-" + b.source))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		later := position{Source: b.source}
		later.setResume(Resume(`{"lsn":2}`))
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: pos.Name, Key: []byte(b.source), Value: later.encode()}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if p, err := readPosition(ctx, cl, b.direct, pos); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read %+v, %v while a transaction is open before the position", p, err)
		}
		if err := foreign.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		p, err := readPosition(t.Context(), cl, b.direct, pos)
		if err != nil {
			t.Fatal(err)
		}
		if string(p.resume()) != `{"lsn":2}` {
			t.Errorf("the last position is %s", p.resume())
		}
	})
}

// A process dies with a transaction open. If this failed, the successor would
// wait for the transaction's timeout, or lose or double its records. (A5)
func TestIngestKilledInMidTransaction(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		txs := inserts(6, 10)
		f := newFeed(b.table(), txs)
		// Dies after having sent half of transaction 4, its connections cut.
		life, kill := context.WithCancel(t.Context())
		defer kill()
		dying := scripted(func(ctx context.Context, out SourceOutlet) error {
			half := newFeed(f.table, txs[:3])
			half.confirmed = f.confirmed
			runCtx, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() {
				<-half.all
				cancel()
			}()
			if err := half.Run(runCtx, out); err != nil {
				return err
			}
			f.confirmed = half.confirmed
			part := change.Get()
			for i, r := range txs[3][:5] {
				appendRow(part, f.table, r, 4, i)
			}
			if err := out.Send(ctx, part); err != nil {
				return err
			}
			b.awaitHigh(3*10 + 5)
			b.proxy.Cut()
			kill() // or it would begin again, once it notices the cut
			return nil
		})
		if err := runIngest(b, life, dying, IngestLimits{TxnTimeout: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
		if life.Err() == nil {
			t.Fatal("it ended before its time")
		}
		b.proxy.Mend()
		began := time.Now()
		stop, _ := running(b, f, IngestLimits{})
		b.await("all changes", f.all)
		if took := time.Since(began); took > 25*time.Second {
			t.Errorf("the successor needed %v: it waited for the timeout of 30 s", took)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, txs)
		f.check(t)
	})
}

// If this failed, one row over the limit would stop the source, or be dropped
// without a trace, or stay parked for ever though a smaller version followed.
// (A3, G2)
func TestIngestParksAnOversizeRecord(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bed) {
		big := string(make([]byte, 4000))
		txs := [][]row{
			{{op: change.Create, id: 1, val: "one"}, {op: change.Create, id: 2, val: big}, {op: change.Create, id: 3, val: "three"}},
			{{op: change.Create, id: 4, val: "four"}},
		}
		f := newFeed(b.table(), txs)
		limits := IngestLimits{MaxRecordBytes: 2000}
		stop, _ := running(b, f, limits)
		b.await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := len(b.committed()); n != 3 {
			t.Errorf("%d records came through, want 3", n)
		}
		parked := parkedOf(b)
		if len(parked) != 1 {
			t.Fatalf("%d records are parked, want 1", len(parked))
		}
		for _, p := range parked {
			if p.Code != records.ErrTooLarge.ID || p.Key != "2" || p.Topic != b.topic() || p.Remedy == "" {
				t.Errorf("parked: %+v", p)
			}
			if len(p.Value) != 0 {
				t.Error("the payload is in the parked topic")
			}
		}
		// A smaller version of the row releases it.
		f.txs = append(txs, []row{{op: change.Update, id: 2, val: "two"}})
		f.all = make(chan struct{})
		stop, _ = running(b, f, limits)
		b.await("the smaller row", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if parked := parkedOf(b); len(parked) != 0 {
			t.Errorf("still parked: %+v", parked)
		}
		if n := len(b.committed()); n != 4 {
			t.Errorf("%d records came through, want 4", n)
		}
	})
}

// parked reads what the parked topic of the source holds in the end.
func parkedOf(b *bed) map[string]parkedRecord {
	b.t.Helper()
	ctx := b.t.Context()
	topic, err := b.direct.Topic(ctx, parked.TopicOf(b.source))
	if err != nil {
		b.t.Fatal(err)
	}
	cl, err := b.direct.Client()
	if err != nil {
		b.t.Fatal(err)
	}
	defer cl.Close()
	ends, err := b.direct.Admin().ListEndOffsets(ctx, topic.Name)
	if err != nil {
		b.t.Fatal(err)
	}
	end, _ := ends.Lookup(topic.Name, 0)
	out := map[string]parkedRecord{}
	err = kafka.Scan(ctx, cl, topic, 0, 0, end.Offset, func(r *kgo.Record) error {
		if r.Attrs.IsControl() {
			return nil
		}
		if r.Value == nil {
			delete(out, string(r.Key))
			return nil
		}
		p, _, err := parked.Parse(b.source, r.Value)
		out[string(r.Key)] = parkedRecord{p.Topic, p.Key, p.Code, p.Remedy, p.Value}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

type parkedRecord struct {
	Topic, Key, Code, Remedy string
	Value                    []byte
}

// If this failed, a raw topic that was deleted and made again, or a position
// of another cluster, would leave a gap that nobody hears of. (A10)
func TestIngestHaltsWhenATopicIsNotTheOne(t *testing.T) {
	b := newBed(t, "")
	f := newFeed(b.table(), inserts(2, 5))
	stop, _ := running(b, f, IngestLimits{})
	b.await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.direct.Admin().DeleteTopic(t.Context(), b.topic()); err != nil {
		t.Fatal(err)
	}
	err := runIngest(b, t.Context(), f, IngestLimits{})
	if !problem.Has(err, ErrPositionTopics) {
		t.Errorf("topic gone: %v, want TW-POSITION-TOPICS", err)
	}
	if _, err := b.direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.topic(), Partitions: 5}); err != nil {
		t.Fatal(err)
	}
	err = runIngest(b, t.Context(), f, IngestLimits{})
	if !problem.Has(err, ErrPositionTopics) {
		t.Errorf("other partitions: %v, want TW-POSITION-TOPICS", err)
	}
}

// If this failed, a transaction would be held open while a registry is down,
// and with it every reader of the topics. (A5)
func TestIngestWithoutRegistryWaitsOutsideTransactions(t *testing.T) {
	b := newBed(t, "")
	b.registry.setDown(true)
	txs := inserts(3, 5)
	f := newFeed(b.table(), txs)
	stop, _ := running(b, f, IngestLimits{})
	b.await("the registry to be asked", b.registry.refused)
	b.await("the registry to be asked again", b.registry.refused)
	if records := b.committed(); len(records) != 0 {
		t.Errorf("%d records are there before their schema", len(records))
	}
	txns, err := b.direct.Admin().ListTransactions(t.Context(), nil, []string{"Ongoing"})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range txns.Sorted() {
		t.Errorf("transaction %q is open while the registry is down", x.TxnID)
	}
	b.registry.setDown(false)
	b.await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	checkOnce(b, txs)
	f.check(t)
}
