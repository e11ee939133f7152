// Reading state that others keep, without ever taking 'not there yet'
// for 'missing'.

package state

import (
	"context"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	twredis "github.com/tallywire/tallywire/internal/redis"
)

// Reader reads what a transform keeps of a topic, in whichever process.
// Safe for concurrent use.
type Reader struct {
	transform, topic string
	find             func(ctx context.Context, topic string) (*change.Topic, error)
	// Shape is that of the Store; set before use.
	Shape string

	mu   sync.Mutex
	t    *change.Topic
	ns   string
	seen []mark // per partition: the latest that was believed
}

// NewReader reads the Store of the same transform and topic. find gives
// the topic as it is in Kafka (kafka.Cluster.Topic).
func NewReader(transform, topic string, find func(ctx context.Context, topic string) (*change.Topic, error)) *Reader {
	return &Reader{transform: transform, topic: topic, find: find}
}

// Topic is the name of the topic.
func (r *Reader) Topic() string { return r.topic }

// resolve gives the topic and the namespace of what is kept of it.
func (r *Reader) resolve(ctx context.Context) (*change.Topic, string, error) {
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

// ConsistentRead is one reading over several pipelines: Begin before what is read first,
// End after what is read last, then Err. Only when Err is nil may an absent
// value be taken as missing: then, from Begin to End, every partition was
// whole, of one epoch, and confirmed by its owner since Redis last started.
//
// Not safe for concurrent use; each is used once.
type ConsistentRead struct {
	of         []readOf
	begin, end *redis.StringCmd // INFO server
}

type readOf struct {
	r            *Reader
	t            *change.Topic
	ns           string
	keys         []string // pointer, then one mark per partition
	only         []int32  // partitions that are judged; nil: all
	seen         []mark   // what had been believed at Begin
	before, last *redis.SliceCmd
}

// NewConsistentRead prepares reading the states of readers, all their partitions.
func NewConsistentRead(ctx context.Context, readers ...*Reader) (*ConsistentRead, error) {
	c := &ConsistentRead{of: make([]readOf, len(readers))}
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
		c.of[i] = readOf{r: r, t: t, ns: ns, keys: keys}
	}
	return c, nil
}

// Topic is reader i's topic as it is in Kafka.
func (c *ConsistentRead) Topic(i int) *change.Topic { return c.of[i].t }

// Only restricts what is judged of reader i to these partitions: when nothing
// is read of the others. None: the reader is left out. Call it before Begin.
func (c *ConsistentRead) Only(i int, partitions []int32) {
	c.of[i].only = append(make([]int32, 0, len(partitions)), partitions...)
}

// RowsKey and IndexKey are those of Store, of reader i.
func (c *ConsistentRead) RowsKey(i int, partition int32) string {
	return rowsKey(c.of[i].ns, partition)
}

func (c *ConsistentRead) IndexKey(i int, index, key string) string {
	return indexKey(c.of[i].ns, index, key)
}

// Applied is up to where what reader i reads had been applied at Begin, of its topic; it
// is known after Err.
func (c *ConsistentRead) Applied(i int, partition int32) int64 {
	text, _ := c.of[i].before.Val()[partition+1].(string)
	m, _ := parseMark(text)
	return m.offset
}

// Begin queues reading the marks; call it first on the first pipeline.
func (c *ConsistentRead) Begin(ctx context.Context, p redis.Pipeliner) {
	c.begin = p.Info(ctx, "server")
	for i := range c.of {
		o := &c.of[i]
		o.r.mu.Lock()
		if o.r.t == o.t {
			o.seen = append(o.seen[:0], o.r.seen...)
		}
		o.r.mu.Unlock()
		o.before = p.MGet(ctx, o.keys...)
	}
}

// End queues reading the marks again; call it last on the last pipeline.
func (c *ConsistentRead) End(ctx context.Context, p redis.Pipeliner) {
	for i := range c.of {
		c.of[i].last = p.MGet(ctx, c.of[i].keys...)
	}
	c.end = p.Info(ctx, "server")
}

// Err judges the reading after both pipelines were executed: nil, or a Retry
// problem TW-STATE-UNKNOWN.
func (c *ConsistentRead) Err() error {
	run := twredis.Field(c.begin.Val(), "run_id")
	if run != twredis.Field(c.end.Val(), "run_id") {
		return ErrUnknown.New("reading state: Redis was restarted meanwhile")
	}
	for i := range c.of {
		if err := c.of[i].judge(run); err != nil {
			return err
		}
	}
	return nil
}

func (o *readOf) judge(run string) error {
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
		return ErrUnknown.New("the state of %s for %s is kept for topic %q, Kafka has %q", o.r.topic, o.r.transform, ptr, pointerValue(o.t))
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
			return ErrUnknown.New("the state of %s partition %d for %s is kept in another form: its owner runs another version or configuration", o.r.topic, p, o.r.transform)
		case !okA || !okB || ma.restoring || mb.restoring:
			return ErrUnknown.New("the state of %s partition %d for %s is not there, or being rebuilt (%q, %q)", o.r.topic, p, o.r.transform, a, b)
		case ma.epoch != mb.epoch:
			return ErrUnknown.New("the state of %s partition %d for %s was rebuilt meanwhile", o.r.topic, p, o.r.transform)
		case ma.run != run || mb.run != run:
			return ErrUnknown.New("the state of %s partition %d for %s was not confirmed since Redis started", o.r.topic, p, o.r.transform)
		case mb.offset < ma.offset || ma.epoch == old.epoch && ma.offset < old.offset:
			return ErrUnknown.New("the state of %s partition %d for %s went back from offset %d to %d", o.r.topic, p, o.r.transform, max(ma.offset, old.offset), mb.offset)
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
