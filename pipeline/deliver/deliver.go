// Package deliver is the deliver loop: from topics to a sink. Its session, in
// this file, is a client of the group from its start to its first failure.
// Offsets are committed after the records before them are written; what could
// not be written is parked in the transaction that commits them.
package deliver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
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
)

// ErrOwner says that the sink has another owner for a partition, or another
// offset, than this process thinks.
var ErrOwner = problem.Define("TW-SINK-OWNER", problem.Retry,
	"Partitions moved to another process, or the sink's stored offsets are not what was left there.",
	"Nothing to do: the process joins its group again and goes on from what the sink has stored.")

// Run runs the group until ctx ends (nil) or it must halt (the problem,
// shown in the component's state too).
func Run(ctx context.Context, env *pipeline.Env, spec pipeline.DeliverSpec) error {
	spec.DeliverLimits = spec.WithDefaults()
	d := &deliver{env: env, spec: spec, comp: env.Obs.Component("sink", spec.Name)}
	d.keeper, _ = spec.Sink.(pipeline.OffsetKeeper)
	d.reconciler, _ = spec.Sink.(pipeline.Reconciler)
	defer parked.Project(ctx, env.Kafka, env.Control, spec.Name, control.KindSink, d.comp)()
	d.member = consume.NewMembership(env, d.comp.Log, pipeline.GroupOf(spec.Name), spec.Inputs())
	defer d.member.Leave(ctx)
	return retry.Run(ctx, d.comp, d.run)
}

// ShowBehind shows how far a group that halted falls behind, until ctx ends.
func ShowBehind(ctx context.Context, env *pipeline.Env, spec pipeline.DeliverSpec) {
	consume.ShowBehind(ctx, env.Kafka, env.Obs.Component("sink", spec.Name), pipeline.GroupOf(spec.Name), spec.Inputs())
}

type deliver struct {
	env    *pipeline.Env
	spec   pipeline.DeliverSpec
	comp   *obs.Component
	member *consume.Membership
	keeper pipeline.OffsetKeeper // nil: Kafka's offsets are the truth
	// reconciler is nil where it does not matter for how long the sink is away.
	reconciler pipeline.Reconciler
}

type session struct {
	*deliver
	assignment *consume.Assignment
	group      *kgo.Client
	writer     *parkedWriter
	decoder    *avro.Decoder

	// writing is held while the sink works: a revocation waits for it (H2).
	writing sync.Mutex
	// wanted: a rebalance waits for us.
	wanted atomic.Bool

	prepared int64             // generation that prepare has seen
	alone    bool              // no other process has a part of it, as prepare has seen
	id       string            // the assignment's name for the sink; set by start
	as       kafka.GroupMember // who we were when prepare saw it
	parked   *parked.Set
	tickAt   time.Time
	lagAt    time.Time
	due      bool // something was released: look at once
	lookAt   time.Time
	sights   map[*consume.Owned]*sight // of the assignment that prepare has seen
}

func (d *deliver) run(ctx context.Context) (err error) {
	d.comp.Is(obs.Starting, "")
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var partitions int32
	for _, name := range d.spec.Topics {
		t, err := consume.AwaitTopic(ctx, d.env, name, d.comp)
		if err != nil {
			return err
		}
		partitions = max(partitions, t.Partitions)
	}
	// One that is there keeps its partitions: records find theirs by remainder.
	parkedTopic, err := d.env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{Name: parked.TopicOf(d.spec.Name), Default: partitions, Compact: true})
	if err != nil {
		return err
	}
	s := &session{deliver: d, prepared: -1, decoder: avro.NewDecoder(d.env.Registry)}
	s.parked = parked.NewSet(d.spec.Name, control.KindSink, parkedTopic, d.comp)
	s.parked.Following = true
	s.parked.Keep = parked.Keeping{Restricted: d.env.Restricted, Seal: d.env.Seal}
	if s.writer, err = d.newWriter(ctx, parkedTopic.Name); err != nil {
		return err
	}
	defer s.writer.close()
	s.assignment = consume.NewAssignment(d.env.Kafka, d.spec.Inputs(), false, func(err error) { cancel(err) })
	s.assignment.Start = s.start
	s.assignment.OnRevoked = func() { // wait for the write in flight
		s.writing.Lock()
		defer s.writing.Unlock()
		s.wanted.Store(false)
	}
	s.group, err = d.env.Kafka.Client(append(s.assignment.Opts(d.member),
		kgo.OnPartitionsCallbackBlocked(func(context.Context, *kgo.Client) { s.wanted.Store(true) }),
		kgo.FetchMaxBytes(32<<20),
		kgo.FetchMaxPartitionBytes(4<<20),
		kgo.FetchMaxWait(time.Second),
		kgo.RebalanceTimeout(3*time.Minute),
	)...)
	if err != nil {
		return err
	}
	defer func() { err = d.member.Close(outer, s.group, consume.CauseOf(ctx, err)) }()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.prepare(ctx); err != nil {
			return err
		}
		if err := s.reconcile(ctx); err != nil {
			return err
		}
		if err := s.tick(ctx); err != nil {
			return err
		}
		if err := s.step(ctx); err != nil {
			return err
		}
		s.group.AllowRebalance()
	}
}

// start says where each partition is read from. For an OffsetKeeper the truth
// is in the sink (H1):
//
//	Kafka has              the sink has    read from
//	an offset, no token    anything        Kafka's: a reset, stored in the sink first
//	nothing                an offset       the sink's
//	nothing, or a token    nothing         the first record
//	an offset and a token  an offset       the lower: below the sink's offset records
//	                                       are written once more, without moving it, since
//	                                       failures among them may not have been parked
func (s *session) start(ctx context.Context, places []*consume.Owned) error {
	if s.keeper == nil || len(places) == 0 {
		return nil
	}
	s.id = newAssignmentID(s.env.Instance)
	coords := make([]change.Coord, len(places))
	for i, p := range places {
		coords[i] = p.Coord(p.Next)
	}
	stored, err := s.keeper.Claim(ctx, s.id, coords)
	if err != nil {
		return fmt.Errorf("claiming %d partitions for sink %q: %w", len(places), s.spec.Name, err)
	}
	if len(stored) != len(places) {
		panic("BUG: Claim gave another number of offsets than it was asked for")
	}
	var readAt []time.Time
	if s.reconciler != nil {
		if readAt, err = s.reconciler.ReadAt(ctx, coords); err != nil {
			return fmt.Errorf("asking sink %q how far it has read: %w", s.spec.Name, err)
		}
	}
	var set []change.Coord
	for i, p := range places {
		if p.Owner = s.id; readAt != nil {
			p.ReadAt = readAt[i]
		}
		_, ours := consume.TokenTopic(p.Metadata)
		// Without an offset of ours in Kafka a crash before the first commit
		// would leave nothing to tell which failures were not parked yet.
		p.Unsigned = !ours
		switch {
		case p.Committed >= 0 && !ours:
			s.comp.Log.Info("the offset was reset", "topic", p.Topic.Name, "partition", p.Partition, "to", p.Committed, "stored", stored[i])
			p.Next = p.Committed
			set = append(set, p.Coord(p.Next))
		case stored[i] < 0:
			p.Next = p.Start
			set = append(set, p.Coord(p.Next))
		case p.Committed >= 0 && p.Committed < stored[i]:
			p.Next, p.Stored = p.Committed, stored[i]
		default:
			p.Next = stored[i]
		}
	}
	if len(set) == 0 {
		return nil
	}
	if err := s.keeper.SetOffsets(ctx, s.id, set); err != nil {
		return fmt.Errorf("setting the offsets of %d partitions in sink %q: %w", len(set), s.spec.Name, err)
	}
	return nil
}

func newAssignmentID(instance string) string {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(fmt.Sprintf("BUG: no randomness: %v", err)) // crypto/rand never fails since Go 1.24
	}
	return instance + "/" + hex.EncodeToString(b[:])
}

// prepare makes what is new of the assignment ready.
func (s *session) prepare(ctx context.Context) error {
	gen, ready := s.assignment.Current()
	if gen == s.prepared || !ready {
		return nil
	}
	s.wanted.Store(false)
	places := s.assignment.List()
	parts := make([]int32, s.parked.Topic.Partitions)
	for i := range parts {
		parts[i] = int32(i)
	}
	owns := func(topic string, partition int32) bool { return s.place(topic, partition) != nil }
	if err := s.parked.Load(ctx, s.env.Kafka.Shared(), s.env.Kafka, parts, owns); err != nil {
		return err
	}
	var unsigned []*consume.Owned
	for _, p := range places {
		if p.Unsigned {
			unsigned = append(unsigned, p)
		}
	}
	if err := s.commit(ctx, unsigned); err != nil {
		return err
	}
	s.sights = map[*consume.Owned]*sight{}
	if err := s.look(ctx); err != nil {
		return err
	}
	s.prepared = gen
	s.alone = s.ownsAll(places)
	s.as = kafka.GroupMember{Group: pipeline.GroupOf(s.spec.Name), Instance: s.member.Instance()}
	s.as.ID, s.as.Generation = s.group.GroupMetadata()
	s.comp.Partitions()
	s.comp.Is(obs.Running, "")
	return s.lag(ctx)
}

// place is the owned partition in whose name a parked record is worked on: that
// which it came from or, when its topic is not read any more, the first of the
// first topic, so that somebody answers for it. nil: it is another process's.
func (s *session) place(topic string, partition int32) *consume.Owned {
	if !slices.Contains(s.spec.Topics, topic) {
		topic, partition = s.spec.Topics[0], 0
	}
	return s.assignment.Find(topic, partition)
}

// ownsAll reports that no other process has a partition of any topic.
func (s *session) ownsAll(places []*consume.Owned) bool {
	n := map[string]int32{}
	for _, p := range places {
		if n[p.Topic.Name]++; n[p.Topic.Name] == p.Topic.Partitions {
			n[p.Topic.Name] = -1 << 16 // whole
		}
	}
	for _, t := range s.spec.Topics {
		if n[t] >= 0 {
			return false
		}
	}
	return true
}

func (s *session) lag(ctx context.Context) error {
	s.lagAt = time.Now()
	return consume.SetLag(ctx, s.assignment, s.comp, "")
}

// step polls, gathers while there is much, and delivers.
func (s *session) step(ctx context.Context) error {
	wait := min(consume.IdlePoll, s.spec.Tick)
	p := consume.NewPolled()
	for began := time.Now(); ; {
		pollCtx, cancel := context.WithTimeout(ctx, wait)
		fs := s.group.PollRecords(pollCtx, s.spec.MaxRecords-p.Count)
		cancel()
		if fs.IsClientClosed() {
			return ErrOwner.New("the client was closed")
		}
		before := p.Count
		if err := p.Add(s.assignment, fs); err != nil {
			return err
		}
		// Busy: the first poll found a good deal. Then a larger write costs
		// less per record than it costs to wait a little.
		left := s.spec.Gather - time.Since(began)
		if p.Count < s.spec.MaxRecords/16 || p.Count >= s.spec.MaxRecords || p.Bytes >= s.spec.MaxBytes || left <= 0 || p.Count == before {
			break
		}
		wait = left
	}
	if len(p.Runs) == 0 {
		return nil
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.deliver.hold(ctx, s, p); err != nil {
		return err
	}
	s.comp.Is(obs.Running, "")
	return nil
}

// hold delivers a poll. A sink without offsets of its own may be asked again
// in place while it is down: what it got twice must not show. For one that
// keeps offsets an error leaves them unknown, so the session ends and they are
// read again (invariant 14).
func (d *deliver) hold(ctx context.Context, s *session, p *consume.Polled) error {
	began := time.Now()
	for pause := retry.First; ; pause = min(2*pause, 5*time.Second) {
		err := s.deliverPolled(ctx, p)
		if err == nil || d.keeper != nil || pipeline.Classify(err) != problem.Retry || ctx.Err() != nil || errors.Is(err, errCommit) {
			return err
		}
		wait := pause
		if e := problem.Of(err); e != nil && e.After > wait {
			wait = e.After
		}
		if time.Since(began)+wait > time.Minute || s.wanted.Load() {
			return err
		}
		d.comp.Failed(problem.Retry.String(), outage.CodeOf(err))
		d.comp.Ails(obs.Retrying, outage.ReasonOf(err), outage.RemedyOf(err))
		if !retry.Sleep(ctx, wait) {
			return ctx.Err()
		}
	}
}
