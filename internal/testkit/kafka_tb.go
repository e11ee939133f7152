// The form of Kafka for tests.

package testkit

import (
	"context"
	"sync"
	"time"
)

// NewKafka gives a broker of its own to one test and stops it with the
// test.
func NewKafka(tb TB, o KafkaOptions) *Kafka {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 5*time.Minute)
	defer cancel()
	k, err := StartKafka(ctx, o)
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

var shared struct {
	sync.Mutex
	kafka *Kafka
}

// SharedKafka gives the one broker that all tests of this process share,
// started by the first; a test uses names of its own there and neither stops
// nor kills it. TestMain ends it with StopSharedKafka.
func SharedKafka(tb TB) *Kafka {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.kafka != nil {
		return shared.kafka
	}
	ctx, cancel := context.WithTimeout(tb.Context(), 5*time.Minute)
	defer cancel()
	k, err := StartKafka(ctx, KafkaOptions{})
	if err != nil {
		tb.Fatalf("starting Kafka: %v", err)
	}
	shared.kafka = k
	return k
}

// StopSharedKafka ends what SharedKafka started, if it did.
func StopSharedKafka() error {
	shared.Lock()
	defer shared.Unlock()
	if shared.kafka == nil {
		return nil
	}
	err := shared.kafka.Stop()
	shared.kafka = nil
	return err
}
