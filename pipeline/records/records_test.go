package records_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/records"
)

// shape is what a test compares of a record.
type shape struct {
	op, key   string // op "" is a tombstone
	partition int32
	oldKey    string // header __debezium.oldkey, newKey __debezium.newkey
	newKey    string
}

func outputs(b *enginetest.Bed, max int) *records.Outputs {
	return records.NewOutputs(b.Env.Kafka, b.Env.Registry, func(t *change.Table) kafka.TopicSpec {
		return kafka.TopicSpec{Name: t.Topic, Default: b.Env.Partitions}
	}, max, nil)
}

// encodeRows gives the records of rows and what was refused.
func encodeRows(b *enginetest.Bed, t *testing.T, outs *records.Outputs, table *change.Table, rows ...enginetest.Row) *records.Buffer {
	t.Helper()
	batch := change.Get()
	defer batch.Release()
	for i, r := range rows {
		enginetest.AppendRow(batch, table, r, 1, i)
	}
	if err := outs.EnsureAll(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	rs := new(records.Buffer)
	if err := outs.Encode(rs, batch, 0, batch.Len()); err != nil {
		t.Fatal(err)
	}
	return rs
}

func shapes(b *enginetest.Bed, t *testing.T, rs *records.Buffer) []shape {
	t.Helper()
	dec := avro.NewDecoder(b.Env.Registry)
	keyOf := func(raw []byte) string { // the id in an Avro key: its last octet, zigzag
		if len(raw) == 0 {
			return ""
		}
		return fmt.Sprint(raw[len(raw)-1] >> 1)
	}
	var out []shape
	for i := range rs.Records {
		r := &rs.Records[i]
		s := shape{key: keyOf(r.Key), partition: r.Partition}
		var pos []byte
		for _, h := range r.Headers {
			switch h.Key {
			case records.HeaderOldKey:
				s.oldKey = keyOf(h.Value)
			case records.HeaderNewKey:
				s.newKey = keyOf(h.Value)
			case kafka.HeaderPos:
				pos = h.Value
			}
		}
		if _, err := change.ParsePos(pos); err != nil {
			t.Errorf("record %d has no position: %v", i, err)
		}
		if r.Value != nil {
			got := change.Get()
			if err := dec.Append(context.Background(), got, change.Coord{Topic: &change.Topic{Name: r.Topic}}, r.Key, r.Value, kafka.Headers(r), r.Timestamp.UnixMilli()); err != nil {
				t.Fatal(err)
			}
			s.op = string(got.Changes[0].Op)
			got.Release()
		}
		out = append(out, s)
	}
	return out
}

func part(id int64) int32 { return kafka.Partition(fmt.Append(nil, id), 3) }

// If this failed, readers of raw topics would miss deletes, or keep a row
// under a key that it no longer has.
func TestProduceRawRecords(t *testing.T) {
	b := enginetest.NewBed(t, "")
	outs := outputs(b, 0)
	rs := encodeRows(b, t, outs, b.Table(),
		enginetest.Row{Op: change.Create, ID: 1, Val: "a"},
		enginetest.Row{Op: change.Update, ID: 1, Val: "b"},
		enginetest.Row{Op: change.Delete, ID: 1, Val: "b"},
		enginetest.Row{Op: change.Update, ID: 3, Was: 2, Val: "moved"},
		enginetest.Row{Op: change.Read, ID: 4, Val: "r"},
	)
	want := []shape{
		{op: "c", key: "1", partition: part(1)},
		{op: "u", key: "1", partition: part(1)},
		{op: "d", key: "1", partition: part(1)},
		{key: "1", partition: part(1)},
		{op: "d", key: "2", partition: part(2), newKey: "3"},
		{key: "2", partition: part(2)},
		{op: "c", key: "3", partition: part(3), oldKey: "2"},
		{op: "r", key: "4", partition: part(4)},
	}
	got := shapes(b, t, rs)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if fmt.Sprint(rs.Of) != "[0 1 2 2 3 3 3 4]" {
		t.Errorf("records are of changes %v", rs.Of)
	}
}

// If this failed, a truncate would be seen by the readers of one partition
// only.
func TestProduceTruncateReachesEveryPartition(t *testing.T) {
	b := enginetest.NewBed(t, "")
	outs, table := outputs(b, 0), b.Table()
	batch := change.Get()
	defer batch.Release()
	c := batch.Append(table, change.Truncate)
	c.Pos = change.Pos{System: 1, LSN: 1, Kind: change.PosCommit, Ordinal: 1}
	if err := outs.EnsureAll(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	rs := new(records.Buffer)
	if err := outs.Encode(rs, batch, 0, 1); err != nil {
		t.Fatal(err)
	}
	if len(rs.Records) != 3 {
		t.Fatalf("%d records, want one in each of 3 partitions", len(rs.Records))
	}
	for p, r := range rs.Records {
		if r.Partition != int32(p) || r.Key != nil || r.Value == nil {
			t.Errorf("record %d: %+v", p, r)
		}
	}
}

// If this failed, a truncate of an entity would be written as if its readers
// knew what to do, or stop its source.
func TestProduceRefusesWhatHasNoRecord(t *testing.T) {
	b := enginetest.NewBed(t, "")
	outs := outputs(b, 0)
	contracts, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	table := contracts["ps.project"].Table
	batch := change.Get()
	defer batch.Release()
	batch.Append(table, change.Truncate)
	c := batch.Append(table, change.Delete) // Remedy: TW-NO-RECORD
	c.Old = batch.Row(len(table.Columns))
	for i := range c.Old {
		c.Old[i] = change.UnchangedValue()
	}
	c.Old[table.Key[0]] = batch.SpanString(change.String, "17")
	if err := outs.EnsureAll(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	rs := new(records.Buffer)
	if err := outs.Encode(rs, batch, 0, batch.Len()); err != nil {
		t.Fatal(err)
	}
	if len(rs.Refused) != 1 || !problem.Has(rs.Refused[0].Err, records.ErrNoRecord) || len(rs.Records) != 1 || rs.Records[0].Value != nil {
		t.Errorf("refused %+v, records %+v", rs.Refused, rs.Records)
	}
}

// If this failed, one bad record would take its neighbours with it, or a row that
// changed its key would stay under the former one until somebody mends it.
func TestProduceRefusesWhatIsTooLarge(t *testing.T) {
	b := enginetest.NewBed(t, "")
	outs := outputs(b, 1000)
	big := string(bytes.Repeat([]byte("x"), 900))
	rs := encodeRows(b, t, outs, b.Table(),
		enginetest.Row{Op: change.Create, ID: 1, Val: "a"},
		enginetest.Row{Op: change.Update, ID: 3, Was: 2, Val: big}, // d, tombstone, c: all but the tombstone are too large
		enginetest.Row{Op: change.Create, ID: 5, Val: "e"},
	)
	if len(rs.Records) != 3 || len(rs.Of) != 3 || rs.Records[1].Value != nil || len(rs.Refused) != 2 {
		t.Fatalf("%d records, %d refused", len(rs.Records), len(rs.Refused))
	}
	for i, key := range []string{"2", "3"} {
		r := rs.Refused[i]
		if r.Index != 1 || r.Key != key || !problem.Has(r.Err, records.ErrTooLarge) || len(r.RecordKey) == 0 || !bytes.Contains(r.Record.Value, []byte(big)) {
			t.Errorf("refused: %+v", r)
		}
		if bytes.Contains([]byte(r.Err.Error()), []byte("xxx")) {
			t.Error("the payload is in the error")
		}
	}
}

// If this failed, a transaction over more tables than fit somewhere would stop
// its source for good; or a source that describes its tables anew for weeks
// would keep all that it ever said.
func TestManyTables(t *testing.T) {
	b := enginetest.NewBed(t, "")
	outs := outputs(b, 0)
	const many = 4200
	batch := change.Get()
	defer batch.Release()
	for i := range many {
		table := *b.Table()
		table.Topic = fmt.Sprintf("%s.public.t%d", b.Source, i)
		enginetest.AppendRow(batch, table.Index(), enginetest.Row{Op: change.Create, ID: 1, Val: "a"}, 1, i)
	}
	if err := outs.EnsureAll(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	rs := new(records.Buffer)
	if err := outs.Encode(rs, batch, 0, batch.Len()); err != nil {
		t.Fatal(err)
	}
	if len(rs.Records) != many {
		t.Fatalf("%d records of %d tables", len(rs.Records), many)
	}
	first := b.Table()
	tables := []*change.Table{first}
	for range 100 {
		tables = append(tables, b.Table())
	}
	for _, table := range tables {
		if _, err := outs.Ensure(t.Context(), table); err != nil {
			t.Fatal(err)
		}
	}
	if outs.Find(first) != nil {
		t.Error("a description of long ago is kept")
	}
}

// If this failed, a row that was once too large could not be mended or deleted:
// the update that shortens it carries the long version as its old row.
func TestProduceLeavesOutALongOldRow(t *testing.T) {
	b := enginetest.NewBed(t, "")
	outs := outputs(b, 1000)
	big := string(bytes.Repeat([]byte("x"), 2000))
	batch := change.Get()
	defer batch.Release()
	enginetest.AppendRow(batch, b.Table(), enginetest.Row{Op: change.Update, ID: 1, Val: "short"}, 1, 0)
	enginetest.AppendRow(batch, b.Table(), enginetest.Row{Op: change.Delete, ID: 2}, 1, 1)
	for i := range batch.Changes {
		batch.Changes[i].Old[1] = batch.SpanString(change.String, big)
	}
	if err := outs.EnsureAll(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	rs := new(records.Buffer)
	if err := outs.Encode(rs, batch, 0, batch.Len()); err != nil {
		t.Fatal(err)
	}
	if len(rs.Records) != 3 || len(rs.Refused) != 0 { // u, d, tombstone
		t.Fatalf("%d records, refused %+v", len(rs.Records), rs.Refused)
	}
	if got := shapes(b, t, rs); got[0].key != "1" || got[1].key != "2" {
		t.Errorf("got %+v", got)
	}
	if batch.String(batch.Changes[0].Old[1]) != big {
		t.Error("the batch, which others read, was changed")
	}
}

// If this failed, records would be overwritten while Kafka still reads them,
// or grow the heap with every batch.
func TestProduceReusesItsMemory(t *testing.T) {
	b := enginetest.NewBed(t, "")
	outs, table := outputs(b, 0), b.Table()
	batch := change.Get()
	defer batch.Release()
	for i := range 1000 {
		enginetest.AppendRow(batch, table, enginetest.Row{Op: change.Update, ID: int64(i%60 + 1), Val: "some text"}, 1, i)
	}
	if err := outs.EnsureAll(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	rs := new(records.Buffer)
	encode := func() {
		rs.Reset()
		if err := outs.Encode(rs, batch, 0, batch.Len()); err != nil {
			t.Fatal(err)
		}
	}
	encode()
	if n := testing.AllocsPerRun(10, encode); n > 0 {
		t.Errorf("%v allocations for 1000 changes, want 0", n)
	}
	before := make([]kgo.Record, len(rs.Records))
	copy(before, rs.Records)
	for i := range before { // what an earlier Encode made stays while it is appended to
		before[i].Value = append([]byte{}, before[i].Value...)
	}
	if err := outs.Encode(rs, batch, 0, batch.Len()); err != nil {
		t.Fatal(err)
	}
	for i := range before {
		// The envelope ends with our own clock: compare up to there.
		if n := len(before[i].Value) - 40; !bytes.Equal(before[i].Value[:n], rs.Records[i].Value[:n]) || rs.Records[i].Partition != before[i].Partition {
			t.Fatalf("record %d changed when more were encoded", i)
		}
	}
}
