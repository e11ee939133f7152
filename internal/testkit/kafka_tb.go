// The form of Kafka for tests.

package testkit

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

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
	if err := k.coordinate(tb.Context()); err != nil {
		tb.Fatalf("starting Kafka: %v", err)
	}
	return k
}

// coordinate waits until the broker coordinates transactions and groups: it
// makes the topics of both when the first of each is asked for, and answers
// NOT_COORDINATOR while it loads them. A test that counts what an outage costs
// would count that.
func (k *Kafka) coordinate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for i := range 16 { // their names fall on each of the four partitions
		name := fmt.Sprintf("tallywire-coordinated-%d", i)
		cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.TransactionalID(name))
		if err != nil {
			return err
		}
		err = poll(ctx, 20*time.Millisecond, func() (bool, error) {
			_, _, txns := cl.ProducerID(ctx)
			_, groups := kadm.NewClient(cl).FetchOffsets(ctx, name)
			return txns == nil && groups == nil, nil
		})
		cl.Close()
		if err != nil {
			return fmt.Errorf("waiting until Kafka coordinates: %w", err)
		}
	}
	return nil
}
