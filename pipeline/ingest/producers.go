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

// takeProducers makes the clients and fences every predecessor, on all ids: one
// that was left out could still commit what it holds, after the position was
// read. Each client is made now and no later, since a client fences when it
// gets its producer id: one made later could throw out a successor.
func (s *session) takeProducers(ctx context.Context) error {
	if err := s.endHanging(ctx); err != nil {
		return err
	}
	for _, id := range TransactionalIDs(s.in.spec.Name) {
		cl, err := s.newClient(
			kgo.TransactionalID(id),
			kgo.TransactionTimeout(s.in.limits.TxnTimeout),
			kgo.ConcurrentTransactionsBackoff(time.Millisecond), // 20 ms, the default, is seen in every latency
			// Nobody reads what is not committed: what is in Kafka earlier is
			// only more requests. The flush before the end does not wait.
			kgo.ProducerLinger(txnGap),
		)
		if err != nil {
			return err
		}
		s.producers = append(s.producers, &txnProducer{id: id, client: cl})
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
			if err := fence(ctx, t.client); err != nil {
				return kafka.Wrap(err, "fencing predecessors of source %q (transactional id %q)", s.in.spec.Name, t.id)
			}
			return nil
		})
	}
	return g.Wait()
}

// endHanging ends what Kafka has decided on and left open. Fencing, which comes
// next, would make it forget the decision: what the source was told is durable
// could then not be told from what was aborted.
func (s *session) endHanging(ctx context.Context) error {
	name := s.in.spec.Name
	topics, err := s.in.env.Kafka.TopicsOf(ctx, name+".")
	if err != nil {
		return err
	}
	found, err := s.in.env.Kafka.EndHanging(ctx, TransactionalIDs(name), append(topics, s.positions.Name, parked.TopicOf(name)))
	for _, h := range found {
		s.in.comp.Log.Warn("a transaction that Kafka left open", "id", h.ID, "where", h.String(), "ended", err == nil)
	}
	return err
}

// fence makes Kafka refuse every client that used the transactional id before,
// and abort what they left open; it waits until the markers of that, or of a
// commit that was under way, are written. Setting up a client does none of
// this, only InitProducerID does (A4). Within a session kgo repeats it with the
// id and epoch that it holds, which Kafka refuses to one who was fenced.
func fence(ctx context.Context, client *kgo.Client) error {
	_, _, err := client.ProducerID(ctx)
	return err
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
