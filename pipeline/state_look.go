// Look: reading state that others keep, without ever taking 'not there yet'
// for 'missing'.

package pipeline

import (
	"context"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	twredis "github.com/tallywire/tallywire/internal/redis"
)

// StateReader reads what a transform keeps of a topic, in whichever process.
// Safe for concurrent use.
type StateReader struct {
	transform, topic string
	find             func(ctx context.Context, topic string) (*change.Topic, error)
	// Shape is that of the State; set before use.
	Shape string

	mu   sync.Mutex
	t    *change.Topic
	ns   string
	seen []mark // per partition: the latest that was believed
}

// NewStateReader reads the State of the same transform and topic. find gives
// the topic as it is in Kafka (kafka.Cluster.Topic).
func NewStateReader(transform, topic string, find func(ctx context.Context, topic string) (*change.Topic, error)) *StateReader {
	return &StateReader{transform: transform, topic: topic, find: find}
}

// Topic is the name of the topic.
func (r *StateReader) Topic() string { return r.topic }

// resolve gives the topic and the namespace of what is kept of it.
func (r *StateReader) resolve(ctx context.Context) (*change.Topic, string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.t == nil {
		t, err := r.find(ctx, r.topic)
		if err != nil {
			return nil, "", err
		}
		r.t, r.ns, r.seen = t, namespace(r.transform, t.ID), make([]mark, t.Partitions)
	}
	return r.t, r.ns, nil
}

// Look is one reading over several pipelines: Begin before what is read first,
// End after what is read last, then Err. Only when Err is nil may an absent
// value be taken as missing: then, from Begin to End, every partition was
// whole, of one epoch, and confirmed by its owner since Redis last started.
//
// Not safe for concurrent use; a Look is used once.
type Look struct {
	of         []look
	begin, end *redis.StringCmd // INFO server
}

type look struct {
	r            *StateReader
	t            *change.Topic
	ns           string
	keys         []string // pointer, then one mark per partition
	only         []int32  // partitions that are judged; nil: all
	seen         []mark   // what had been believed at Begin
	before, last *redis.SliceCmd
}

// NewLook prepares reading the states of readers, all their partitions.
func NewLook(ctx context.Context, readers ...*StateReader) (*Look, error) {
	l := &Look{of: make([]look, len(readers))}
	for i, r := range readers {
		t, ns, err := r.resolve(ctx)
		if err != nil {
			return nil, err
		}
		keys := make([]string, 1, 1+t.Partitions)
		keys[0] = pointer(r.transform, r.topic)
		for p := range t.Partitions {
			keys = append(keys, markKey(ns, p))
		}
		l.of[i] = look{r: r, t: t, ns: ns, keys: keys}
	}
	return l, nil
}

// Topic is reader i's topic as it is in Kafka.
func (l *Look) Topic(i int) *change.Topic { return l.of[i].t }

// Only restricts what is judged of reader i to these partitions: when nothing
// is read of the others. None: the reader is left out. Call it before Begin.
func (l *Look) Only(i int, partitions []int32) {
	l.of[i].only = append(make([]int32, 0, len(partitions)), partitions...)
}

// RowsKey and IndexKey are those of State, of reader i.
func (l *Look) RowsKey(i int, partition int32) string    { return rowsKey(l.of[i].ns, partition) }
func (l *Look) IndexKey(i int, index, key string) string { return indexKey(l.of[i].ns, index, key) }

// Begin queues reading the marks; call it first on the first pipeline.
func (l *Look) Begin(ctx context.Context, p redis.Pipeliner) {
	l.begin = p.Info(ctx, "server")
	for i := range l.of {
		o := &l.of[i]
		o.r.mu.Lock()
		if o.r.t == o.t {
			o.seen = append(o.seen[:0], o.r.seen...)
		}
		o.r.mu.Unlock()
		o.before = p.MGet(ctx, o.keys...)
	}
}

// End queues reading the marks again; call it last on the last pipeline.
func (l *Look) End(ctx context.Context, p redis.Pipeliner) {
	for i := range l.of {
		l.of[i].last = p.MGet(ctx, l.of[i].keys...)
	}
	l.end = p.Info(ctx, "server")
}

// Err judges the look after both pipelines were executed: nil, or a Retry
// problem TW-STATE-UNKNOWN.
func (l *Look) Err() error {
	run := twredis.Field(l.begin.Val(), "run_id")
	if run != twredis.Field(l.end.Val(), "run_id") {
		return ErrStateUnknown.New("reading state: Redis was restarted meanwhile")
	}
	for i := range l.of {
		if err := l.of[i].judge(run); err != nil {
			return err
		}
	}
	return nil
}

func (o *look) judge(run string) error {
	before, last := o.before.Val(), o.last.Val()
	if o.only != nil && len(o.only) == 0 {
		return nil
	}
	o.r.mu.Lock()
	defer o.r.mu.Unlock()
	if ptr, _ := last[0].(string); ptr != pointerValue(o.t) {
		// Another topic under this name, or nothing yet: ask Kafka next time.
		if o.r.t == o.t {
			o.r.t = nil
		}
		return ErrStateUnknown.New("the state of %s for %s is kept for topic %q, Kafka has %q", o.r.topic, o.r.transform, ptr, pointerValue(o.t))
	}
	for p := range o.t.Partitions {
		if o.only != nil && !slices.Contains(o.only, p) {
			continue
		}
		a, _ := before[p+1].(string)
		b, _ := last[p+1].(string)
		ma, okA := parseMark(a)
		mb, okB := parseMark(b)
		var old mark
		if o.seen != nil {
			old = o.seen[p]
		}
		switch {
		case okA && shapeOf(ma.epoch) != o.r.Shape:
			return ErrStateUnknown.New("the state of %s partition %d for %s is kept in another form: its owner runs another version or configuration", o.r.topic, p, o.r.transform)
		case !okA || !okB || ma.restoring || mb.restoring:
			return ErrStateUnknown.New("the state of %s partition %d for %s is not there, or being rebuilt (%q, %q)", o.r.topic, p, o.r.transform, a, b)
		case ma.epoch != mb.epoch:
			return ErrStateUnknown.New("the state of %s partition %d for %s was rebuilt meanwhile", o.r.topic, p, o.r.transform)
		case ma.run != run || mb.run != run:
			return ErrStateUnknown.New("the state of %s partition %d for %s was not confirmed since Redis started", o.r.topic, p, o.r.transform)
		case mb.offset < ma.offset || ma.epoch == old.epoch && ma.offset < old.offset:
			return ErrStateUnknown.New("the state of %s partition %d for %s went back from offset %d to %d", o.r.topic, p, o.r.transform, max(ma.offset, old.offset), mb.offset)
		}
	}
	// All is well: remember how far it was.
	if o.r.t == o.t {
		for p := range o.t.Partitions {
			if o.only != nil && !slices.Contains(o.only, p) {
				continue
			}
			b, _ := last[p+1].(string)
			if m, _ := parseMark(b); m.epoch != o.r.seen[p].epoch || m.offset > o.r.seen[p].offset {
				o.r.seen[p] = m
			}
		}
	}
	return nil
}
