// Transactional ids: taking one over, and keeping it whole while brokers come
// and go.

package kafka

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Transactional is a transactional id and what is written with it.
type Transactional struct {
	ID      string
	Timeout time.Duration // of a transaction
	// Topics lists those that its transactions write to; they exist.
	// Group says that they hold offsets of groups too.
	Topics func(context.Context) ([]string, error)
	Group  bool
}

// settleWithin is for what comes before a connection.
const settleWithin = 10 * time.Second

// quietFor is how long a client that has nothing to write leaves its brokers
// alone: then it notices one that came back, and what that left open.
const quietFor = time.Minute

// TakeOver makes ids ours: what Kafka has decided on and left open is ended as
// it was decided (endHanging), predecessors are fenced, what they left open is
// aborted, and the markers of that are written when it returns (A4, A5). A
// decision is looked at before it is forgotten: InitProducerID aborts an open
// transaction, but answers only that one is under way, so it is asked again once
// that has ended, and what became of it was looked at.
//
// ErrHanging: we may not end it. ErrUndecided: it is older than what Kafka
// still knows.
func (c *Cluster) TakeOver(ctx context.Context, ts ...Transactional) error {
	fates := map[string]fate{}
	var ids []string
	for _, t := range ts {
		ids = append(ids, t.ID)
	}
	topics := func(ctx context.Context) (all []string, err error) {
		for _, t := range ts {
			names, err := t.topics(ctx)
			if err != nil {
				return nil, err
			}
			all = append(all, names...)
		}
		slices.Sort(all)
		return slices.Compact(all), nil
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	left := slices.Clone(ts)
	for began := time.Now(); ; {
		if _, err := c.endHanging(ctx, ids, topics, fates); err != nil {
			return err
		}
		var failed error
		left = slices.DeleteFunc(left, func(t Transactional) bool {
			err := c.fence(ctx, t)
			if err != nil && !errors.Is(err, kerr.ConcurrentTransactions) {
				failed = Wrap(err, "fencing predecessors of transactional id %q", t.ID)
			}
			return err == nil
		})
		if failed != nil {
			return failed
		}
		if len(left) == 0 {
			return c.undecided(ctx, ids, topics)
		}
		if time.Since(began) > endsWithin {
			return ErrUnavailable.New("a transaction of a predecessor of %q has not ended for %v", left[0].ID, endsWithin)
		}
		select {
		case <-ctx.Done():
			return Wrap(ctx.Err(), "waiting until a transaction of a predecessor of %q has ended", left[0].ID)
		case <-tick.C:
		}
	}
}

func (t Transactional) topics(ctx context.Context) ([]string, error) {
	names, err := t.Topics(ctx)
	if t.Group {
		names = append(slices.Clip(names), groupOffsets)
	}
	return names, err
}

// fence asks once for a producer id with which nobody but us goes on.
func (c *Cluster) fence(ctx context.Context, t Transactional) error {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID, req.TransactionTimeoutMillis = &t.ID, int32(t.Timeout.Milliseconds())
	req.ProducerID, req.ProducerEpoch = -1, -1
	resp, err := req.RequestWith(ctx, c.shared)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}

// undecided fails if, after fencing, something of ours is open still. A marker
// counts from when its partition has it, so there is nothing to wait for.
func (c *Cluster) undecided(ctx context.Context, ids []string, topics func(context.Context) ([]string, error)) error {
	names, err := topics(ctx)
	if err != nil {
		return err
	}
	open, err := c.openIn(ctx, names)
	if err != nil || len(open) == 0 {
		return err
	}
	all, err := c.admin.DescribeTransactions(ctx, ids...)
	if unanswered(err) {
		return nil
	}
	if err != nil {
		return Wrap(err, "asking for the epochs of our transactional ids")
	}
	var found []Hanging
	for _, a := range open {
		for id, t := range all {
			if t.Err == nil && t.ProducerID == a.ProducerID && a.ProducerEpoch < t.ProducerEpoch {
				found = append(found, Hanging{ID: id, Topic: a.Topic, Partition: a.Partition, Offset: a.CurrentTxnStartOffset, ProducerID: a.ProducerID})
			}
		}
	}
	if len(found) > 0 {
		return ErrUndecided.New("transactional id %q: %s", found[0].ID, joined(found))
	}
	return nil
}

// Opts makes a client the transactional one of t, which was taken over. A broker
// that comes back may have left the last transaction open (endHanging), and
// kgo would go on with the next one over it; so each new connection waits until
// that is looked at, and ended as it was decided. A client at rest asks its
// brokers for metadata every minute, so that it notices.
func (t Transactional) Opts(c *Cluster) []kgo.Opt {
	dial := c.shared.OptValue(kgo.Dialer).(func(context.Context, string, string) (net.Conn, error))
	return []kgo.Opt{
		kgo.TransactionalID(t.ID),
		kgo.TransactionTimeout(t.Timeout),
		kgo.MetadataMaxAge(quietFor),
		kgo.DialTLSConfig(nil), // it is in dial
		kgo.Dialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
			if err := c.settle(ctx, t); err != nil {
				return nil, &net.OpError{Op: "dial", Net: network, Err: err} // kgo tries such again
			}
			return dial(ctx, network, addr)
		}),
	}
}

// settle ends what Kafka left open of t's last transaction, if it did.
func (c *Cluster) settle(ctx context.Context, t Transactional) error {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	_, err := c.endHanging(ctx, []string{t.ID}, t.topics, map[string]fate{})
	return err
}
