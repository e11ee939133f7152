// The sequencer: the one goroutine of a session that fills Kafka transactions,
// in order. A transaction holds whole stretches between two resume tokens, with
// the last token as its last record. It is committed when there is nothing more
// to send, as soon as the pace allows it, or when it is full; how it ends is in
// end.go.
//
// At-least-once, the same stretches go out outside of transactions, and the
// transaction that follows each holds the position alone.

package ingest

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

// ErrNoBoundary says that a source kept a transaction open too long.
var ErrNoBoundary = problem.Define("TW-NO-BOUNDARY", problem.Retry,
	"A source marked no position to resume from for so long that the Kafka transaction had to be aborted.",
	"If it happens again, the source is slower than the transaction timeout: look at its own log.")

// busyTxn is how long a transaction fills while there always is more to send:
// long enough for the flush at its end not to count, short enough for readers.
const busyTxn = 100 * time.Millisecond

// txn is one stretch of a source and the transaction that it goes with.
type txn struct {
	producer *txnProducer
	client   *kgo.Client // that its records go out through
	began    time.Time
	opened   time.Time // when Kafka may have begun to count its timeout
	bytes    int64
	boundary pipeline.Resume // of the last job; nil: it is not a boundary
	waiting  []chan struct{} // of checkpoints
	topics   map[string]*txnTopic
	touched  map[string]parkedChange // parked keys, as this transaction leaves them
	obeyed   []*parked.Command       // that it does
	over     []string                // topics of which it ends the quarantine

	unreadable bool // a key could not be read for people

	// Exactly-once: the first job with records, when it was produced, and
	// how long Kafka took to confirm it, in ns. At-least-once: how long after
	// began the last job was confirmed.
	first   *encodeJob
	sentAt  time.Time
	settled atomic.Int64

	// At-least-once: jobs and single records that are not confirmed, and
	// one for the sequencer; settledAll is closed when there is none left.
	left       atomic.Int64
	settledAll chan struct{}

	notes    []note
	position []byte        // its last record
	naming   []*kgo.Record // ahead of it: the names of the raw topics
	noted    []*kgo.Record // and notes
	err      error         // of its end
	endedAt  time.Time
}

type txnTopic struct {
	records, bytes int
	last           time.Time // timestamp of the last record
}

// sequence runs until the source has ended and all is sent, or the session
// fails.
func (s *session) sequence() {
	err := s.loop()
	if err != nil {
		s.fail(err) // the first failure stays: a promise may have been before
	}
	// An end that is under way is waited for, whatever failed since: it may
	// succeed, and what it holds is then durable.
	if e := s.awaitEnd(); e != nil {
		s.fail(e)
	}
	// What is still open is aborted, so that readers need not wait for its
	// timeout. A successor that fenced us has done it.
	if s.txn != nil && !problem.Has(s.failure(), pipeline.ErrFenced) {
		s.abort(s.txn)
	}
}

func (s *session) loop() error {
	for {
		p, more, err := s.nextJob()
		switch {
		case err != nil:
			return err
		case !more:
			// What lies behind the last boundary comes again.
			if s.txn != nil && s.txn.boundary != nil {
				if err := s.commit(); err != nil {
					return err
				}
			}
			return s.awaitEnd()
		}
		<-p.encoded // the workers live longer than we do
		if p.err != nil {
			return p.err
		}
		if err := s.produce(p); err != nil {
			return err
		}
		if s.full() {
			if err := s.commit(); err != nil {
				return err
			}
		}
	}
}

// nextJob waits for a job; while there is none it commits what is due, and
// takes note of ends.
func (s *session) nextJob() (p *encodeJob, more bool, err error) {
	for {
		select {
		case t := <-s.ended:
			if err := s.collect(t); err != nil {
				return nil, false, err
			}
		default:
		}
		if err := s.listen(); err != nil {
			return nil, false, err
		}
		if err := s.decide(); err != nil {
			return nil, false, err
		}
		draining, err := s.drain()
		if err != nil {
			return nil, false, err
		}
		select {
		case p, more = <-s.order:
			return p, more, nil
		default:
		}
		var wake <-chan time.Time
		if due, ok := s.due(); ok {
			wait := time.Until(due)
			if wait <= 0 {
				if err := s.atDue(); err != nil {
					return nil, false, err
				}
				continue
			}
			wake = time.After(wait)
			if draining {
				wake = time.After(min(wait, drainEvery))
			}
		} else if draining {
			wake = time.After(drainEvery)
		}
		select {
		case p, more = <-s.order:
			return p, more, nil
		case t := <-s.ended:
			if err := s.collect(t); err != nil {
				return nil, false, err
			}
		case <-s.ctx.Done():
			return nil, false, s.failure()
		case <-wake:
		case <-s.listenTick.C: // listen looks at the clock
		}
	}
}

// due is when the open transaction is to be committed, or given up, if nothing
// more comes.
func (s *session) due() (time.Time, bool) {
	t := s.txn
	switch {
	case t == nil:
		return time.Time{}, false
	case t.boundary == nil:
		return s.deadline(t), !s.atLeastOnce()
	case s.ending != nil: // its end wakes us
		return s.deadline(t), !s.atLeastOnce()
	case s.atLeastOnce():
		if len(t.waiting) > 0 {
			return time.Time{}, true
		}
		return s.pace.position(), true
	}
	return s.pace.commit(s.nextProducer(time.Now())), true
}

func (s *session) atDue() error {
	if s.txn.boundary == nil {
		return s.tooLong()
	}
	return s.commit()
}

// full reports whether the open transaction is to be committed though there is
// more to send.
func (s *session) full() bool {
	t := s.txn
	if t == nil {
		return false
	}
	age := time.Since(t.began)
	if t.boundary == nil {
		return !s.atLeastOnce() && age >= s.deadline(t).Sub(t.began) // commit says that it is too late
	}
	if s.ending != nil { // there is no hurry: what would be gained waits for it
		return !s.atLeastOnce() && (t.bytes >= s.in.limits.TxnBytes || age >= s.in.limits.TxnTimeout/3)
	}
	return age >= busyTxn || !s.atLeastOnce() && t.bytes >= s.in.limits.TxnBytes
}

// atLeastOnce: records go out outside of transactions.
func (s *session) atLeastOnce() bool { return s.outside != nil }

// deadline is until when records may be produced: what is left of the
// transaction's timeout is for its end.
func (s *session) deadline(t *txn) time.Time {
	return t.began.Add(s.in.limits.TxnTimeout * 2 / 3)
}

func (s *session) tooLong() error {
	return ErrNoBoundary.New("source %q: no boundary for %v", s.in.spec.Name, time.Since(s.txn.began).Round(time.Millisecond))
}

// begin opens a transaction on the next id unless one is open. The one before
// may still be ending, but its records are all in Kafka (commit flushes), so
// that those of this one come to lie behind them (invariant 4).
func (s *session) begin() error {
	if s.txn != nil {
		return nil
	}
	now, turn := time.Now(), s.producers[0]
	if !s.atLeastOnce() {
		turn = s.nextProducer(now)
	}
	t := &txn{producer: turn, client: turn.client, began: now, topics: map[string]*txnTopic{}, touched: map[string]parkedChange{}}
	if s.atLeastOnce() {
		t.client = s.outside
		t.settledAll = make(chan struct{})
		t.left.Store(1)
	} else {
		t.opened = t.began
		if err := turn.client.BeginTransaction(); err != nil {
			return s.classify(t, err, "beginning a transaction")
		}
		s.open.Store(true)
	}
	s.txn = t
	return nil
}

// produce hands the records of a job to kgo, in order. It is the one loop
// over all records that no second core shares: it looks up nothing per record
// and allocates nothing.
func (s *session) produce(p *encodeJob) error {
	if err := s.begin(); err != nil {
		return err
	}
	t := s.txn
	p.txn = t
	t.boundary = p.resume
	if p.done != nil {
		t.waiting = append(t.waiting, p.done)
	}
	t.notes = append(t.notes, p.notes...)
	for i := range p.rejects {
		s.park(&p.rejects[i])
	}
	if p.recs == nil {
		s.budget.Release(p.cost)
		return s.failure()
	}
	rs := p.recs
	if err := s.enter(rs.Aside); err != nil {
		return err
	}
	if p.beside {
		if err := s.place(p); err != nil {
			return err
		}
	}
	refused, cleared := rs.Refused, rs.Cleared
	n := len(rs.Records)
	p.left.Store(int64(n) + 1)
	if s.atLeastOnce() {
		t.left.Add(1) // recordConfirmed takes it off with the job's last record
	} else if t.first == nil && n > 0 {
		t.first, t.sentAt = p, time.Now()
	}
	promise := func(r *kgo.Record, err error) {
		if err != nil {
			s.refused(t, r, err)
		}
		s.recordConfirmed(p)
	}
	t.bytes += int64(rs.Bytes)
	var (
		topic    string // of the run of records that tt counts
		out      string // where they go
		tt       = new(txnTopic)
		releases = s.mayRelease()
		ctx      = s.ctx
		client   = t.client
	)
	for i := range rs.Records {
		r := &rs.Records[i]
		if len(refused) > 0 {
			for len(refused) > 0 && refused[0].Index < rs.Of[i] {
				s.park(&refused[0])
				refused = refused[1:]
			}
			releases = true
		}
		if r.Topic != topic {
			topic, out = r.Topic, r.Topic
			if s.quarantined(topic) {
				out = records.Aside(topic)
			}
			tt = t.topic(out)
		}
		for len(cleared) > 0 && cleared[0] <= i {
			switch {
			case cleared[0] != i:
			case out != topic:
				r.Headers = append(slices.Clip(r.Headers), kgo.RecordHeader{Key: headerCleared})
			case releases:
				s.releaseAll(topic)
			}
			cleared = cleared[1:]
		}
		if releases && out == topic && !s.pass(r) {
			s.recordConfirmed(p)
			continue
		}
		tt.records++
		tt.bytes += len(r.Key) + len(r.Value)
		if i == n-1 || rs.Records[i+1].Topic != topic {
			tt.last = r.Timestamp
		}
		r.Topic = out
		client.Produce(ctx, r, promise)
	}
	for i := range refused {
		s.park(&refused[i])
	}
	s.recordConfirmed(p)
	return s.failure()
}

func (t *txn) topic(name string) *txnTopic {
	tt := t.topics[name]
	if tt == nil {
		tt = new(txnTopic)
		t.topics[name] = tt
	}
	return tt
}

// produceOne produces a record that is not of a job.
func (s *session) produceOne(t *txn, r *kgo.Record) {
	if s.atLeastOnce() {
		t.left.Add(1)
	}
	t.client.Produce(s.ctx, r, func(r *kgo.Record, err error) {
		if err != nil {
			s.refused(t, r, err)
		}
		if s.atLeastOnce() {
			t.confirmed()
		}
	})
}

// refused is called for every record that Kafka did not take. One fails the
// session, and with it the transaction: flush and commit would succeed without
// the record (A3).
func (s *session) refused(t *txn, r *kgo.Record, err error) {
	s.fail(s.classify(t, err, "producing to topic %q", r.Topic))
}

// recordConfirmed counts a record of a job off; with the last one its memory is free.
func (s *session) recordConfirmed(p *encodeJob) {
	if p.left.Add(-1) > 0 {
		return
	}
	s.budget.Release(p.cost)
	t := p.txn
	recordsPool.Put(p.recs)
	p.recs = nil
	switch {
	case s.atLeastOnce():
		t.settled.Store(int64(time.Since(t.began)))
		t.confirmed()
	case t.first == p:
		t.settled.Store(int64(time.Since(t.sentAt)))
	}
}

// confirmed counts a job, a single record or the sequencer off (at-least-once).
func (t *txn) confirmed() {
	if t.left.Add(-1) == 0 {
		close(t.settledAll)
	}
}
