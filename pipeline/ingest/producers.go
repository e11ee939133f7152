// Transactional ids in turn (decision 21). Until the markers of a transaction
// are written, a broker holds back the next one of the same id, by default for
// 20 ms at a time (add.partitions.to.txn.retry.backoff.ms). So a session has
// several ids, each with a client of its own, and the next transaction is begun
// on the next of them while the one before ends.

package ingest

import (
	"context"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/parked"
)

// producerCount is how many transactional ids a source has. It must never be
// configurable, nor become smaller: a start has to fence every id that a
// predecessor may hold (A4).
const producerCount = 4

// TransactionalIDs are the transactional ids of a source. They depend on
// nothing but its name: whichever process runs the source fences all others.
func TransactionalIDs(source string) []string {
	ids := make([]string, producerCount)
	for i := range ids {
		ids[i] = "tallywire.ingest." + source
		if i > 0 {
			ids[i] += "." + strconv.Itoa(i)
		}
	}
	return ids
}

// txnProducer is one transactional id of a session and its client.
type txnProducer struct {
	id     string
	client *kgo.Client
	free   time.Time // when the end of its last transaction was confirmed
}

// nextProducer is the id that the next transaction is begun on: of those that are
// rested the one that was used last, so that in bulk the buffers of two clients
// are in use and not those of four; if none is rested, the one that will be
// first. Not that of a transaction that ends.
func (s *session) nextProducer(now time.Time) *txnProducer {
	var best *txnProducer
	for _, t := range s.producers {
		if s.ending != nil && s.ending.producer == t || s.txn != nil && s.txn.producer == t {
			continue
		}
		switch {
		case best == nil:
			best = t
		case t.rested().After(now): // of two that are not rested the earlier one
			if t.free.Before(best.free) {
				best = t
			}
		case best.rested().After(now) || t.free.After(best.free):
			best = t
		}
	}
	return best
}

// rested is when the markers of its last transaction are surely written.
func (t *txnProducer) rested() time.Time { return t.free.Add(producerRest) }

// takeProducers fences every predecessor, on all ids, and makes the clients: an
// id that was left out could still commit what it holds, after the position was
// read. Each client gets its producer id now and no later, since that fences
// too: one made later could throw out a successor.
func (s *session) takeProducers(ctx context.Context) error {
	ours := s.transactionals()
	if err := s.in.env.Kafka.TakeOver(ctx, ours...); err != nil {
		return err
	}
	for _, t := range ours {
		cl, err := s.newClient(append(t.Opts(s.in.env.Kafka),
			kgo.ConcurrentTransactionsBackoff(time.Millisecond), // 20 ms, the default, is seen in every latency
			// Nobody reads what is not committed: what is in Kafka earlier is
			// only more requests. The flush before the end does not wait.
			kgo.ProducerLinger(txnGap),
		)...)
		if err != nil {
			return err
		}
		s.producers = append(s.producers, &txnProducer{id: t.ID, client: cl})
	}
	if s.in.limits.Delivery == pipeline.AtLeastOnce {
		cl, err := s.newClient()
		if err != nil {
			return err
		}
		s.outside = cl
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range s.producers {
		g.Go(func() error {
			// Within a session kgo repeats InitProducerID with the id and epoch
			// that it holds, which Kafka refuses to one who was fenced.
			_, _, err := t.client.ProducerID(ctx)
			return kafka.Wrap(err, "taking transactional id %q of source %q", t.id, s.in.spec.Name)
		})
	}
	return g.Wait()
}

// transactionals are the source's ids. Their topics are all that exist by now:
// what a predecessor wrote to is among them.
func (s *session) transactionals() (ts []kafka.Transactional) {
	name, cluster := s.in.spec.Name, s.in.env.Kafka
	ours := []string{s.positions.Name, s.notes.topic.Name, parked.TopicOf(name)}
	topics := func(ctx context.Context) ([]string, error) {
		all, err := cluster.TopicsOf(ctx, name+".")
		return append(all, ours...), err
	}
	for _, id := range TransactionalIDs(name) {
		ts = append(ts, kafka.Transactional{ID: id, Timeout: s.in.limits.TxnTimeout, Topics: topics})
	}
	return ts
}

// newClient makes a client to produce with. All of them share what kgo lets
// them share; an idle one costs some goroutines and a connection or two.
func (s *session) newClient(opts ...kgo.Opt) (*kgo.Client, error) {
	return s.in.env.Kafka.Client(append([]kgo.Opt{
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytesFn(s.outs.BatchBytes),
		kgo.MaxBufferedRecords(1 << 20), // memory is bounded by the budget
		kgo.UnknownTopicRetries(-1),     // topics are made beforehand: unknown means a broker that starts
	}, opts...)...)
}

func (s *session) closeClients() {
	for _, t := range s.producers {
		t.client.Close()
	}
	if s.outside != nil {
		s.outside.Close()
	}
}
