package avro_test

import (
	"testing"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
)

// The envelope as Debezium 3 registers it (through Confluent's AvroData), cut
// to a table of six columns.
const debeziumValue = `{"type":"record","name":"Envelope","namespace":"db.public.t","fields":[
{"name":"before","type":["null",{"type":"record","name":"Value","fields":[
 {"name":"id","type":"int"},
 {"name":"s","type":["null","string"],"default":null},
 {"name":"n","type":["null",{"type":"record","name":"VariableScaleDecimal","namespace":"io.debezium.data","fields":[{"name":"scale","type":"int"},{"name":"value","type":"bytes"}],"connect.version":1,"connect.name":"io.debezium.data.VariableScaleDecimal"}],"default":null},
 {"name":"d","type":["null",{"type":"int","connect.version":1,"connect.name":"io.debezium.time.Date"}],"default":null},
 {"name":"ms","type":["null",{"type":"long","connect.version":1,"connect.name":"io.debezium.time.Timestamp"}],"default":null},
 {"name":"z","type":[{"type":"string","connect.version":1,"connect.default":"1970-01-01T00:00:00.000000Z","connect.name":"io.debezium.time.ZonedTimestamp"},"null"],"default":"1970-01-01T00:00:00.000000Z"}
],"connect.name":"db.public.t.Value"}],"default":null},
{"name":"after","type":["null","Value"],"default":null},
{"name":"source","type":{"type":"record","name":"Source","namespace":"io.debezium.connector.postgresql","fields":[
 {"name":"version","type":"string"},{"name":"ts_ms","type":"long"},
 {"name":"extra","type":{"type":"map","values":["null","string",{"type":"array","items":"long"}]}},
 {"name":"txId","type":["null","long"],"default":null}]}},
{"name":"transaction","type":["null",{"type":"record","name":"block","namespace":"event","fields":[{"name":"id","type":"string"},{"name":"total_order","type":"long"},{"name":"data_collection_order","type":"long"}]}],"default":null},
{"name":"op","type":"string"},{"name":"ts_ms","type":["null","long"],"default":null}]}`

const debeziumKey = `{"type":"record","name":"Key","namespace":"db.public.t","fields":[{"name":"id","type":"int"}]}`

// If this failed, a topic that Debezium filled could not be taken over.
func TestReadsDebezium(t *testing.T) {
	reg := newRegistry(t)
	head := func(subject, schema string) []byte {
		id, err := reg.Register(t.Context(), subject, schema)
		if err != nil {
			t.Fatal(err)
		}
		return []byte{0, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}
	}
	row := func(id int32) map[string]any {
		return map[string]any{
			"id": id, "s": map[string]any{"string": "__debezium_unavailable_value"},
			"n": map[string]any{"io.debezium.data.VariableScaleDecimal": map[string]any{"scale": 2, "value": []byte{0xFB, 0x2E}}},
			"d": map[string]any{"int": 20_000}, "ms": map[string]any{"long": int64(-1)},
			"z": map[string]any{"string": "2026-03-02T09:30:00.5+02:00"},
		}
	}
	value, err := codec(t, debeziumValue).BinaryFromNative(head("db.public.t-value", debeziumValue), map[string]any{
		"before": nil, "after": map[string]any{"db.public.t.Value": row(7)},
		"source": map[string]any{
			"version": "3.7.0.Final", "ts_ms": int64(1_700_000_000_123), "txId": map[string]any{"long": int64(9)},
			"extra": map[string]any{"a": nil, "b": map[string]any{"array": []any{int64(1), int64(2)}}},
		},
		"transaction": nil, "op": "u", "ts_ms": nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	key, err := codec(t, debeziumKey).BinaryFromNative(head("db.public.t-key", debeziumKey), map[string]any{"id": 7})
	if err != nil {
		t.Fatal(err)
	}
	b := change.Get()
	defer b.Release()
	at := change.Coord{Topic: &change.Topic{Name: "db.public.t"}}
	if err := avro.NewDecoder(reg).Append(t.Context(), b, at, key, value, avro.Headers{}, 1); err != nil {
		t.Fatal(err)
	}
	c := &b.Changes[0]
	if c.Op != change.Update || c.XID != 9 || c.Time != 1_700_000_000_123_000 || c.Old != nil ||
		c.Table.Source != "db" || c.Table.Schema != "public" || c.Table.Name != "t" {
		t.Fatalf("%+v of %+v", c, c.Table)
	}
	for i, want := range []struct {
		kind change.Kind
		text string
	}{
		{change.Int, "7"},
		{change.Unchanged, ""},
		{change.Decimal, "-12.34"},
		{change.Date, "2024-10-04"},
		{change.Timestamp, "1969-12-31 23:59:59.999"},
		{change.TimestampTZ, "2026-03-02 07:30:00.5+00"},
	} {
		if v := c.New[i]; v.Kind() != want.kind || string(b.AppendText(nil, v)) != want.text {
			t.Errorf("column %s: %s %q, want %s %q", c.Table.Columns[i].Name, v.Kind(), b.AppendText(nil, v), want.kind, want.text)
		}
	}
	if got := string(change.AppendKey(nil, b, c)); got != "7" {
		t.Errorf("key %q", got)
	}
}

// If this failed, an old row of which only the key is known would pass for one
// full of nulls.
func TestOldRowsOfTheKeyAlone(t *testing.T) {
	reg := newRegistry(t)
	tab := timeEntry()
	tab.OldFull = false
	src, b := change.Get(), change.Get()
	defer src.Release()
	defer b.Release()
	c := src.Append(tab, change.Delete)
	c.Old = src.Row(len(tab.Columns))
	for i := range c.Old {
		c.Old[i] = change.UnchangedValue()
	}
	c.Old[0] = change.IntValue(5)
	r := encodeAll(t, newEncoder(t, reg, tab), src)[0]
	if err := avro.NewDecoder(reg).Append(t.Context(), b, change.Coord{Topic: &change.Topic{Name: tab.Topic}}, r.key, r.value, avro.Headers{}, 1); err != nil {
		t.Fatal(err)
	}
	got := b.Changes[0]
	if got.Op != change.Delete || got.Table.OldFull || got.Old[0].Int() != 5 || !got.Old[8].IsUnchanged() {
		t.Fatalf("%+v", got)
	}
}

// If this failed, a text that happens to be Debezium's placeholder would vanish
// from our own topics.
func TestThePlaceholderIsAText(t *testing.T) {
	reg := newRegistry(t)
	tab := timeEntry()
	src, b := change.Get(), change.Get()
	defer src.Release()
	defer b.Release()
	c := src.Append(tab, change.Create)
	c.New = fillEntry(src, 1)
	c.New[8] = src.SpanString(change.String, "__debezium_unavailable_value")
	r := encodeAll(t, newEncoder(t, reg, tab), src)[0]
	if err := avro.NewDecoder(reg).Append(t.Context(), b, change.Coord{Topic: &change.Topic{Name: tab.Topic}}, r.key, r.value, avro.Headers{}, 1); err != nil {
		t.Fatal(err)
	}
	if v := b.Changes[0].New[8]; v.Kind() != change.String {
		t.Fatalf("the note came back as %s", v.Kind())
	}
}

// FuzzDecode: whatever lies in a topic, the decoder neither panics nor takes
// more than the record is worth, and what it takes it can write again.
func FuzzDecode(f *testing.F) {
	reg := newRegistry(f)
	tab := kinds()
	small := timeEntry()
	enc := newEncoder(f, reg, tab)
	src := change.Get()
	defer src.Release()
	c := src.Append(tab, change.Create)
	c.New = src.Row(len(tab.Columns))
	c.New[0], c.New[1] = change.IntValue(1), src.SpanString(change.String, "k")
	for _, r := range encodeAll(f, enc, src) {
		f.Add(r.value[5:], []byte("s,nope"), true)
	}
	other := change.Get()
	defer other.Release()
	entries(other, small, 3)
	smallEnc := newEncoder(f, reg, small)
	for _, r := range encodeAll(f, smallEnc, other) {
		f.Add(r.value[5:], []byte(nil), false)
	}
	heads := map[bool][]byte{true: encodeAll(f, enc, src)[0].value[:5], false: encodeAll(f, smallEnc, other)[0].value[:5]}
	tables := map[bool]*change.Table{true: tab, false: small}
	encs := map[bool]*avro.Encoder{true: enc, false: smallEnc}
	d := avro.NewDecoder(reg)
	f.Fuzz(func(t *testing.T, p, unchanged []byte, wide bool) {
		b := change.Get()
		defer b.Release()
		at := change.Coord{Topic: &change.Topic{Name: tables[wide].Topic}}
		value := append(append([]byte(nil), heads[wide]...), p...)
		if err := d.Append(t.Context(), b, at, nil, value, avro.Headers{Unchanged: unchanged}, 1); err != nil {
			if b.Len() != 0 {
				t.Fatal("refused and appended")
			}
			return
		}
		if b.Size() > 1<<20+64*len(p) {
			t.Fatalf("%d octets became %d", len(p), b.Size())
		}
		if len(unchanged) > 0 {
			return // a key column may have become Unchanged
		}
		got := &b.Changes[0]
		again, err := encs[wide].AppendValue(nil, b, got)
		if err != nil {
			return // e.g. a decimal of more digits than the schema says
		}
		out := change.Get()
		defer out.Release()
		if err := d.Append(t.Context(), out, at, nil, again, avro.Headers{}, 1); err != nil {
			t.Fatalf("what was taken and written again is refused: %v", err)
		}
		same(t, tables[wide], b, got.Old, out, out.Changes[0].Old)
		same(t, tables[wide], b, got.New, out, out.Changes[0].New)
	})
}
