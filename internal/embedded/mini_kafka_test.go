package embedded

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

func miniKafka(t *testing.T, dir, addr string) (*MiniKafka, *kafka.Cluster) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	e, err := StartMiniKafka(t.Context(), dir, addr, log)
	if err != nil {
		t.Fatal(err)
	}
	c, err := kafka.New(kafka.Config{Brokers: []string{e.Addr()}}, obs.New(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return e, c
}

func produce(t *testing.T, c *kafka.Cluster, topic, value string) {
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

func end(t *testing.T, c *kafka.Cluster, topic string) int64 {
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
	e, c := miniKafka(t, dir, "127.0.0.1:0")
	if e.StartedOver() {
		t.Fatal("a first start says that it started over")
	}
	first, err := c.EnsureTopic(t.Context(), kafka.TopicSpec{Name: "a", Partitions: 1})
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

	e, c = miniKafka(t, dir, e.Addr())
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
	e, c := miniKafka(t, dir, "127.0.0.1:0")
	if _, err := c.EnsureTopic(t.Context(), kafka.TopicSpec{Name: "a", Partitions: 1}); err != nil {
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

	e, c = miniKafka(t, dir, "127.0.0.1:0")
	defer e.Close()
	defer c.Close()
	if !e.StartedOver() {
		t.Fatal("kept the data of an unclean stop")
	}
	if _, err := c.Topic(t.Context(), "a"); !problem.Has(err, kafka.ErrNoTopic) {
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
	if _, err := StartMiniKafka(t.Context(), t.TempDir(), ln.Addr().String(), log); !problem.Has(err, ErrPortTaken) {
		t.Fatalf("taken port: %v, want TW-PORT-TAKEN", err)
	}
	dir := t.TempDir()
	e, c := miniKafka(t, dir, "127.0.0.1:0")
	produceTo(t, c)
	if _, err := StartMiniKafka(t.Context(), dir, "127.0.0.1:0", log); !problem.Has(err, ErrDirInUse) {
		t.Fatalf("directory in use: %v, want TW-KAFKA-DIR-IN-USE", err)
	}
	if n := end(t, c, "a"); n != 1 {
		t.Fatalf("the running broker has %d records left, want 1", n)
	}
	c.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	// Remedy: TW-PORT-TAKEN, TW-KAFKA-DIR-IN-USE
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	e, c = miniKafka(t, dir, ln.Addr().String())
	if n := end(t, c, "a"); n != 1 {
		t.Fatalf("the broker has %d records after its restart, want 1", n)
	}
	c.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

func produceTo(t *testing.T, c *kafka.Cluster) {
	t.Helper()
	if _, err := c.EnsureTopic(t.Context(), kafka.TopicSpec{Name: "a", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	produce(t, c, "a", "one")
}
