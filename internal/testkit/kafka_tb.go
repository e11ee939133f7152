// The form of Kafka for tests.

package testkit

// NewKafka gives a broker of its own to one test and stops it with the
// test.
func NewKafka(tb TB, o KafkaOptions) *Kafka {
	tb.Helper()
	k, err := StartKafka(tb.Context(), o)
	if err != nil {
		tb.Fatalf("starting Kafka: %v", err)
	}
	tb.Cleanup(func() {
		if err := k.Stop(); err != nil {
			tb.Errorf("stopping Kafka: %v", err)
		}
	})
	return k
}
