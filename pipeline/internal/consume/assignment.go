// Assignment: which partitions a group client owns, and where it stands in
// each. The client's callbacks fill it.

package consume

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/retry"
)

// Owned is one owned partition. Its fields change only while no poll is being
// worked on (BlockRebalanceOnPoll), or by the loop itself.
type Owned struct {
	Topic     *change.Topic
	order     int // of the topic among those that the group reads
	Partition int32
	Next      int64     // the offset to be read next; all before it is done
	Committed int64     // as the group had it at assignment; -1: none
	Metadata  string    // that came with committed
	Start     int64     // the first offset that is there
	compacted bool      // records go by compaction alone: one that is gone was superseded
	stable    int64     // the last stable offset, when it is below the end
	stableAt  time.Time // when it was first seen there; zero: it is the end
	Unsigned  bool      // nothing of ours is committed: do it before the first write
	Stored    int64     // deliver with an OffsetKeeper: below it records were written already; else 0
	Owner     string    // deliver with an OffsetKeeper: the assignment's name there
	ReadAt    time.Time // deliver with a Reconciler: what was written before is in the sink
}

// Coord is where in the partition a record lies.
func (p *Owned) Coord(offset int64) change.Coord {
	return change.Coord{Topic: p.Topic, Partition: p.Partition, Offset: offset}
}

// Assignment is filled by the callbacks of one group client, which is made with
// its Opts. Safe for concurrent use.
type Assignment struct {
	// Start, if set, may move partitions before they are read (Owned.Next). It
	// is called once per assignment with all of them, in order of topics and
	// partition.
	Start func(ctx context.Context, all []*Owned) error
	// OnRevoked, if set, runs before a rebalance goes on.
	OnRevoked func()

	cluster *kafka.Cluster
	topics  []string // all that the group reads
	aligned bool     // partition i of all topics must be owned together (F1)
	fail    func(error)

	mu      sync.Mutex
	gen     int64 // grows with every assignment and every revocation
	ready   bool  // adjust is done: the partitions may be read without mu
	revoked bool  // since the last call of TakeRevoked
	places  map[string]map[int32]*Owned
}

// NewAssignment is of a group that reads topics; aligned, if partition i of all
// of them must be owned together (F1). fail is called with what the callbacks
// cannot return.
func NewAssignment(c *kafka.Cluster, topics []string, aligned bool, fail func(error)) *Assignment {
	return &Assignment{cluster: c, topics: topics, aligned: aligned, fail: fail, places: map[string]map[int32]*Owned{}}
}

// Opts makes a client read like all of ours do (A8): from the earliest record
// when the group is new, read-committed, and never resuming silently
// elsewhere. The range balancer gives partition i of all topics to one member.
func (a *Assignment) Opts(m *Membership) []kgo.Opt {
	return append(m.opts(),
		kgo.ConsumeTopics(a.topics...),
		kgo.Balancers(kgo.RangeBalancer()),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// With control records the committed offset passes the markers of
		// transactions: a group that has read everything has no lag.
		kgo.KeepControlRecords(),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(a.assigned),
		kgo.OnPartitionsRevoked(a.lost),
		kgo.OnPartitionsLost(a.lost),
		kgo.OnOffsetsFetched(a.fetched),
		kgo.AdjustFetchOffsetsFn(a.adjust),
	)
}

func (a *Assignment) assigned(ctx context.Context, _ *kgo.Client, m map[string][]int32) {
	if err := outage.Guard(func() error { return a.assign(ctx, m) }); err != nil {
		a.fail(err)
	}
}

func (a *Assignment) assign(ctx context.Context, m map[string][]int32) error {
	places := map[string]map[int32]*Owned{}
	for name, parts := range m {
		t, err := a.cluster.Topic(ctx, name)
		if err != nil {
			return err
		}
		places[name] = map[int32]*Owned{}
		for _, p := range parts {
			places[name][p] = &Owned{Topic: t, order: slices.Index(a.topics, name), Partition: p, Next: -1, Committed: -1}
		}
	}
	if a.aligned && len(m) > 0 {
		if err := a.checkAligned(places); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.gen++
	a.places, a.ready = places, false
	a.mu.Unlock()
	return nil
}

// checkAligned: partition i of every topic is here, or of none.
func (a *Assignment) checkAligned(places map[string]map[int32]*Owned) error {
	first := places[a.topics[0]]
	for _, name := range a.topics {
		ps := places[name]
		if len(ps) != len(first) {
			return pipeline.ErrCoPartition.New("%d partitions of topic %q are assigned here, but %d of %q", len(first), a.topics[0], len(ps), name)
		}
		for i, p := range ps {
			f := first[i]
			if f == nil {
				return pipeline.ErrCoPartition.New("partition %d of topic %q is assigned here, but that of %q is not", i, name, a.topics[0])
			}
			if f.Topic.Partitions != p.Topic.Partitions {
				return pipeline.ErrCoPartition.New("topic %q has %d partitions, topic %q has %d", a.topics[0], f.Topic.Partitions, name, p.Topic.Partitions)
			}
		}
	}
	return nil
}

func (a *Assignment) lost(context.Context, *kgo.Client, map[string][]int32) {
	a.mu.Lock()
	a.gen++
	a.revoked = true
	a.places, a.ready = map[string]map[int32]*Owned{}, false
	f := a.OnRevoked
	a.mu.Unlock()
	if f != nil {
		f()
	}
}

// TakeRevoked tells whether partitions were revoked since it was last asked.
func (a *Assignment) TakeRevoked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.revoked
	a.revoked = false
	return was
}

// fetched notes what the group has committed, with the metadata beside it.
func (a *Assignment) fetched(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	note := func(topic string, id [16]byte, partition int32, offset int64, metadata *string) {
		ps := a.places[topic]
		if topic == "" {
			for _, of := range a.places {
				for _, p := range of {
					if p.Topic.ID == id {
						ps = of
					}
				}
			}
		}
		if p := ps[partition]; p != nil {
			p.Committed = offset
			p.Metadata = ""
			if metadata != nil {
				p.Metadata = *metadata
			}
		}
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			note(t.Topic, [16]byte{}, p.Partition, p.Offset, p.Metadata)
		}
	}
	for _, g := range resp.Groups {
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				note(t.Topic, t.TopicID, p.Partition, p.Offset, p.Metadata)
			}
		}
	}
	return nil
}

// adjust decides where each partition starts: at what is committed, or at the
// first record; start may say otherwise. It checks that this is still there.
func (a *Assignment) adjust(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	var out map[string]map[int32]kgo.Offset
	err := outage.Guard(func() (err error) { // Start is the component's
		out, err = a.adjusted(ctx, offsets)
		return err
	})
	if err != nil && ctx.Err() == nil {
		a.fail(err)
	}
	return out, err
}

func (a *Assignment) adjusted(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	adm := a.cluster.Admin()
	starts, err := adm.ListStartOffsets(ctx, a.topics...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, kafka.Wrap(err, "listing where the topics start")
	}
	ends, err := adm.ListEndOffsets(ctx, a.topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, kafka.Wrap(err, "listing where the topics end")
	}
	compacted, err := a.cluster.CompactedOnly(ctx, a.topics...)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	places := a.ordered()
	a.mu.Unlock()
	for _, p := range places {
		p.compacted = compacted[p.Topic.Name]
		first, ok := starts.Lookup(p.Topic.Name, p.Partition)
		if !ok {
			return nil, kafka.ErrUnavailable.New("partition %d of topic %q has no known start", p.Partition, p.Topic.Name)
		}
		p.Start = first.Offset
		if p.Committed >= 0 {
			if id, ok := TokenTopic(p.Metadata); ok && id != p.Topic.ID {
				return nil, pipeline.ErrTopicRecreated.New("offset %d of partition %d of topic %q was committed for topic id %x, the topic has %x now",
					p.Committed, p.Partition, p.Topic.Name, id, p.Topic.ID)
			}
			p.Next = p.Committed
			continue
		}
		p.Next = p.Start
	}
	if a.Start != nil {
		if err := a.Start(ctx, places); err != nil {
			return nil, err
		}
	}
	for _, p := range places {
		e, ok := ends.Lookup(p.Topic.Name, p.Partition)
		if !ok {
			return nil, kafka.ErrUnavailable.New("partition %d of topic %q has no known end", p.Partition, p.Topic.Name)
		}
		from := p.Next
		if from < p.Start {
			if !p.compacted {
				return nil, outOfRange(p, p.Next, p.Start)
			}
			// kfake's compaction moves the start (Kafka's does not). next stays:
			// what is stored elsewhere goes on from there.
			from = p.Start
		}
		if p.Next > e.Offset {
			return nil, kafka.ErrOffsetRange.New("partition %d of topic %q ends at offset %d, but %d was to be read next: the topic lost records or was made anew",
				p.Partition, p.Topic.Name, e.Offset, p.Next)
		}
		was, ok := offsets[p.Topic.Name][p.Partition]
		if !ok {
			continue // the broker did not give this one; the client reports it
		}
		if was.EpochOffset().Offset != from {
			offsets[p.Topic.Name][p.Partition] = kgo.NewOffset().At(from)
		}
	}
	a.mu.Lock()
	a.ready = true
	a.mu.Unlock()
	return offsets, nil
}

func outOfRange(p *Owned, from, to int64) error {
	return kafka.ErrOffsetRange.New("partition %d of topic %q starts at offset %d now: records %d to %d were never read and are gone",
		p.Partition, p.Topic.Name, to, from, to-1)
}

// List gives the owned partitions in the order of topics and partition, once their
// offsets are known; nil before.
func (a *Assignment) List() []*Owned {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ready {
		return nil
	}
	return a.ordered()
}

func (a *Assignment) ordered() []*Owned {
	var out []*Owned
	for _, of := range a.places {
		for _, p := range of {
			out = append(out, p)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].order != out[j].order {
			return out[i].order < out[j].order
		}
		return out[i].Partition < out[j].Partition
	})
	return out
}

// Current tells the generation, and whether its partitions are known.
func (a *Assignment) Current() (gen int64, ready bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.gen, a.ready
}

// Find gives an owned partition, or nil.
func (a *Assignment) Find(topic string, partition int32) *Owned {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.places[topic][partition]
}

// Every commit of ours carries a token in its metadata: Kafka's reset tool
// commits none, so a reset is told from our own commit (H1), and the topic's
// id stands beside every stored offset (E2).
const tokenPrefix = "tallywire/1 "

func TokenOf(t *change.Topic) string { return tokenPrefix + hex.EncodeToString(t.ID[:]) }

// switchMark stands in the token of an offset while the rules of its group are
// being switched, before what names the switch.
const switchMark = " switch "

// SwitchToken is the token of an offset while a switch of rules is open.
func SwitchToken(t *change.Topic, name string) string { return TokenOf(t) + switchMark + name }

// Switching names the switch that is open, by the token of an offset; "": none.
func Switching(metadata string) string {
	if !strings.HasPrefix(metadata, tokenPrefix) {
		return ""
	}
	_, name, _ := strings.Cut(metadata, switchMark)
	return name
}

// TokenTopic reads the topic's id out of a token of ours.
func TokenTopic(metadata string) (id [16]byte, ok bool) {
	h, ok := strings.CutPrefix(metadata, tokenPrefix)
	h, _, _ = strings.Cut(h, switchMark)
	if !ok {
		return id, false
	}
	b, err := hex.DecodeString(h)
	if err != nil || len(b) != len(id) {
		return id, false
	}
	return [16]byte(b), true
}

// CauseOf is what a callback of the client found, which weighs more than what
// the loop saw of it, or err.
func CauseOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// tellAfter is for how long a topic may be waited for before the log says so:
// at a start others are about to make it.
const tellAfter = 30 * time.Second

// AwaitTopic waits for a topic that another component makes. One that has a
// contract is made here, empty: whether something fills it or not, what fills
// the others goes on.
func AwaitTopic(ctx context.Context, env *pipeline.Env, name string, comp *obs.Component) (*change.Topic, error) {
	contracts, err := env.Catalogue()
	if err != nil {
		return nil, err
	}
	if contracts[name] != nil {
		return env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{Name: name, Default: env.Partitions, Compact: true})
	}
	told := false
	for began := time.Now(); ; {
		topic, err := env.Kafka.Topic(ctx, name)
		if err == nil || !problem.Has(err, kafka.ErrNoTopic) {
			return topic, err
		}
		comp.Is(obs.Starting, "waiting for topic "+name)
		if !told && time.Since(began) > tellAfter {
			told = true
			comp.Failed(problem.Retry.String(), kafka.ErrNoTopic.ID)
			comp.Log.Warn("waiting for a topic that nobody makes", "topic", name, "code", kafka.ErrNoTopic.ID, "remedy", kafka.ErrNoTopic.Remedy)
		}
		if !retry.Sleep(ctx, 200*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}
