package ingest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

const endTxn = 26

// small makes many transactions of few records.
var small = pipeline.IngestLimits{TxnBytes: 2 << 10, TxnTimeout: 10 * time.Second}

// If this failed, changes would be lost, doubled or out of order without any
// fault at all.
func TestIngestDeliversEachChangeOnce(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(60, 40)
		f := newFeed(b.Table(), txs)
		f.cut = true
		stop, _ := running(b, f, small)
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, txs)
		f.check(t)

		// A restart sends nothing again and goes on where it was.
		f.txs = append(txs, inserts(5, 10)...)
		f.all = make(chan struct{})
		stop, _ = running(b, f, small)
		b.Await("the rest", f.all)
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
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(30, 20)
		f := newFeed(b.Table(), txs)
		var lost <-chan struct{}
		f.before = func(n int) {
			if n == 10 && lost == nil {
				// Enough for kgo's own attempts: the engine must see an error.
				lost = b.Proxy.Lose(endTxn, testkit.LoseReply, 3)
			}
		}
		failed := line(b, pipeline.ErrTxnUnknown.ID)
		stop, _ := running(b, f, small)
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.Await("the loss", lost)
		b.Await("the reason to be told", failed)
		checkOnce(b, txs) // Remedy: TW-TRANSACTION-UNKNOWN
		f.check(t)
	})
}

// The commit never reached Kafka. If this failed, what it held would be taken
// for committed: the session would go on behind it (End retried in place), the
// source be told to forget it (early acknowledgement), or the position point
// behind it (position outside the transaction). (A1, invariant 1)
func TestIngestEndNeverArrives(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(30, 20)
		f := newFeed(b.Table(), txs)
		var lost <-chan struct{}
		f.before = func(n int) {
			if n == 10 && lost == nil {
				lost = b.Proxy.Lose(endTxn, testkit.LoseRequest, 3)
			}
		}
		stop, _ := running(b, f, small)
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.Await("the loss", lost)
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
	b := enginetest.NewBed(t, "")
	txs := inserts(30, 20)
	f := newFeed(b.Table(), txs)
	var refused *kfake.FaultHandle
	f.before = func(n int) {
		if n == 10 && refused == nil {
			refused = b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: b.Topic(), Err: kerr.MessageTooLarge})
		}
	}
	stop, _ := running(b, f, small)
	b.Await("all changes", f.all)
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
type scripted func(ctx context.Context, out pipeline.SourceOutlet) error

func (s scripted) Run(ctx context.Context, out pipeline.SourceOutlet) error { return s(ctx, out) }

func oneRow(table *change.Table, lsn int, id int64, val string, boundary bool) *change.Batch {
	b := change.Get()
	enginetest.AppendRow(b, table, enginetest.Row{Op: change.Create, ID: id, Val: val}, lsn, 0)
	if boundary {
		b.Resume = []byte(`{"lsn":1}`)
	}
	return b
}

// A process that was taken for dead comes back while its successor has read
// the position and sends the same again. If this failed, both would commit.
// (A4)
func TestIngestFencedPredecessorHalts(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		table := b.Table()
		successorResumed, predecessorEnded := make(chan struct{}), make(chan struct{})
		var sent error
		var resumed sync.Once
		first := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
			if _, err := out.Resume(ctx); err != nil {
				return err
			}
			if err := out.Send(ctx, oneRow(table, 1, 1, "same", false)); err != nil {
				return err
			}
			b.AwaitHigh(1) // it lies in Kafka, uncommitted
			second := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
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
			stop, ended := running(b, second, pipeline.IngestLimits{})
			b.Await("the successor", successorResumed)
			sent = out.Checkpoint(ctx, pipeline.Resume(`{"lsn":1}`))
			close(predecessorEnded)
			b.Await("the successor's end", ended)
			if err := stop(); err != nil {
				t.Errorf("the successor: %v", err)
			}
			return sent
		})
		err := runIngest(b, t.Context(), first, pipeline.IngestLimits{})
		if sent == nil {
			t.Error("the predecessor committed after its successor had read the position")
		}
		if !problem.Has(err, pipeline.ErrFenced) {
			t.Errorf("the predecessor ended with %v, want TW-FENCED", err)
		}
		checkOnce(b, [][]enginetest.Row{{{ID: 1, Val: "same"}}})
	})
}

// If this failed, a transaction that somebody holds open on the positions
// topic would hide the last position, and all since the one before it would be
// sent again. (A6)
func TestPositionBehindAnOpenTransaction(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		f := newFeed(b.Table(), inserts(1, 3))
		stop, _ := running(b, f, pipeline.IngestLimits{})
		b.Await("the first position", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		foreign, err := b.Direct.Client(kgo.TransactionalID("foreign-"+b.Source), kgo.TransactionTimeout(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		defer foreign.Close()
		if err := foreign.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := foreign.ProduceSync(t.Context(), &kgo.Record{Topic: positionsTopicOf(b.Source), Key: []byte("x"), Value: []byte("garbage")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		f.txs = append(f.txs, inserts(1, 3)...)
		f.all = make(chan struct{})
		// The source's next position is committed behind what is open.
		pos, err := b.Direct.Topic(t.Context(), positionsTopicOf(b.Source))
		if err != nil {
			t.Fatal(err)
		}
		cl, err := b.Direct.Client(kgo.TransactionalID("later-" + b.Source))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		later := position{Source: b.Source}
		later.setResume(pipeline.Resume(`{"lsn":2}`))
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: pos.Name, Key: []byte(b.Source), Value: later.encode()}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if p, err := readPosition(ctx, cl, b.Direct, pos); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read %+v, %v while a transaction is open before the position", p, err)
		}
		defer func(was time.Duration) { heldFor = was }(heldFor)
		heldFor = time.Second
		if p, err := readPosition(t.Context(), cl, b.Direct, pos); !problem.Has(err, ErrPositionHeld) {
			t.Errorf("read %+v, %v, want TW-POSITION-HELD", p, err)
		}
		// Remedy: TW-POSITION-HELD
		if err := foreign.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		p, err := readPosition(t.Context(), cl, b.Direct, pos)
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
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(6, 10)
		f := newFeed(b.Table(), txs)
		// Dies after having sent half of transaction 4, its connections cut.
		life, kill := context.WithCancel(t.Context())
		defer kill()
		dying := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
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
				enginetest.AppendRow(part, f.table, r, 4, i)
			}
			if err := out.Send(ctx, part); err != nil {
				return err
			}
			b.AwaitHigh(3*10 + 5)
			b.Proxy.Cut()
			kill() // or it would begin again, once it notices the cut
			return nil
		})
		if err := runIngest(b, life, dying, pipeline.IngestLimits{TxnTimeout: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
		if life.Err() == nil {
			t.Fatal("it ended before its time")
		}
		b.Proxy.Mend()
		began := time.Now()
		stop, _ := running(b, f, pipeline.IngestLimits{})
		b.Await("all changes", f.all)
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
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		big := string(make([]byte, 4000))
		txs := [][]enginetest.Row{
			{{Op: change.Create, ID: 1, Val: "one"}, {Op: change.Create, ID: 2, Val: big}, {Op: change.Create, ID: 3, Val: "three"}},
			{{Op: change.Create, ID: 4, Val: "four"}},
		}
		f := newFeed(b.Table(), txs)
		limits := pipeline.IngestLimits{MaxRecordBytes: 2000}
		stop, _ := running(b, f, limits)
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := len(b.Committed()); n != 3 {
			t.Errorf("%d records came through, want 3", n)
		}
		parked := heads(parkedOf(b))
		if len(parked) != 1 {
			t.Fatalf("%d records are parked, want 1", len(parked))
		}
		for _, p := range parked {
			if p.Code != records.ErrTooLarge.ID || p.Key != "2" || p.Topic != b.Topic() || p.Remedy == "" {
				t.Errorf("parked: %+v", p)
			}
			if len(p.whole.Held) != 1 {
				t.Error("it is not kept whole")
			}
		}
		// A smaller version of the row releases it. Remedy: TW-RECORD-TOO-LARGE
		f.txs = append(txs, []enginetest.Row{{Op: change.Update, ID: 2, Val: "two"}})
		f.all = make(chan struct{})
		stop, _ = running(b, f, limits)
		b.Await("the smaller row", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if parked := parkedOf(b); len(parked) != 0 {
			t.Errorf("still parked: %+v", parked)
		}
		if n := len(b.Committed()); n != 4 {
			t.Errorf("%d records came through, want 4", n)
		}
	})
}

// heads leaves parts and commands out.
func heads(all map[string]parkedRecord) map[string]parkedRecord {
	maps.DeleteFunc(all, func(_ string, p parkedRecord) bool { return p.whole == nil })
	return all
}

// parkedOf reads what the parked topic of the source holds in the end.
func parkedOf(b *enginetest.Bed) map[string]parkedRecord {
	b.T.Helper()
	ctx := b.T.Context()
	topic, err := b.Direct.Topic(ctx, parked.TopicOf(b.Source))
	if err != nil {
		b.T.Fatal(err)
	}
	cl, err := b.Direct.Client()
	if err != nil {
		b.T.Fatal(err)
	}
	defer cl.Close()
	ends, err := b.Direct.Admin().ListEndOffsets(ctx, topic.Name)
	if err != nil {
		b.T.Fatal(err)
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
		if r.Key[0] == 0x1F { // a part or a command: to be ended with what it is of
			out[string(r.Key)] = parkedRecord{Value: r.Value, raw: r.Value}
			return nil
		}
		p, err := parked.Parse(b.Source, r.Value)
		out[string(r.Key)] = parkedRecord{p.Topic, p.Key, p.Code, p.Remedy, p.Value, &p, r.Value}
		return err
	})
	if err != nil {
		b.T.Fatal(err)
	}
	return out
}

type parkedRecord struct {
	Topic, Key, Code, Remedy string
	Value                    []byte
	whole                    *control.Parked // nil: not a parked record
	raw                      []byte
}

// If this failed, a raw topic that was deleted and made again, or a position
// of another cluster, would leave a gap that nobody hears of. (A10)
func TestIngestHaltsWhenATopicIsNotTheOne(t *testing.T) {
	b := enginetest.NewBed(t, "")
	f := newFeed(b.Table(), inserts(2, 5))
	f.prepares = true
	stop, _ := running(b, f, pipeline.IngestLimits{})
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Direct.Admin().DeleteTopic(t.Context(), b.Topic()); err != nil {
		t.Fatal(err)
	}
	err := runIngest(b, t.Context(), f, pipeline.IngestLimits{})
	if !problem.Has(err, ErrPositionTopics) {
		t.Errorf("topic gone: %v, want TW-POSITION-TOPICS", err)
	}
	if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.Topic(), Partitions: 5}); err != nil {
		t.Fatal(err)
	}
	err = runIngest(b, t.Context(), f, pipeline.IngestLimits{})
	if !problem.Has(err, ErrPositionTopics) {
		t.Errorf("other partitions: %v, want TW-POSITION-TOPICS", err)
	}
	startedOver(b) // Remedy: TW-POSITION-TOPICS
}

// startedOver does what docs/recovery.md says, and wants all of a new feed, the
// slot made anew, to be there once.
func startedOver(b *enginetest.Bed) {
	b.T.Helper()
	topics, err := b.Direct.TopicsOf(b.T.Context(), b.Source+".")
	if err != nil {
		b.T.Fatal(err)
	}
	topics = append(topics, positionsTopicOf(b.Source), tablesTopicOf(b.Source), parked.TopicOf(b.Source))
	for _, name := range topics {
		if _, err := b.Direct.Admin().DeleteTopic(b.T.Context(), name); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			b.T.Fatal(err)
		}
	}
	txs := inserts(3, 5)
	f := newFeed(b.Table(), txs)
	f.prepares = true
	stop, _ := running(b, f, pipeline.IngestLimits{})
	b.Await("all changes of a source that was started over", f.all)
	if err := stop(); err != nil {
		b.T.Fatal(err)
	}
	checkOnce(b, txs)
	f.check(b.T)
}

// If this failed, a position that is not ours would be taken for ours, or be the
// end of the source.
func TestIngestHaltsOnAForeignPosition(t *testing.T) {
	b := enginetest.NewBed(t, "")
	f := newFeed(b.Table(), inserts(2, 5))
	f.prepares = true
	stop, _ := running(b, f, pipeline.IngestLimits{})
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	ours := lastPositionRecord(b)
	write := func(value []byte) {
		t.Helper()
		r := &kgo.Record{Topic: positionsTopicOf(b.Source), Key: []byte(b.Source), Value: value}
		if err := b.Direct.Shared().ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	other := position{Source: b.Source, Cluster: "another"}
	other.setResume(pipeline.Resume(`{"lsn":2}`))
	write(other.encode())
	if err := runIngest(b, t.Context(), f, pipeline.IngestLimits{}); !problem.Has(err, ErrPositionCluster) {
		t.Errorf("of another cluster: %v, want TW-POSITION-CLUSTER", err)
	}
	// Remedy: TW-POSITION-CLUSTER
	under := *b
	under.Source += "-anew"
	startedOver(&under)
	write([]byte(`{"v":99}`))
	if err := runIngest(b, t.Context(), f, pipeline.IngestLimits{}); !problem.Has(err, ErrPositionForm) {
		t.Errorf("of another form: %v, want TW-POSITION-FORM", err)
	}
	write(ours) // as if that version had run
	stop, _ = running(b, f, pipeline.IngestLimits{})
	f.more(b, inserts(1, 5)...)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	checkOnce(b, f.txs)
	write([]byte("garbage"))
	if err := runIngest(b, t.Context(), f, pipeline.IngestLimits{}); !problem.Has(err, ErrPositionForm) {
		t.Errorf("garbage: %v, want TW-POSITION-FORM", err)
	}
	startedOver(b) // Remedy: TW-POSITION-FORM
}

// lastPositionRecord is the value of the last record of the positions topic.
func lastPositionRecord(b *enginetest.Bed) (value []byte) {
	b.T.Helper()
	topic, err := b.Direct.Topic(b.T.Context(), positionsTopicOf(b.Source))
	if err != nil {
		b.T.Fatal(err)
	}
	ends, err := b.Direct.Admin().ListEndOffsets(b.T.Context(), topic.Name)
	if err != nil {
		b.T.Fatal(err)
	}
	end, _ := ends.Lookup(topic.Name, 0)
	if err := kafka.Scan(b.T.Context(), b.Direct.Shared(), topic, 0, 0, end.Offset, func(r *kgo.Record) error {
		if !r.Attrs.IsControl() && r.Value != nil {
			value = bytes.Clone(r.Value)
		}
		return nil
	}); err != nil {
		b.T.Fatal(err)
	}
	return value
}

// If this failed, a source that marks no position would hold a transaction open
// for as long, and all readers with it; or not go on when it does.
func TestIngestWithoutABoundary(t *testing.T) {
	b := enginetest.NewBed(t, "")
	runs := 0
	src := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
		if _, err := out.Resume(ctx); err != nil {
			return err
		}
		runs++
		if err := out.Send(ctx, oneRow(b.Table(), 1, 1, "one", runs > 1)); err != nil || runs == 1 {
			<-ctx.Done() // Remedy: TW-NO-BOUNDARY
			return err
		}
		select {
		case <-out.Durable():
		case <-ctx.Done():
		}
		return nil
	})
	failed := line(b, ErrNoBoundary.ID)
	stop, ended := running(b, src, pipeline.IngestLimits{TxnTimeout: 3 * time.Second})
	b.Await("its end without a boundary", failed)
	b.Await("its end with one", ended)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if got := rowsOf(b); len(got) != 1 || runs != 2 {
		t.Errorf("%d records after %d runs", len(got), runs)
	}
}

// If this failed, a transaction would be held open while a registry is down,
// and with it every reader of the topics. (A5)
func TestIngestWithoutRegistryWaitsOutsideTransactions(t *testing.T) {
	b := enginetest.NewBed(t, "")
	b.Registry.SetDown(true)
	txs := inserts(3, 5)
	f := newFeed(b.Table(), txs)
	stop, _ := running(b, f, pipeline.IngestLimits{})
	b.Await("the registry to be asked", b.Registry.Refused)
	b.Await("the registry to be asked again", b.Registry.Refused)
	if records := b.Committed(); len(records) != 0 {
		t.Errorf("%d records are there before their schema", len(records))
	}
	txns, err := b.Direct.Admin().ListTransactions(t.Context(), nil, []string{"Ongoing"})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range txns.Sorted() {
		t.Errorf("transaction %q is open while the registry is down", x.TxnID)
	}
	b.Registry.SetDown(false)
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	checkOnce(b, txs)
	f.check(t)
}
