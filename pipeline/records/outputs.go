// Outputs: the topics and encoders of tables, and how large their batches may be.

package records

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
)

// maxBatchBytes is the largest batch that we make, whatever a topic takes.
const maxBatchBytes = 64 << 20

// batchBytes is how large batches of a topic get of which no record has needed
// more. The client fills them up to its limit and keeps buffers of that size: on
// a broker that takes 16 MiB it held 65 MB more, and was no faster.
const batchBytes = 1 << 20

// LargeTopics are those of which a record did not fit the batches that we begin
// with. The limit of a client is fixed when it first writes to a topic, so that
// such a record ends the session (ErrBatchTooSmall), and the next one knows.
// Safe for concurrent use; the zero value is empty.
type LargeTopics struct {
	mu sync.Mutex
	m  map[string]bool
}

// Has reports whether a topic is one.
func (l *LargeTopics) Has(topic string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m[topic]
}

// Len is their number.
func (l *LargeTopics) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.m)
}

// Add makes a topic one.
func (l *LargeTopics) Add(topic string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = map[string]bool{}
	}
	l.m[topic] = true
}

// Output is where the changes of a Table go.
type Output struct {
	Topic    *change.Topic
	MaxBytes int // a record alone in its batch, all told
	batch    int // the largest that is made
	large    *LargeTopics
	enc      *avro.Encoder
	aside    bool // see EnsureAside
}

// Outputs knows the topics and encoders of the Tables that it has seen. Safe
// for concurrent use.
type Outputs struct {
	cluster  *kafka.Cluster
	registry *avro.Registry
	spec     func(*change.Table) kafka.TopicSpec
	max      int
	large    *LargeTopics

	mu     sync.RWMutex
	roomy  bool
	m      map[*change.Table]*Output
	tables map[string][]*change.Table // by topic, those of m, the oldest first
	limits map[string]int             // of topics that Fits has looked at
}

// maxTables bounds the Tables of one topic: sources that describe their tables
// anew now and then make new ones of the same shape. What is in flight is of the
// last few.
const maxTables = 64

// NewOutputs makes an empty Outputs. spec says how a topic must be that does
// not exist; maxRecord (octets) bounds a record below what its topic takes, 0:
// does not. large makes batches small, but for its topics; nil: they are as
// large as their topics take.
func NewOutputs(cluster *kafka.Cluster, registry *avro.Registry, spec func(*change.Table) kafka.TopicSpec, maxRecord int, large *LargeTopics) *Outputs {
	return &Outputs{cluster: cluster, registry: registry, spec: spec, max: maxRecord, large: large, m: map[*change.Table]*Output{}, tables: map[string][]*change.Table{}, limits: map[string]int{}}
}

// Roomy makes all batches as large as their topics take, from now on: where a
// session that ends costs more than memory.
func (o *Outputs) Roomy() {
	o.mu.Lock()
	o.roomy = true
	o.mu.Unlock()
}

// Find gives the Output of a Table, or nil when Ensure has not seen it.
func (o *Outputs) Find(t *change.Table) *Output {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.m[t]
}

// Ensure makes the Table's topic and registers its schemas. It waits for the
// registry and for topics, so call it outside of transactions only.
func (o *Outputs) Ensure(ctx context.Context, t *change.Table) (*Output, error) {
	return o.ensure(ctx, t, false)
}

// asidePrefix begins the name of a topic that keeps what another may not have.
const asidePrefix = "_tallywire.quarantine."

// Aside is the topic that keeps what a topic may not have yet.
func Aside(topic string) string { return asidePrefix + topic }

// EnsureAside is Ensure of a Table whose schemas the subjects of its topic do not
// take: they are registered under those of Aside. Its records are made for its topic,
// and Buffer.Aside tells of them.
func (o *Outputs) EnsureAside(ctx context.Context, t *change.Table) (*Output, error) {
	return o.ensure(ctx, t, true)
}

// ForgetAside forgets the Tables of a topic that EnsureAside has made.
func (o *Outputs) ForgetAside(topic string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tables[topic] = slices.DeleteFunc(o.tables[topic], func(t *change.Table) bool {
		aside := o.m[t].aside
		if aside {
			delete(o.m, t)
		}
		return aside
	})
}

func (o *Outputs) ensure(ctx context.Context, t *change.Table, aside bool) (*Output, error) {
	if out := o.Find(t); out != nil {
		return out, nil
	}
	topic, err := o.cluster.EnsureTopic(ctx, o.spec(t))
	if err != nil {
		return nil, err
	}
	limit, err := o.cluster.MaxRecordBytes(ctx, t.Topic)
	if err != nil {
		return nil, err
	}
	limit = min(limit, maxBatchBytes)
	largest := limit
	if o.max > 0 {
		largest = min(limit, o.max)
	}
	var enc *avro.Encoder
	if aside {
		enc, err = avro.NewEncoderAside(ctx, o.registry, t, Aside(t.Topic))
	} else {
		enc, err = avro.NewEncoder(ctx, o.registry, t)
	}
	if err != nil {
		return nil, err
	}
	out := &Output{Topic: topic, MaxBytes: largest, batch: limit, large: o.large, enc: enc, aside: aside}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.large != nil && !o.roomy && !o.large.Has(t.Topic) {
		out.batch = min(limit, batchBytes)
	}
	if was := o.m[t]; was != nil { // by another worker, meanwhile
		return was, nil
	}
	o.m[t] = out
	o.tables[t.Topic] = append(o.tables[t.Topic], t)
	if of := o.tables[t.Topic]; len(of) > maxTables {
		delete(o.m, of[0])
		o.tables[t.Topic] = of[1:]
	}
	return out, nil
}

// Missing gives a Table of the batch that Ensure has not seen, or nil.
func (o *Outputs) Missing(b *change.Batch) *change.Table {
	for _, t := range b.Expected() {
		if o.Find(t) == nil {
			return t
		}
	}
	var last *change.Table
	for i := range b.Changes {
		if t := b.Changes[i].Table; t != last {
			if o.Find(t) == nil {
				return t
			}
			last = t
		}
	}
	return nil
}

// EnsureAll is Ensure of every Table of the batch.
func (o *Outputs) EnsureAll(ctx context.Context, b *change.Batch) error {
	for {
		t := o.Missing(b)
		if t == nil {
			return nil
		}
		if _, err := o.Ensure(ctx, t); err != nil {
			return err
		}
	}
}

// BatchBytes is the largest batch for a topic, for
// kgo.ProducerBatchMaxBytesFn; of a topic that is not known, kgo's default.
func (o *Outputs) BatchBytes(topic string) int32 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.batchBytes(topic)
}

func (o *Outputs) batchBytes(topic string) int32 {
	topic = strings.TrimPrefix(topic, asidePrefix)
	if of := o.tables[topic]; len(of) > 0 {
		return int32(max(o.m[of[len(of)-1]].batch, 512))
	}
	limit, is := o.limits[topic]
	switch {
	case !is:
		return 1_000_012
	case o.large != nil && !o.roomy && !o.large.Has(topic):
		limit = min(limit, batchBytes)
	}
	return int32(max(limit, 512))
}

// Limit asks what a topic takes now. What it gives fails for a record that is
// larger (ErrTooLarge), and for one that is larger than the client's batches
// (ErrBatchTooSmall: the next session's are not).
func (o *Outputs) Limit(ctx context.Context, topic string) (fits func(*kgo.Record) error, err error) {
	limit, err := o.cluster.MaxRecordBytes(ctx, topic)
	if err != nil {
		return nil, err
	}
	limit = min(limit, maxBatchBytes)
	largest := limit
	if o.max > 0 {
		largest = min(limit, o.max)
	}
	o.mu.Lock()
	o.limits[topic] = limit
	batch := int(o.batchBytes(topic))
	o.mu.Unlock()
	return (&Output{Topic: &change.Topic{Name: topic}, MaxBytes: largest, batch: batch, large: o.large}).fits, nil
}
