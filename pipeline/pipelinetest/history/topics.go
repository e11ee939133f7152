// ReadTopics: what raw topics hold, by the records themselves.

package history

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/kafka"
)

// Schemas gives the schema that a registry has under an id.
type Schemas func(ctx context.Context, id int32) (string, error)

// Seen is what raw topics hold.
type Seen struct {
	Records  int
	tables   map[string]*seenTable
	findings []Finding // wrong whatever was committed
}

type seenTable struct {
	types     map[string]string // of the columns, see typeOf
	rows      map[string][]Change
	in        map[string]int32  // partition of each key
	alive     map[string]bool   // the last record of the key holds a row
	ends      map[string]string // octets of a key: the delete that no tombstone has followed yet
	truncates map[int32]int
	at        map[string][]byte         // position of the last record of each key
	sweeps    map[string]map[int32]bool // by their tw.before: the partitions that they are in
}

func newSeenTable() *seenTable {
	return &seenTable{types: map[string]string{}, rows: map[string][]Change{}, in: map[string]int32{}, alive: map[string]bool{}, ends: map[string]string{}, truncates: map[int32]int{}, at: map[string][]byte{}, sweeps: map[string]map[int32]bool{}}
}

// Has reports whether there is any change of a key.
func (s *Seen) Has(table, key string) bool {
	t := s.tables[table]
	return t != nil && len(t.rows[key]) > 0
}

// unswept names partitions that a sweep of others passes over: what went of those stays
// in every topic. Known are partitions that ReadTopics has seen.
func (t *seenTable) unswept(name string) (out []Finding) {
	for _, before := range slices.Sorted(maps.Keys(t.sweeps)) {
		for _, p := range slices.Sorted(maps.Keys(t.truncates)) {
			if !t.sweeps[before][p] {
				out = append(out, Finding{Kind: Lost, Table: name, Note: fmt.Sprintf("the sweep of what came before %x is not in partition %d", before, p)})
			}
		}
	}
	return out
}

// ReadTopics reads raw topics from their beginning to their present end, as a
// read-committed consumer.
func ReadTopics(ctx context.Context, c *kafka.Cluster, schemas Schemas, topics ...string) (*Seen, error) {
	r := NewReader(schemas)
	err := readCommitted(ctx, c, topics, func(rec *kgo.Record) error { return r.Add(ctx, rec) })
	if err != nil {
		return nil, err
	}
	for name, t := range r.seen.tables { // an empty partition has no truncate either
		meta, err := c.Topic(ctx, r.topics[name])
		if err != nil {
			return nil, err
		}
		for p := range meta.Partitions {
			t.truncates[p] += 0
		}
	}
	return r.Seen(), nil
}

// ReadRows gives every record of a canonical topic, from its beginning to its present
// end, as a read-committed consumer sees it; tombstones are left out.
func ReadRows(ctx context.Context, c *kafka.Cluster, schemas Schemas, topic string) (rows []Row, err error) {
	r := NewReader(schemas)
	err = readCommitted(ctx, c, []string{topic}, func(rec *kgo.Record) error {
		if rec.Value == nil {
			return nil
		}
		of, native, err := r.decode(ctx, rec.Value)
		if err != nil {
			return fmt.Errorf("reading %s/%d@%d: %w", rec.Topic, rec.Partition, rec.Offset, err)
		}
		rows = append(rows, of.row(native))
		return nil
	})
	return rows, err
}

// ReadState gives what a canonical topic holds: of each key the last record, unless that
// is a tombstone. A key that lies in two partitions is there twice.
func ReadState(ctx context.Context, c *kafka.Cluster, schemas Schemas, topic string) (rows []SinkRow, err error) {
	r := NewReader(schemas)
	type at struct {
		partition int32
		key       string
	}
	last := map[at]Row{}
	err = readCommitted(ctx, c, []string{topic}, func(rec *kgo.Record) error {
		fail := func(err error) error {
			return fmt.Errorf("reading %s/%d@%d: %w", rec.Topic, rec.Partition, rec.Offset, err)
		}
		of, native, err := r.decode(ctx, rec.Key)
		if err != nil {
			return fail(err)
		}
		k := at{rec.Partition, fmt.Sprint(some(native))}
		if row := of.row(native); row != nil {
			k.key = keyOf(of.fields, row)
		}
		if rec.Value == nil {
			delete(last, k)
			return nil
		}
		if of, native, err = r.decode(ctx, rec.Value); err != nil {
			return fail(err)
		}
		last[k] = of.row(native)
		return nil
	})
	for k, row := range last {
		rows = append(rows, SinkRow{k.key, row})
	}
	return rows, err
}

// Reader takes the records of raw topics one by one, those of a partition in
// their order.
type Reader struct {
	schemas Schemas
	codecs  map[int32]*codec
	seen    *Seen
	last    map[string][]byte // position, by topic and partition
	topics  map[string]string // of each table
}

// NewReader makes a reader that has seen nothing.
func NewReader(schemas Schemas) *Reader {
	return &Reader{schemas: schemas, codecs: map[int32]*codec{}, seen: &Seen{tables: map[string]*seenTable{}}, last: map[string][]byte{}, topics: map[string]string{}}
}

// Seen is what was read. The reader takes no more records after it.
func (r *Reader) Seen() *Seen {
	for name, t := range r.seen.tables {
		for _, key := range slices.Sorted(maps.Keys(t.ends)) {
			r.find(Lost, name, "", "no tombstone follows the delete at "+t.ends[key])
		}
	}
	return r.seen
}

func (r *Reader) find(k Kind, table, key, note string) {
	r.seen.findings = append(r.seen.findings, Finding{Kind: k, Table: table, Key: key, Note: note})
}

// Add takes a record.
func (r *Reader) Add(ctx context.Context, rec *kgo.Record) error {
	at := fmt.Sprintf("%s/%d@%d", rec.Topic, rec.Partition, rec.Offset)
	fail := func(err error) error { return fmt.Errorf("reading %s: %w", at, err) }
	r.seen.Records++
	headers := map[string][]byte{}
	for _, h := range rec.Headers {
		headers[h.Key] = h.Value
	}
	pos := headers["tw.pos"]
	where := fmt.Sprintf("%s/%d", rec.Topic, rec.Partition)
	// Positions are made to be compared as octets.
	if bytes.Compare(pos, r.last[where]) < 0 {
		r.find(Reordered, rec.Topic, "", fmt.Sprintf("position %x at %s comes after %x", pos, at, r.last[where]))
	}
	r.last[where] = bytes.Clone(pos)

	var key string
	var keyColumns []string
	if rec.Key != nil {
		c, native, err := r.decode(ctx, rec.Key)
		if err != nil {
			return fail(err)
		}
		keyColumns = c.fields
		key = keyOf(keyColumns, c.row(native))
	}
	if rec.Value == nil {
		name := r.tableOf(rec.Topic)
		t := r.seen.tables[name]
		if t == nil || t.ends[string(rec.Key)] == "" {
			r.find(Invented, name, key, "a tombstone that follows no delete at "+at)
			return nil
		}
		delete(t.ends, string(rec.Key))
		return nil
	}
	c, native, err := r.decode(ctx, rec.Value)
	if err != nil {
		return fail(err)
	}
	ch, err := c.envelope(native)
	if err != nil {
		return fail(err)
	}
	ch.At = at
	t := r.seen.tables[ch.Table]
	if t == nil {
		t = newSeenTable()
		r.seen.tables[ch.Table] = t
		r.topics[ch.Table] = rec.Topic
	}
	maps.Copy(t.types, c.columns)
	if ch.Op == 'm' {
		return nil
	}
	if ch.Op == 't' {
		t.truncates[rec.Partition]++
		for k, p := range t.in {
			if p == rec.Partition && t.alive[k] {
				t.rows[k], t.alive[k] = append(t.rows[k], ch), false
			}
		}
		return nil
	}
	if ch.Op == 's' {
		r.sweep(t, &ch, rec, headers["tw.before"])
		return nil
	}
	if !c.oldFull {
		maps.DeleteFunc(ch.Old, func(name, _ string) bool { return !slices.Contains(keyColumns, name) })
	}
	maps.DeleteFunc(ch.Old, func(_, v string) bool { return v == unavailable })
	for header, row := range map[string]Row{"tw.unchanged": ch.New, "tw.unknown": ch.Old} {
		for _, name := range splitNames(string(headers[header])) {
			delete(row, name)
		}
	}
	// What its Avro type cannot hold stands beside the record.
	for header, row := range map[string]Row{"tw.text": ch.New, "tw.text.before": ch.Old} {
		if headers[header] == nil {
			continue
		}
		if err := json.Unmarshal(headers[header], &row); err != nil {
			return fail(err)
		}
	}
	row := ch.New
	if row == nil {
		row = ch.Old
	}
	if of := keyOf(keyColumns, row); of != key {
		if headers["tw.text"] == nil && headers["tw.text.before"] == nil {
			r.find(Wrong, ch.Table, key, fmt.Sprintf("the row at %s is of key %s", at, of))
		}
		key = of // what stands in the key is not the value
	}
	if at := t.ends[string(rec.Key)]; at != "" {
		r.find(Lost, ch.Table, key, "no tombstone follows the delete at "+at)
		delete(t.ends, string(rec.Key))
	}
	if p, known := t.in[key]; known && p != rec.Partition {
		r.find(Reordered, ch.Table, key, fmt.Sprintf("it is in partition %d and, at %s, in another", p, at))
	}
	t.in[key], t.alive[key] = rec.Partition, ch.New != nil
	t.rows[key] = append(t.rows[key], ch)
	t.at[key] = r.last[where]
	if ch.Op == 'd' {
		t.ends[string(rec.Key)] = at
	}
	return nil
}

// sweep ends the rows of a partition whose last record came before a position. They are
// not there any more, says the source; rows that are gone already say nothing new.
func (r *Reader) sweep(t *seenTable, ch *Change, rec *kgo.Record, before []byte) {
	const position = 29 // octets
	switch {
	case rec.Key != nil:
		r.find(Wrong, ch.Table, "", "the sweep at "+ch.At+" has a key")
	case len(before) != position:
		r.find(Wrong, ch.Table, "", fmt.Sprintf("the sweep at %s says tw.before %x, which is no position", ch.At, before))
		return
	case bytes.Compare(before, r.last[fmt.Sprintf("%s/%d", rec.Topic, rec.Partition)]) > 0:
		r.find(Wrong, ch.Table, "", fmt.Sprintf("the sweep at %s is of rows that come after it: tw.before %x", ch.At, before))
	}
	if t.sweeps[string(before)] == nil {
		t.sweeps[string(before)] = map[int32]bool{}
	}
	t.sweeps[string(before)][rec.Partition] = true
	for k, p := range t.in {
		if p == rec.Partition && t.alive[k] && bytes.Compare(t.at[k], before) < 0 {
			t.rows[k], t.alive[k] = append(t.rows[k], *ch), false
		}
	}
}

func (r *Reader) tableOf(topic string) string {
	for name, t := range r.topics {
		if t == topic {
			return name
		}
	}
	return topic
}

// decode reads a record in Confluent's wire format.
func (r *Reader) decode(ctx context.Context, b []byte) (*codec, any, error) {
	if len(b) < 5 || b[0] != 0 {
		return nil, nil, fmt.Errorf("%d octets, not in Confluent's wire format", len(b))
	}
	id := int32(binary.BigEndian.Uint32(b[1:]))
	c := r.codecs[id]
	if c == nil {
		text, err := r.schemas(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		if c, err = newCodec(text); err != nil {
			return nil, nil, fmt.Errorf("schema %d: %w", id, err)
		}
		r.codecs[id] = c
	}
	native, rest, err := c.avro.NativeFromBinary(b[5:])
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d octets are left", len(rest))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("schema %d: %w", id, err)
	}
	return c, native, nil
}

// splitNames reads the headers tw.unchanged and tw.unknown: names joined by commas, a comma or
// backslash in a name preceded by a backslash.
func splitNames(s string) []string {
	if s == "" {
		return nil
	}
	var out []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == ',':
			out = append(out, b.String())
			b.Reset()
		default:
			b.WriteByte(s[i])
		}
	}
	return append(out, b.String())
}

// readCommitted calls f for each committed record of the topics, from their
// beginning to the last stable offsets at the time of the call.
func readCommitted(ctx context.Context, c *kafka.Cluster, topics []string, f func(*kgo.Record) error) error {
	ends, err := c.Admin().ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	open := map[string]int64{}
	parts := map[string]map[int32]kgo.Offset{}
	for topic, ps := range ends {
		for p, o := range ps {
			if o.Err != nil {
				return fmt.Errorf("%s/%d: %w", topic, p, o.Err)
			}
			if o.Offset > 0 {
				if parts[topic] == nil {
					parts[topic] = map[int32]kgo.Offset{}
				}
				parts[topic][p] = kgo.NewOffset().AtStart()
				open[fmt.Sprintf("%s/%d", topic, p)] = o.Offset
			}
		}
	}
	if len(open) == 0 {
		return nil
	}
	cl, err := c.Client(kgo.ConsumePartitions(parts), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return err
	}
	defer cl.Close()
	for len(open) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			return err
		}
		var failed error
		fs.EachError(func(t string, p int32, err error) { failed = fmt.Errorf("%s/%d: %w", t, p, err) })
		fs.EachRecord(func(r *kgo.Record) {
			where := fmt.Sprintf("%s/%d", r.Topic, r.Partition)
			end, is := open[where]
			if failed == nil && is && r.Offset < end && !r.Attrs.IsControl() {
				failed = f(r)
			}
			if is && r.Offset >= end-1 {
				delete(open, where)
			}
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}
