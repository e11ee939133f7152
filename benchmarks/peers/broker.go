// Broker: a Kafka, its topics, and what is in them.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/embedded"
)

type broker struct {
	*embedded.Kafka
	admin *kadm.Client

	followed bool // a live flow was measured on it
}

// startBroker starts one. Its settings are Kafka's own defaults where a
// contender could notice: testkit's broker retries an early transaction after
// 1 ms, Kafka's after 20.
func (w *world) startBroker(ctx context.Context, settings map[string]string) (*broker, error) {
	all := map[string]string{"add.partitions.to.txn.retry.backoff.ms": "20", "log.segment.delete.delay.ms": "1000"}
	for k, v := range settings {
		all[k] = v
	}
	k, err := embedded.StartKafka(ctx, embedded.KafkaOptions{HeapMB: 1024, Settings: all})
	if err != nil {
		return nil, err
	}
	w.onClose(k.Stop)
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()))
	if err != nil {
		return nil, err
	}
	w.onClose(func() error { cl.Close(); return nil })
	b := &broker{Kafka: k, admin: kadm.NewClient(cl)}
	return b, b.warm(ctx)
}

// What the broker is warmed with: a JVM compiles what it has run some ten
// thousand times, so that it takes many requests, not only many records.
const (
	warmProducers = 8
	warmTxns      = 300 // of each producer
	warmRecords   = 500 // of each transaction
)

// warm lets the broker's JVM compile what all contenders use, so that the first
// of them does not pay for it: without, he finds it take ten times the CPU.
func (b *broker) warm(ctx context.Context) error {
	const topic = "warm"
	if err := b.create(ctx, topic, warmProducers, nil); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, warmProducers)
	for i := range warmProducers {
		wg.Go(func() { errs[i] = b.warmBy(ctx, topic, int32(i)) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("warming the broker: %w", err)
	}
	n, err := b.count(ctx, topic)
	if err == nil && n != warmProducers*warmTxns*warmRecords {
		err = fmt.Errorf("warming the broker: it holds %d records of %d", n, warmProducers*warmTxns*warmRecords)
	}
	return errors.Join(err, b.drop(ctx, topic))
}

func (b *broker) warmBy(ctx context.Context, topic string, partition int32) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.DefaultProduceTopic(topic), kgo.TransactionalID(fmt.Sprint(topic, partition)),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer cl.Close()
	value := bytes.Repeat([]byte("what is written is of no interest "), 6)
	for range warmTxns {
		if err := cl.BeginTransaction(); err != nil {
			return err
		}
		failed := kgo.AbortingFirstErrPromise(cl)
		for range warmRecords {
			cl.Produce(ctx, &kgo.Record{Value: value, Partition: partition}, failed.Promise())
		}
		if err := failed.Err(); err != nil {
			return err
		}
		if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
			return err
		}
		if _, err := b.ends(ctx, topic); err != nil {
			return err
		}
	}
	return nil
}

// fresh deletes topics, and makes one anew.
func (b *broker) fresh(ctx context.Context, topic string, partitions int32, conf map[string]*string, others ...string) error {
	if err := b.drop(ctx, append(others, topic)...); err != nil {
		return err
	}
	return b.create(ctx, topic, partitions, conf)
}

func (b *broker) create(ctx context.Context, topic string, partitions int32, conf map[string]*string) error {
	_, err := b.admin.CreateTopic(ctx, partitions, 1, conf, topic)
	if err != nil {
		return fmt.Errorf("creating topic %s: %w", topic, err)
	}
	// Its leader is known to the broker a moment later.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		if _, err = b.ends(ctx, topic); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return fmt.Errorf("waiting for topic %s: %w", topic, err)
}

func (b *broker) drop(ctx context.Context, topics ...string) error {
	res, err := b.admin.DeleteTopics(ctx, topics...)
	if err != nil {
		return fmt.Errorf("deleting topics: %w", err)
	}
	for _, r := range res {
		if r.Err != nil && !errors.Is(r.Err, kerr.UnknownTopicOrPartition) {
			return fmt.Errorf("deleting topic %s: %w", r.Topic, r.Err)
		}
	}
	return nil
}

// ends is the sum of the partitions' last stable offsets: what a reader of
// committed records can see, and the markers of transactions.
func (b *broker) ends(ctx context.Context, topic string) (sum int64, err error) {
	l, err := b.admin.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return 0, err
	}
	if err := l.Error(); err != nil {
		return 0, err
	}
	l.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	return sum, nil
}

// count reads all committed records of a topic.
func (b *broker) count(ctx context.Context, topic string) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	ends, err := b.admin.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return 0, err
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepControlRecords(), kgo.FetchMaxBytes(16<<20), kgo.FetchMaxPartitionBytes(8<<20))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return 0, fmt.Errorf("counting the records of %s, %d so far: %w", topic, n, err)
		}
		// Control records are kept to see the last offset; they are no records.
		fs.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				n++
			}
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
		})
	}
	return n, nil
}
