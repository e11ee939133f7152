// The deliver loop: from topics to a sink. deliver.go holds the session: a
// client of the group from its start to its first failure. Offsets are
// committed after the records before them are written, and what could not be
// written is parked durably before that.

package pipeline

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline/internal/retry"
	"github.com/tallywire/tallywire/pipeline/parked"
)

// ErrOwner says that the sink has another owner for a partition, or another
// offset, than this process thinks.
var ErrOwner = problem.Define("TW-SINK-OWNER", problem.Retry,
	"Partitions moved to another process, or the sink's stored offsets are not what was left there.",
	"Nothing to do: the process joins its group again and goes on from what the sink has stored.")

// RunDeliver runs the group until ctx ends (nil) or it must halt (the problem,
// shown in the component's state too).
func RunDeliver(ctx context.Context, env *Env, spec DeliverSpec) error {
	spec.DeliverLimits = spec.withDefaults()
	d := &deliver{env: env, spec: spec, comp: env.Obs.Component("sink", spec.Name)}
	d.keeper, _ = spec.Sink.(OffsetKeeper)
	if env.Control != nil {
		d.store = control.NewParked(env.Control)
	}
	d.member = newMembership(env, d.comp.Log, GroupOf(spec.Name), spec.Inputs())
	defer d.member.leave(ctx)
	return retry.Run(ctx, d.comp, d.run)
}

type deliver struct {
	env    *Env
	spec   DeliverSpec
	comp   *obs.Component
	member *membership
	keeper OffsetKeeper // nil: Kafka's offsets are the truth
	store  *control.ParkedStore
}

type deliverSession struct {
	*deliver
	assignment *assignment
	group      *kgo.Client
	decoder    *avro.Decoder

	// writing is held while the sink works: a revocation waits for it (H2).
	writing sync.Mutex
	// wanted: a rebalance waits for us.
	wanted atomic.Bool

	prepared   int64  // generation that prepare has seen
	id         string // the assignment's name for the sink; set by start
	index      parked.Index
	othersWait bool // records in partitions of other processes
	tickAt     time.Time
	lagAt      time.Time
	due        bool // something was released: look at once
}

func (d *deliver) run(ctx context.Context) (err error) {
	d.comp.Is(obs.Starting, "")
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, name := range d.spec.Topics {
		if _, err := awaitTopic(ctx, d.env.Kafka, name, d.comp); err != nil {
			return err
		}
	}
	s := &deliverSession{deliver: d, prepared: -1, decoder: avro.NewDecoder(d.env.Registry)}
	s.assignment = newAssignment(d.env.Kafka, d.spec.Inputs(), false, func(err error) { cancel(err) })
	s.assignment.start = s.start
	s.assignment.onRevoked = func() { // wait for the write in flight
		s.writing.Lock()
		defer s.writing.Unlock()
		s.wanted.Store(false)
	}
	s.group, err = d.env.Kafka.Client(append(s.assignment.opts(d.member),
		kgo.OnPartitionsCallbackBlocked(func(context.Context, *kgo.Client) { s.wanted.Store(true) }),
		kgo.FetchMaxBytes(32<<20),
		kgo.FetchMaxPartitionBytes(4<<20),
		kgo.FetchMaxWait(time.Second),
		kgo.RebalanceTimeout(3*time.Minute),
	)...)
	if err != nil {
		return err
	}
	defer func() { err = d.member.close(outer, s.group, causeOf(ctx, err)) }()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.prepare(ctx); err != nil {
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
func (s *deliverSession) start(ctx context.Context, places []*place) error {
	if s.keeper == nil || len(places) == 0 {
		return nil
	}
	s.id = newAssignmentID(s.env.Instance)
	coords := make([]change.Coord, len(places))
	for i, p := range places {
		coords[i] = p.coord(p.next)
	}
	stored, err := s.keeper.Claim(ctx, s.id, coords)
	if err != nil {
		return fmt.Errorf("claiming %d partitions for sink %q: %w", len(places), s.spec.Name, err)
	}
	if len(stored) != len(places) {
		panic("BUG: Claim gave another number of offsets than it was asked for")
	}
	var set []change.Coord
	for i, p := range places {
		_, ours := tokenTopic(p.metadata)
		// Without an offset of ours in Kafka a crash before the first commit
		// would leave nothing to tell which failures were not parked yet.
		p.unsigned = !ours
		switch {
		case p.committed >= 0 && !ours:
			s.comp.Log.Info("the offset was reset", "topic", p.topic.Name, "partition", p.partition, "to", p.committed, "stored", stored[i])
			p.next = p.committed
			set = append(set, p.coord(p.next))
		case stored[i] < 0:
			p.next = p.start
			set = append(set, p.coord(p.next))
		case p.committed >= 0 && p.committed < stored[i]:
			p.next, p.stored = p.committed, stored[i]
		default:
			p.next = stored[i]
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
func (s *deliverSession) prepare(ctx context.Context) error {
	gen, ready := s.assignment.current()
	if gen == s.prepared || !ready {
		return nil
	}
	s.wanted.Store(false)
	places := s.assignment.list()
	s.index = parked.Index{}
	if s.store != nil {
		rows, err := s.store.Index(ctx, s.spec.Name, partIDs(places))
		if err != nil {
			return err
		}
		for i := range rows {
			s.index.Add(&rows[i])
		}
	}
	s.index.Show(s.comp)
	var unsigned []*place
	for _, p := range places {
		if p.unsigned {
			unsigned = append(unsigned, p)
		}
	}
	if err := s.commit(ctx, unsigned); err != nil {
		return err
	}
	s.prepared = gen
	s.comp.Partitions()
	s.comp.Is(obs.Running, "")
	return s.lag(ctx)
}

func partIDs(places []*place) []control.PartID {
	out := make([]control.PartID, len(places))
	for i, p := range places {
		out[i] = control.PartID{Topic: p.topic.Name, Partition: p.partition}
	}
	return out
}

func (s *deliverSession) lag(ctx context.Context) error {
	s.lagAt = time.Now()
	return setLag(ctx, s.assignment, s.comp, "")
}

// step polls, gathers while there is much, and delivers.
func (s *deliverSession) step(ctx context.Context) error {
	wait := min(IdlePoll, s.spec.Tick)
	p := newPolled()
	for began := time.Now(); ; {
		pollCtx, cancel := context.WithTimeout(ctx, wait)
		fs := s.group.PollRecords(pollCtx, s.spec.MaxRecords-p.count)
		cancel()
		if fs.IsClientClosed() {
			return ErrOwner.New("the client was closed")
		}
		before := p.count
		if err := p.add(s.assignment, fs); err != nil {
			return err
		}
		// Busy: the first poll found a good deal. Then a larger write costs
		// less per record than it costs to wait a little.
		left := s.spec.Gather - time.Since(began)
		if p.count < s.spec.MaxRecords/16 || p.count >= s.spec.MaxRecords || p.bytes >= s.spec.MaxBytes || left <= 0 || p.count == before {
			break
		}
		wait = left
	}
	if len(p.runs) == 0 {
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
func (d *deliver) hold(ctx context.Context, s *deliverSession, p *polled) error {
	began := time.Now()
	for pause := retry.First; ; pause = min(2*pause, 5*time.Second) {
		err := s.deliverPolled(ctx, p)
		if err == nil || d.keeper != nil || Classify(err) != problem.Retry || ctx.Err() != nil || errors.Is(err, errCommit) {
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
		d.comp.Is(obs.Retrying, outage.ReasonOf(err))
		if !retry.Sleep(ctx, wait) {
			return ctx.Err()
		}
	}
}

// errCommit marks a failed offset commit: the group has moved on.
var errCommit = errors.New("committing offsets")

// commit makes next of the places the group's offset, with our token.
func (s *deliverSession) commit(ctx context.Context, places []*place) error {
	if len(places) == 0 {
		return nil
	}
	offsets := map[string]map[int32]kgo.EpochOffset{}
	tokens := map[string]string{}
	for _, p := range places {
		m := offsets[p.topic.Name]
		if m == nil {
			m = map[int32]kgo.EpochOffset{}
			offsets[p.topic.Name] = m
			tokens[p.topic.Name] = tokenOf(p.topic)
		}
		m[p.partition] = kgo.EpochOffset{Epoch: -1, Offset: p.next}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for i := range req.Topics {
			t := &req.Topics[i]
			token, ok := tokens[t.Topic]
			if !ok {
				return fmt.Errorf("BUG: a commit of topic %q (%x) that was not asked for", t.Topic, t.TopicID)
			}
			for j := range t.Partitions {
				t.Partitions[j].Metadata = &token
			}
		}
		return nil
	})
	var failed error
	s.group.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if failed = err; err != nil {
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil && failed == nil {
					failed = err
				}
			}
		}
	})
	if errors.Is(failed, kerr.FencedInstanceID) {
		return groupFenced(failed, "committing offsets of sink %q", s.spec.Name)
	}
	if failed != nil {
		return errors.Join(kafka.Wrap(failed, "committing offsets of sink %q", s.spec.Name), errCommit)
	}
	for _, p := range places {
		p.unsigned = false
	}
	return nil
}
