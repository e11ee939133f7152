package dedupe_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/dedupe"
)

// What stands before the start is read from Kafka: committed records only, not
// those of an aborted transaction, which nobody ever saw.
func TestReadBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	e, err := embedded.StartMiniKafka(ctx, t.TempDir(), "127.0.0.1:0", log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	o := obs.New(log)
	c, err := kafka.New(kafka.Config{Brokers: []string{e.Addr()}}, o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	topic, err := c.EnsureTopic(ctx, kafka.TopicSpec{Name: "psa.public.t", Partitions: 1})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Client(kgo.TransactionalID("t"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	send := func(end kgo.TransactionEndTry, ps ...change.Pos) {
		t.Helper()
		if err := p.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for _, pos := range ps {
			r := &kgo.Record{Topic: topic.Name, Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: kafka.HeaderPos, Value: change.AppendPos(nil, pos)}}}
			if err := p.ProduceSync(ctx, r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.EndTransaction(ctx, end); err != nil {
			t.Fatal(err)
		}
	}
	send(kgo.TryCommit, at(10, 1), at(10, 2)) // 0, 1, marker 2
	send(kgo.TryAbort, at(99, 1))             // 3, marker 4
	send(kgo.TryCommit, at(20, 1), at(20, 2)) // 5, 6, marker 7
	proxy, err := testkit.NewKafkaProxy(e.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	}()
	far, err := kafka.New(kafka.Config{Brokers: []string{proxy.Addr()}, Opts: []kgo.Opt{kgo.Dialer(proxy.Dial), kgo.RequestRetries(1)}}, o)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	back := dedupe.ReadBack(&pipeline.Env{Kafka: far, Obs: o})
	proxy.Cut()
	if last, err := back(ctx, topic, 0, 3); !problem.Has(err, dedupe.ErrReadBack) {
		t.Errorf("without Kafka: %v, %v, want TW-DEDUPE-READBACK", last, err)
	}
	proxy.Mend() // Remedy: TW-DEDUPE-READBACK
	for before, want := range map[int64]change.Pos{0: {}, 1: at(10, 1), 2: at(10, 2), 3: at(10, 2), 5: at(10, 2), 6: at(20, 1), 7: at(20, 2)} {
		last, err := back(ctx, topic, 0, before)
		if err != nil || last.Pos != want {
			t.Errorf("before %d: %v, %v; want %v", before, last.Pos, err, want)
		}
	}
}
