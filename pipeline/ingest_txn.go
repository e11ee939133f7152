// The sequencer: the one goroutine of a session that touches its Kafka
// transaction. It commits when there is nothing more to send or when the
// transaction is full, and only at a boundary: a transaction holds whole
// stretches between two resume tokens, with the last token as its last record.

package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
)

// ErrNoBoundary says that a source kept a transaction open too long.
var ErrNoBoundary = problem.Define("TW-NO-BOUNDARY", problem.Retry,
	"A source marked no position to resume from for so long that the Kafka transaction had to be aborted.",
	"If it happens again, the source is slower than the transaction timeout: look at its own log.")

// ingestTxn is the transaction that is open, if one is.
type ingestTxn struct {
	began    time.Time
	bytes    int64
	boundary Resume          // of the last piece; nil: it is not a boundary
	waiting  []chan struct{} // of checkpoints
	topics   map[string]*ingestTopic
	parked   []control.Parked
	released []release
	touched  map[string]bool // parked keys, as this transaction leaves them
}

type ingestTopic struct {
	records, bytes int
	last           time.Time // timestamp of the last record
}

// sequence runs until the source has ended and all is sent, or the session
// fails.
func (s *session) sequence() {
	err := s.loop()
	if err != nil {
		s.fail(err) // the first failure stays: a promise may have been before
		err = s.failure()
	}
	if s.open.Load() && !problem.Has(err, ErrTxnUnknown) && !problem.Has(err, ErrFenced) {
		s.abort()
	}
}

func (s *session) loop() error {
	for {
		var p *piece
		var more bool
		select {
		case p, more = <-s.order:
		default:
			if s.txn.boundary != nil { // nothing more to send
				if err := s.commit(); err != nil {
					return err
				}
				continue
			}
			var err error
			if p, more, err = s.next(); err != nil {
				return err
			}
		}
		if !more {
			if s.txn.boundary != nil {
				return s.commit()
			}
			return nil // what lies behind the last boundary is aborted and comes again
		}
		<-p.encoded // the workers live longer than we do
		if p.err != nil {
			return p.err
		}
		if err := s.produce(p); err != nil {
			return err
		}
		full := s.txn.bytes >= s.in.limits.TxnBytes || time.Since(s.txn.began) >= s.in.limits.TxnTimeout/3
		switch {
		case s.txn.boundary != nil && full:
			if err := s.commit(); err != nil {
				return err
			}
		case s.open.Load() && time.Until(s.deadline()) <= 0:
			return s.tooLong()
		}
	}
}

// next waits for a piece, as long as the open transaction may wait.
func (s *session) next() (p *piece, more bool, err error) {
	var late <-chan time.Time
	if s.open.Load() {
		t := time.NewTimer(time.Until(s.deadline()))
		defer t.Stop()
		late = t.C
	}
	select {
	case p, more = <-s.order:
		return p, more, nil
	case <-s.ctx.Done():
		return nil, false, s.failure()
	case <-late:
		return nil, false, s.tooLong()
	}
}

// deadline is until when records may be produced: what is left of the
// transaction's timeout is for its end.
func (s *session) deadline() time.Time { return s.txn.began.Add(s.in.limits.TxnTimeout * 2 / 3) }

func (s *session) tooLong() error {
	return ErrNoBoundary.New("source %q: no boundary for %v", s.in.spec.Name, time.Since(s.txn.began).Round(time.Millisecond))
}

// begin opens a transaction unless one is open.
func (s *session) begin() error {
	if s.open.Load() {
		return nil
	}
	if err := s.client.BeginTransaction(); err != nil {
		return s.classify(err, "beginning a transaction")
	}
	s.open.Store(true)
	s.txn = ingestTxn{began: time.Now(), topics: map[string]*ingestTopic{}, touched: map[string]bool{}}
	return nil
}

// produce hands the records of a piece to kgo, in order.
func (s *session) produce(p *piece) error {
	if err := s.begin(); err != nil {
		return err
	}
	t := &s.txn
	t.boundary = p.resume
	if p.done != nil {
		t.waiting = append(t.waiting, p.done)
	}
	for i := range p.rejects {
		s.park(&p.rejects[i])
	}
	if p.recs == nil {
		s.budget.Release(p.cost)
		return s.failure()
	}
	rs := p.recs
	refused := rs.Refused
	p.left.Store(int64(len(rs.Records)) + 1)
	promise := func(r *kgo.Record, err error) {
		s.promised(r, err)
		s.settle(p)
	}
	t.bytes += int64(rs.Bytes)
	for i := range rs.Records {
		r := &rs.Records[i]
		for len(refused) > 0 && refused[0].Index < rs.Of[i] {
			s.park(&refused[0])
			refused = refused[1:]
		}
		if len(s.parked.byPart[0]) > 0 || len(t.touched) > 0 {
			s.release(r)
		}
		tt := t.topics[r.Topic]
		if tt == nil {
			tt = new(ingestTopic)
			t.topics[r.Topic] = tt
		}
		tt.records++
		tt.bytes += len(r.Key) + len(r.Value)
		tt.last = r.Timestamp
		s.client.Produce(s.ctx, r, promise)
	}
	for i := range refused {
		s.park(&refused[i])
	}
	s.settle(p)
	return s.failure()
}

// promised is called for every record that was produced. One failure fails the
// session, and with it the transaction: flush and commit would succeed without
// the record (A3).
func (s *session) promised(r *kgo.Record, err error) {
	if err != nil {
		s.fail(s.classify(err, "producing to topic %q", r.Topic))
	}
}

// settle counts a record of a piece off; with the last one its memory is free.
func (s *session) settle(p *piece) {
	if p.left.Add(-1) > 0 {
		return
	}
	s.budget.Release(p.cost)
	const keep = 4 << 20
	if rs := p.recs; cap(rs.buf) <= keep {
		rs.Reset()
		recordsPool.Put(rs)
	}
	p.recs = nil
}

// park writes a refused change to the parked topic, in the transaction that
// its record would have been in.
func (s *session) park(r *Refused) {
	p := control.Parked{
		Stage: s.in.spec.Name, Kind: control.KindTransform, Topic: r.Topic, Offset: -1, Key: r.Key, RecordKey: r.RecordKey,
		Headers: []control.Header{{Key: kafka.HeaderPos, Value: change.AppendPos(nil, r.Pos)}},
		Millis:  r.Time / 1000, Code: codeOf(r.Err), Reason: reasonText(r.Err), Remedy: remedyOf(r.Err), Attempts: 1,
	}
	p.FirstAt = time.Now().UTC().Truncate(time.Microsecond)
	p.LastAt = p.FirstAt
	s.in.comp.Failed("reject", p.Code)
	s.in.comp.Log.Warn("parked", "topic", p.Topic, "pos", r.Pos, "code", p.Code, "err", r.Err)
	key := appendParkedKey(nil, r.Topic, r.RecordKey)
	s.txn.touched[string(key)] = true
	s.txn.parked = append(s.txn.parked, p)
	// The limit of one octet leaves the payload out: there is none.
	s.client.Produce(s.ctx, &kgo.Record{Topic: s.parked.topic.Name, Key: key, Value: appendParked(nil, &p, 1)}, s.promised)
}

// release takes a key out of the parked topic when a later record of it goes
// through: raw records carry the whole row.
func (s *session) release(r *kgo.Record) {
	key := appendParkedKey(nil, r.Topic, r.Key)
	parked, known := s.txn.touched[string(key)]
	if !known {
		_, parked = s.parked.byPart[0][string(key)]
	}
	if !parked {
		return
	}
	s.txn.touched[string(key)] = false
	s.txn.released = append(s.txn.released, release{Ref: control.Ref{Topic: r.Topic, RecordKey: append([]byte{}, r.Key...)}})
	s.client.Produce(s.ctx, &kgo.Record{Topic: s.parked.topic.Name, Key: key}, s.promised)
}

// commit ends the transaction with the position as its last record, and then
// tells the source that it is durable (invariant 1).
func (s *session) commit() error {
	t := &s.txn
	s.mu.Lock()
	s.position.setResume(t.boundary)
	s.position.WrittenAt = time.Now().UTC()
	value := s.position.encode()
	s.mu.Unlock()
	s.client.Produce(s.ctx, &kgo.Record{Topic: s.positions.Name, Key: []byte(s.in.spec.Name), Value: value}, s.promised)

	// kgo tries again as long as it may: an outage of Kafka shorter than the
	// transaction's timeout does not reach the source.
	ctx, cancel := context.WithDeadline(s.ctx, s.deadline())
	err := s.client.Flush(ctx)
	cancel()
	if f := s.failure(); f != nil { // of a promise; Flush itself does not tell
		return f
	}
	if err != nil {
		return kafka.ErrUnavailable.New("source %q: Kafka did not take all records of a transaction within %v; it is aborted: %w", s.in.spec.Name, time.Since(t.began).Round(time.Millisecond), err)
	}

	// The end is never cancelled. An error of it says nothing about whether
	// it happened, so nothing is tried again here: the next session reads the
	// truth from Kafka (A1, invariant 14).
	ctx, cancel = context.WithTimeout(context.WithoutCancel(s.ctx), s.in.limits.TxnTimeout)
	err = s.client.EndTransaction(ctx, kgo.TryCommit)
	cancel()
	if err != nil {
		return s.unknown(err)
	}
	s.committed()
	return nil
}

// committed makes the end of a transaction known.
func (s *session) committed() {
	t := s.txn
	s.open.Store(false)
	s.txn = ingestTxn{}
	select { // an older token that nobody took is replaced
	case <-s.durable:
	default:
	}
	s.durable <- t.boundary
	for _, w := range t.waiting {
		close(w)
	}
	comp, now := s.in.comp, time.Now()
	comp.Txn(now.Sub(t.began))
	for topic, n := range t.topics {
		comp.Out(topic, n.records, n.bytes)
		if !n.last.IsZero() {
			comp.Latency(topic, now.Sub(n.last))
		}
	}
	// Of a key that was parked and released the later one counts.
	parked, released := t.parked[:0], t.released[:0]
	for _, p := range t.parked {
		if t.touched[string(appendParkedKey(nil, p.Topic, p.RecordKey))] {
			parked = append(parked, p)
		}
	}
	for _, r := range t.released {
		if !t.touched[string(appendParkedKey(nil, r.Topic, r.RecordKey))] {
			released = append(released, r)
		}
	}
	s.parked.applied(s.ctx, parked, released)
}

// abort ends a transaction that must not be committed, so that readers need
// not wait for its timeout. It may fail: the next session's fencing aborts too.
func (s *session) abort() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 5*time.Second)
	defer cancel()
	err := s.client.AbortBufferedRecords(ctx)
	if err == nil {
		err = s.client.EndTransaction(ctx, kgo.TryAbort)
	}
	if err != nil {
		s.in.comp.Log.Warn("aborting a transaction failed; readers wait until it times out or the source runs again", "err", err)
		return
	}
	s.in.comp.Log.Info("aborted a transaction")
}

// unknown is for an error of the end of a transaction.
func (s *session) unknown(err error) error {
	if err := s.classify(err, "ending a transaction"); problem.Has(err, ErrFenced) {
		return err
	}
	return ErrTxnUnknown.New("source %q: ending a transaction: %w", s.in.spec.Name, err)
}

// classify tells being fenced from an outage. After a timeout of the
// transaction Kafka gives the same answer as after fencing; then the source's
// own lock decides who goes on.
func (s *session) classify(err error, format string, args ...any) error {
	if fenced(err) {
		if s.txn.began.IsZero() || time.Since(s.txn.began) < s.in.limits.TxnTimeout {
			return ErrFenced.New("source %q (transactional id %q): %w", s.in.spec.Name, IngestTransactionalID(s.in.spec.Name), err)
		}
		return ErrTxnUnknown.New("source %q: a transaction of %v timed out: %w", s.in.spec.Name, time.Since(s.txn.began).Round(time.Second), err)
	}
	if errors.Is(err, context.Canceled) {
		if f := s.failure(); f != nil {
			return f
		}
	}
	return kafka.Wrap(err, format, args...)
}
