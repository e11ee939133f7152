package avro_test

import (
	"encoding/json"
	"testing"

	"github.com/linkedin/goavro/v2"
	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
)

// plain takes the logical types out of a schema, so that goavro gives the
// octets' own numbers, which hold every value.
func plain(t testing.TB, schema string) *goavro.Codec {
	var v any
	if err := json.Unmarshal([]byte(schema), &v); err != nil {
		t.Fatal(err)
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			delete(v, "logicalType")
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(v)
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return codec(t, string(text))
}

func codec(t testing.TB, schema string) *goavro.Codec {
	c, err := goavro.NewCodec(schema)
	if err != nil {
		t.Fatalf("goavro does not take the schema: %v\n%s", err, schema)
	}
	return c
}

// goavro reads what we write, and we read what goavro writes. If this failed,
// foreign readers would see other values than ours, or we would misread foreign
// writers.
func TestGoavroAgrees(t *testing.T) {
	reg := newRegistry(t)
	tab := kinds()
	enc, dec := newEncoder(t, reg, tab), avro.NewDecoder(reg)
	keySchema, valueSchema, err := avro.EnvelopeSchemas(tab)
	if err != nil {
		t.Fatal(err)
	}
	full := codec(t, valueSchema) // must take the schema with its logical types
	keys, values := plain(t, keySchema), plain(t, valueSchema)
	at := change.Coord{Topic: &change.Topic{Name: tab.Topic}}
	rapid.Check(t, func(rt *rapid.T) {
		b, out := change.Get(), change.Get()
		defer b.Release()
		defer out.Release()
		c := b.Append(tab, change.Update)
		c.Time, c.XID = 1_700_000_000_000_000, 42
		c.Old, c.New = drawRow(rt, b, tab, true), drawRow(rt, b, tab, true)
		again := func(k *goavro.Codec, wire []byte) []byte {
			native, rest, err := k.NativeFromBinary(wire[5:])
			if err != nil || len(rest) != 0 {
				rt.Fatalf("goavro reading: %v, %d octets left", err, len(rest))
			}
			p, err := k.BinaryFromNative(append([]byte(nil), wire[:5]...), native)
			if err != nil {
				rt.Fatalf("goavro writing: %v", err)
			}
			return p
		}
		key, err := enc.AppendKey(nil, b, c)
		if err != nil {
			rt.Fatal(err)
		}
		value, err := enc.AppendValue(nil, b, c)
		if err != nil {
			rt.Fatal(err)
		}
		if err := dec.Append(t.Context(), out, at, again(keys, key), again(values, value), avro.Headers{}, 0); err != nil {
			rt.Fatal(err)
		}
		same(rt, tab, b, c.Old, out, out.Changes[0].Old)
		same(rt, tab, b, c.New, out, out.Changes[0].New)
		if _, _, err := full.NativeFromBinary(value[5:]); err != nil {
			rt.Fatalf("goavro reading with logical types: %v", err)
		}
	})
}

// The same for every contract, and back through the decoder. If this failed,
// the warehouse would hold other numbers than the PSA.
func TestContractsRoundTrip(t *testing.T) {
	reg := newRegistry(t)
	all, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 8 {
		t.Fatalf("%d contracts, want 8", len(all))
	}
	dec := avro.NewDecoder(reg)
	for topic, contract := range all {
		enc := newEncoder(t, reg, contract.Table)
		oracle := plain(t, contract.Schema)
		at := change.Coord{Topic: &change.Topic{Name: topic}}
		rapid.Check(t, func(rt *rapid.T) {
			b, out := change.Get(), change.Get()
			defer b.Release()
			defer out.Release()
			c := b.Append(contract.Table, change.Update)
			row := b.Row(len(contract.Table.Columns))
			for i := range row {
				col := &contract.Table.Columns[i]
				if !col.Nullable || rapid.Bool().Draw(rt, "null") {
					row[i] = draw(rt, b, col, true)
				}
			}
			c.New = row
			key, err := enc.AppendKey(nil, b, c)
			if err != nil {
				rt.Fatal(err)
			}
			value, err := enc.AppendValue(nil, b, c)
			if err != nil {
				rt.Fatal(err)
			}
			native, rest, err := oracle.NativeFromBinary(value[5:])
			if err != nil || len(rest) != 0 {
				rt.Fatalf("goavro reading: %v", err)
			}
			value, err = oracle.BinaryFromNative(value[:5:5], native)
			if err != nil {
				rt.Fatalf("goavro writing: %v", err)
			}
			if err := dec.Append(t.Context(), out, at, key, value, avro.Headers{}, 5); err != nil {
				rt.Fatal(err)
			}
			if err := dec.Append(t.Context(), out, at, key, nil, avro.Headers{}, 6); err != nil {
				rt.Fatal(err)
			}
			d := &out.Changes[0]
			same(rt, contract.Table, b, c.New, out, d.New)
			del := &out.Changes[1]
			if d.Op != change.Update || d.Time != 5000 || del.Op != change.Delete || del.Time != 6000 || del.New != nil {
				rt.Fatalf("%+v, %+v", d, del)
			}
			want := string(change.AppendKey(nil, b, c))
			if got := string(change.AppendKey(nil, out, del)); got != want || string(change.AppendKey(nil, out, d)) != want {
				rt.Fatalf("key %q came back as %q", want, got)
			}
			for i, v := range del.Old {
				if i != contract.Table.Key[0] && !v.IsUnchanged() {
					rt.Fatalf("column %d of a deleted row is %s", i, v.Kind())
				}
			}
		})
	}
}
