package avro_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"math/big"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/sr/srfake"
	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

// newRegistry starts a registry that speaks the real protocol.
func newRegistry(t testing.TB) *avro.Registry {
	s := httptest.NewServer(srfake.New().Handler())
	t.Cleanup(s.Close)
	r, err := avro.NewRegistry(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newEncoder(t testing.TB, r *avro.Registry, tab *change.Table) *avro.Encoder {
	e, err := avro.NewEncoder(t.Context(), r, tab)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// kinds is a table with every kind of column there is, as raw topics have them.
func kinds() *change.Table {
	num := func(p, s int16) change.Column {
		return change.Column{Kind: change.Decimal, Precision: p, Scale: s}
	}
	cols := []change.Column{
		{Name: "id", Type: "bigint", Kind: change.Int, Width: 8},
		{Name: "k 2", Type: "text", Kind: change.String}, // not a legal Avro name
		{Name: "flag", Type: "boolean", Kind: change.Bool},
		{Name: "i2", Type: "smallint", Kind: change.Int, Width: 2},
		{Name: "i4", Type: "integer", Kind: change.Int, Width: 4},
		{Name: "f4", Type: "real", Kind: change.Float32},
		{Name: "f8", Type: "double precision", Kind: change.Float64},
		num(12, 4), num(38, 10), num(-1, -1), num(3, -2),
		{Name: "s", Type: "text", Kind: change.String},
		{Name: "bin", Type: "bytea", Kind: change.Bytes},
		{Name: "u", Type: "uuid", Kind: change.UUID},
		{Name: "d", Type: "date", Kind: change.Date},
		{Name: "t", Type: "time without time zone", Kind: change.Time},
		{Name: "tz", Type: "time with time zone", Kind: change.TimeTZ, Precision: 6},
		{Name: "ts", Type: "timestamp without time zone", Kind: change.Timestamp},
		{Name: "tstz", Type: "timestamp with time zone", Kind: change.TimestampTZ, Precision: -1},
		{Name: "tstz3", Type: "timestamp(3) with time zone", Kind: change.TimestampTZ, Precision: 3},
		{Name: "iv", Type: "interval", Kind: change.Interval},
		{Name: "j", Type: "jsonb", Kind: change.JSON},
		{Name: "e", Type: "mood", Kind: change.Enum, Labels: []string{"sad", "ok, fine", "happy"}},
		{Name: "a", Type: "integer[]", Kind: change.Array, Elem: &change.Column{Kind: change.Int, Width: 4}},
		{Name: "at", Type: "inet[]", Kind: change.Array, Elem: &change.Column{Kind: change.Text}},
		{Name: "an", Type: "numeric(5,2)[]", Kind: change.Array, Elem: &change.Column{Kind: change.Decimal, Precision: 5, Scale: 2}},
		{Name: "x", Type: "point", Kind: change.Text},
	}
	for i := range cols {
		if cols[i].Name == "" {
			cols[i].Name = "n" + string(rune('a'+i))
			cols[i].Type = "numeric"
		}
		cols[i].Nullable = i > 1
	}
	return (&change.Table{
		Source: "psa", Connector: connector, Database: "psa", Schema: "public", Name: "kinds", Topic: "psa.public.kinds",
		Columns: cols, Key: []int{1, 0}, OldFull: true,
	}).Index()
}

// draw makes a value of a column. tame keeps to what every library can hold.
func draw(t *rapid.T, b *change.Batch, c *change.Column, tame bool) change.Value {
	int64s := func(lo, hi int64) int64 { return rapid.Int64Range(lo, hi).Draw(t, c.Name) }
	infinite := func() int64 {
		if tame {
			return 0
		}
		return rapid.SampledFrom([]int64{0, 0, 0, change.PosInfinity, change.NegInfinity}).Draw(t, "infinite")
	}
	text := func() string { return rapid.StringN(0, 80, 200).Draw(t, c.Name) }
	switch c.Kind {
	case change.Bool:
		return change.BoolValue(rapid.Bool().Draw(t, c.Name))
	case change.Int:
		w := uint(8*c.Width - 1)
		return change.IntValue(int64s(-1<<w, 1<<w-1))
	case change.Float32:
		return change.Float32Value(rapid.Float32().Draw(t, c.Name))
	case change.Float64:
		return change.Float64Value(rapid.Float64().Draw(t, c.Name))
	case change.Decimal:
		if c.Precision < 0 || c.Scale < 0 {
			if !tame && rapid.IntRange(0, 5).Draw(t, "special") == 0 {
				return change.SpecialDecimal(rapid.SampledFrom([]change.Form{change.NaN, change.Infinite, change.NegInfinite}).Draw(t, "form"))
			}
			x := new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "big"))
			if rapid.Bool().Draw(t, "negative") {
				x.Neg(x)
			}
			return b.BigDecimal(x, int16(rapid.IntRange(0, 30).Draw(t, "scale")))
		}
		lim := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(c.Precision)), nil)
		x := new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 16).Draw(t, "big"))
		x.Mod(x, lim)
		if rapid.Bool().Draw(t, "negative") {
			x.Neg(x)
		}
		return b.BigDecimal(x, c.Scale)
	case change.String, change.Text:
		return b.SpanString(c.Kind, text())
	case change.JSON:
		j, err := json.Marshal(text())
		if err != nil {
			t.Fatal(err)
		}
		return b.Span(change.JSON, j)
	case change.Enum:
		return b.SpanString(change.Enum, rapid.SampledFrom(c.Labels).Draw(t, c.Name))
	case change.Bytes:
		return b.Span(change.Bytes, rapid.SliceOfN(rapid.Byte(), 0, 90).Draw(t, c.Name))
	case change.UUID:
		return b.Span(change.UUID, rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, c.Name))
	case change.Date:
		if n := infinite(); n != 0 {
			return change.DateValue(n)
		}
		return change.DateValue(int64s(-2_440_588, 2_145_042_905))
	case change.Time:
		return change.TimeValue(int64s(0, 86_400_000_000))
	case change.TimeTZ:
		return change.TimeTZValue(int64s(0, 86_400_000_000), int32(int64s(-57599, 57599)))
	case change.Timestamp, change.TimestampTZ:
		us := infinite()
		if us == 0 {
			us = int64s(-210_866_803_200_000_000, math.MaxInt64-1)
			if c.Precision == 3 {
				us = us / 1000 * 1000
			}
		}
		if c.Kind == change.Timestamp {
			return change.TimestampValue(us)
		}
		return change.TimestampTZValue(us)
	case change.Interval:
		return b.Interval(rapid.Int32().Draw(t, "months"), rapid.Int32().Draw(t, "days"), rapid.Int64().Draw(t, "us"))
	case change.Array:
		n := rapid.IntRange(0, 5).Draw(t, "len")
		if n == 0 {
			return b.Array(nil, nil)
		}
		elems := b.Row(n)
		for i := range elems {
			if rapid.IntRange(0, 3).Draw(t, "null") > 0 {
				elems[i] = draw(t, b, c.Elem, tame)
			}
		}
		return b.Array([]change.Dim{{Len: int32(n), Lower: 1}}, elems)
	}
	t.Fatalf("no generator for %s", c.Kind)
	return change.Value{}
}

func drawRow(t *rapid.T, b *change.Batch, tab *change.Table, tame bool) []change.Value {
	row := b.Row(len(tab.Columns))
	for i := range row {
		if tab.Columns[i].Nullable && rapid.IntRange(0, 4).Draw(t, "null") == 0 {
			continue
		}
		row[i] = draw(t, b, &tab.Columns[i], tame)
	}
	return row
}

// same fails when two rows differ in kind or exact text.
func same(t interface{ Fatalf(string, ...any) }, tab *change.Table, x *change.Batch, want []change.Value, y *change.Batch, got []change.Value) {
	if (want == nil) != (got == nil) {
		t.Fatalf("rows: want %v, got %v", want != nil, got != nil)
	}
	for i := range want {
		a, b := string(x.AppendText(nil, want[i])), string(y.AppendText(nil, got[i]))
		if want[i].Kind() != got[i].Kind() || a != b {
			t.Fatalf("column %s: want %s %q, got %s %q", tab.Columns[i].Name, want[i].Kind(), a, got[i].Kind(), b)
		}
	}
}

// connector is as the Postgres source says it.
var connector = &change.Connector{Name: "postgresql", Version: "1", Fields: []change.SourceField{{Name: "txId", Of: change.SourceXID}, {Name: "lsn", Of: change.SourceLSN}, {Name: "xmin"}}}

// Lost if this fails: whoever reads a raw topic is told of another source, or of
// another place in it, than the row came from.
func TestSourceBlockIsTheConnectors(t *testing.T) {
	for _, c := range []struct {
		connector *change.Connector
		own       map[string]any
	}{
		{connector, map[string]any{"txId": map[string]any{"long": int64(77)}, "lsn": map[string]any{"long": int64(4711)}, "xmin": nil}},
		{&change.Connector{Name: "poll", Version: "3"}, map[string]any{}},
	} {
		t.Run(c.connector.Name, func(t *testing.T) {
			tab := kinds()
			tab.Connector, tab.Topic = c.connector, "psa.public."+c.connector.Name
			enc := newEncoder(t, newRegistry(t), tab)
			_, schema, err := avro.EnvelopeSchemas(tab)
			if err != nil {
				t.Fatal(err)
			}
			b := change.Get()
			defer b.Release()
			ch := b.Append(tab, change.Truncate)
			ch.Time, ch.XID, ch.Pos = 1_770_000_000_123_456, 77, change.Pos{System: 1, Timeline: 1, LSN: 4711, Kind: change.PosCommit, Ordinal: 2}
			wire, err := enc.AppendValue(nil, b, ch)
			if err != nil {
				t.Fatal(err)
			}
			native, _, err := codec(t, schema).NativeFromBinary(wire[5:])
			if err != nil {
				t.Fatal(err)
			}
			got := native.(map[string]any)["source"].(map[string]any)
			want := map[string]any{
				"version": c.connector.Version, "connector": c.connector.Name, "name": "psa", "db": "psa", "schema": "public", "table": "kinds",
				"ts_ms": int64(1_770_000_000_123), "ts_us": map[string]any{"long": int64(1_770_000_000_123_456)}, "ts_ns": map[string]any{"long": int64(1_770_000_000_123_456_000)},
				"snapshot": map[string]any{"string": "false"}, "sequence": map[string]any{"string": `["4711","2"]`},
			}
			maps.Copy(want, c.own)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the source block (want, got):\n%s", diff)
			}
		})
	}
	tab := kinds()
	tab.Connector = nil
	if _, _, err := avro.EnvelopeSchemas(tab); !problem.Has(err, avro.ErrTable) {
		t.Errorf("a table without a connector: %v", err)
	}
}

// Lost if this fails: a doctor holds a mapping against another table than the
// one that its topic is filled from.
func TestTableOfATopic(t *testing.T) {
	reg := newRegistry(t)
	if tab, err := reg.Table(t.Context(), "psa.public.kinds"); tab != nil || err != nil {
		t.Fatalf("of a topic without schemas: %v, %v", tab, err)
	}
	want := kinds()
	newEncoder(t, reg, want)
	got, err := reg.Table(t.Context(), want.Topic)
	if err != nil {
		t.Fatal(err)
	}
	if got.Source != want.Source || got.Database != want.Database || got.Schema != want.Schema || got.Name != want.Name || got.OldFull != want.OldFull {
		t.Errorf("it is %+v, want %+v", got, want)
	}
	if diff := cmp.Diff(want.Key, got.Key); diff != "" {
		t.Errorf("its key (want, got):\n%s", diff)
	}
	if diff := cmp.Diff(&change.Connector{Name: "postgresql", Fields: connector.Fields}, got.Connector); diff != "" {
		t.Errorf("its connector (want, got):\n%s", diff)
	}
	// A stage may pass rows on as they are.
	again := *got
	again.Topic = "copied"
	newEncoder(t, reg, &again)
	for i := range want.Columns {
		if w, g := want.Columns[i], got.Columns[i]; w.Name != g.Name || w.Type != g.Type || w.Kind != g.Kind {
			t.Errorf("column %d is %+v, want %+v", i, g, w)
		}
	}
}

// If this failed, a value would change on its way through Kafka.
func TestRawRoundTrip(t *testing.T) {
	reg := newRegistry(t)
	tab := kinds()
	enc, dec := newEncoder(t, reg, tab), avro.NewDecoder(reg)
	at := change.Coord{Topic: &change.Topic{Name: tab.Topic}}
	rapid.Check(t, func(rt *rapid.T) {
		b, out := change.Get(), change.Get()
		defer b.Release()
		defer out.Release()
		c := b.Append(tab, rapid.SampledFrom([]change.Op{change.Read, change.Create, change.Update, change.Delete, change.Truncate}).Draw(rt, "op"))
		c.Time = rapid.Int64Range(-1e15, 1e16).Draw(rt, "time")
		c.XID = rapid.Uint32().Draw(rt, "xid")
		c.Pos = change.Pos{System: 7, Timeline: 1, LSN: rapid.Uint64Range(1, math.MaxInt64).Draw(rt, "lsn"), Kind: change.PosCommit, Ordinal: 3}
		if c.Op == change.Update || c.Op == change.Delete {
			c.Old = drawRow(rt, b, tab, false)
			for i := 2; i < len(c.Old); i++ {
				if rapid.IntRange(0, 9).Draw(rt, "unknown") == 0 {
					c.Old[i] = change.UnchangedValue()
				}
			}
		}
		if c.Op != change.Delete && c.Op != change.Truncate {
			c.New = drawRow(rt, b, tab, false)
			for i := 2; i < len(c.New); i++ {
				if rapid.IntRange(0, 9).Draw(rt, "unchanged") == 0 {
					c.New[i] = change.UnchangedValue()
				}
			}
		}
		var key []byte
		var err error
		if c.Op != change.Truncate {
			if key, err = enc.AppendKey(nil, b, c); err != nil {
				rt.Fatalf("key: %v", err)
			}
		}
		var memo avro.Memo
		value, err := enc.AppendValueWith(&memo, nil, b, c)
		if err != nil {
			rt.Fatalf("value: %v", err)
		}
		headers := headersOf(enc, &memo, c)
		headers.Pos = change.AppendPos(nil, c.Pos)
		if err := dec.Append(t.Context(), out, at, key, value, headers, 1); err != nil {
			rt.Fatalf("decoding: %v", err)
		}
		d := &out.Changes[0]
		if d.Op != c.Op || d.Time != c.Time || d.XID != c.XID || d.Pos != c.Pos || d.Table.Source != "psa" || d.Table.Name != "kinds" {
			rt.Fatalf("want %+v, got %+v", c, d)
		}
		same(rt, tab, b, c.Old, out, d.Old)
		same(rt, tab, b, c.New, out, d.New)
		if c.Op != change.Truncate {
			if a, z := change.AppendKey(nil, b, c), change.AppendKey(nil, out, d); string(a) != string(z) {
				rt.Fatalf("key %q came back as %q", a, z)
			}
			d.Table.Columns[0].Kind = tab.Columns[0].Kind
		}
	})
}

// Lost if this fails: what was written for one change shows in the envelope of
// another.
func TestMemoWritesTheSameOctets(t *testing.T) {
	reg := newRegistry(t)
	tables := []*change.Table{timeEntry(), timeEntry()}
	tables[1].Topic, tables[1].Name = "psa.public.other", "other"
	var encs []*avro.Encoder
	for _, tab := range tables {
		encs = append(encs, newEncoder(t, reg, tab))
	}
	b := change.Get()
	defer b.Release()
	rapid.Check(t, func(t *rapid.T) {
		b.Reset()
		var memo avro.Memo
		for i := range rapid.IntRange(1, 20).Draw(t, "changes") {
			e := encs[rapid.IntRange(0, 1).Draw(t, "table")]
			c := b.Append(e.Table(), rapid.SampledFrom([]change.Op{change.Read, change.Create, change.Delete, change.Truncate}).Draw(t, "op"))
			switch c.Op {
			case change.Delete:
				c.Old = fillEntry(b, i)
			case change.Read, change.Create:
				c.New = fillEntry(b, i)
			}
			c.XID = rapid.Uint32Range(0, 1).Draw(t, "xid")
			c.Time = rapid.SampledFrom([]int64{0, 1_770_000_000_000_000, -5}).Draw(t, "time")
			if rapid.Bool().Draw(t, "placed") {
				c.Pos = change.Pos{System: 1, LSN: rapid.SampledFrom([]uint64{0, 7, math.MaxUint64}).Draw(t, "lsn"), Kind: change.PosCommit, Ordinal: rapid.Uint64().Draw(t, "ordinal")}
			}
			if rapid.Bool().Draw(t, "reset") {
				memo.Reset()
			}
			want, err := e.AppendValue(nil, b, c)
			if err != nil {
				t.Fatal(err)
			}
			got, err := e.AppendValueWith(&memo, nil, b, c)
			if err != nil {
				t.Fatal(err)
			}
			// Less the time of writing: numbers of 6, 8 and 9 octets and their branches.
			n := len(want) - 26
			if len(got) != len(want) || !bytes.Equal(got[:n], want[:n]) {
				t.Fatalf("change %d:\n%x\nwant\n%x", i, got, want)
			}
		}
	})
}
