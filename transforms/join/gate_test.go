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

// If this failed, each row of a start would be emitted as waiting, and again when
// its references are read; or none ever.
func TestGateWaitsForTheReferences(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "ps.project"))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	c, err := kafka.New(kafka.Config{Brokers: fake.ListenAddrs()}, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		if err := c.Shared().ProduceSync(t.Context(), &kgo.Record{Topic: "ps.project", Value: []byte("v")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	g := &gate{cluster: c, group: "tallywire.costed.right", topics: []string{"ps.project"}}
	commit := func(at int64) {
		t.Helper()
		read := kadm.Offsets{}
		read.AddOffset("ps.project", 0, at, -1)
		if rs, err := c.Admin().CommitOffsets(t.Context(), g.group, read); err != nil || rs.Error() != nil {
			t.Fatal(err, rs.Error())
		}
	}
	for at := range int64(3) {
		commit(at)
		if err := g.open(t.Context()); !problem.Has(err, ErrRightBehind) {
			t.Fatalf("with %d read: %v, want TW-LOOKUP-BEHIND", at, err)
		}
	}
	commit(3)
	if err := g.open(t.Context()); err != nil { // Remedy: TW-LOOKUP-BEHIND
		t.Fatal(err)
	}
}
