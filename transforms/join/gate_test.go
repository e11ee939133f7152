package join

import (
	"log/slog"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

// kafkaOf is a Kafka with topics of one partition, empty.
func kafkaOf(t *testing.T, topics ...string) *kafka.Cluster {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	c, err := kafka.New(kafka.Config{Brokers: fake.ListenAddrs()}, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func put(t *testing.T, c *kafka.Cluster, topic string, n int) {
	t.Helper()
	for range n {
		if err := c.Shared().ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("v")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func commit(t *testing.T, c *kafka.Cluster, group, topic string, at int64) {
	t.Helper()
	read := kadm.Offsets{}
	read.AddOffset(topic, 0, at, -1)
	if rs, err := c.Admin().CommitOffsets(t.Context(), group, read); err != nil || rs.Error() != nil {
		t.Fatal(err, rs.Error())
	}
}

// If this failed, each row of a start would be emitted as waiting, and again when
// its references are read; or none ever.
func TestGateWaitsForTheReferences(t *testing.T) {
	c := kafkaOf(t, "ps.project")
	put(t, c, "ps.project", 3)
	g := &gate{cluster: c, group: "tallywire.costed.right", topics: []string{"ps.project"}}
	for at := range int64(3) {
		commit(t, c, g.group, "ps.project", at)
		if err := g.open(t.Context()); !problem.Has(err, ErrRightBehind) {
			t.Fatalf("with %d read: %v, want TW-LOOKUP-BEHIND", at, err)
		}
	}
	commit(t, c, g.group, "ps.project", 3)
	if err := g.open(t.Context()); err != nil { // Remedy: TW-LOOKUP-BEHIND
		t.Fatal(err)
	}
}

// What the left group has still to work off is what Kafka says: records that are there
// and not committed, of the queue alone.
func TestFlowOfTheLeftGroup(t *testing.T) {
	c := kafkaOf(t, "ps.time_entry", "queue")
	flow := FlowOf(c, "costed", "ps.time_entry", "queue")
	want := func(what string, want Flow) {
		t.Helper()
		if f, err := flow(t.Context()); err != nil || f != want {
			t.Fatalf("%s: %+v (%v), want %+v", what, f, err, want)
		}
	}
	put(t, c, "queue", 2)
	put(t, c, "ps.time_entry", 5)
	want("nothing was committed", Flow{Ends: 5})
	commit(t, c, "tallywire.costed", "ps.time_entry", 3)
	commit(t, c, "tallywire.costed", "queue", 0)
	want("nothing was worked off", Flow{Queued: 2, Ends: 5})
	put(t, c, "queue", 4)
	put(t, c, "ps.time_entry", 1)
	commit(t, c, "tallywire.costed", "queue", 5)
	want("all but one", Flow{Queued: 1, Ends: 6})
	commit(t, c, "tallywire.costed", "queue", 6)
	want("all", Flow{Ends: 6})
}
