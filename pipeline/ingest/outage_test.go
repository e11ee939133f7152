package ingest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// If this failed, a broker that restarts would cost every source its
// connection, and a slot its place.
func TestIngestRidesOutAShortOutage(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		patient(b)
		txs := inserts(30, 20)
		f := newFeed(b.Table(), txs)
		f.before = func(n int) {
			if n == 10 {
				b.Proxy.Cut()
				time.AfterFunc(700*time.Millisecond, b.Proxy.Mend)
			}
		}
		stop, _ := running(b, f, pipeline.IngestLimits{TxnTimeout: 30 * time.Second})
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, txs)
		f.check(t)
		if f.runs != 1 {
			t.Errorf("the source ran %d times: a short outage of Kafka reached it", f.runs)
		}
	})
}

// Kafka goes away for good, with records, positions and ends on their way. If
// this failed, the process could not be stopped but by a kill.
func TestIngestStopsWhileKafkaIsAway(t *testing.T) {
	for _, delivery := range []pipeline.Delivery{pipeline.ExactlyOnce, pipeline.AtLeastOnce} {
		t.Run(string(delivery), func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
				patient(b)
				f := newFeed(b.Table(), inserts(3000, 20))
				// The cut meets what is under way then: the reply of one
				// position never comes.
				cut := make(chan struct{})
				f.before = func(n int) {
					if n == 2000 {
						b.Proxy.LoseIf(func(r testkit.KafkaRequest) bool { return r.Key() == produce }, testkit.LoseReply, 1)
						b.Proxy.Cut()
						close(cut)
					}
				}
				stop, _ := running(b, f, pipeline.IngestLimits{Delivery: delivery, TxnTimeout: 3 * time.Second})
				b.Await("the cut", cut)
				began := time.Now()
				if err := stop(); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > time.Minute {
					t.Errorf("stopping took %v", took)
				}
				f.check(t)
			})
		})
	}
}

// patient makes the clients' retries those of production; the bed's own are
// few, so that an error gets through.
func patient(b *enginetest.Bed) {
	b.T.Helper()
	c, err := kafka.New(kafka.Config{Brokers: []string{b.Proxy.Addr()}, Opts: []kgo.Opt{kgo.Dialer(b.Proxy.Dial)}}, b.Env.Obs)
	if err != nil {
		b.T.Fatal(err)
	}
	b.T.Cleanup(c.Close)
	b.Env.Kafka = c
}

// If this failed, an outage longer than a transaction may last would lose or
// double what was in it, or stop the source for good: after the timeout Kafka
// answers as it does to one who was fenced.
func TestIngestOutageLongerThanTheTransaction(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(30, 20)
		f := newFeed(b.Table(), txs)
		var cut atomic.Bool
		f.before = func(n int) {
			if n == 10 && !cut.Swap(true) {
				b.Proxy.Cut()
				time.AfterFunc(5*time.Second, b.Proxy.Mend)
			}
		}
		stop, _ := running(b, f, pipeline.IngestLimits{TxnTimeout: 3 * time.Second})
		b.Await("all changes", f.all)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOnce(b, txs)
		f.check(t)
	})
}

// Apache Kafka is killed in mid-run. If this failed, a crash of the
// broker would show in the data.
func TestIngestKafkaKilled(t *testing.T) {
	if testing.Short() {
		t.Log("short: needs Apache Kafka of its own")
		return
	}
	k := testkit.NewKafka(t, embedded.KafkaOptions{})
	b := enginetest.NewBed(t, k.Addr())
	patient(b)
	txs := inserts(200, 20)
	f := newFeed(b.Table(), txs)
	kill := make(chan struct{})
	var once sync.Once
	f.before = func(n int) {
		if n == 100 {
			once.Do(func() { close(kill) })
		}
	}
	stop, _ := running(b, f, small)
	b.Await("the moment of the kill", kill)
	if err := k.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := k.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	checkOnce(b, txs)
	f.check(t)
}

// If this failed, memory would grow with the length of an outage.
// (invariant 12)
func TestIngestBlocksWhenTheBudgetIsUsedUp(t *testing.T) {
	b := enginetest.NewBed(t, "")
	patient(b)
	table := b.Table()
	const budget = 1 << 20
	var accepted atomic.Int64 // by this session, since the broker is away
	src := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
		accepted.Store(0)
		if _, err := out.Resume(ctx); err != nil {
			return err
		}
		if err := out.Send(ctx, oneRow(table, 1, 1, "makes the topic", true)); err != nil {
			return err
		}
		<-out.Durable()
		b.Proxy.Cut()
		defer b.Proxy.Mend()
		for n := 2; ; n++ {
			batch := oneRow(table, n, int64(n), string(make([]byte, 50_000)), true)
			size := int64(batch.Size())
			// A second of no progress is taken for "it blocks".
			sctx, cancel := context.WithTimeout(ctx, time.Second)
			err := out.Send(sctx, batch)
			cancel()
			if err != nil {
				return nil
			}
			if accepted.Add(size) > 4*budget {
				t.Errorf("%d octets are in flight with a budget of %d", accepted.Load(), budget)
				return nil
			}
		}
	})
	stop, ended := running(b, src, pipeline.IngestLimits{MaxBytes: budget})
	b.Await("the end", ended)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n := accepted.Load(); n > budget+100_000 {
		t.Errorf("%d octets were taken with a budget of %d", n, budget)
	}
}

// If this failed, an idle source could not advance its slot, and the WAL would
// grow. (B3)
func TestIngestCheckpointIsDurable(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		src := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
			if _, err := out.Resume(ctx); err != nil {
				return err
			}
			if err := out.Checkpoint(ctx, pipeline.Resume(`{"lsn":7}`)); err != nil {
				return err
			}
			cl, err := b.Direct.Client()
			if err != nil {
				return err
			}
			defer cl.Close()
			topic, err := b.Direct.Topic(ctx, positionsTopicOf(b.Source))
			if err != nil {
				return err
			}
			p, err := readPosition(ctx, cl, b.Direct, topic)
			if err != nil {
				return err
			}
			if got := string(p.resume()); got != `{"lsn":7}` {
				t.Errorf("after the checkpoint the position is %s", got)
			}
			if got := string(<-out.Durable()); got != `{"lsn":7}` {
				t.Errorf("durable is %s", got)
			}
			return nil
		})
		stop, ended := running(b, src, pipeline.IngestLimits{})
		b.Await("the end", ended)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A value of another kind than its column. If this failed, one such value would
// stop the whole source. (G1)
func TestIngestParksWhatCannotBeEncoded(t *testing.T) {
	b := enginetest.NewBed(t, "")
	table := (&change.Table{
		Source: b.Source, Connector: &change.Connector{Name: "bed", Version: "1"}, Schema: "public", Name: "item", Topic: b.Topic(), Key: []int{0}, OldFull: true,
		Columns: []change.Column{
			{Name: "id", Type: "bigint", Kind: change.Int, Width: 8, Precision: -1, Scale: -1},
			{Name: "amount", Type: "numeric(10,2)", Kind: change.Decimal, Nullable: true, Precision: 10, Scale: 2},
		},
	}).Index()
	values, lsn := []change.Value{change.DecimalValue(150, 2), change.BoolValue(true), change.DecimalValue(7, 2)}, uint64(1)
	src := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
		if _, err := out.Resume(ctx); err != nil {
			return err
		}
		batch := change.Get()
		for i, v := range values {
			row := batch.Row(2)
			row[0], row[1] = change.IntValue(int64(i+1)), v
			c := batch.Append(table, change.Create)
			c.New, c.Pos = row, change.Pos{System: 1, LSN: lsn, Kind: change.PosCommit, Ordinal: uint64(i + 1)}
		}
		batch.Resume = fmt.Appendf(nil, `{"lsn":%d}`, lsn)
		if err := out.Send(ctx, batch); err != nil {
			return err
		}
		<-out.Durable()
		return nil
	})
	stop, ended := running(b, src, pipeline.IngestLimits{})
	b.Await("the end", ended)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n := len(b.Committed()); n != 2 {
		t.Errorf("%d records came through, want 2", n)
	}
	parked := parkedOf(b)
	if len(parked) != 1 {
		t.Fatalf("parked: %+v", parked)
	}
	for _, p := range parked {
		if p.Key != "2" || p.Code != "TW-AVRO-TYPE" {
			t.Errorf("parked: %+v", p)
		}
	}
	for _, v := range b.Env.Obs.Views() {
		if v.Kind == "source" && (v.Parked != 1 || v.State != obs.Stopped) {
			t.Errorf("the component shows %d parked, state %s", v.Parked, v.State)
		}
	}
	// Remedy: TW-AVRO-TYPE
	values[1], lsn = change.DecimalValue(2, 2), 2
	stop, ended = running(b, src, pipeline.IngestLimits{})
	b.Await("the end", ended)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if left := parkedOf(b); len(left) != 0 || len(b.Committed()) != 5 {
		t.Errorf("%d are parked, %d records came through, want 5", len(left), len(b.Committed()))
	}
}
