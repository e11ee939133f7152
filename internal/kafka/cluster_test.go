package kafka

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

// If this failed, keys would move between partitions and lose their order.
func TestEnsureTopicHoldsThePartitionCount(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	e, err := embedded.StartMiniKafka(t.Context(), t.TempDir(), "127.0.0.1:0", log)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	c, err := New(Config{Brokers: []string{e.Addr()}}, obs.New(log))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.EnsureTopic(t.Context(), TopicSpec{Name: "p", Partitions: 3, Compact: true}); err != nil {
		t.Fatal(err)
	}
	got, err := c.EnsureTopic(t.Context(), TopicSpec{Name: "p", Partitions: 3, Compact: true})
	if err != nil || got.Partitions != 3 {
		t.Fatalf("the same again: %+v, %v", got, err)
	}
	if _, err := c.EnsureTopic(t.Context(), TopicSpec{Name: "p", Partitions: 4, Compact: true}); !problem.Has(err, ErrPartitions) {
		t.Fatalf("another count: %v, want TW-KAFKA-PARTITIONS", err)
	}
	// Remedy: TW-KAFKA-PARTITIONS
	if _, err := c.EnsureTopic(t.Context(), TopicSpec{Name: "p", Partitions: 3, Compact: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Admin().DeleteTopic(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.EnsureTopic(t.Context(), TopicSpec{Name: "p", Partitions: 4, Compact: true}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.MaxRecordBytes(t.Context(), "p"); err != nil || n < 1<<20 {
		t.Fatalf("max.message.bytes %d, %v", n, err)
	}
}

// How long records and deletes are kept is that of the configuration.
func TestTopicsAreMadeWithTheirRetention(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	c, err := New(Config{Brokers: fake.ListenAddrs(), DeleteRetention: 36 * time.Hour}, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, spec := range []TopicSpec{{Name: "raw", Retention: 48 * time.Hour}, {Name: "ever"}, {Name: "compacted", Compact: true}} {
		if _, err := c.EnsureTopic(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	all, err := c.Settings(t.Context(), "raw", "ever", "compacted", "none")
	if err != nil {
		t.Fatal(err)
	}
	for topic, want := range map[string][3]string{"raw": {"delete", "172800000", "86400000"}, "ever": {"delete", "-1", "86400000"}, "compacted": {"compact", "-1", "129600000"}} {
		if s := all[topic]; [3]string{s["cleanup.policy"], s["retention.ms"], s["delete.retention.ms"]} != want {
			t.Errorf("%s: %v, want %v", topic, s, want)
		}
	}
	if all["none"] != nil {
		t.Errorf("a topic that is not there has settings: %v", all["none"])
	}
}

// If this failed, a source would not start while a transform waits for its
// topics, or not see a transaction that its predecessor left open in a new one.
func TestTopicsOfAreThoseOfNow(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	open := func() *Cluster {
		t.Helper()
		c, err := New(Config{Brokers: fake.ListenAddrs()}, obs.New(slog.New(slog.DiscardHandler)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	c, other := open(), open()
	want := func(names ...string) {
		t.Helper()
		if got, err := c.TopicsOf(t.Context(), "psa."); err != nil || !slices.Equal(got, names) {
			t.Errorf("there are %q, %v, want %q", got, err, names)
		}
	}
	if _, err := c.Admin().ListEndOffsets(t.Context(), "psa.b", "psa.never"); err != nil {
		t.Fatal(err)
	}
	want()
	for _, name := range []string{"psa.b", "psa.a", "other.c"} {
		if _, err := other.EnsureTopic(t.Context(), TopicSpec{Name: name}); err != nil {
			t.Fatal(err)
		}
		if name == "psa.b" {
			want("psa.b")
		}
	}
	want("psa.a", "psa.b")
}

// If this failed, an outage would halt a pipeline, or a lack of rights be
// tried again for ever.
func TestWrapTellsOutageFromRefusal(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := dead.Addr().String()
	dead.Close()
	c, err := New(Config{Brokers: []string{addr}, Opts: []kgo.Opt{kgo.RequestRetries(1)}}, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ID(t.Context()); !problem.Has(err, ErrUnavailable) {
		t.Fatalf("no broker: %v, want TW-KAFKA-UNAVAILABLE", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.ID(ctx); !errors.Is(err, context.Canceled) || problem.Of(err) != nil {
		t.Fatalf("cancelled: %v", err)
	}
	if _, err := New(Config{}, obs.New(slog.New(slog.DiscardHandler))); !problem.Has(err, ErrConfig) {
		t.Fatalf("no broker is named: %v, want TW-KAFKA-CONFIG", err)
	}
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	mended, err := New(Config{Brokers: fake.ListenAddrs()}, obs.New(slog.New(slog.DiscardHandler))) // Remedy: TW-KAFKA-CONFIG, TW-KAFKA-UNAVAILABLE
	if err != nil {
		t.Fatal(err)
	}
	defer mended.Close()
	if _, err := mended.ID(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The values are what Java's Utils.murmur2 gives (KafkaUtilsTest of Apache
// Kafka). If this failed, foreign producers and ours would part keys.
func TestPartitionIsJavas(t *testing.T) {
	for key, want := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
		if p := Partition([]byte(key), 7); p != (want&0x7fffffff)%7 {
			t.Errorf("Partition(%q, 7) = %d", key, p)
		}
	}
}
