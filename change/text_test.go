package change_test

import (
	"bytes"
	"math"
	"math/big"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/change"
)

// If a text were not exact, a key would reach two partitions, or a sink would
// write another number than the source holds.
func TestAppendText(t *testing.T) {
	b := change.Get()
	defer b.Release()
	big1, _ := new(big.Int).SetString("123456789012345678901234567890", 10)
	uuid, p := b.Grow(change.UUID, 16)
	for i := range p {
		p[i] = byte(i * 17)
	}
	arr := func(dims []change.Dim, vs ...change.Value) change.Value {
		row := b.Row(len(vs))
		copy(row, vs)
		return b.Array(dims, row)
	}
	str := func(s string) change.Value { return b.SpanString(change.String, s) }
	one := func(n int32) []change.Dim { return []change.Dim{{Len: n, Lower: 1}} }
	for _, c := range []struct {
		v    change.Value
		want string
	}{
		{change.NullValue(), ""},
		{change.BoolValue(true), "t"},
		{change.IntValue(math.MinInt64), "-9223372036854775808"},
		{change.Float64Value(0.1), "0.1"},
		{change.Float64Value(1e15), "1e+15"},
		{change.Float64Value(123456789012345), "123456789012345"},
		{change.Float64Value(0.0001), "0.0001"},
		{change.Float64Value(0.00001), "1e-05"},
		{change.Float64Value(math.Copysign(0, -1)), "-0"},
		{change.Float32Value(16777216), "1.6777216e+07"},
		{change.Float64Value(math.Inf(-1)), "-Infinity"},
		{change.DecimalValue(1500, 3), "1.500"},
		{change.DecimalValue(-5, 4), "-0.0005"},
		{change.DecimalValue(0, 2), "0.00"},
		{change.DecimalValue(12, -3), "12000"},
		{change.SpecialDecimal(change.NaN), "NaN"},
		{change.SpecialDecimal(change.NegInfinite), "-Infinity"},
		{b.BigDecimal(big1, 10), "12345678901234567890.1234567890"},
		{b.BigDecimal(new(big.Int).Neg(big1), 0), "-123456789012345678901234567890"},
		{str("päivä"), "päivä"},
		{b.Span(change.Bytes, []byte{0, 255}), `\x00ff`},
		{uuid, "00112233-4455-6677-8899-aabbccddeeff"},
		{change.DateValue(0), "1970-01-01"},
		{change.DateValue(20515), "2026-03-03"},
		{change.DateValue(-719529), "0002-12-31 BC"},
		{change.DateValue(change.PosInfinity), "infinity"},
		{change.TimeValue(86_400_000_000), "24:00:00"},
		{change.TimeValue(3_723_000_100), "01:02:03.0001"},
		{change.TimeTZValue(3_600_000_000, -16200), "01:00:00-04:30"},
		{change.TimestampValue(-1), "1969-12-31 23:59:59.999999"},
		{change.TimestampTZValue(1_500_000), "1970-01-01 00:00:01.5+00"},
		{change.TimestampTZValue(change.NegInfinity), "-infinity"},
		{b.Interval(14, 0, 0), "1 year 2 mons"},
		{b.Interval(-1, 3, -4_000_000), "-1 mons +3 days -00:00:04"},
		{b.Interval(0, -1, 1_000_000), "-1 days +00:00:01"},
		{b.Interval(0, 0, 0), "00:00:00"},
		{b.Interval(math.MaxInt32, math.MaxInt32, math.MaxInt64), "infinity"},
		{b.SpanString(change.JSON, `{"a": 1}`), `{"a": 1}`},
		{arr(nil), "{}"},
		{arr(one(4), change.IntValue(1), change.NullValue(), str("null"), str(`a"b\c`)), `{1,NULL,"null","a\"b\\c"}`},
		{arr([]change.Dim{{Len: 2, Lower: 0}}, str(""), str("a b")), `[0:1]={"","a b"}`},
		{arr([]change.Dim{{Len: 2, Lower: 1}, {Len: 2, Lower: 1}}, change.IntValue(1), change.IntValue(2), change.IntValue(3), change.IntValue(4)), "{{1,2},{3,4}}"},
	} {
		if got := string(b.AppendText([]byte("x"), c.v)); got != "x"+c.want {
			t.Errorf("%s: got %q, want %q", c.v.Kind(), got, "x"+c.want)
		}
	}
}

// If two keys had one text, one record would overwrite another's.
func TestKeysStayApart(t *testing.T) {
	tab := (&change.Table{Columns: []change.Column{{Name: "a"}, {Name: "b"}}, Key: []int{1, 0}}).Index()
	key := rapid.StringOfN(rapid.RuneFrom([]rune{'a', 0x1E, 0x1F, '\\'}), 0, 6, -1)
	rapid.Check(t, func(t *rapid.T) {
		b := change.Get()
		defer b.Release()
		x, y := key.Draw(t, "x"), key.Draw(t, "y")
		row := b.Row(2)
		row[0], row[1] = b.SpanString(change.String, x), b.SpanString(change.String, y)
		c := change.Change{Table: tab, Op: change.Create, New: row}
		k := change.AppendKey(nil, b, &c)
		parts, ok := change.SplitKey(nil, k, 2)
		if !ok || string(parts[0]) != y || string(parts[1]) != x {
			t.Fatalf("key %q of (%q, %q) splits into %q", k, y, x, parts)
		}
		if !bytes.Equal(change.AppendKeyRow(nil, b, tab, row), k) {
			t.Fatal("AppendKeyRow and AppendKey differ")
		}
	})
}

func TestCivil(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.Int64Range(-3_000_000, 2_200_000_000).Draw(t, "days")
		y, m, day := change.Civil(d)
		if ty, tm, td := time.Unix(d*86_400, 0).UTC().Date(); int64(ty) != y || int(tm) != m || td != day {
			t.Fatalf("day %d is %d-%d-%d, and %d-%d-%d by package time", d, y, m, day, ty, tm, td)
		}
		if got := change.Days(y, m, day); got != d {
			t.Fatalf("day %d is %d-%d-%d, which is day %d", d, y, m, day, got)
		}
	})
}
