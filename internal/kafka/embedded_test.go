package kafka

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

func embedded(t *testing.T, dir, addr string) (*Embedded, *Cluster) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	e, err := StartEmbedded(t.Context(), dir, addr, log)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{Brokers: []string{e.Addr()}}, obs.New(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return e, c
}

func produce(t *testing.T, c *Cluster, topic, value string) {
	t.Helper()
	cl, err := c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func end(t *testing.T, c *Cluster, topic string) int64 {
	t.Helper()
	os, err := c.Admin().ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	o, _ := os.Lookup(topic, 0)
	return o.Offset
}

// If this failed, a clean stop of the embedded broker would lose what sources
// were told is durable.
func TestEmbeddedKeepsAllOverACleanStop(t *testing.T) {
	dir := t.TempDir()
	e, c := embedded(t, dir, "127.0.0.1:0")
	if e.StartedOver() {
		t.Fatal("a first start says that it started over")
	}
	first, err := c.EnsureTopic(t.Context(), TopicSpec{Name: "a", Partitions: 1})
	if err != nil {
		t.Fatal(err)
	}
	id, err := c.ID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	produce(t, c, "a", "one")
	c.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	e, c = embedded(t, dir, e.Addr())
	defer e.Close()
	defer c.Close()
	if e.StartedOver() {
		t.Fatal("started over after a clean stop")
	}
	again, err := c.Topic(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if *again != *first {
		t.Fatalf("topic was %+v, is %+v", first, again)
	}
	if again, err := c.ID(t.Context()); err != nil || again != id {
		t.Fatalf("cluster id was %q, is %q (%v)", id, again, err)
	}
	if n := end(t, c, "a"); n != 1 {
		t.Fatalf("end offset %d, want 1", n)
	}
}

// If this failed, torn transactions of a killed broker would pass for whole
// ones; and if the new cluster had the old id, old positions for valid ones.
func TestEmbeddedStartsOverAfterAnUncleanStop(t *testing.T) {
	dir := t.TempDir()
	e, c := embedded(t, dir, "127.0.0.1:0")
	if _, err := c.EnsureTopic(t.Context(), TopicSpec{Name: "a", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	id, err := c.ID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	produce(t, c, "a", "one")
	c.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	// What a kill leaves: the data and the marker.
	if err := os.WriteFile(filepath.Join(dir, "running"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	e, c = embedded(t, dir, "127.0.0.1:0")
	defer e.Close()
	defer c.Close()
	if !e.StartedOver() {
		t.Fatal("kept the data of an unclean stop")
	}
	if _, err := c.Topic(t.Context(), "a"); !problem.Has(err, ErrNoTopic) {
		t.Fatalf("topic of before: %v, want TW-KAFKA-NO-TOPIC", err)
	}
	if again, err := c.ID(t.Context()); err != nil || again == id {
		t.Fatalf("cluster id %q is that of before (%v)", again, err)
	}
}

// If this failed, a second start could wipe the data of the running broker, or
// a taken port would be a riddle.
func TestEmbeddedRefusesATakenPortAndDirectory(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	log := slog.New(slog.DiscardHandler)
	if _, err := StartEmbedded(t.Context(), t.TempDir(), ln.Addr().String(), log); !problem.Has(err, ErrPortTaken) {
		t.Fatalf("taken port: %v, want TW-PORT-TAKEN", err)
	}
	dir := t.TempDir()
	e, c := embedded(t, dir, "127.0.0.1:0")
	produceTo(t, c)
	if _, err := StartEmbedded(t.Context(), dir, "127.0.0.1:0", log); !problem.Has(err, ErrDirInUse) {
		t.Fatalf("directory in use: %v, want TW-KAFKA-DIR-IN-USE", err)
	}
	if n := end(t, c, "a"); n != 1 {
		t.Fatalf("the running broker has %d records left, want 1", n)
	}
	c.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

func produceTo(t *testing.T, c *Cluster) {
	t.Helper()
	if _, err := c.EnsureTopic(t.Context(), TopicSpec{Name: "a", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	produce(t, c, "a", "one")
}

// If this failed, keys would move between partitions and lose their order.
func TestEnsureTopicHoldsThePartitionCount(t *testing.T) {
	e, c := embedded(t, t.TempDir(), "127.0.0.1:0")
	defer e.Close()
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
	if n, err := c.MaxRecordBytes(t.Context(), "p"); err != nil || n < 1<<20 {
		t.Fatalf("max.message.bytes %d, %v", n, err)
	}
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
