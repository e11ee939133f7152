// The form of Kafka for tests.

package testkit

import "github.com/tallywire/tallywire/internal/embedded"

// NewKafka gives a broker of its own to one test and stops it with the
// test.
func NewKafka(tb TB, o embedded.KafkaOptions) *embedded.Kafka {
	tb.Helper()
	k, err := embedded.StartKafka(tb.Context(), o)
	if err != nil {
		tb.Fatalf("starting Kafka: %v", err)
	}
	tb.Cleanup(func() {
		if err := k.Stop(); err != nil {
			tb.Errorf("stopping Kafka: %v", err)
		}
	})
	if err := k.Coordinate(tb.Context()); err != nil {
		tb.Fatalf("starting Kafka: %v", err)
	}
	return k
}
