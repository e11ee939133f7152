package registry_test

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/testkit"
)

// through gives a cluster whose connections all pass a proxy that loses things.
func through(t *testing.T, brokers string) (*kafka.Cluster, *testkit.KafkaProxy) {
	p, err := testkit.NewKafkaProxy(brokers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := kafka.New(kafka.Config{Brokers: []string{brokers}, Opts: []kgo.Opt{kgo.Dialer(p.Dial)}}, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, p
}

// If this failed, a lost answer would give a schema a second version, or an id
// to a schema that is not there (invariant 14).
func TestLostAnswersAreReadBack(t *testing.T) {
	c, p := through(t, newCluster(t).Brokers()[0])
	cl, stop := open(t, c)
	defer stop()
	ctx := t.Context()
	want := map[int]string{}
	n := 0
	for name, key := range map[string]int16{"EndTxn": 26, "Produce": 0} {
		for _, loss := range []testkit.KafkaLoss{testkit.LoseRequest, testkit.LoseReply} {
			n++
			subject, s := fmt.Sprintf("s%d", n), rec(fmt.Sprintf("r%d", n), fieldA)
			hit := p.Lose(key, loss, 1)
			id, err := cl.RegisterSchema(ctx, subject, s, -1, -1)
			if err != nil {
				t.Fatalf("losing %v of %s: %v", loss, name, err)
			}
			if len(hit) != 1 {
				t.Fatalf("losing %v of %s: nothing was lost", loss, name)
			}
			if was, dup := want[id]; dup {
				t.Fatalf("losing %v of %s: id %d names %s already", loss, name, id, was)
			}
			want[id] = s.Schema
			if vs, err := cl.SubjectVersions(ctx, subject); err != nil || len(vs) != 1 {
				t.Fatalf("losing %v of %s: versions %v, %v", loss, name, vs, err)
			}
		}
	}
	hit := p.Lose(22, testkit.LoseReply, 1) // InitProducerID, on which the takeover rests
	again, stopAgain := open(t, c)
	defer stopAgain()
	if len(hit) != 1 {
		t.Fatal("no answer to InitProducerID was lost")
	}
	for id, s := range want {
		if text, err := again.SchemaTextByID(ctx, id); err != nil || text != s {
			t.Errorf("after a restart id %d is %q, want %q (%v)", id, text, s, err)
		}
	}
}

// The same rivalry as on the embedded broker, on Apache Kafka.
func TestTwoRegistriesOnApacheKafka(t *testing.T) {
	k := testkit.NewKafka(t, embedded.KafkaOptions{})
	c, err := kafka.New(kafka.Config{Brokers: []string{k.Addr()}}, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	rivalry(t, c)
}
