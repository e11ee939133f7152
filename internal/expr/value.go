// Value: from a row into an expression, and from its result into a row.

package expr

import (
	"math/big"
	"strconv"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/tallywire/tallywire/change"
)

// typeOf is the type that a column has in an expression; every column may be
// null. nil: it cannot be used.
func typeOf(c *change.Column) *types.Type {
	switch c.Kind {
	case change.Bool:
		return types.NewNullableType(types.BoolType)
	case change.Int:
		return types.NewNullableType(types.IntType)
	case change.Float32, change.Float64:
		return types.NewNullableType(types.DoubleType)
	case change.Decimal:
		return decimalType
	case change.Bytes:
		return types.NewNullableType(types.BytesType)
	case change.Date:
		return dateType
	case change.Timestamp:
		return datetimeType
	case change.TimestampTZ:
		return momentType
	case change.Interval, change.Time:
		return intervalType
	case change.Array:
		return nil
	case change.Null:
		return types.DynType // it is not known
	}
	return types.NewNullableType(types.StringType) // also what has no kind of its own
}

// load makes a value of a row one of an expression.
func load(b *change.Batch, v change.Value, name string) ref.Val {
	switch v.Kind() {
	case change.Null:
		return types.NullValue
	case change.Bool:
		return types.Bool(v.Bool())
	case change.Int:
		return types.Int(v.Int())
	case change.Float32, change.Float64:
		return types.Double(v.Float64())
	case change.Decimal:
		if v.Form() != change.Finite {
			return fail(nil, "%s is not finite", name)
		}
		if n, ok := v.Small(); ok && v.Scale() >= 0 {
			return &Decimal{small: n, scale: int(v.Scale())}
		}
		d := decimal(b.Unscaled(new(big.Int), v), int(v.Scale()))
		return d.at(0)
	case change.String, change.JSON, change.Enum, change.Text:
		return types.String(b.String(v))
	case change.Bytes:
		return types.Bytes(append([]byte(nil), b.Bytes(v)...))
	case change.Date:
		return date(v.Int())
	case change.Timestamp:
		return datetime(v.Int())
	case change.TimestampTZ:
		return moment(v.Int())
	case change.Time:
		return interval{us: v.Int()}
	case change.Interval:
		m, d, us := b.IntervalParts(v)
		return interval{months: m, days: d, us: us}
	case change.Unchanged:
		return fail(nil, "%s was not sent", name)
	}
	return types.String(b.AppendText(nil, v))
}

// store makes the value of an expression one of b, of the kind that is nearest;
// ok is false for lists, maps and what else a row cannot hold.
func store(b *change.Batch, v ref.Val) (_ change.Value, ok bool) {
	switch v := v.(type) {
	case types.Null:
		return change.NullValue(), true
	case types.Bool:
		return change.BoolValue(bool(v)), true
	case types.Int:
		return change.IntValue(int64(v)), true
	case types.Double:
		return change.Float64Value(float64(v)), true
	case types.String:
		return b.SpanString(change.String, string(v)), true
	case types.Bytes:
		return b.Span(change.Bytes, v), true
	case *Decimal:
		if v.big == nil {
			return change.DecimalValue(v.small, int16(v.scale)), v.scale < 1<<15
		}
		return b.BigDecimal(v.big, int16(v.scale)), v.scale < 1<<15
	case date:
		return change.DateValue(int64(v)), true
	case moment:
		return change.TimestampTZValue(int64(v)), true
	case datetime:
		return change.TimestampValue(int64(v)), true
	case interval:
		return b.Interval(v.months, v.days, v.us), true
	}
	return change.Value{}, false
}

// fits says whether a value of a kind may become one of a column: of the same
// kind, a whole number as a decimal, and everything but octets as text.
func fits(kind, column change.Kind) bool {
	switch {
	case kind == column, kind == change.Null:
		return true
	case column == change.Decimal:
		return kind == change.Int
	case column == change.String:
		return kind != change.Bytes
	}
	return false
}

// kindOf is what store makes of a type; ok is false of one that is not known
// before it runs, and of one that no column has.
func kindOf(t *types.Type) (kind change.Kind, ok bool) {
	switch t.Kind() {
	case types.BoolKind:
		return change.Bool, true
	case types.IntKind:
		return change.Int, true
	case types.DoubleKind:
		return change.Float64, true
	case types.StringKind:
		return change.String, true
	case types.BytesKind:
		return change.Bytes, true
	case types.NullTypeKind:
		return change.Null, true
	}
	switch t.TypeName() { // the checker copies types
	case decimalType.TypeName():
		return change.Decimal, true
	case dateType.TypeName():
		return change.Date, true
	case momentType.TypeName():
		return change.TimestampTZ, true
	case datetimeType.TypeName():
		return change.Timestamp, true
	case intervalType.TypeName():
		return change.Interval, true
	}
	return 0, false
}

// text is the exact text of a value, as PostgreSQL prints it; true and false are
// words.
func text(v ref.Val) string {
	switch v := v.(type) {
	case types.String:
		return string(v)
	case types.Int:
		return strconv.FormatInt(int64(v), 10)
	case types.Bool:
		return strconv.FormatBool(bool(v))
	}
	b := change.Get()
	defer b.Release()
	x, ok := store(b, v)
	if !ok {
		return "a " + v.Type().TypeName()
	}
	return string(b.AppendText(nil, x))
}
