// Hanging transactions: open in a partition, and nobody will ever end them.

package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/internal/problem"
)

// ErrHanging says that a transaction of ours hangs and that we may not end it.
var ErrHanging = problem.Define("TW-KAFKA-HANGING", problem.Halt,
	"Kafka left a transaction of ours open in some partitions although it has decided on it: its readers wait for ever.",
	"Give tallywire's login ClusterAction on the cluster and start again: it ends the transaction as it was decided. "+
		"kafka-transactions.sh can end it too, but only by aborting: what had been committed is then missing, and the source has to be started over (docs/recovery.md).")

// ErrUndecided says that a transaction of ours hangs of which Kafka does not
// know any more what was decided.
var ErrUndecided = problem.Define("TW-KAFKA-UNDECIDED", problem.Halt,
	"Kafka left a transaction of ours open in some partitions and has forgotten whether it was committed: its readers wait for ever.",
	"kafka-transactions.sh find-hanging names it, and abort ends it; then start again. It may have been committed elsewhere: then start the source over (docs/recovery.md), "+
		"or reset the group's offsets to before it.")

// Hanging is an open transaction in one partition that its coordinator knows
// nothing of any more.
type Hanging struct {
	ID         string // transactional id
	Topic      string
	Partition  int32
	Offset     int64 // of its first record
	ProducerID int64
	Decided    bool // what was decided is known
	Commit     bool // it was decided to commit it
}

func (h Hanging) String() string {
	where := fmt.Sprintf("%s/%d from offset %d (producer %d)", h.Topic, h.Partition, h.Offset, h.ProducerID)
	switch {
	case !h.Decided:
		return where
	case h.Commit:
		return where + ", decided: committed"
	}
	return where + ", decided: aborted"
}

// fate is what a coordinator knows of the last transaction of an id.
type fate struct {
	producer int64
	epoch    int16 // that its records carry
	decided  bool
	commit   bool
}

// endHanging ends transactions of ids, which are ours, in topics. A coordinator
// that comes up again after a kill finds a transaction that was decided and not
// ended in all its partitions; one that comes up before the broker knows the
// topics takes them for deleted, and forgets the transaction as complete (seen
// on Apache Kafka 4.3, in TestTransactionalOutlivesABroker with the looks taken
// out: "these partitions
// are likely deleted already and hence can be skipped"; KIP-664 calls such
// transactions hanging). Each is ended as it was decided, and named in the log
// and in what is returned. It must come before the id's next transaction, and
// before InitProducerID: both make the coordinator forget the decision.
//
// An owner that is not fenced yet may begin its next transaction meanwhile, and
// that must be left alone: what hangs is told from it by its epoch, which the
// decision raised (KIP-890), and the markers carry the epoch that was seen,
// which a partition refuses once it knows a later one. Where decisions do not
// raise epochs (before Kafka 4.0), nothing is ended, nor where the broker does
// not answer such questions.
//
// fates keeps what is known of the ids from call to call: fencing an open
// transaction aborts it, and raises the epoch more than once.
func (c *Cluster) endHanging(ctx context.Context, ids []string, topics func(context.Context) ([]string, error), fates map[string]fate) ([]Hanging, error) {
	if err := c.decisions(ctx, ids, fates); err != nil {
		return nil, err
	}
	of := map[int64]string{}
	for id, f := range fates {
		if f.decided {
			of[f.producer] = id
		}
	}
	if len(of) == 0 {
		return nil, nil
	}
	names, err := topics(ctx)
	if err != nil {
		return nil, err
	}
	open, err := c.openIn(ctx, names)
	if err != nil {
		return nil, err
	}
	var found []Hanging
	markers := map[string]*kadm.TxnMarkers{}
	for _, a := range open {
		id, is := of[a.ProducerID]
		if !is || a.ProducerEpoch != fates[id].epoch {
			continue
		}
		m := markers[id]
		if m == nil {
			m = &kadm.TxnMarkers{ProducerID: a.ProducerID, ProducerEpoch: a.ProducerEpoch, Commit: fates[id].commit, Topics: kadm.TopicsSet{}}
			markers[id] = m
		}
		m.CoordinatorEpoch = max(m.CoordinatorEpoch, a.CoordinatorEpoch)
		m.Topics.Add(a.Topic, a.Partition)
		found = append(found, Hanging{id, a.Topic, a.Partition, a.CurrentTxnStartOffset, a.ProducerID, true, m.Commit})
	}
	for _, m := range markers {
		if err = c.mark(ctx, *m); err != nil {
			break
		}
	}
	if c.obs != nil {
		for _, h := range found {
			c.obs.Log.Warn("a transaction that Kafka left open", "id", h.ID, "where", h.String(), "ended", err == nil)
		}
	}
	switch {
	case refused(err):
		return found, ErrHanging.New("%s: %w", joined(found), err)
	case err != nil:
		return found, Wrap(err, "ending a transaction that hangs in %s", joined(found))
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

// endsWithin is how long a coordinator may take to end what it has decided.
const endsWithin = time.Minute

// decisions asks the coordinators of ids for their last transactions. One that
// is being ended is waited for.
func (c *Cluster) decisions(ctx context.Context, ids []string, fates map[string]fate) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		all, err := c.admin.DescribeTransactions(ctx, ids...)
		if unanswered(err) {
			return nil
		}
		if err != nil {
			return Wrap(err, "asking what became of the last transactions")
		}
		var ending kadm.DescribedTransaction
		for id, t := range all {
			switch {
			case errors.Is(t.Err, kerr.TransactionalIDNotFound), unanswered(t.Err):
			case t.Err != nil:
				return Wrap(t.Err, "asking what became of the last transaction of %q", id)
			case strings.HasPrefix(t.State, "Prepare"):
				ending = t
			case t.State == "Ongoing":
				fates[id] = fate{producer: t.ProducerID, epoch: t.ProducerEpoch}
			case t.State == "CompleteCommit", t.State == "CompleteAbort":
				f := fate{t.ProducerID, t.ProducerEpoch - 1, true, t.State == "CompleteCommit"}
				if was := fates[id]; !f.commit && was.producer == f.producer && was.epoch < f.epoch {
					f.epoch = was.epoch // it was open when it was fenced
				}
				fates[id] = f
			}
		}
		if ending.State == "" {
			return nil
		}
		if time.Since(began) > endsWithin {
			return ErrUnavailable.New("the last transaction of %q has been in state %s for %v", ending.TxnID, ending.State, endsWithin)
		}
		select {
		case <-ctx.Done():
			return Wrap(ctx.Err(), "waiting for the last transactions to end")
		case <-tick.C:
		}
	}
}

// openIn lists the transactions that are open in topics; nothing where the
// broker does not answer that.
func (c *Cluster) openIn(ctx context.Context, topics []string) ([]kadm.DescribedProducer, error) {
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
	for _, p := range producers.SortedPartitions() {
		if p.Err != nil && !unanswered(p.Err) {
			return nil, Wrap(p.Err, "asking who produces to partition %d of topic %q", p.Partition, p.Topic)
		}
	}
	all := producers.SortedProducers()
	return slices.DeleteFunc(all, func(p kadm.DescribedProducer) bool { return p.CurrentTxnStartOffset < 0 }), nil
}

// groupOffsets is where groups' offsets are kept. It is made when it is first
// needed.
const groupOffsets = "__consumer_offsets"

// unstable gives the partitions in which something is open. A broker that has
// just come up may not know the topics yet: that is an error, not an answer.
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
	for _, name := range topics {
		if len(stable[name]) == 0 {
			return nil, ErrUnavailable.New("topic %q is not known yet", name)
		}
		for part, s := range stable[name] {
			e, is := ends.Lookup(name, part)
			switch err := cmp.Or(s.Err, e.Err); {
			case errors.Is(err, kerr.UnknownTopicOrPartition) && name == groupOffsets:
			case err != nil || !is:
				return nil, Wrap(cmp.Or[error](err, kerr.UnknownTopicOrPartition), "listing where partition %d of topic %q ends", part, name)
			case s.Offset < e.Offset:
				open.Add(name, part)
			}
		}
	}
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

// TopicsOf lists the topics that are there now and whose names begin so, in order.
func (c *Cluster) TopicsOf(ctx context.Context, prefix string) ([]string, error) {
	// Asked directly: what kgo heard a moment ago lacks those that are new, and
	// has those that somebody asked for in vain.
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = nil // all
	resp, err := req.RequestWith(ctx, c.shared)
	if err != nil {
		return nil, Wrap(err, "listing topics")
	}
	var names []string
	for _, t := range resp.Topics {
		if t.Topic != nil && strings.HasPrefix(*t.Topic, prefix) && !errors.Is(kerr.ErrorForCode(t.ErrorCode), kerr.UnknownTopicOrPartition) {
			names = append(names, *t.Topic)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Holders names the producers whose transactions are open in a topic, for a
// message.
func (c *Cluster) Holders(ctx context.Context, topic string) string {
	open, err := c.openIn(ctx, []string{topic})
	if err != nil || len(open) == 0 {
		return "nobody who is known"
	}
	var names []string
	for _, p := range open {
		names = append(names, fmt.Sprintf("producer %d, partition %d, from offset %d", p.ProducerID, p.Partition, p.CurrentTxnStartOffset))
	}
	return strings.Join(names, "; ")
}
