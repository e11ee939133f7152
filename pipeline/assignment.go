// assignment: which partitions a group client owns, and where it stands in
// each. Both loops that read from Kafka keep one; the client's callbacks fill
// it.

package pipeline

import (
	"context"
	"encoding/hex"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
)

// place is one owned partition. Its fields change only while no poll is being
// worked on (BlockRebalanceOnPoll), or by the loop itself.
type place struct {
	topic     *change.Topic
	order     int // of the topic among those that the group reads
	partition int32
	next      int64     // the offset to be read next; all before it is done
	committed int64     // as the group had it at assignment; -1: none
	metadata  string    // that came with committed
	start     int64     // the first offset that is there
	compacted bool      // records go by compaction alone: one that is gone was superseded
	stable    int64     // the last stable offset, when it is below the end
	stableAt  time.Time // when it was first seen there; zero: it is the end
	unsigned  bool      // nothing of ours is committed: do it before the first write
	stored    int64     // deliver with an OffsetKeeper: below it records were written already; else 0
}

func (p *place) coord(offset int64) change.Coord {
	return change.Coord{Topic: p.topic, Partition: p.partition, Offset: offset}
}

type assignment struct {
	cluster *kafka.Cluster
	topics  []string // all that the group reads
	aligned bool     // partition i of all topics must be owned together (F1)
	fail    func(error)
	// start may move places before they are read (place.next) and is called
	// once per assignment with all of them, in order of topics and partition.
	start func(ctx context.Context, places []*place) error

	mu        sync.Mutex
	gen       int64 // grows with every assignment and every revocation
	ready     bool  // adjust is done: the places may be read without mu
	revoked   bool  // since the last call of takeRevoked
	places    map[string]map[int32]*place
	onRevoked func() // runs before a rebalance goes on
}

func newAssignment(c *kafka.Cluster, topics []string, aligned bool, fail func(error)) *assignment {
	return &assignment{cluster: c, topics: topics, aligned: aligned, fail: fail, places: map[string]map[int32]*place{}}
}

// opts makes a client read like all of ours do (A8): from the earliest record
// when the group is new, read-committed, and never resuming silently
// elsewhere. The range balancer gives partition i of all topics to one member.
func (a *assignment) opts(m *membership) []kgo.Opt {
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

func (a *assignment) assigned(ctx context.Context, _ *kgo.Client, m map[string][]int32) {
	places := map[string]map[int32]*place{}
	for name, parts := range m {
		t, err := a.cluster.Topic(ctx, name)
		if err != nil {
			a.fail(err)
			return
		}
		places[name] = map[int32]*place{}
		for _, p := range parts {
			places[name][p] = &place{topic: t, order: slices.Index(a.topics, name), partition: p, next: -1, committed: -1}
		}
	}
	if a.aligned && len(m) > 0 {
		if err := a.checkAligned(places); err != nil {
			a.fail(err)
			return
		}
	}
	a.mu.Lock()
	a.gen++
	a.places, a.ready = places, false
	a.mu.Unlock()
}

// checkAligned: partition i of every topic is here, or of none.
func (a *assignment) checkAligned(places map[string]map[int32]*place) error {
	first := places[a.topics[0]]
	for _, name := range a.topics {
		ps := places[name]
		if len(ps) != len(first) {
			return ErrCoPartition.New("%d partitions of topic %q are assigned here, but %d of %q", len(first), a.topics[0], len(ps), name)
		}
		for i, p := range ps {
			f := first[i]
			if f == nil {
				return ErrCoPartition.New("partition %d of topic %q is assigned here, but that of %q is not", i, name, a.topics[0])
			}
			if f.topic.Partitions != p.topic.Partitions {
				return ErrCoPartition.New("topic %q has %d partitions, topic %q has %d", a.topics[0], f.topic.Partitions, name, p.topic.Partitions)
			}
		}
	}
	return nil
}

func (a *assignment) lost(context.Context, *kgo.Client, map[string][]int32) {
	a.mu.Lock()
	a.gen++
	a.revoked = true
	a.places, a.ready = map[string]map[int32]*place{}, false
	f := a.onRevoked
	a.mu.Unlock()
	if f != nil {
		f()
	}
}

// takeRevoked tells whether partitions were revoked since it was last asked.
func (a *assignment) takeRevoked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.revoked
	a.revoked = false
	return was
}

// fetched notes what the group has committed, with the metadata beside it.
func (a *assignment) fetched(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	note := func(topic string, id [16]byte, partition int32, offset int64, metadata *string) {
		ps := a.places[topic]
		if topic == "" {
			for _, of := range a.places {
				for _, p := range of {
					if p.topic.ID == id {
						ps = of
					}
				}
			}
		}
		if p := ps[partition]; p != nil {
			p.committed = offset
			p.metadata = ""
			if metadata != nil {
				p.metadata = *metadata
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
func (a *assignment) adjust(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	out, err := a.adjusted(ctx, offsets)
	if err != nil && ctx.Err() == nil {
		a.fail(err)
	}
	return out, err
}

func (a *assignment) adjusted(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
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
		p.compacted = compacted[p.topic.Name]
		first, ok := starts.Lookup(p.topic.Name, p.partition)
		if !ok {
			return nil, kafka.ErrUnavailable.New("partition %d of topic %q has no known start", p.partition, p.topic.Name)
		}
		p.start = first.Offset
		if p.committed >= 0 {
			if id, ok := tokenTopic(p.metadata); ok && id != p.topic.ID {
				return nil, ErrTopicRecreated.New("offset %d of partition %d of topic %q was committed for topic id %x, the topic has %x now",
					p.committed, p.partition, p.topic.Name, id, p.topic.ID)
			}
			p.next = p.committed
			continue
		}
		p.next = p.start
	}
	if a.start != nil {
		if err := a.start(ctx, places); err != nil {
			return nil, err
		}
	}
	for _, p := range places {
		e, ok := ends.Lookup(p.topic.Name, p.partition)
		if !ok {
			return nil, kafka.ErrUnavailable.New("partition %d of topic %q has no known end", p.partition, p.topic.Name)
		}
		from := p.next
		if from < p.start {
			if !p.compacted {
				return nil, outOfRange(p, p.next, p.start)
			}
			// kfake's compaction moves the start (Kafka's does not). next stays:
			// what is stored elsewhere goes on from there.
			from = p.start
		}
		if p.next > e.Offset {
			return nil, kafka.ErrOffsetRange.New("partition %d of topic %q ends at offset %d, but %d was to be read next: the topic lost records or was made anew",
				p.partition, p.topic.Name, e.Offset, p.next)
		}
		was, ok := offsets[p.topic.Name][p.partition]
		if !ok {
			continue // the broker did not give this one; the client reports it
		}
		if was.EpochOffset().Offset != from {
			offsets[p.topic.Name][p.partition] = kgo.NewOffset().At(from)
		}
	}
	a.mu.Lock()
	a.ready = true
	a.mu.Unlock()
	return offsets, nil
}

func outOfRange(p *place, from, to int64) error {
	return kafka.ErrOffsetRange.New("partition %d of topic %q starts at offset %d now: records %d to %d were never read and are gone",
		p.partition, p.topic.Name, to, from, to-1)
}

// list gives the places in the order of topics and partition, once their
// offsets are known; nil before.
func (a *assignment) list() []*place {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ready {
		return nil
	}
	return a.ordered()
}

func (a *assignment) ordered() []*place {
	var out []*place
	for _, of := range a.places {
		for _, p := range of {
			out = append(out, p)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].order != out[j].order {
			return out[i].order < out[j].order
		}
		return out[i].partition < out[j].partition
	})
	return out
}

// current tells the generation, and whether its places are known.
func (a *assignment) current() (gen int64, ready bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.gen, a.ready
}

func (a *assignment) find(topic string, partition int32) *place {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.places[topic][partition]
}

// Every commit of ours carries a token in its metadata: Kafka's reset tool
// commits none, so a reset is told from our own commit (H1), and the topic's
// id stands beside every stored offset (E2).
const tokenPrefix = "tallywire/1 "

func tokenOf(t *change.Topic) string { return tokenPrefix + hex.EncodeToString(t.ID[:]) }

// tokenTopic reads the topic's id out of a token of ours.
func tokenTopic(metadata string) (id [16]byte, ok bool) {
	h, ok := strings.CutPrefix(metadata, tokenPrefix)
	if !ok {
		return id, false
	}
	b, err := hex.DecodeString(h)
	if err != nil || len(b) != len(id) {
		return id, false
	}
	return [16]byte(b), true
}
