// Hanging transactions: open in a partition, and nobody will ever end them.

package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tallywire/tallywire/internal/problem"
)

// ErrHanging says that a transaction of ours hangs and that we may not end it.
var ErrHanging = problem.Define("TW-KAFKA-HANGING", problem.Halt,
	"Kafka left a transaction of ours open in some partitions although it has decided on it: its readers wait for ever.",
	"Give tallywire's login ClusterAction on the cluster and start again: it ends the transaction as it was decided. "+
		"kafka-transactions.sh can end it too, but only by aborting: what had been committed is then missing, and the source has to be loaded anew.")

// Hanging is an open transaction in one partition that its coordinator knows
// nothing of any more.
type Hanging struct {
	ID         string // transactional id
	Topic      string
	Partition  int32
	Offset     int64 // of its first record
	ProducerID int64
	Commit     bool // it was decided to commit it
}

func (h Hanging) String() string {
	decision := "aborted"
	if h.Commit {
		decision = "committed"
	}
	return fmt.Sprintf("%s/%d from offset %d (producer %d, decided: %s)", h.Topic, h.Partition, h.Offset, h.ProducerID, decision)
}

// EndHanging ends transactions of ids, which are ours and of nobody who works,
// in topics. A coordinator that comes up again after a kill finds a transaction
// that was decided and not ended in all its partitions; one that comes up before
// the broker knows the topics takes them for deleted, and forgets the
// transaction as complete (seen on Apache Kafka 4.3: "these partitions are likely
// deleted already and hence can be skipped"; KIP-664 calls such transactions
// hanging). Each is ended as it was decided, and named in what is returned.
//
// It must come before InitProducerID, which makes the coordinator forget the
// decision. So a predecessor that is not fenced yet may begin its next
// transaction meanwhile, and that must be left alone: what hangs is told from it
// by its epoch, which the decision raised (KIP-890), and the markers carry the
// epoch that was seen, which a partition refuses once it knows a later one.
// Where decisions do not raise epochs (before Kafka 4.0), nothing is ended, nor
// where the broker does not answer such questions.
func (c *Cluster) EndHanging(ctx context.Context, ids, topics []string) ([]Hanging, error) {
	decided, err := c.decided(ctx, ids)
	if err != nil || len(decided) == 0 {
		return nil, err
	}
	behind, err := c.unstable(ctx, topics)
	if err != nil || len(behind) == 0 {
		return nil, err
	}
	producers, err := c.admin.DescribeProducers(ctx, behind)
	if unanswered(err) {
		return nil, nil
	}
	if err != nil {
		return nil, Wrap(err, "asking who produces to %d topics", len(behind))
	}
	var found []Hanging
	type of struct {
		producer int64
		epoch    int16
	}
	markers := map[of]*kadm.TxnMarkers{}
	for _, p := range producers.SortedPartitions() {
		for id, t := range decided {
			a, is := p.ActiveProducers[t.ProducerID]
			if !is || a.CurrentTxnStartOffset < 0 || a.ProducerEpoch != t.ProducerEpoch-1 {
				continue
			}
			which := of{t.ProducerID, a.ProducerEpoch}
			m := markers[which]
			if m == nil {
				m = &kadm.TxnMarkers{ProducerID: t.ProducerID, ProducerEpoch: a.ProducerEpoch, Commit: t.State == "CompleteCommit", Topics: kadm.TopicsSet{}}
				markers[which] = m
			}
			m.CoordinatorEpoch = max(m.CoordinatorEpoch, a.CoordinatorEpoch)
			m.Topics.Add(p.Topic, p.Partition)
			found = append(found, Hanging{id, p.Topic, p.Partition, a.CurrentTxnStartOffset, t.ProducerID, m.Commit})
		}
	}
	for _, m := range markers {
		if err := c.mark(ctx, *m); err != nil {
			if refused(err) {
				return found, ErrHanging.New("%s: %w", joined(found), err)
			}
			return found, Wrap(err, "ending a transaction that hangs in %s", joined(found))
		}
	}
	return found, nil
}

// joined names the first few.
func joined(hs []Hanging) string {
	var names []string
	for _, h := range hs[:min(len(hs), 5)] {
		names = append(names, h.String())
	}
	if n := len(hs) - 5; n > 0 {
		names = append(names, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(names, ", ")
}

// decided gives the last transactions of ids that their coordinators have
// decided and take for ended. One that it is ending now is waited for.
func (c *Cluster) decided(ctx context.Context, ids []string) (map[string]kadm.DescribedTransaction, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		all, err := c.admin.DescribeTransactions(ctx, ids...)
		if unanswered(err) {
			return nil, nil
		}
		if err != nil {
			return nil, Wrap(err, "asking what became of the last transactions")
		}
		decided, ending := map[string]kadm.DescribedTransaction{}, false
		for id, t := range all {
			switch {
			case errors.Is(t.Err, kerr.TransactionalIDNotFound), unanswered(t.Err):
			case t.Err != nil:
				return nil, Wrap(t.Err, "asking what became of the last transaction of %q", id)
			case strings.HasPrefix(t.State, "Prepare"):
				ending = true
			case t.State == "CompleteCommit", t.State == "CompleteAbort":
				decided[id] = t
			}
		}
		if !ending {
			return decided, nil
		}
		select {
		case <-ctx.Done():
			return nil, Wrap(ctx.Err(), "waiting for the last transactions to end")
		case <-tick.C:
		}
	}
}

// unstable gives the partitions in which something is open.
func (c *Cluster) unstable(ctx context.Context, topics []string) (kadm.TopicsSet, error) {
	if len(topics) == 0 {
		return nil, nil
	}
	// The last stable offsets first: the ends can only have grown since.
	stable, err := c.admin.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return nil, Wrap(err, "listing where topics are stable")
	}
	ends, err := c.admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, Wrap(err, "listing where topics end")
	}
	open := kadm.TopicsSet{}
	stable.Each(func(s kadm.ListedOffset) {
		if e, is := ends.Lookup(s.Topic, s.Partition); is && s.Err == nil && e.Err == nil && s.Offset < e.Offset {
			open.Add(s.Topic, s.Partition)
		}
	})
	return open, nil
}

// mark ends a transaction in the partitions named.
func (c *Cluster) mark(ctx context.Context, m kadm.TxnMarkers) error {
	rs, err := c.admin.WriteTxnMarkers(ctx, m)
	if err != nil {
		return err
	}
	for _, r := range rs.SortedPartitions() {
		if r.Err != nil {
			return fmt.Errorf("%s/%d: %w", r.Topic, r.Partition, r.Err)
		}
	}
	return nil
}

// unanswered: a broker too old for the question, or one that we may not ask.
func unanswered(err error) bool {
	return errors.Is(err, kerr.UnsupportedVersion) || errors.Is(err, kerr.TransactionalIDAuthorizationFailed) ||
		errors.Is(err, kerr.ClusterAuthorizationFailed) || errors.Is(err, kerr.TopicAuthorizationFailed)
}

// TopicsOf lists the topics whose names begin so, in order.
func (c *Cluster) TopicsOf(ctx context.Context, prefix string) ([]string, error) {
	all, err := c.admin.ListTopics(ctx)
	if err != nil {
		return nil, Wrap(err, "listing topics")
	}
	names := all.Names()
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) }), nil
}

// Holders names the producers whose transactions are open in a topic, for a
// message.
func (c *Cluster) Holders(ctx context.Context, topic string) string {
	behind, err := c.unstable(ctx, []string{topic})
	if err != nil || len(behind) == 0 {
		return "nobody who is known"
	}
	producers, err := c.admin.DescribeProducers(ctx, behind)
	if err != nil {
		return "nobody who is known"
	}
	var names []string
	for _, p := range producers.SortedProducers() {
		if p.CurrentTxnStartOffset >= 0 {
			names = append(names, fmt.Sprintf("producer %d, partition %d, from offset %d", p.ProducerID, p.Partition, p.CurrentTxnStartOffset))
		}
	}
	if len(names) == 0 {
		return "nobody who is known"
	}
	return strings.Join(names, "; ")
}
