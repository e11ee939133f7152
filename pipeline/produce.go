// Outputs and Records: how a change becomes records of Kafka. Ingest and the
// transform loop both write through it.
//
// A raw change (its Table has a Source) gives Debezium's records: an envelope;
// a delete gives an envelope and a tombstone; a change of the key gives a
// delete and a tombstone of the old key and a create of the new one, which
// name each other by the headers __debezium.newkey and __debezium.oldkey; a
// truncate gives one envelope without key in every partition, so that each
// reader meets it in order. A canonical change gives the contract's record, or
// a tombstone.

package pipeline

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

// Problems of single records.
var (
	ErrRecordTooLarge = problem.Define("TW-RECORD-TOO-LARGE", problem.Reject,
		"A record is larger than its topic takes.",
		"Raise max.message.bytes of the topic (and of the brokers), then change the row again or load it again; or make the row smaller at its source.")
	ErrNoRecord = problem.Define("TW-NO-RECORD", problem.Reject,
		"A change that its topic has no record for, such as a truncate of a canonical entity.",
		"Delete the rows one by one at the source, or load it again.")
	ErrBatchTooSmall = problem.Define("TW-BATCH-TOO-SMALL", problem.Retry,
		"A record is larger than the batches that a source began to write with; it goes on with batches as large as the topic takes.",
		"Nothing to do.")
)

// recordOverhead is what Kafka's format adds to key, value and headers of a
// record that is alone in its batch, at most: 61 octets for the batch (KIP-98),
// and varints.
const recordOverhead = 128

// maxBatchBytes is the largest batch that we make, whatever a topic takes.
const maxBatchBytes = 64 << 20

// batchBytes is how large batches of a topic get of which no record has needed
// more. The client fills them up to its limit and keeps buffers of that size: on
// a broker that takes 16 MiB it held 65 MB more, and was no faster.
const batchBytes = 1 << 20

// largeTopics are those of which a record did not fit batchBytes. The limit of
// a client is fixed when it first writes to a topic, so that such a record ends
// the session, and the next one knows. Safe for concurrent use.
type largeTopics struct {
	mu sync.Mutex
	m  map[string]bool
}

func (l *largeTopics) has(topic string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m[topic]
}

func (l *largeTopics) add(topic string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = map[string]bool{}
	}
	l.m[topic] = true
}

const (
	headerOldKey = "__debezium.oldkey"
	headerNewKey = "__debezium.newkey"
)

// Output is where the changes of a Table go.
type Output struct {
	Topic    *change.Topic
	MaxBytes int // a record alone in its batch, all told
	batch    int // the largest that is made
	large    *largeTopics
	enc      *avro.Encoder
}

// Outputs knows the topics and encoders of the Tables that it has seen. Safe
// for concurrent use.
type Outputs struct {
	env  *Env
	spec func(*change.Table) kafka.TopicSpec
	max  int
	// large makes batches small, but for its topics; nil: they are as large as
	// their topics take.
	large *largeTopics

	mu sync.RWMutex
	m  map[*change.Table]*Output
}

// maxTables bounds Outputs: sources that describe their tables anew now and
// then make new Tables of the same shape.
const maxTables = 4096

// NewOutputs makes an empty Outputs. spec says how a topic must be that does
// not exist; maxRecord (octets) bounds a record below what its topic takes, 0:
// does not.
func NewOutputs(env *Env, spec func(*change.Table) kafka.TopicSpec, maxRecord int) *Outputs {
	return &Outputs{env: env, spec: spec, max: maxRecord, m: map[*change.Table]*Output{}}
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
	if out := o.Find(t); out != nil {
		return out, nil
	}
	topic, err := o.env.Kafka.EnsureTopic(ctx, o.spec(t))
	if err != nil {
		return nil, err
	}
	limit, err := o.env.Kafka.MaxRecordBytes(ctx, t.Topic)
	if err != nil {
		return nil, err
	}
	limit = min(limit, maxBatchBytes)
	largest := limit
	if o.max > 0 {
		largest = min(limit, o.max)
	}
	enc, err := avro.NewEncoder(ctx, o.env.Registry, t)
	if err != nil {
		return nil, err
	}
	out := &Output{Topic: topic, MaxBytes: largest, batch: limit, large: o.large, enc: enc}
	if o.large != nil && !o.large.has(t.Topic) {
		out.batch = min(limit, batchBytes)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.m) >= maxTables {
		clear(o.m)
	}
	o.m[t] = out
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

// Refused is a change that gave no record.
type Refused struct {
	Index     int    // of the change in its batch
	Topic     string // where its records would have gone
	Key       string // change.AppendKey
	RecordKey []byte // Avro; empty when the key is what cannot be encoded
	Pos       change.Pos
	Time      int64 // of the change
	Err       error // of class Reject
}

// Records are encoded changes and the memory they live in. The records must
// not be touched between Produce and their promises; then Reset frees all of
// it for the next changes. Not safe for concurrent use.
//
// A record is built where kgo takes it from, and its key, value and headers are
// slices of two buffers. A buffer that grows moves; the slices made before stay
// with the former one, whose octets do not change any more.
type Records struct {
	Records []kgo.Record
	Of      []int // for each record, the index of its change
	Refused []Refused
	Bytes   int // keys and values

	buf  []byte
	hdrs []kgo.RecordHeader
	key  []byte // scratch
	old  []byte // scratch
	memo avro.Memo

	micros int64 // the time of the last record
	stamp  time.Time
}

// fill is how far Records were filled.
type fill struct{ records, bytes, buf, hdrs int }

func (rs *Records) filled() fill {
	return fill{len(rs.Records), rs.Bytes, len(rs.buf), len(rs.hdrs)}
}

// back drops what came after it was filled so far.
func (rs *Records) back(m fill) {
	rs.Records, rs.Of, rs.Bytes = rs.Records[:m.records], rs.Of[:m.records], m.bytes
	rs.buf, rs.hdrs = rs.buf[:m.buf], rs.hdrs[:m.hdrs]
}

// Reset empties rs and keeps its memory. What the records of before refer to is
// the memory that is kept: it is overwritten, not cleared, which would cost as
// much as a tenth of the encoding.
func (rs *Records) Reset() {
	clear(rs.Refused)
	rs.Records, rs.Of, rs.Refused, rs.Bytes = rs.Records[:0], rs.Of[:0], rs.Refused[:0], 0
	rs.buf, rs.hdrs = rs.buf[:0], rs.hdrs[:0]
}

// reserve makes room for records with so many octets, so that buffers need not
// grow step by step: an envelope is less than twice as long as its row on the
// wire. What is more grows all the same.
func (rs *Records) reserve(records, octets int) {
	rs.buf = slices.Grow(rs.buf, octets)
	rs.Records, rs.Of, rs.hdrs = slices.Grow(rs.Records, records), slices.Grow(rs.Of, records), slices.Grow(rs.hdrs, records)
}

// size is the memory that rs keeps, in bytes.
func (rs *Records) size() int {
	return cap(rs.buf) + cap(rs.Records)*int(unsafe.Sizeof(kgo.Record{})) + cap(rs.hdrs)*int(unsafe.Sizeof(kgo.RecordHeader{})) + cap(rs.Of)*int(unsafe.Sizeof(0))
}

// recordsList keeps Records for the next batches, the last used first. A
// sync.Pool would forget them at each garbage collection, and a busy source
// would at once make tens of MB anew, which brings the next collection.
type recordsList struct {
	mu   sync.Mutex
	free []*Records
	held int // bytes
}

// Beyond these, Records are left to the collector: one that a huge row blew up,
// and more than are in flight at once.
const (
	keepRecords    = 4 << 20
	keepAllRecords = 48 << 20
)

// Get gives empty Records.
func (l *recordsList) Get() *Records {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.free) - 1
	if n < 0 {
		return new(Records)
	}
	rs := l.free[n]
	l.free[n], l.free = nil, l.free[:n]
	l.held -= rs.size()
	return rs
}

// Put takes Records that nobody uses any more.
func (l *recordsList) Put(rs *Records) {
	rs.Reset()
	n := rs.size()
	l.mu.Lock()
	defer l.mu.Unlock()
	if n <= keepRecords && l.held+n <= keepAllRecords {
		l.free = append(l.free, rs)
		l.held += n
	}
}

// Encode appends the records of b.Changes[from:to] in their order, partition
// and timestamp set. A change that cannot be encoded, or is too large, goes to
// Refused whole, and the others go on. Other errors (a Table that Ensure has
// not seen) fail all. The batch is not used afterwards.
func (o *Outputs) Encode(rs *Records, b *change.Batch, from, to int) error {
	rs.memo.Reset()
	rs.reserve(to-from, 2*len(b.Raw()))
	var table *change.Table
	var out *Output
	for i := from; i < to; i++ {
		c := &b.Changes[i]
		if c.Table != table {
			table = c.Table
			if out = o.Find(table); out == nil {
				return outage.ErrUnclassified.New("BUG: table %q of topic %q was not ensured", table.Name, table.Topic)
			}
		}
		from := rs.filled()
		err := rs.change(out, b, c, i)
		if err == nil {
			err = rs.tooLarge(out, from.records)
		}
		if err != nil && problem.Has(err, ErrRecordTooLarge) {
			rs.back(from)
			if lean := leanOld(b, c); lean != nil && rs.change(out, b, lean, i) == nil && rs.tooLarge(out, from.records) == nil {
				err = nil
			}
		}
		if err == nil {
			continue
		}
		if Classify(err) != problem.Reject {
			return err
		}
		rs.back(from)
		r := Refused{Index: i, Topic: out.Topic.Name, Key: string(change.AppendKey(nil, b, c)), RecordKey: []byte{}, Pos: c.Pos, Time: c.Time, Err: err}
		if k, err := out.enc.AppendKey(nil, b, c); err == nil && k != nil {
			r.RecordKey = k
		}
		rs.Refused = append(rs.Refused, r)
	}
	return nil
}

// change appends all records of one change.
func (rs *Records) change(out *Output, b *change.Batch, c *change.Change, at int) error {
	raw := c.Table.Source != ""
	switch {
	case c.Op == change.Truncate && raw:
		for p := range out.Topic.Partitions {
			if err := rs.one(out, b, c, at, nil, p, true, "", nil); err != nil {
				return err
			}
		}
		return nil
	case c.Op == change.Truncate:
		return ErrNoRecord.New("a truncate of %s", c.Table.Topic)
	case c.Row() == nil && (!raw || c.Op != change.Message):
		return ErrNoRecord.New("a change %q of %s without any row", c.Op, c.Table.Topic)
	case c.Op == change.Delete || c.New == nil && c.Old != nil:
		rs.key = change.AppendKeyRow(rs.key[:0], b, c.Table, c.Old)
		p := kafka.Partition(rs.key, out.Topic.Partitions)
		if raw {
			if err := rs.one(out, b, c, at, c.Old, p, true, "", nil); err != nil {
				return err
			}
		}
		return rs.one(out, b, c, at, c.Old, p, false, "", nil)
	}
	rs.key = change.AppendKeyRow(rs.key[:0], b, c.Table, c.New)
	p := kafka.Partition(rs.key, out.Topic.Partitions)
	if c.Op == change.Update && keyKnown(c.Table, c.Old) {
		rs.old = change.AppendKeyRow(rs.old[:0], b, c.Table, c.Old)
		if !bytes.Equal(rs.key, rs.old) {
			return rs.keyChange(out, b, c, at, kafka.Partition(rs.old, out.Topic.Partitions), p)
		}
	}
	return rs.one(out, b, c, at, c.New, p, true, "", nil)
}

// keyChange appends delete, tombstone and create (raw), or tombstone and
// record.
func (rs *Records) keyChange(out *Output, b *change.Batch, c *change.Change, at int, oldP, newP int32) error {
	if c.Table.Source == "" {
		if err := rs.one(out, b, c, at, c.Old, oldP, false, "", nil); err != nil {
			return err
		}
		return rs.one(out, b, c, at, c.New, newP, true, "", nil)
	}
	gone, born := *c, *c
	gone.Op, gone.New = change.Delete, nil
	born.Op, born.Old = change.Create, nil
	if err := rs.one(out, b, &gone, at, c.Old, oldP, true, headerNewKey, c.New); err != nil {
		return err
	}
	if err := rs.one(out, b, &gone, at, c.Old, oldP, false, "", nil); err != nil {
		return err
	}
	return rs.one(out, b, &born, at, c.New, newP, true, headerOldKey, c.Old)
}

// one appends one record: its key is that of keyRow, its value that of c or
// null; otherKey of otherRow becomes a header.
func (rs *Records) one(out *Output, b *change.Batch, c *change.Change, at int, keyRow []change.Value, p int32, value bool, otherKey string, otherRow []change.Value) error {
	from, hdrs := len(rs.buf), len(rs.hdrs)
	buf, err := out.enc.AppendKeyOf(rs.buf, b, keyRow)
	if err != nil {
		return err
	}
	n := len(buf)
	key := buf[from:n:n]
	var val []byte
	missing := false
	if value {
		if buf, err = out.enc.AppendValueWith(&rs.memo, buf, b, c); err != nil {
			return err
		}
		val = buf[n:len(buf):len(buf)]
		n = len(buf)
		missing = rs.memo.Missing()
	}
	if !c.Pos.IsZero() {
		buf = change.AppendPos(buf, c.Pos)
		rs.hdrs = append(rs.hdrs, kgo.RecordHeader{Key: kafka.HeaderPos, Value: buf[n:len(buf):len(buf)]})
		n = len(buf)
	}
	if missing {
		buf = out.enc.AppendUnchanged(buf, c)
		if len(buf) > n {
			rs.hdrs = append(rs.hdrs, kgo.RecordHeader{Key: kafka.HeaderUnchanged, Value: buf[n:len(buf):len(buf)]})
			n = len(buf)
		}
	}
	if otherKey != "" {
		if buf, err = out.enc.AppendKeyOf(buf, b, otherRow); err != nil {
			return err
		}
		rs.hdrs = append(rs.hdrs, kgo.RecordHeader{Key: otherKey, Value: buf[n:len(buf):len(buf)]})
	}
	rs.buf = buf
	r := kgo.Record{Value: val, Headers: rs.hdrs[hdrs:len(rs.hdrs):len(rs.hdrs)], Topic: out.Topic.Name, Partition: p}
	if len(key) > 0 {
		r.Key = key
	}
	if c.Time != 0 {
		if c.Time != rs.micros { // most of a batch are of one time
			rs.micros, rs.stamp = c.Time, time.UnixMicro(c.Time).Truncate(time.Millisecond)
		}
		r.Timestamp = rs.stamp
	}
	rs.Records = append(rs.Records, r)
	rs.Of = append(rs.Of, at)
	rs.Bytes += len(key) + len(val)
	return nil
}

// tooLarge looks at the records of one change.
func (rs *Records) tooLarge(out *Output, from int) error {
	for i := from; i < len(rs.Records); i++ {
		r := &rs.Records[i]
		n := recordOverhead + len(r.Key) + len(r.Value)
		for _, h := range r.Headers {
			n += len(h.Key) + len(h.Value) + 10
		}
		if n > out.MaxBytes {
			return ErrRecordTooLarge.New("a record of %d octets for topic %q, which takes %d", n, out.Topic.Name, out.MaxBytes)
		}
		if n > out.batch {
			out.large.add(out.Topic.Name)
			return ErrBatchTooSmall.New("a record of %d octets for topic %q, in batches of %d", n, out.Topic.Name, out.batch)
		}
	}
	return nil
}

// leanOld gives c without the long values of its Old row, or nil when it has
// none. A row that was too large to be written could else never be mended:
// REPLICA IDENTITY FULL repeats it in the update or delete that takes it away.
func leanOld(b *change.Batch, c *change.Change) *change.Change {
	if c.Table.Source == "" {
		return nil
	}
	const long = 1024
	var lean *change.Change
	for i, v := range c.Old {
		switch v.Kind() {
		case change.String, change.Bytes, change.JSON, change.Text:
			if len(b.Bytes(v)) <= long {
				continue
			}
		case change.Array:
		default:
			continue
		}
		if slices.Contains(c.Table.Key, i) {
			continue
		}
		if lean == nil {
			lean = new(change.Change)
			*lean = *c
			lean.Old = slices.Clone(c.Old)
		}
		lean.Old[i] = change.UnchangedValue()
	}
	return lean
}

// keyKnown reports whether a row holds all values of the key.
func keyKnown(t *change.Table, row []change.Value) bool {
	if row == nil {
		return false
	}
	for _, k := range t.Key {
		if row[k].IsUnchanged() {
			return false
		}
	}
	return true
}

func defaultWorkers() int { return runtime.GOMAXPROCS(0) }

// BatchBytes is the largest batch for a topic, for
// kgo.ProducerBatchMaxBytesFn; of a topic that is not known, kgo's default.
func (o *Outputs) BatchBytes(topic string) int32 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, out := range o.m {
		if out.Topic.Name == topic {
			return int32(max(out.batch, 512))
		}
	}
	return 1_000_012
}
