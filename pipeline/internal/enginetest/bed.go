package enginetest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
)

type Bed struct {
	T        testing.TB
	Source   string
	Proxy    *testkit.KafkaProxy
	Fake     *kfake.Cluster // nil on Apache Kafka
	Registry *registryServer
	Env      *pipeline.Env  // through the proxy
	Direct   *kafka.Cluster // beside it
}

// OnBoth runs a test on kfake and on Apache Kafka; with -short on kfake alone,
// and beside a run with -short on Kafka alone (testkit.KafkaAlone).
func OnBoth(t *testing.T, test func(t *testing.T, b *Bed)) {
	t.Run("kfake", func(t *testing.T) {
		if !testing.Short() && os.Getenv(testkit.KafkaAlone) != "" {
			t.Log("on Kafka only: another run has kfake")
			return
		}
		test(t, NewBed(t, ""))
	})
	t.Run("kafka", func(t *testing.T) {
		if testing.Short() {
			t.Log("short: on kfake only")
			return
		}
		test(t, NewBed(t, testkit.SharedKafka(t).Addr()))
	})
}

var beds atomic.Int64

// NewBed makes a bed on the broker at addr, or on kfake. Its names are its own:
// with -count a test comes back to a broker that holds what it left.
func NewBed(t testing.TB, addr string) *Bed {
	t.Helper()
	return newBed(t, addr, nil, nil, nil)
}

// NewBedOf makes a bed on a kfake of its own kind; Env has ours and Direct has
// direct as the options of their clients.
func NewBedOf(t testing.TB, fake []kfake.Opt, ours, direct kgo.Opt) *Bed {
	t.Helper()
	return newBed(t, "", fake, []kgo.Opt{ours}, []kgo.Opt{direct})
}

func newBed(t testing.TB, addr string, fake []kfake.Opt, ours, direct []kgo.Opt) *Bed {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if change.TopicLegal(string(r)) != "" && r != '.' {
			return '-' // topics are called by it
		}
		return r
	}, strings.ToLower(strings.NewReplacer("Test", "", "Benchmark", "").Replace(t.Name())))
	b := &Bed{T: t, Source: fmt.Sprintf("s%s-%d", name, beds.Add(1)), Registry: newRegistryServer(t)}
	if addr == "" {
		var err error
		if b.Fake, err = kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, fake...)...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Fake.Close)
		addr = b.Fake.ListenAddrs()[0]
	}
	proxy, err := testkit.NewKafkaProxy(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	b.Proxy = proxy
	log := slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	o := obs.New(log)
	through, err := kafka.New(kafka.Config{Brokers: []string{proxy.Addr()}, Fake: b.Fake != nil, Opts: append([]kgo.Opt{
		kgo.Dialer(proxy.Dial), kgo.RequestRetries(2), kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }),
	}, ours...)}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(through.Close)
	if b.Direct, err = kafka.New(kafka.Config{Brokers: []string{addr}, Fake: b.Fake != nil, Opts: direct}, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Direct.Close)
	reg, err := avro.NewRegistry(b.Registry.URL)
	if err != nil {
		t.Fatal(err)
	}
	b.Env = &pipeline.Env{Kafka: through, Registry: reg, Obs: o, Instance: "test", Partitions: 3}
	return b
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (b *Bed) Topic() string { return b.Source + ".public.item" }

func (b *Bed) Table() *change.Table {
	return (&change.Table{
		Source: b.Source, Connector: &change.Connector{Name: "bed", Version: "1"}, Schema: "public", Name: "item", Topic: b.Topic(), Key: []int{0}, OldFull: true,
		Columns: []change.Column{
			{Name: "id", Type: "bigint", Kind: change.Int, Width: 8, Precision: -1, Scale: -1},
			{Name: "note", Type: "text", Kind: change.String, Nullable: true, Precision: -1, Scale: -1},
		},
	}).Index()
}

// Row is one change of the feed.
type Row struct {
	Op  change.Op
	ID  int64
	Was int64 // update: the key before, 0: the same
	Val string
	// Unsent: the note is not in the change, as Postgres leaves out a large
	// value that did not change.
	Unsent bool
	Before string // update: the note before, if that is told
	Since  int    // sweep: the LSN before which what is gone came
}

func AppendRow(b *change.Batch, t *change.Table, r Row, lsn, ordinal int) {
	image := func(id int64) []change.Value {
		v := b.Row(2)
		v[0] = change.IntValue(id)
		v[1] = b.SpanString(change.String, r.Val)
		if r.Unsent {
			v[1] = change.UnchangedValue()
		}
		return v
	}
	var was, is []change.Value
	switch r.Op {
	case change.Truncate, change.Sweep:
	case change.Delete:
		was = image(r.ID)
	case change.Update:
		old := r.Was
		if old == 0 {
			old = r.ID
		}
		was, is = image(old), image(r.ID)
		if r.Before != "" {
			was[1] = b.SpanString(change.String, r.Before)
		}
	default:
		is = image(r.ID)
	}
	c := b.Append(t, r.Op)
	c.Old, c.New = was, is
	if r.Op == change.Sweep {
		c.Before = &change.Pos{System: 1, Timeline: 1, LSN: uint64(r.Since), Kind: change.PosCommit}
	}
	c.XID, c.Time = uint32(lsn), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro()+int64(lsn)*1000
	c.Pos = change.Pos{System: 1, Timeline: 1, LSN: uint64(lsn), Kind: change.PosCommit, Ordinal: uint64(ordinal + 1)}
}

func (b *Bed) Await(what string, ch <-chan struct{}) {
	b.T.Helper()
	select {
	case <-ch:
	case <-time.After(testkit.Patience):
		b.T.Fatalf("waited for %s in vain", what)
	}
}

// AwaitRecord reads a topic from its start, as a read-committed consumer, until
// a record is the one.
func (b *Bed) AwaitRecord(what, topic string, is func(*kgo.Record) bool) {
	b.T.Helper()
	cl, err := b.Direct.Client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		b.T.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(b.T.Context(), testkit.Patience)
	defer cancel()
	for {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			b.T.Fatalf("waited for %s in vain", what)
		}
		for it := fs.RecordIter(); !it.Done(); {
			if is(it.Next()) {
				return
			}
		}
	}
}

// Committed reads what a read-committed consumer sees of the raw topic.
func (b *Bed) Committed() []*kgo.Record {
	b.T.Helper()
	ctx := b.T.Context()
	topic, err := b.Direct.Topic(ctx, b.Topic())
	if problem.Has(err, kafka.ErrNoTopic) {
		return nil
	}
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
	var out []*kgo.Record
	for p := range topic.Partitions {
		end, _ := ends.Lookup(topic.Name, p)
		err := kafka.Scan(ctx, cl, topic, p, 0, end.Offset, func(r *kgo.Record) error {
			if !r.Attrs.IsControl() {
				c := *r
				out = append(out, &c)
			}
			return nil
		})
		if err != nil {
			b.T.Fatal(err)
		}
	}
	return out
}

// AwaitHigh waits until the raw topic has n records, committed or not.
func (b *Bed) AwaitHigh(n int64) {
	b.T.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(b.T.Context(), testkit.Patience)
	defer cancel()
	for {
		var sum int64
		if ends, err := b.Direct.Admin().ListEndOffsets(ctx, b.Topic()); err == nil {
			for _, o := range ends[b.Topic()] {
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
			b.T.Fatalf("topic %q has %d records, want %d", b.Topic(), sum, n)
		case <-tick.C:
		}
	}
}

// Beside is the same bed without the proxy: another process, whom no fault
// reaches.
func (b *Bed) Beside() *Bed {
	env := *b.Env
	env.Kafka = b.Direct
	next := *b
	next.Env = &env
	return &next
}

// SetTopic sets a topic's setting and waits until the broker shows it, which is
// a little before it heeds it.
func SetTopic(t *testing.T, c *kafka.Cluster, topic, key, value string) {
	t.Helper()
	defer func() {
		for deadline := time.Now().Add(testkit.Patience); ; {
			rs, err := c.Admin().DescribeTopicConfigs(t.Context(), topic)
			if err == nil && slices.ContainsFunc(rs[0].Configs, func(c kadm.Config) bool { return c.Key == key && c.MaybeValue() == value }) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s of topic %q is not %s: %v, %v", key, topic, value, rs, err)
			}
		}
	}()
	rs, err := c.Admin().AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: key, Value: &value}}, topic)
	if err == nil {
		_, err = rs.On(topic, func(r *kadm.AlterConfigsResponse) error { return r.Err })
	}
	if err != nil {
		t.Fatal(err)
	}
}
