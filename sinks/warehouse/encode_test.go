package warehouse

import (
	"fmt"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/change"
)

// Would be lost: digits. Whatever decimal goes in binary must be what the
// server prints; what does not fit exactly must be an error here, since the
// server would round it.
func TestNumericIsExact(t *testing.T) {
	_, conn := fresh(t)
	rapid.Check(t, func(r *rapid.T) {
		digits := rapid.StringMatching(`-?[0-9]{1,40}`).Draw(r, "digits")
		scale := rapid.IntRange(-3, 30).Draw(r, "scale")
		u, _ := new(big.Int).SetString(digits, 10)
		b := change.Get()
		defer b.Release()
		v := b.BigDecimal(u, int16(scale))
		c := &column{kind: change.Decimal, precision: -1}
		if rapid.Bool().Draw(r, "constrained") {
			c.precision = int16(rapid.IntRange(1, 38).Draw(r, "precision"))
			c.scale = int16(rapid.IntRange(0, int(c.precision)).Draw(r, "column scale"))
		}
		exact := new(big.Rat).SetInt(u)
		ten := func(n int) *big.Rat {
			return new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil))
		}
		if scale >= 0 {
			exact.Quo(exact, ten(scale))
		} else {
			exact.Mul(exact, ten(-scale))
		}
		fits := c.precision < 0
		if !fits {
			shifted := new(big.Rat).Mul(exact, ten(int(c.scale)))
			fits = shifted.IsInt() && new(big.Rat).Abs(shifted).Cmp(ten(int(c.precision))) < 0
		}
		p, err := appendField(nil, b, c, v)
		if (err == nil) != fits {
			r.Fatalf("%sE-%d for %s: %v", digits, scale, c.typeName(), err)
		}
		if err != nil {
			return
		}
		res := conn.PgConn().ExecParams(t.Context(), "SELECT $1::"+c.typeName(), [][]byte{p[4:]}, []uint32{1700}, []int16{1}, nil).Read()
		if res.Err != nil {
			r.Fatalf("%sE-%d for %s: %v", digits, scale, c.typeName(), res.Err)
		}
		got, ok := new(big.Rat).SetString(string(res.Rows[0][0]))
		if !ok || got.Cmp(exact) != 0 {
			r.Fatalf("%sE-%d came as %s", digits, scale, res.Rows[0][0])
		}
	})
}

// Would be lost: what an instant or a day is on the other side, at its limits.
func TestValuesAreExact(t *testing.T) {
	_, conn := fresh(t)
	if _, err := conn.Exec(t.Context(), "SET TimeZone = 'UTC'"); err != nil {
		t.Fatal(err)
	}
	b := change.Get()
	defer b.Release()
	for _, c := range []struct {
		kind  change.Kind
		v     change.Value
		wants string // "": an error
	}{
		{change.Date, change.DateValue(0), "1970-01-01"},
		{change.Date, change.DateValue(-800_000), "0222-09-04 BC"},
		{change.Date, change.DateValue(change.PosInfinity), "infinity"},
		{change.Date, change.DateValue(change.NegInfinity), "-infinity"},
		{change.Date, change.DateValue(minDate + epochDays - 1), ""},
		{change.Date, change.DateValue(endDate + epochDays), ""},
		{change.Date, change.DateValue(endDate + epochDays - 1), "5874897-12-31"},
		{change.TimestampTZ, change.TimestampTZValue(1), "1970-01-01 00:00:00.000001+00"},
		{change.TimestampTZ, change.TimestampTZValue(change.NegInfinity), "-infinity"},
		{change.TimestampTZ, change.TimestampTZValue(minTimestamp + epochMicros), "4714-11-24 00:00:00+00 BC"},
		{change.TimestampTZ, change.TimestampTZValue(minTimestamp + epochMicros - 1), ""},
		{change.Timestamp, change.TimestampValue(-1), "1969-12-31 23:59:59.999999"},
		{change.Time, change.TimeValue(86_399_999_999), "23:59:59.999999"},
		{change.Bool, change.BoolValue(true), "true"},
		{change.Int, change.IntValue(-5), "-5"},
		{change.Float64, change.Float64Value(0.1), "0.1"},
		{change.Decimal, change.SpecialDecimal(change.NaN), "NaN"},
		{change.Decimal, change.SpecialDecimal(change.NegInfinite), "-Infinity"},
		{change.UUID, b.Span(change.UUID, []byte("0123456789abcdef")), "30313233-3435-3637-3839-616263646566"},
		{change.Text, b.SpanString(change.String, "déjà ✅"), "déjà ✅"},
		{change.Text, change.DateValue(0), "1970-01-01"}, // what has no type of its own
		{change.Text, b.SpanString(change.String, "\xff"), ""},
		{change.Date, change.IntValue(1), ""},
		{change.Text, change.NullValue(), ""},
		{change.Text, change.UnchangedValue(), ""},
	} {
		col := &column{kind: c.kind, precision: -1}
		p, err := appendField(nil, b, col, c.v)
		if err != nil || c.wants == "" {
			if (err != nil) != (c.wants == "") {
				t.Errorf("%s: %v, want %q", col.typeName(), err, c.wants)
			}
			continue
		}
		res := conn.PgConn().ExecParams(t.Context(), fmt.Sprintf("SELECT ($1::%s)::text", col.typeName()), [][]byte{p[4:]}, nil, []int16{1}, nil).Read()
		if res.Err != nil {
			t.Errorf("%s: %v", col.typeName(), res.Err)
			continue
		}
		got := string(res.Rows[0][0])
		if got != c.wants {
			t.Errorf("%s: %q, want %q", col.typeName(), got, c.wants)
		}
	}
}
