// Log: how the registry reads and writes its topic. One goroutine follows the
// committed records and applies them. Writes go through one transactional id
// that all registries of the Kafka share, so that at any moment only one of
// them can commit, and only after it has seen all that others committed
// (invariant 14: an outcome that is unknown is read back, never guessed).

package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/kafka"
)

// transactionalID is the same in every registry: whoever initialised it last is
// the writer, and the broker refuses all others.
const transactionalID = "tallywire.registry"

// writeTimeout bounds one write, takeover of the transactional id included.
const writeTimeout = 30 * time.Second

type schemaLog struct {
	cluster *kafka.Cluster
	log     *slog.Logger
	store   *store

	reader *kgo.Client
	done   chan struct{} // the following goroutine has ended

	mu      sync.Mutex
	applied int64         // offset after the last applied record
	moved   chan struct{} // closed and replaced when applied moves
	failed  error         // why following ended, if it did

	write    sync.Mutex  // one write at a time
	producer *kgo.Client // nil: must take the transactional id first
}

func openLog(ctx context.Context, cluster *kafka.Cluster, log *slog.Logger, s *store) (*schemaLog, error) {
	if _, err := cluster.EnsureTopic(ctx, kafka.TopicSpec{Name: Topic, Partitions: 1, Compact: true}); err != nil {
		return nil, err
	}
	reader, err := cluster.Client(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{Topic: {0: kgo.NewOffset().AtStart()}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(500*time.Millisecond),
	)
	if err != nil {
		return nil, err
	}
	l := &schemaLog{cluster: cluster, log: log, store: s, reader: reader, done: make(chan struct{}), moved: make(chan struct{})}
	go l.follow()
	return l, nil
}

// follow applies committed records until the reader is closed.
func (l *schemaLog) follow() {
	defer close(l.done)
	for {
		fs := l.reader.PollFetches(context.Background()) // ends when the reader is closed
		if fs.IsClientClosed() {
			return
		}
		var failed error
		fs.EachError(func(_ string, _ int32, err error) {
			// An outage passes; what remains of the topic is then read on.
			if errors.Is(err, kerr.OffsetOutOfRange) || errors.Is(err, kerr.TopicAuthorizationFailed) {
				failed = err
			}
		})
		fs.EachRecord(func(r *kgo.Record) {
			if err := l.store.apply(r.Key, r.Value); err != nil {
				l.log.Warn("a record of the schema topic is not understood", "topic", Topic, "offset", r.Offset, "error", err)
			}
			l.mu.Lock()
			l.applied = r.Offset + 1
			close(l.moved)
			l.moved = make(chan struct{})
			l.mu.Unlock()
		})
		if failed != nil {
			l.log.Error("the registry can no longer follow its topic", "topic", Topic, "error", failed)
			l.mu.Lock()
			l.failed = failed
			close(l.moved)
			l.moved = make(chan struct{})
			l.mu.Unlock()
			return
		}
	}
}

// await waits until the record at offset is applied.
func (l *schemaLog) await(ctx context.Context, offset int64) error {
	for {
		l.mu.Lock()
		applied, moved, failed := l.applied, l.moved, l.failed
		l.mu.Unlock()
		switch {
		case applied > offset:
			return nil
		case failed != nil:
			return fmt.Errorf("following %s: %w", Topic, failed)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// update decides on records and commits them. decide sees all that was
// committed before, and is asked again when another registry came between; no
// record means that there is nothing to write. When update returns nil, the
// store has applied the records.
func (l *schemaLog) update(ctx context.Context, decide func() ([]record, error)) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	l.write.Lock()
	defer l.write.Unlock()
	var last error
	for try := 0; ctx.Err() == nil; try++ {
		if try > 0 && !pause(ctx, try) {
			break
		}
		fresh := l.producer == nil
		if fresh {
			if last = l.takeOver(ctx); last != nil {
				if !retriable(last) {
					break
				}
				continue
			}
		}
		rs, err := decide()
		if err != nil && !fresh { // said on what may be old: look again
			l.dropProducer()
			continue
		}
		if err != nil || len(rs) == 0 {
			return err
		}
		if last = l.commit(ctx, rs); last == nil {
			return nil
		}
		// Fenced, or the outcome is unknown: this producer is done for, and
		// what was committed shows after the next takeover.
		l.dropProducer()
		l.log.Info("the schema topic was written by another, or its answer was lost: deciding again", "error", last)
	}
	if last == nil {
		last = ctx.Err()
	}
	return kafka.Wrap(last, "writing to %s", Topic)
}

// pause waits before another try, longer each time and never alike, so that two
// registries do not fence each other in step.
func pause(ctx context.Context, try int) bool {
	t := time.NewTimer(time.Duration(rand.Int64N(int64(min(try, 20)) * int64(20*time.Millisecond))))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// retriable: an outage, or another registry that takes over at the same moment.
func retriable(err error) bool {
	return !errors.Is(err, kerr.TransactionalIDAuthorizationFailed) && !errors.Is(err, kerr.TopicAuthorizationFailed) &&
		!errors.Is(err, kerr.ClusterAuthorizationFailed)
}

// takeOver fences all other writers, and then reads up to a record of its own:
// the topic has one partition, so all that they committed lies before it.
func (l *schemaLog) takeOver(ctx context.Context) error {
	ours := kafka.Transactional{
		ID: transactionalID, Timeout: 20 * time.Second,
		Topics: func(context.Context) ([]string, error) { return []string{Topic}, nil },
	}
	if err := l.cluster.TakeOver(ctx, ours); err != nil { // the fence
		return fmt.Errorf("taking over what is written to %s: %w", Topic, err)
	}
	p, err := l.cluster.Client(append(ours.Opts(l.cluster),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.DefaultProduceTopic(Topic),
		kgo.ProducerBatchMaxBytes(16<<20),
	)...)
	if err != nil {
		return err
	}
	l.producer = p
	if _, _, err := p.ProducerID(ctx); err != nil {
		l.dropProducer()
		return fmt.Errorf("taking the transactional id %s: %w", transactionalID, err)
	}
	if err := l.commit(ctx, []record{noop}); err != nil {
		l.dropProducer()
		return fmt.Errorf("marking the takeover of %s: %w", Topic, err)
	}
	return nil
}

// commit writes records in one transaction and waits until they are applied.
func (l *schemaLog) commit(ctx context.Context, rs []record) error {
	if err := l.producer.BeginTransaction(); err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	out := make([]*kgo.Record, len(rs))
	for i, r := range rs {
		out[i] = &kgo.Record{Topic: Topic, Partition: 0, Key: r.key, Value: r.value}
	}
	res := l.producer.ProduceSync(ctx, out...)
	if err := res.FirstErr(); err != nil {
		// The producer is dropped by the caller, and the next takeover aborts
		// what was begun.
		return fmt.Errorf("producing: %w", err)
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if err := kafka.Commit(end, l.producer); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return l.await(ctx, out[len(out)-1].Offset)
}

func (l *schemaLog) dropProducer() {
	if l.producer != nil {
		l.producer.Close()
		l.producer = nil
	}
}

func (l *schemaLog) close() {
	l.write.Lock()
	l.dropProducer()
	l.write.Unlock()
	l.reader.Close()
	<-l.done
}
