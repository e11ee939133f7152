package history

import (
	"context"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/records"
)

// A reader that passes over records, or that sees only rows, would let losses
// and records of nobody pass.
func TestReadTopicsFindsWhatIsPlanted(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	h := New(map[string][]string{"public.item": {"id"}})
	h.Loaded()
	image := func(id int64, note string) Row { return Row{"id": fmt.Sprint(id), "note": note} }
	put := func(r enginetest.Row) {
		b.Put(r)
		c := Change{Table: "public.item", Op: byte(r.Op)}
		if r.Op != change.Create {
			c.Old = image(r.ID, r.Val)
			if r.Was != 0 {
				c.Old = image(r.Was, r.Val)
			}
		}
		if r.Op != change.Delete {
			c.New = image(r.ID, r.Val)
		}
		h.Commit(c)
	}
	for id := int64(1); id <= 6; id++ {
		put(enginetest.Row{Op: change.Create, ID: id, Val: "a"})
	}
	for round := range 4 {
		for id := int64(1); id <= 6; id++ {
			// The bed's rows before are those of after: so they are in truth.
			put(enginetest.Row{Op: change.Update, ID: id, Val: "a"})
		}
		put(enginetest.Row{Op: change.Delete, ID: 2, Val: "a"})
		put(enginetest.Row{Op: change.Create, ID: 2, Val: "a"})
		put(enginetest.Row{Op: change.Update, ID: int64(11 + round), Was: 3, Val: "a"})
		put(enginetest.Row{Op: change.Create, ID: 3, Val: "a"})
	}
	all := b.Read(b.In.Topic)
	judge := func(recs []*kgo.Record) []Finding {
		r := NewReader(b.Env.Registry.SchemaByID)
		for _, rec := range recs {
			if err := r.Add(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		return h.Check(r.Seen(), Options{})
	}
	seen, err := ReadTopics(t.Context(), b.Direct, b.Env.Registry.SchemaByID, b.In.Topic)
	if err != nil {
		t.Fatal(err)
	}
	if seen.Records != len(all) {
		t.Errorf("%d records, want %d", seen.Records, len(all))
	}
	for _, f := range append(h.Check(seen, Options{}), judge(all)...) {
		t.Errorf("nothing is wrong: %v", f)
	}
	tombstone := slices.IndexFunc(all, func(r *kgo.Record) bool { return r.Value == nil })
	for name, edit := range map[string]func([]*kgo.Record) []*kgo.Record{
		"a record is gone":     func(rs []*kgo.Record) []*kgo.Record { return slices.Delete(rs, 5, 6) },
		"a record comes twice": func(rs []*kgo.Record) []*kgo.Record { return slices.Insert(rs, 5, rs[4]) },
		"a tombstone is gone":  func(rs []*kgo.Record) []*kgo.Record { return slices.Delete(rs, tombstone, tombstone+1) },
		"a tombstone too many": func(rs []*kgo.Record) []*kgo.Record { return slices.Insert(rs, tombstone, rs[tombstone]) },
		"two have their places exchanged": func(rs []*kgo.Record) []*kgo.Record {
			rs[4], rs[5] = rs[5], rs[4]
			return rs
		},
		"it lies in another partition": func(rs []*kgo.Record) []*kgo.Record {
			r := *rs[len(rs)-1]
			r.Partition = 9
			rs[len(rs)-1] = &r
			return rs
		},
		"the key of another": func(rs []*kgo.Record) []*kgo.Record {
			r := *rs[0]
			for _, x := range rs[1:] {
				if string(x.Key) != string(r.Key) {
					r.Key = x.Key
				}
			}
			rs[0] = &r
			return rs
		},
	} {
		if fs := judge(edit(slices.Clone(all))); len(fs) == 0 {
			t.Errorf("%s: nothing is found", name)
		}
	}
}

// Each type as Postgres prints it: else a right value would be called wrong.
func TestReaderPrintsAsPostgresDoes(t *testing.T) {
	column := func(name string, k change.Kind, precision, scale int16) change.Column {
		return change.Column{Name: name, Type: name, Kind: k, Nullable: true, Precision: precision, Scale: scale}
	}
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	ints, dates := column("", change.Int, -1, -1), column("", change.Date, -1, -1)
	ints.Width = 4
	texts := column("", change.String, -1, -1)
	table := &change.Table{
		Source: b.Source, Connector: b.In.Connector, Schema: "public", Name: "kind", Topic: b.Source + ".public.kind", Key: []int{0}, OldFull: true,
		Columns: []change.Column{
			column("id", change.Int, -1, -1), column("9 digits", change.Decimal, 12, 4), column("numeric", change.Decimal, -1, -1),
			column("yes", change.Bool, -1, -1), column("real", change.Float32, -1, -1), column("double", change.Float64, -1, -1), column("bytea", change.Bytes, -1, -1),
			column("date", change.Date, -1, -1), column("time", change.Time, -1, -1), column("stamp", change.Timestamp, -1, -1), column("moment", change.TimestampTZ, -1, -1),
			column("uuid", change.UUID, -1, -1), column("numbers", change.Array, -1, -1), column("days", change.Array, -1, -1), column("words", change.Array, -1, -1),
		},
	}
	table.Columns[0].Width, table.Columns[0].Nullable = 8, false
	table.Columns[12].Elem, table.Columns[13].Elem, table.Columns[14].Elem = &ints, &dates, &texts
	table.Index()
	if _, err := b.Outs.Ensure(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	batch := change.Get()
	defer batch.Release()
	micros := func(s string) int64 {
		m, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return m.UnixMicro()
	}
	var want []Row
	add := func(texts map[string]string, values ...change.Value) {
		row := batch.Row(len(table.Columns))
		for i := range row {
			row[i] = change.NullValue()
		}
		copy(row, values)
		c := batch.Append(table, change.Create)
		c.New = row
		r := Row{}
		for i := range table.Columns {
			r[table.Columns[i].Name] = Null
		}
		for name, s := range texts {
			r[name] = s
		}
		want = append(want, r)
	}
	list := func(vs ...change.Value) change.Value {
		return batch.Array([]change.Dim{{Len: int32(len(vs)), Lower: 1}}, vs)
	}
	numeric, _ := new(big.Int).SetString("12345678901234567890100", 10)
	add(map[string]string{"id": "-1"}, change.IntValue(-1))
	add(map[string]string{
		"id": "1", "9 digits": "-0.0123", "numeric": "12345678901234567890.100", "yes": "f", "real": "1e+10", "double": "0.1", "bytea": `\x00ff`,
		"date": "2026-02-28", "time": "13:04:05.06", "stamp": "1999-12-31 23:59:59.999999", "moment": "0001-01-01 00:00:00+00",
		"uuid": "00112233-4455-6677-8899-aabbccddeeff", "numbers": "{1,NULL,-3}", "days": "{infinity,1970-01-02}", "words": `{"",NULL,"a b","q\"",x,"NULL"}`,
	}, change.IntValue(1), change.DecimalValue(-123, 4), batch.BigDecimal(numeric, 3), change.BoolValue(false), change.Float32Value(1e10), change.Float64Value(0.1),
		batch.Span(change.Bytes, []byte{0, 255}), change.DateValue(20512), change.TimeValue(47045060000), change.TimestampValue(micros("1999-12-31T23:59:59.999999Z")), change.TimestampTZValue(micros("0001-01-01T00:00:00Z")),
		batch.Span(change.UUID, []byte{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}),
		list(change.IntValue(1), change.NullValue(), change.IntValue(-3)), list(change.DateValue(change.PosInfinity), change.DateValue(1)),
		list(batch.SpanString(change.String, ""), change.NullValue(), batch.SpanString(change.String, "a b"), batch.SpanString(change.String, `q"`), batch.SpanString(change.String, "x"), batch.SpanString(change.String, "NULL")))
	rs := new(records.Buffer)
	if err := b.Outs.Encode(rs, batch, 0, batch.Len()); err != nil {
		t.Fatal(err)
	}
	if len(rs.Refused) > 0 {
		t.Fatal(rs.Refused[0].Err)
	}
	r := NewReader(b.Env.Registry.SchemaByID)
	for i := range rs.Records {
		if err := r.Add(context.WithoutCancel(t.Context()), &rs.Records[i]); err != nil {
			t.Fatal(err)
		}
	}
	h := New(map[string][]string{"public.kind": {"id"}})
	h.Loaded()
	for _, w := range want {
		h.Commit(Change{Table: "public.kind", Op: 'c', New: w})
	}
	for _, f := range h.Check(r.Seen(), Options{}) {
		t.Error(strings.ReplaceAll(f.String(), Null, "null"))
	}
}
