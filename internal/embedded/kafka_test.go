package embedded

import (
	"context"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// If this failed, every crash test on real Kafka would test nothing: a kill
// must be a kill, a restart must find port and records again, and Kafka's own
// tools must run.
func TestKafkaKillRestartTool(t *testing.T) {
	k, err := StartKafka(t.Context(), KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), StartWithin)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, 1, 1, nil, "kept"); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "kept", Value: []byte("one")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	addr := k.Addr()
	if err := k.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := k.ping(ctx); err == nil {
		t.Fatal("a killed broker answers")
	}
	if err := k.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if k.Addr() != addr {
		t.Fatalf("the broker moved from %s to %s", addr, k.Addr())
	}
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, "kept")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := ends.Lookup("kept", 0); o.Offset != 1 {
		t.Fatalf("end offset after a kill: %d, want 1", o.Offset)
	}
	out, err := k.Tool(ctx, ConsumerGroups, "--bootstrap-server", k.Addr(), "--group", "g",
		"--reset-offsets", "--to-earliest", "--topic", "kept", "--execute")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "kept") {
		t.Fatalf("kafka-consumer-groups printed:\n%s", out)
	}
}
