// How the transactions of a session end. One may end while the next is filled,
// never two: the next one is committed only after this one's end is confirmed,
// so that what is committed has no gap (invariants 1 and 14).

package ingest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/clock"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

// commit gives the open transaction its position as the last record and begins
// to end it. The source hears of it when the end is confirmed (collect).
func (s *session) commit() error {
	if s.txn.boundary == nil {
		return s.tooLong()
	}
	if err := s.awaitEnd(); err != nil {
		return err
	}
	t := s.txn
	s.pace.began(time.Now())
	s.mu.Lock()
	s.position.setResume(t.boundary)
	s.position.WrittenAt = time.Now().UTC()
	s.topics.note(&s.in.large)
	t.naming, t.noted = s.topics.into(&s.position, s.positions.Name), s.notes.written(t.notes)
	s.position.Notes, s.position.Quarantine = len(s.notes.keys), s.quarantine
	t.position = s.position.encode()
	s.mu.Unlock()
	end := s.writePosition
	if s.atLeastOnce() {
		t.confirmed() // the sequencer's own: no job comes any more
	} else {
		s.producePosition(t)
		if err := s.flush(t, s.deadline(t)); err != nil {
			return err
		}
		end = s.end
	}
	s.ending, s.txn = t, nil
	s.open.Store(false)
	s.wg.Go(func() {
		t.err = outage.Guard(func() error { return end(t) })
		t.endedAt = time.Now()
		s.ended <- t
	})
	return nil
}

func (s *session) producePosition(t *txn) {
	r := &kgo.Record{Topic: s.positions.Name, Key: []byte(s.in.spec.Name), Value: t.position}
	for _, r := range slices.Concat(t.noted, t.naming, []*kgo.Record{r}) {
		t.producer.client.Produce(s.ctx, r, func(r *kgo.Record, err error) {
			if err != nil {
				s.refused(t, r, err)
			}
		})
	}
}

// flush waits until all records of a transaction are in Kafka. It comes before
// the first record of the next one: that goes out through another client, and
// what is in a partition first is first (invariant 4).
//
// It is what bounds the wait: kgo never gives up a record that it may have
// sent, whatever the context of its Produce. Until the deadline it tries again,
// so that a short outage of Kafka does not reach the source.
func (s *session) flush(t *txn, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(s.ctx, deadline)
	err := t.producer.client.Flush(ctx)
	cancel()
	if f := s.failure(); f != nil { // of a promise; Flush itself does not tell
		return f
	}
	if err != nil {
		return kafka.ErrUnavailable.New("source %q: Kafka did not take all records of a transaction within %v; it is aborted: %w", s.in.spec.Name, time.Since(t.began).Round(time.Millisecond), err)
	}
	return nil
}

// end commits a transaction whose records are all in Kafka. It is never
// cancelled. An error says nothing about whether it happened, so nothing is
// tried again here: the next session reads the truth from Kafka (A1,
// invariant 14).
func (s *session) end(t *txn) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), s.in.limits.TxnTimeout)
	defer cancel()
	if err := kafka.Commit(ctx, t.producer.client); err != nil {
		return s.unknown(t, err)
	}
	return nil
}

// writePosition is the end of a stretch whose records go out outside of
// transactions: when all of them are in Kafka, the position follows in a
// transaction of its own. So positions are fenced, ordered and read in one way,
// whatever the delivery.
func (s *session) writePosition(t *txn) error {
	late := time.NewTimer(s.in.limits.TxnTimeout)
	defer late.Stop()
	select {
	case <-t.settledAll:
	case <-s.ctx.Done():
	case <-late.C:
		return kafka.ErrUnavailable.New("source %q: Kafka did not confirm all records within %v", s.in.spec.Name, time.Since(t.began).Round(time.Millisecond))
	}
	if f := s.failure(); f != nil { // of a promise, too: what failed is settled as well
		return f
	}
	t.opened = time.Now()
	if err := t.producer.client.BeginTransaction(); err != nil {
		return s.classify(t, err, "beginning a transaction")
	}
	s.producePosition(t)
	if err := s.flush(t, t.opened.Add(s.in.limits.TxnTimeout*2/3)); err != nil {
		return err
	}
	return s.end(t)
}

// awaitEnd waits for the end that is under way, if one is.
func (s *session) awaitEnd() error {
	if s.ending == nil {
		return nil
	}
	return s.collect(<-s.ended)
}

// collect takes note of an end: only now is the transaction's position durable
// (invariant 1).
func (s *session) collect(t *txn) error {
	s.ending = nil
	if t.err != nil {
		return t.err
	}
	t.producer.free = t.endedAt
	if len(t.naming) > 0 {
		s.mu.Lock()
		s.topics.at = &t.naming[0].Offset
		s.mu.Unlock()
	}
	s.pace.ended(t.endedAt)
	select { // an older token that nobody took is replaced
	case <-s.durable:
	default:
	}
	s.durable <- t.boundary
	for _, w := range t.waiting {
		close(w)
	}
	comp, seen := s.in.comp, t.endedAt
	if s.atLeastOnce() {
		seen = t.began.Add(time.Duration(t.settled.Load()))
	}
	comp.Txn(t.endedAt.Sub(t.began))
	for topic, n := range t.topics {
		comp.Out(topic, n.records, n.bytes)
		if !n.last.IsZero() {
			comp.Latency(topic, seen.Sub(n.last))
		}
	}
	for _, c := range t.touched {
		s.parked.Committed(c.parked, c.rec, c.parts...)
	}
	for _, c := range t.obeyed {
		s.parked.Ended(c)
	}
	for _, topic := range t.over {
		s.clean(topic)
	}
	return nil
}

// abort ends a transaction that must not be committed. It may fail: the next
// session's fencing aborts too. At-least-once it waits for what is on its way,
// so that it does not arrive behind what the next session sends.
func (s *session) abort(t *txn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), s.in.limits.TxnTimeout/6)
	defer cancel()
	err := t.client.AbortBufferedRecords(ctx)
	if err == nil && !s.atLeastOnce() {
		err = t.client.EndTransaction(ctx, kgo.TryAbort)
	}
	switch {
	case err != nil && s.atLeastOnce():
		s.in.comp.Log.Warn("records are on their way to Kafka whose fate is not known", "err", err)
	case err != nil:
		s.in.comp.Log.Warn("aborting a transaction failed; readers wait until it times out or the source runs again", "err", err)
	case !s.atLeastOnce():
		s.in.comp.Log.Info("aborted a transaction")
	}
}

// unknown is for an error of the end of a transaction.
func (s *session) unknown(t *txn, err error) error {
	if err := s.classify(t, err, "ending a transaction"); problem.Has(err, pipeline.ErrFenced) {
		return err
	}
	return pipeline.ErrTxnUnknown.New("source %q: ending a transaction: %w", s.in.spec.Name, err)
}

// classify tells being fenced from an outage. After a timeout of the
// transaction Kafka gives the same answer as after fencing; then the source's
// own lock decides who goes on.
func (s *session) classify(t *txn, err error, format string, args ...any) error {
	switch {
	case kafka.Fenced(err) && t.opened.IsZero(): // of an idempotent producer, whom nobody fences
		return kafka.ErrUnavailable.New("source %q: %w", s.in.spec.Name, err)
	case kafka.Replaced(err, t.opened, s.in.limits.TxnTimeout):
		return pipeline.ErrFenced.New("source %q (transactional id %q): %w", s.in.spec.Name, t.producer.id, err)
	case kafka.Fenced(err):
		return pipeline.ErrTxnUnknown.New("source %q: a transaction of %v timed out: %w", s.in.spec.Name, clock.Since(t.opened).Round(time.Second), err)
	case errors.Is(err, context.Canceled):
		if f := s.failure(); f != nil {
			return f
		}
	}
	return kafka.Wrap(err, format, args...)
}
