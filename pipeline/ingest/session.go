// session: one run of a source. Batches go from Send through workers that
// encode them in parallel to one goroutine, the sequencer (sequence.go),
// which produces them in order and commits:
//
//	Send ──▶ work ──▶ workers (decode, encode) ──┐
//	  └────▶ order ─────────────────────────▶ sequencer ──▶ kgo ──▶ promises ──▶ budget
//
// A batch is one job of work: a worker decodes and encodes it in one go,
// while its octets are in the core's cache. Both queues are bounded by their
// length and by the budget of bytes: a job holds its part of the budget until
// Kafka has confirmed its records (invariant 12).

package ingest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/semaphore"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

const (
	queuedJobs   = 1024 // room in either queue
	fenceTimeout = 30 * time.Second
)

type session struct {
	in   *ingest
	outs *records.Outputs

	ctx  context.Context // ends when the session fails, never with a shutdown
	fail context.CancelCauseFunc

	resumed   bool           // Resume was called
	producers []*txnProducer // transactional ids in turn; all of them from Resume on
	outside   *kgo.Client    // at-least-once: what records go out through; else nil
	positions *change.Topic
	parked    *parked.Set
	position  position  // the last committed one, and then what the next will say
	topics    topicBook // under mu
	notes     notes

	budget  *semaphore.Weighted
	order   chan *encodeJob
	work    chan *encodeJob
	durable chan pipeline.Resume
	wg      sync.WaitGroup

	mu      sync.Mutex
	rejects []records.Refused // of the source, to go with the next batch

	open atomic.Bool // a transaction is open

	// The sequencer's own.
	heard      time.Time // when it last listened for commands
	told       bool      // that they wait
	listenTick *time.Ticker
	partSize   int
	moved      string // the parked key that the last record took the row of away
	quarantine map[string]*quarantined
	taken      map[int32]bool // schemas that were accepted
	decided    time.Time      // when decisions were looked for
	drained    time.Time      // when what is in quarantine was taken out

	asideMu  sync.Mutex
	asides   map[string]bool   // topics whose subjects do not take a table, since their last quarantine
	refusals map[string]string // why

	txn    *txn      // being filled; nil: none
	ending *txn      // the one before, while its end is under way
	ended  chan *txn // gives ending back
	pace   pace
}

// encodeJob is a batch, or a checkpoint.
type encodeJob struct {
	batch   *change.Batch
	beside  bool // its records get their places when they are produced
	rejects []records.Refused
	notes   []note
	resume  pipeline.Resume // after the job; nil: not a boundary
	done    chan struct{}   // closed when committed; nil: nobody waits
	cost    int64           // of the budget

	encoded chan struct{} // closed by the worker
	recs    *records.Buffer
	err     error
	left    atomic.Int64 // records without their promise, and one for the sequencer
	txn     *txn         // that holds its records
}

var recordsPool records.Pool

func newSession(ctx context.Context, in *ingest) *session {
	s := &session{
		in: in, outs: records.NewOutputs(in.env.Kafka, in.env.Registry, in.rawTopic, in.limits.MaxRecordBytes, &in.large),
		budget:  semaphore.NewWeighted(in.limits.MaxBytes),
		order:   make(chan *encodeJob, queuedJobs),
		work:    make(chan *encodeJob, queuedJobs),
		durable: make(chan pipeline.Resume, 1),
		ended:   make(chan *txn, 1),

		listenTick: time.NewTicker(listenEvery),
		quarantine: map[string]*quarantined{}, taken: map[int32]bool{}, asides: map[string]bool{}, refusals: map[string]string{},
	}
	s.ctx, s.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	return s
}

// failure is why the session failed, or nil.
func (s *session) failure() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return context.Cause(s.ctx)
}

// Resume implements SourceOutlet. Its order is binding (A4): the source holds
// its lock; then predecessors are fenced; then the position is read.
func (s *session) Resume(ctx context.Context) (pipeline.Resume, error) {
	if s.resumed {
		panic("BUG: Resume called twice in one run of a source")
	}
	s.resumed = true
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	env, name := s.in.env, s.in.spec.Name
	cluster, err := env.Kafka.ID(ctx)
	if err != nil {
		return nil, err
	}
	if s.positions, err = env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{Name: positionsTopicOf(name), Partitions: 1, Compact: true}); err != nil {
		return nil, err
	}
	parkedTopic, err := env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{Name: parked.TopicOf(name), Partitions: 1, Compact: true})
	if err != nil {
		return nil, err
	}
	if s.notes.topic, err = env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{Name: tablesTopicOf(name), Partitions: 1, Compact: true}); err != nil {
		return nil, err
	}
	if err := s.takeProducers(ctx); err != nil {
		return nil, err
	}
	client := s.producers[0].client
	last, err := readPosition(ctx, client, env.Kafka, s.positions)
	if err != nil {
		return nil, err
	}
	s.position, s.topics = position{Source: name, Cluster: cluster}, bookOf(nil, nil, s.in.limits.TopicsBytes)
	if err := s.notes.read(ctx, client, env.Kafka, last); err != nil {
		return nil, err
	}
	var resume pipeline.Resume
	if last != nil {
		gone, err := last.check(ctx, env.Kafka, name)
		if err != nil {
			return nil, err
		}
		s.position.setResume(last.resume())
		s.position.Beside = last.Beside
		if err := s.takeQuarantine(last, gone); err != nil {
			return nil, err
		}
		s.topics = bookOf(last, gone, s.in.limits.TopicsBytes)
		s.topics.tell(&s.in.large)
		resume = last.resume()
	} else {
		s.outs.Roomy() // a load would begin anew with the first large record of each topic
	}
	s.parked = parked.NewSet(name, control.KindTransform, parkedTopic, s.in.comp)
	s.parked.KeepHeads, s.parked.Following = true, true
	limit, err := env.Kafka.MaxRecordBytes(ctx, parkedTopic.Name)
	if err != nil {
		return nil, err
	}
	s.partSize = max(min(parked.PartSize, limit/2), 512)
	if err := s.parked.Load(ctx, client, env.Kafka, []int32{0}, nil); err != nil {
		return nil, err
	}
	s.tellQuarantine()
	s.start()
	s.in.comp.Is(obs.Running, "")
	return resume, nil
}

func (s *session) start() {
	s.wg.Go(func() {
		if err := outage.Guard(func() error { s.sequence(); return nil }); err != nil {
			s.fail(err)
		}
	})
	for range s.in.limits.Workers {
		s.wg.Go(s.encode)
	}
}

// Send implements Outlet.
func (s *session) Send(ctx context.Context, b *change.Batch) error {
	if !s.resumed {
		panic("BUG: Send before Resume")
	}
	if err := s.ensure(ctx, b); err != nil {
		b.Release()
		return err
	}
	size := min(max(int64(b.Size()), 1), s.in.limits.MaxBytes)
	if err := s.take(ctx, size); err != nil {
		b.Release()
		return err
	}
	p := &encodeJob{batch: b, beside: b.Beside, rejects: s.takeRejects(), notes: s.takeNotes(), cost: size, encoded: make(chan struct{})}
	if b.Resume != nil { // it may live in the batch
		p.resume = append(pipeline.Resume{}, b.Resume...)
	}
	// After an error the workers may still read the batch: it is given up to
	// the collector rather than released. The source ends with the error.
	return s.enqueue(ctx, p)
}

// Checkpoint implements SourceOutlet.
func (s *session) Checkpoint(ctx context.Context, r pipeline.Resume) error {
	if !s.resumed {
		panic("BUG: Checkpoint before Resume")
	}
	if r == nil {
		panic("BUG: Checkpoint without a position")
	}
	p := &encodeJob{resume: append(pipeline.Resume{}, r...), rejects: s.takeRejects(), notes: s.takeNotes(), done: make(chan struct{}), encoded: make(chan struct{})}
	close(p.encoded)
	if err := s.enqueue(ctx, p); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-s.ctx.Done():
		return s.failure()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Durable implements SourceOutlet.
func (s *session) Durable() <-chan pipeline.Resume { return s.durable }

// Reject implements Outlet: the change is parked with the next batch or
// checkpoint. Its values lie in a batch that we do not have, so it is known by
// its position.
func (s *session) Reject(c *change.Change, err error) {
	r := records.Refused{Pos: c.Pos, Time: c.Time, Key: c.Pos.String(), Err: err}
	if c.Table != nil {
		r.Topic = c.Table.Topic
	}
	r.RecordKey = fmt.Appendf(nil, "@%s", r.Key)
	s.mu.Lock()
	s.rejects = append(s.rejects, r)
	s.mu.Unlock()
}

func (s *session) takeRejects() []records.Refused {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rejects
	s.rejects = nil
	return r
}

// ensure makes topics and schemas of Tables not seen yet. While a transaction
// is open the wait is short (A5): the session then ends, and the next makes
// them before it begins one.
func (s *session) ensure(ctx context.Context, b *change.Batch) error {
	for {
		t := s.outs.Missing(b)
		if t == nil {
			return nil
		}
		if err := s.ensureTable(ctx, t); err != nil {
			return err
		}
	}
}

func (s *session) ensureTable(ctx context.Context, t *change.Table) error {
	wait := fenceTimeout
	if s.open.Load() {
		wait = s.in.limits.TxnTimeout / 6
	}
	if err := s.missed(t.Topic); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	out, err := s.outs.Ensure(ctx, t)
	if problem.Has(err, avro.ErrIncompatible) {
		out, err = s.aside(ctx, t, err)
	}
	if err == nil {
		err = s.freeze(out.Topic)
	}
	if err != nil {
		s.in.want(t)
	}
	return err
}

// Prepare implements SourceOutlet.
func (s *session) Prepare(ctx context.Context, tables []*change.Table) error {
	if !s.resumed {
		panic("BUG: Prepare before Resume")
	}
	if err := s.captured(tables); err != nil {
		return err
	}
	for _, t := range tables {
		if err := s.ensureTable(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// take takes n octets of the budget, waiting for them.
func (s *session) take(ctx context.Context, n int64) error {
	if s.budget.TryAcquire(n) {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	if err := s.budget.Acquire(ctx, n); err != nil {
		if f := s.failure(); f != nil {
			return f
		}
		return err
	}
	return nil
}

func (s *session) enqueue(ctx context.Context, p *encodeJob) error {
	if f := s.failure(); f != nil {
		return f
	}
	select {
	case s.order <- p:
	case <-s.ctx.Done():
		return s.failure()
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.batch == nil {
		return nil
	}
	// It is in the order now: it must be encoded, or the sequencer waits for
	// it for ever; the workers empty this queue as long as they live.
	s.work <- p
	return nil
}

// encode is a worker.
func (s *session) encode() {
	own := change.Get()
	defer own.Release()
	for p := range s.work {
		b := p.batch
		p.batch = nil
		if own.Take(b) {
			b.Release()
			b = own
		}
		if s.ctx.Err() == nil {
			p.recs = recordsPool.Get()
			// The worker lives on: the queue must be emptied.
			p.err = outage.Guard(func() error {
				if err := b.Decode(); err != nil {
					return err
				}
				return s.outs.Encode(p.recs, b, 0, b.Len())
			})
		} else {
			p.err = s.failure()
		}
		if b == own {
			own.Reset()
		} else {
			b.Release()
		}
		close(p.encoded)
	}
}

// finish ends the session after the source's Run has returned: what was sent
// is committed if it ends at a boundary. It returns why the session failed.
func (s *session) finish() error {
	close(s.order)
	close(s.work)
	s.wg.Wait()
	s.listenTick.Stop()
	err := s.failure()
	s.closeClients() // fails what was sent behind the last boundary and is not answered: it comes again
	s.fail(nil)      // frees the context
	return err
}
