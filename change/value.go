// Value: one field of one row, in sixteen bytes, without loss.

package change

import (
	"math"
	"math/big"
)

// Kind says how a Value is to be read. Every kind is lossless: a source that
// cannot express a value in one of them uses Text, the source's own exact text.
type Kind uint8

const (
	Null        Kind = iota // the SQL null; the zero Value
	Unchanged               // the source did not send it (unchanged out-of-line column, old row of which only the key is known); never null
	Bool                    // Int() is 0 or 1
	Int                     // int64; every integer width
	Float32                 // Float64() of a float32
	Float64                 // IEEE 754, NaN and infinities as they are
	Decimal                 // unscaled integer and display scale, or NaN, +Infinity, -Infinity
	String                  // UTF-8 text
	Bytes                   // octets
	UUID                    // 16 octets
	Date                    // days since 1970-01-01; PosInfinity, NegInfinity
	Time                    // microseconds since midnight, 0 to 86,400,000,000 inclusive
	TimeTZ                  // Time and the zone in seconds east of UTC
	Timestamp               // microseconds since 1970-01-01 00:00 of a clock without zone; PosInfinity, NegInfinity
	TimestampTZ             // microseconds since 1970-01-01 00:00 UTC; PosInfinity, NegInfinity
	Interval                // months, days, microseconds, kept apart
	JSON                    // JSON text as the source prints it
	Enum                    // the label
	Array                   // dimensions and elements, see Batch.Array
	Text                    // exact text of a source type that has no kind of its own
	numKinds
)

var kindNames = [numKinds]string{
	"null", "unchanged", "bool", "int", "float32", "float64", "decimal", "string", "bytes", "uuid", "date", "time",
	"timetz", "timestamp", "timestamptz", "interval", "json", "enum", "array", "text",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "kind(?)"
}

// PosInfinity and NegInfinity are the Int of an infinite Date, Timestamp or TimestampTZ.
const (
	PosInfinity = math.MaxInt64
	NegInfinity = math.MinInt64
)

// Form tells the special decimals from the finite ones.
type Form uint8

const (
	Finite    Form = iota // unscaled × 10^-scale
	finiteBig             // the same, unscaled outside int64: two's complement in the arena
	NaN
	Infinite    // +Infinity
	NegInfinite // -Infinity
)

// Value is one field. Numbers sit in it; strings, octets and large decimals
// are spans of the arena of the Batch that made it, and are read through that
// Batch. A Value is valid until its Batch is released.
type Value struct {
	num   uint64 // the number's bits, or the span's offset in the arena, or the array's index
	n     uint32 // the span's length; TimeTZ: zone in seconds east, as int32 bits
	kind  Kind
	form  Form
	scale int16
}

func NullValue() Value      { return Value{} }
func UnchangedValue() Value { return Value{kind: Unchanged} }
func BoolValue(v bool) Value {
	if v {
		return Value{kind: Bool, num: 1}
	}
	return Value{kind: Bool}
}
func IntValue(v int64) Value          { return Value{kind: Int, num: uint64(v)} }
func Float32Value(v float32) Value    { return Value{kind: Float32, num: math.Float64bits(float64(v))} }
func Float64Value(v float64) Value    { return Value{kind: Float64, num: math.Float64bits(v)} }
func DateValue(days int64) Value      { return Value{kind: Date, num: uint64(days)} }
func TimeValue(us int64) Value        { return Value{kind: Time, num: uint64(us)} }
func TimestampValue(us int64) Value   { return Value{kind: Timestamp, num: uint64(us)} }
func TimestampTZValue(us int64) Value { return Value{kind: TimestampTZ, num: uint64(us)} }
func TimeTZValue(us int64, secondsEast int32) Value {
	return Value{kind: TimeTZ, num: uint64(us), n: uint32(secondsEast)}
}

// DecimalValue is unscaled × 10^-scale.
func DecimalValue(unscaled int64, scale int16) Value {
	return Value{kind: Decimal, num: uint64(unscaled), scale: scale}
}

// SpecialDecimal is NaN, Infinite or NegInfinite.
func SpecialDecimal(f Form) Value { return Value{kind: Decimal, form: f} }

func (v Value) Kind() Kind        { return v.kind }
func (v Value) IsNull() bool      { return v.kind == Null }
func (v Value) IsUnchanged() bool { return v.kind == Unchanged }

// Int is the number of Bool, Int, Date, Time, TimeTZ, Timestamp and TimestampTZ.
func (v Value) Int() int64 { return int64(v.num) }

// Bool reads a Bool.
func (v Value) Bool() bool { return v.num != 0 }

// Float64 reads Float32 and Float64.
func (v Value) Float64() float64 { return math.Float64frombits(v.num) }

// Zone is the offset of a TimeTZ in seconds east of UTC.
func (v Value) Zone() int32 { return int32(v.n) }

// Scale is the display scale of a finite Decimal: digits after the point.
func (v Value) Scale() int16 { return v.scale }

// Form says whether a Decimal is finite; a large finite one is Finite too.
func (v Value) Form() Form {
	if v.form == finiteBig {
		return Finite
	}
	return v.form
}

// Small returns the unscaled integer of a finite Decimal when it fits int64.
func (v Value) Small() (unscaled int64, ok bool) {
	return int64(v.num), v.kind == Decimal && v.form == Finite
}

const spannedKinds = 1<<String | 1<<Bytes | 1<<UUID | 1<<Interval | 1<<JSON | 1<<Enum | 1<<Text

// spanned reports whether the payload lies in the arena.
func (v Value) spanned() bool {
	return spannedKinds>>v.kind&1 != 0 || v.kind == Decimal && v.form == finiteBig
}

// appendTwosComplement appends the shortest big-endian two's complement of x.
func appendTwosComplement(dst []byte, x *big.Int) []byte {
	if x.Sign() >= 0 {
		n := x.BitLen()/8 + 1
		at := len(dst)
		dst = append(dst, make([]byte, n)...)
		x.FillBytes(dst[at:])
		return dst
	}
	n := new(big.Int).Not(x).BitLen()/8 + 1
	y := new(big.Int).Add(x, new(big.Int).Lsh(big.NewInt(1), uint(8*n)))
	at := len(dst)
	dst = append(dst, make([]byte, n)...)
	y.FillBytes(dst[at:])
	return dst
}

// setTwosComplement is the inverse of appendTwosComplement.
func setTwosComplement(x *big.Int, b []byte) *big.Int {
	x.SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		x.Sub(x, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
	}
	return x
}
