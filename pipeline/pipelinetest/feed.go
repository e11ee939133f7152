// Package pipelinetest holds one conformance suite per contract of pipeline:
// every source, stage and sink runs the suite of its kind before it has tests
// of its own. feed.go makes batches without Kafka.
package pipelinetest

import (
	"context"
	"fmt"
	"testing"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
)

// Feed makes batches as the engine would read them from one partition.
type Feed struct {
	Table *change.Table
	Topic *change.Topic
	Part  int32
	Next  int64 // offset of the next record
	// Fill may set columns after the feed's own values; row is indexed like
	// Table.Columns.
	Fill func(b *change.Batch, row []change.Value, key, version int)
	// Mark is the column, of kind String, that gets MarkOf(version).
	Mark string
}

// NewFeed makes a feed of a canonical topic, from its contract.
func NewFeed(tb testing.TB, topic string) *Feed {
	tb.Helper()
	cs, err := avro.Pack()
	if err != nil {
		tb.Fatalf("reading the contracts: %v", err)
	}
	c := cs[topic]
	if c == nil {
		tb.Fatalf("no contract for topic %q", topic)
	}
	return FeedOf(c.Table)
}

// FeedOf makes a feed of any table.
func FeedOf(t *change.Table) *Feed {
	f := &Feed{Table: t, Topic: &change.Topic{Name: t.Topic, Partitions: 1}}
	copy(f.Topic.ID[:], "feed of "+t.Topic+"                ")
	return f
}

// KeyOf is the canonical key of key number n.
func KeyOf(n int) string { return fmt.Sprint(n) }

// MarkOf is what the Mark column holds in a version.
func MarkOf(version int) string { return fmt.Sprintf("version %d", version) }

// Put appends a record of the key in that version to b.
func (f *Feed) Put(b *change.Batch, key, version int) *change.Change {
	row := b.Row(len(f.Table.Columns))
	for i := range f.Table.Columns {
		row[i] = f.value(b, &f.Table.Columns[i], key, version)
	}
	f.setKey(b, row, key)
	if f.Fill != nil {
		f.Fill(b, row, key, version)
	}
	c := b.Append(f.Table, change.Update)
	c.New = row
	f.place(b, c)
	return c
}

// Delete appends a tombstone of the key to b.
func (f *Feed) Delete(b *change.Batch, key int) *change.Change {
	row := b.Row(len(f.Table.Columns))
	for i := range row {
		row[i] = change.UnchangedValue()
	}
	f.setKey(b, row, key)
	c := b.Append(f.Table, change.Delete)
	c.Old = row
	f.place(b, c)
	return c
}

// At is Put with an offset of the caller's choosing: a record that comes again.
func (f *Feed) At(b *change.Batch, offset int64, key, version int) *change.Change {
	next := f.Next
	f.Next = offset
	c := f.Put(b, key, version)
	f.Next = next
	return c
}

// Close gives b its Ranges: from where the feed stood when b was empty to where
// it stands now.
func (f *Feed) Close(b *change.Batch, from int64) *change.Batch {
	b.Ranges = append(b.Ranges, change.Range{Topic: f.Topic, Partition: f.Part, From: from, To: f.Next})
	return b
}

// Batch makes a batch of puts: pairs of key and version.
func (f *Feed) Batch(keysAndVersions ...int) *change.Batch {
	b, from := change.Get(), f.Next
	for i := 0; i+1 < len(keysAndVersions); i += 2 {
		f.Put(b, keysAndVersions[i], keysAndVersions[i+1])
	}
	return f.Close(b, from)
}

func (f *Feed) place(_ *change.Batch, c *change.Change) {
	c.Coord = change.Coord{Topic: f.Topic, Partition: f.Part, Offset: f.Next}
	c.Time = 1_780_000_000_000_000 + f.Next*1000
	f.Next++
}

func (f *Feed) setKey(b *change.Batch, row []change.Value, key int) {
	for _, k := range f.Table.Key {
		if f.Table.Columns[k].Kind == change.Int {
			row[k] = change.IntValue(int64(key))
		} else {
			row[k] = b.SpanString(f.Table.Columns[k].Kind, KeyOf(key))
		}
	}
}

func (f *Feed) value(b *change.Batch, c *change.Column, key, version int) change.Value {
	if c.Name == f.Mark {
		return b.SpanString(change.String, MarkOf(version))
	}
	n := int64(key*100 + version)
	switch c.Kind {
	case change.Bool:
		return change.BoolValue(version%2 == 1)
	case change.Int:
		return change.IntValue(n)
	case change.Float32:
		return change.Float32Value(float32(n) / 4)
	case change.Float64:
		return change.Float64Value(float64(n) / 4)
	case change.Decimal:
		return change.DecimalValue(n, max(c.Scale, 0))
	case change.Date:
		return change.DateValue(20_000 + n)
	case change.Time:
		return change.TimeValue(n * 1_000_000)
	case change.Timestamp:
		return change.TimestampValue(1_780_000_000_000_000 + n)
	case change.TimestampTZ:
		return change.TimestampTZValue(1_780_000_000_000_000 + n)
	case change.UUID:
		return b.Span(change.UUID, fmt.Appendf(nil, "%016d", n))
	case change.Bytes:
		return b.Span(change.Bytes, []byte{byte(n)})
	case change.JSON:
		return b.SpanString(change.JSON, fmt.Sprintf(`{"n":%d}`, n))
	case change.String, change.Text:
		return b.SpanString(c.Kind, fmt.Sprintf("%s %d", c.Name, key))
	}
	return change.NullValue()
}

// Sent is one change as it was sent, written out: nothing of the batch is kept.
type Sent struct {
	Topic  string
	Op     change.Op
	Key    string
	Row    string // column=value, joined by spaces; Unchanged shows as "~"
	Coord  change.Coord
	Pos    change.Pos
	Resume string // of the batch, at its last change
}

func (s Sent) String() string { return fmt.Sprintf("%s %c %s: %s", s.Topic, s.Op, s.Key, s.Row) }

// Recorder is an Outlet that writes down what it gets, and releases it.
type Recorder struct {
	Sent     []Sent
	Rejects  []Rejected
	Fail     error // what Send returns
	Released int   // batches
}

// Rejected is one call of Reject.
type Rejected struct {
	Coord change.Coord
	Err   error
}

var _ pipeline.Outlet = (*Recorder)(nil)

// Send implements pipeline.Outlet.
func (r *Recorder) Send(_ context.Context, b *change.Batch) error {
	defer b.Release()
	r.Released++
	if r.Fail != nil {
		return r.Fail
	}
	r.Sent = append(r.Sent, Written(b)...)
	return nil
}

// Reject implements pipeline.Outlet.
func (r *Recorder) Reject(c *change.Change, err error) {
	r.Rejects = append(r.Rejects, Rejected{c.Coord, err})
}

// Written writes a batch out.
func Written(b *change.Batch) []Sent {
	var out []Sent
	for i := range b.Changes {
		c := &b.Changes[i]
		s := Sent{Topic: c.Table.Topic, Op: c.Op, Coord: c.Coord, Pos: c.Pos}
		if row := c.Row(); row != nil {
			s.Key = string(change.AppendKey(nil, b, c))
			for j, v := range row {
				if j > 0 {
					s.Row += " "
				}
				s.Row += c.Table.Columns[j].Name + "="
				switch {
				case v.IsUnchanged():
					s.Row += "~"
				case v.IsNull():
					s.Row += "null"
				default:
					s.Row += string(b.AppendText(nil, v))
				}
			}
		}
		if i == len(b.Changes)-1 {
			s.Resume = string(b.Resume)
		}
		out = append(out, s)
	}
	return out
}
