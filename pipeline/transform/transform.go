// Package transform is the transform loop: consume, transform and produce in
// one Kafka transaction per poll (invariants 4 and 5). Its session, in this
// file, is a client of the group with its transactional id, from its start to
// its first failure.
package transform

import (
	"context"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/internal/retry"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/state"
)

const (
	trimEvery = 30 * time.Second
	// A stage may find out, before it has sent anything, that it must wait
	// (state of another owner not known yet). So long the records are held,
	// then the session ends, so that a rebalance is not held up for longer.
	holdAtMost = 20 * time.Second
	// How long a poll waits while there is work at rest: what has come already
	// goes first.
	busyPoll = 2 * time.Millisecond
)

// Run runs the group until ctx ends (nil) or it must halt (the
// problem, shown in the component's state too). Outages are tried again, from
// the offsets that Kafka has committed.
func Run(ctx context.Context, env *pipeline.Env, spec pipeline.TransformSpec) error {
	spec.TransformLimits = spec.WithDefaults()
	t := &transform{env: env, spec: spec, comp: env.Obs.Component("transform", spec.Name)}
	for _, st := range spec.Stages {
		if k, ok := st.(pipeline.Keeper); ok {
			for _, s := range k.Stores() {
				t.kept = append(t.kept, kept{k, s})
			}
		}
	}
	defer parked.Project(ctx, env.Kafka, env.Control, spec.Name, control.KindTransform, t.comp)()
	t.member = consume.NewMembership(env, t.comp.Log, pipeline.GroupOf(spec.Name), append(spec.Inputs(), parked.TopicOf(spec.Name)))
	defer t.member.Leave(ctx)
	return retry.Run(ctx, t.comp, t.run)
}

// ShowBehind shows how far a group that halted falls behind, until ctx ends.
func ShowBehind(ctx context.Context, env *pipeline.Env, spec pipeline.TransformSpec) {
	consume.ShowBehind(ctx, env.Kafka, env.Obs.Component("transform", spec.Name), pipeline.GroupOf(spec.Name), spec.Inputs())
}

type transform struct {
	env    *pipeline.Env
	spec   pipeline.TransformSpec
	comp   *obs.Component
	member *consume.Membership
	kept   []kept
}

// kept is one state with the stage that fills it.
type kept struct {
	keeper pipeline.Keeper
	state  *state.Store
}

// session is one life of the group client. After an abort, or an end that was
// not confirmed, it is closed and another is made: the truth is then read from
// the committed offsets (A1, A2, invariant 14).
type session struct {
	*transform
	assignment *consume.Assignment
	group      *kgo.GroupTransactSession
	side       *kgo.Client // reads beside the group: parked records, state to rebuild
	decoder    *avro.Decoder
	encoder    *recordEncoder
	parked     *parked.Set
	clearing   *clearing // the search of a truncate that did not fit into one transaction
	prepared   int64     // the generation of the assignment that prepare has seen
	resting    string    // what is left to be done between polls; "": nothing
	restAt     time.Time // not before
	v2         bool      // how offsets are committed without a poll
	lagAt      time.Time
	trimAt     time.Time
	trimmed    map[*consume.Owned]int64
}

func (t *transform) run(ctx context.Context) (err error) {
	t.comp.Is(obs.Starting, "")
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Everything that a transaction needs is there before the first begins (A5).
	if err := t.ensureOutputs(ctx); err != nil {
		return err
	}
	inputs := t.spec.Inputs()
	partitions, err := t.awaitInputs(ctx, inputs)
	if err != nil {
		return err
	}
	if err := t.lookBack(ctx); err != nil {
		return err
	}
	parkedTopic, err := t.env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{Name: parked.TopicOf(t.spec.Name), Partitions: partitions, Compact: true})
	if err != nil {
		return err
	}
	if err := t.openState(ctx, partitions); err != nil {
		return err
	}
	s := &session{transform: t, trimmed: map[*consume.Owned]int64{}, prepared: -1}
	s.assignment = consume.NewAssignment(t.env.Kafka, append(inputs, parkedTopic.Name), true, func(err error) { cancel(err) })
	s.assignment.Start = switched
	s.parked = parked.NewSet(t.spec.Name, control.KindTransform, parkedTopic, t.comp)
	s.parked.Keep = parked.Keeping{Restricted: t.env.Restricted, Seal: t.env.Seal}
	s.decoder = avro.NewDecoder(t.env.Registry)
	if s.encoder, err = newRecordEncoder(ctx, t.env, t.spec); err != nil {
		return err
	}
	if s.side, err = t.env.Kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
		return err
	}
	defer s.side.Close()
	if t.spec.Rest != nil { // not within a transaction (A5)
		if s.v2, err = t.env.Kafka.TransactionsV2(ctx); err != nil {
			return err
		}
	}
	ours := t.transactional(parkedTopic.Name)
	if err := t.env.Kafka.TakeOver(ctx, ours); err != nil {
		return err
	}
	t.comp.Is(obs.Starting, "joining its group")
	if s.group, err = t.join(s.assignment, ours); err != nil {
		return err
	}
	defer func() { err = t.member.Close(outer, s.group.Client(), consume.CauseOf(ctx, err)) }()
	if _, _, err := s.group.Client().ProducerID(ctx); err != nil {
		return s.producerError(err, time.Now(), "taking the transactional id of transform %q", t.spec.Name)
	}
	return s.loop(ctx)
}

// awaitInputs waits until all inputs exist, and checks that they have the same
// number of partitions (F1).
func (t *transform) awaitInputs(ctx context.Context, inputs []string) (int32, error) {
	var first *change.Topic
	for _, name := range inputs {
		topic, err := consume.AwaitTopic(ctx, t.env, name, t.comp)
		if err != nil {
			return 0, err
		}
		if first == nil {
			first = topic
		} else if first.Partitions != topic.Partitions {
			return 0, pipeline.ErrCoPartition.New("topic %q has %d partitions, topic %q has %d", first.Name, first.Partitions, topic.Name, topic.Partitions)
		}
	}
	if first == nil {
		return 0, outage.ErrUnclassified.New("transform %q reads no topic", t.spec.Name)
	}
	return first.Partitions, nil
}

// lookBack checks that records of the inputs stay for as long as the window (D2).
func (t *transform) lookBack(ctx context.Context) error {
	if t.spec.Window == 0 {
		return nil
	}
	settings, err := t.env.Kafka.Settings(ctx, t.spec.Topics...)
	if err != nil {
		return err
	}
	for _, topic := range t.spec.Topics {
		if err := t.spec.Kept(topic, settings[topic]); err != nil {
			return err
		}
	}
	return nil
}

// ensureOutputs makes the topics, and asks the registry for the schemas of those
// that have a contract: what it refuses is known before the first record.
func (t *transform) ensureOutputs(ctx context.Context) error {
	contracts, err := t.env.Catalogue()
	if err != nil {
		return err
	}
	for _, name := range t.spec.Outputs {
		if c := contracts[name]; c != nil {
			if _, _, err := t.env.Registry.RegisterContract(ctx, c); err != nil {
				return err
			}
		}
		if _, err := t.env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{Name: name, Partitions: t.env.Partitions, Compact: true}); err != nil {
			return err
		}
	}
	for _, name := range t.spec.Queues {
		if _, err := t.env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{Name: name, Partitions: t.env.Partitions}); err != nil {
			return err
		}
	}
	return nil
}

// transactional is the id that the transform writes with in this instance.
func (t *transform) transactional(parkedTopic string) kafka.Transactional {
	topics := slices.Concat(t.spec.Outputs, t.spec.Queues, []string{parkedTopic})
	if t.spec.State != nil {
		topics = append(topics, t.spec.State.Topic().Name)
	}
	return kafka.Transactional{
		ID: "tallywire." + t.spec.Name + "." + t.env.Instance, Timeout: t.spec.TxnTimeout, Group: true,
		Topics: func(context.Context) ([]string, error) { return topics, nil },
	}
}

func (t *transform) join(a *consume.Assignment, ours kafka.Transactional) (*kgo.GroupTransactSession, error) {
	opts := append(a.Opts(t.member),
		kgo.ConcurrentTransactionsBackoff(2*time.Millisecond),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(2*time.Millisecond),
		kgo.MaxBufferedBytes(64<<20),
		kgo.ProducerBatchMaxBytes(16<<20),
		kgo.FetchMaxBytes(32<<20),
		kgo.FetchMaxPartitionBytes(4<<20),
		kgo.FetchMaxWait(time.Second),
		kgo.RebalanceTimeout(2*time.Minute),
	)
	return t.env.Kafka.GroupSession(append(opts, ours.Opts(t.env.Kafka)...)...)
}

// loop works until something fails or ctx ends.
func (s *session) loop(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.prepare(ctx); err != nil {
			return err
		}
		if err := s.idleWork(ctx); err != nil {
			return err
		}
		if err := s.step(ctx); err != nil {
			return err
		}
		if err := s.rest(ctx); err != nil {
			return err
		}
		s.group.AllowRebalance()
	}
}

// step polls once and works on what came. Rebalances are blocked from the poll
// until the transaction has ended.
func (s *session) step(ctx context.Context) error {
	wait := consume.IdlePoll
	if s.resting != "" && time.Now().After(s.restAt) {
		wait = busyPoll
	}
	pollCtx, cancel := context.WithTimeout(ctx, wait)
	fs := s.group.PollRecords(pollCtx, s.spec.PollRecords)
	cancel()
	if fs.IsClientClosed() {
		return pipeline.ErrTxnUnknown.New("the client was closed")
	}
	if err := consume.SessionError(s.assignment, fs); err != nil {
		return err
	}
	if s.assignment.TakeRevoked() {
		// The session would abort the next commit because of a revocation
		// that lies before the poll. Ending nothing clears that, and goes
		// back to the committed offsets: what was polled comes again (A2).
		endCtx, cancel := s.endContext(ctx)
		defer cancel()
		if _, err := s.group.End(endCtx, kgo.TryAbort); err != nil {
			return s.producerError(err, time.Now(), "starting after a rebalance")
		}
		return nil
	}
	p := consume.NewPolled()
	if err := p.Add(s.assignment, fs); err != nil {
		return err
	}
	if len(p.Runs) == 0 {
		return nil
	}
	if err := s.prepare(ctx); err != nil { // assigned between prepare and poll
		return err
	}
	return s.hold(ctx, p)
}

// hold does the transaction of a poll, again and again while a stage must wait
// and nothing was sent yet.
func (s *session) hold(ctx context.Context, p *consume.Polled) error {
	began := time.Now()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		tx := &txn{session: s, polled: p}
		err := outage.Guard(func() error { return tx.do(ctx) }) // after a panic, too, it is aborted
		if err == nil {
			s.comp.Is(obs.Running, s.resting)
			return nil
		}
		if tx.began.IsZero() && pipeline.Classify(err) == problem.Retry && time.Since(began) < holdAtMost && ctx.Err() == nil {
			s.comp.Failed("retry", outage.CodeOf(err))
			s.comp.Ails(obs.Retrying, outage.ReasonOf(err), outage.RemedyOf(err))
			if retry.Sleep(ctx, pause) {
				// What the stage waits for may itself wait for state that this
				// group keeps, of partitions that the poll did not touch: after a
				// flush two groups would hold each other up.
				cerr := s.checkAll(ctx)
				if cerr == nil || pipeline.Classify(cerr) == problem.Retry {
					continue
				}
				err = cerr
			}
		}
		if !tx.ended && !tx.began.IsZero() {
			tx.abort(ctx)
		}
		return err
	}
}

// endContext is for what must not be cut off by a shutdown (A1).
func (s *session) endContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), s.spec.TxnTimeout+5*time.Second)
}

func (s *session) producerError(err error, began time.Time, format string, args ...any) error {
	return consume.ProducerError(err, began, s.spec.TxnTimeout, format, args...)
}

// prepare makes what is new of the assignment ready: parked records are known,
// and the state of every owned partition is what the committed offset says.
func (s *session) prepare(ctx context.Context) error {
	gen, ready := s.assignment.Current()
	if gen == s.prepared || !ready {
		return nil
	}
	places := s.assignment.List()
	var parts []int32
	for _, p := range places {
		if p.Topic.Name == s.parked.Topic.Name {
			parts = append(parts, p.Partition)
		}
	}
	if err := s.parked.Load(ctx, s.side, s.env.Kafka, parts, nil); err != nil {
		return err
	}
	if t := s.spec.State; t != nil {
		t.Forget() // an owner in between may have written, and not told Redis
	}
	if err := s.checkAll(ctx); err != nil {
		return err
	}
	s.prepared = gen
	clear(s.trimmed) // of partitions that are gone
	s.clearing = nil // its partitions may be gone: it begins again
	s.comp.Partitions()
	s.comp.Is(obs.Running, s.resting)
	return s.lag(ctx)
}

// idleWork is what is due now and then, between transactions.
func (s *session) idleWork(ctx context.Context) error {
	if _, ready := s.assignment.Current(); !ready {
		return nil
	}
	if err := s.checkAll(ctx); err != nil {
		return err
	}
	if time.Since(s.lagAt) > consume.LagEvery {
		if err := s.lag(ctx); err != nil {
			return err
		}
	}
	if len(s.spec.Trim) > 0 && time.Since(s.trimAt) > trimEvery {
		s.trimAt = time.Now()
		return s.trim(ctx)
	}
	return nil
}

func (s *session) lag(ctx context.Context) error {
	s.lagAt = time.Now()
	return consume.SetLag(ctx, s.assignment, s.comp, s.parked.Topic.Name)
}
