package kafka

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
)

// Lost if this fails: a name that Kafka does not take is told as a want of rights.
func TestTopicNamesThatKafkaRefuses(t *testing.T) {
	t.Run("fake", func(t *testing.T) {
		fake, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		defer fake.Close()
		refusesNames(t, fake.ListenAddrs()...)
	})
	t.Run("real", func(t *testing.T) { refusesNames(t, testkit.NewKafka(t, embedded.KafkaOptions{}).Addr()) })
}

func refusesNames(t *testing.T, brokers ...string) {
	c, err := New(Config{Brokers: brokers}, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ensure := func(name string) error {
		_, err := c.EnsureTopic(t.Context(), TopicSpec{Name: name})
		return err
	}
	if err := ensure("psa.a_b.c"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"psa.a.b_c":              `"psa.a.b_c" beside "psa.a_b.c"`,
		"psa.public.grö":         "has 'ö'",
		strings.Repeat("x", 250): "has 250 octets",
	} {
		if err := ensure(name); !problem.Has(err, ErrTopicName) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	// Remedy: TW-KAFKA-TOPIC-NAME
	if _, err := c.Admin().DeleteTopics(t.Context(), "psa.a_b.c"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"psa.a.b_c", "psa.a_b.c-2"} {
		if err := ensure(name); err != nil {
			t.Error(err)
		}
	}
}
