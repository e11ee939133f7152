// Cells in Postgres's binary form (each type's send function in
// src/backend/utils/adt), as pgoutput with `binary` and COPY … (FORMAT binary)
// send them.

package pgoutput

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"

	"github.com/tallywire/tallywire/change"
)

// code says how a cell is read.
type code uint8

const (
	asText code = iota // no decoder: the exact text, needs the text form
	asBool
	asInt2
	asInt4
	asInt8
	asOID
	asFloat4
	asFloat8
	asNumeric
	asString
	asChar
	asBytes
	asUUID
	asDate
	asTime
	asTimeTZ
	asTimestamp
	asTimestampTZ
	asInterval
	asJSON
	asJSONB
	asEnum
	asArray
	asNothing
	asMasked
	asHashed
)

// Coder reads the cells of one column. The zero Coder carries the exact text.
type Coder struct {
	code code
	elem *Coder // of asArray and asHashed
	salt []byte // of asHashed
}

// Binary reports whether cells in binary form can be read.
func (c *Coder) Binary() bool {
	if c.code == asArray || c.code == asHashed {
		return c.elem.Binary()
	}
	return c.code != asText
}

var errCell = errors.New("malformed")

const epochDays = 10957 // 2000-01-01 in days since 1970-01-01

// EpochUS is Postgres's epoch, 2000-01-01, in microseconds since 1970: add it to
// the server's timestamps.
const EpochUS = epochDays * 86_400_000_000

// DecodeBinary reads a cell in binary form that is not null, into memory of b.
// The cell is what b.Raw has from at on; its Value may be a span of it. It
// panics when Binary is false.
func (c *Coder) DecodeBinary(b *change.Batch, p []byte, at int) (change.Value, error) {
	switch c.code {
	case asNothing, asMasked, asHashed:
		return c.hidden(b, p, at, true)
	case asInt4:
		if len(p) == 4 {
			return change.IntValue(int64(int32(binary.BigEndian.Uint32(p)))), nil
		}
	case asInt8:
		if len(p) == 8 {
			return change.IntValue(int64(binary.BigEndian.Uint64(p))), nil
		}
	case asString:
		return span(b, change.String, p, at), nil
	case asNumeric:
		return numericBinary(b, p)
	case asTimestampTZ:
		if len(p) == 8 {
			us := int64(binary.BigEndian.Uint64(p))
			if v, ok := timestamp(us); ok {
				return change.TimestampTZValue(v), nil
			}
			return beyond(b, us, "+00"), nil
		}
	case asTimestamp:
		if len(p) == 8 {
			us := int64(binary.BigEndian.Uint64(p))
			if v, ok := timestamp(us); ok {
				return change.TimestampValue(v), nil
			}
			return beyond(b, us, ""), nil
		}
	case asBool:
		if len(p) == 1 {
			return change.BoolValue(p[0] != 0), nil
		}
	case asInt2:
		if len(p) == 2 {
			return change.IntValue(int64(int16(binary.BigEndian.Uint16(p)))), nil
		}
	case asOID:
		if len(p) == 4 {
			return change.IntValue(int64(binary.BigEndian.Uint32(p))), nil
		}
	case asFloat4:
		if len(p) == 4 {
			return change.Float32Value(math.Float32frombits(binary.BigEndian.Uint32(p))), nil
		}
	case asFloat8:
		if len(p) == 8 {
			return change.Float64Value(math.Float64frombits(binary.BigEndian.Uint64(p))), nil
		}
	case asChar:
		if len(p) == 1 {
			return charValue(b, p[0]), nil
		}
	case asBytes:
		return span(b, change.Bytes, p, at), nil
	case asUUID:
		if len(p) == 16 {
			return span(b, change.UUID, p, at), nil
		}
	case asDate:
		if len(p) == 4 {
			switch d := int32(binary.BigEndian.Uint32(p)); d {
			case math.MaxInt32:
				return change.DateValue(change.PosInfinity), nil
			case math.MinInt32:
				return change.DateValue(change.NegInfinity), nil
			default:
				return change.DateValue(int64(d) + epochDays), nil
			}
		}
	case asTime:
		if len(p) == 8 {
			return change.TimeValue(int64(binary.BigEndian.Uint64(p))), nil
		}
	case asTimeTZ:
		if len(p) == 12 { // its zone is in seconds west
			return change.TimeTZValue(int64(binary.BigEndian.Uint64(p)), -int32(binary.BigEndian.Uint32(p[8:]))), nil
		}
	case asInterval:
		if len(p) == 16 {
			return b.Interval(int32(binary.BigEndian.Uint32(p[12:])), int32(binary.BigEndian.Uint32(p[8:])), int64(binary.BigEndian.Uint64(p))), nil
		}
	case asJSON:
		return span(b, change.JSON, p, at), nil
	case asJSONB:
		if len(p) > 0 && p[0] == 1 {
			return span(b, change.JSON, p[1:], at+1), nil
		}
	case asEnum:
		return span(b, change.Enum, p, at), nil
	case asArray:
		return c.arrayBinary(b, p, at)
	case asText:
		panic("BUG: a cell without a binary decoder")
	}
	return change.Value{}, errCell
}

// span is a value of the octets p, which lie at at in b's arena; below 0: they
// do not, and are copied.
func span(b *change.Batch, k change.Kind, p []byte, at int) change.Value {
	if at < 0 {
		return b.Span(k, p)
	}
	return b.SpanAt(k, at, len(p))
}

// timestamp turns microseconds since 2000 into those since 1970. Postgres
// reaches 29 years further than our epoch allows (to 294276): ok is false there.
func timestamp(us int64) (int64, bool) {
	switch {
	case us == math.MaxInt64:
		return change.PosInfinity, true
	case us == math.MinInt64:
		return change.NegInfinity, true
	case us >= math.MaxInt64-EpochUS:
		return 0, false
	}
	return us + EpochUS, true
}

// beyond is the exact text of a timestamp that our epoch cannot hold; us counts
// from 2000.
func beyond(b *change.Batch, us int64, zone string) change.Value {
	days, rest := us/86_400_000_000, us%86_400_000_000
	y, m, d := change.Civil(days + epochDays)
	t := fmt.Appendf(nil, "%d-%02d-%02d ", y, m, d)
	return b.Span(change.Text, append(change.AppendTime(t, rest), zone...))
}

// charValue is a value of type "char": nothing for zero, and an octal escape
// above ASCII, as charout has it since 16.
func charValue(b *change.Batch, c byte) change.Value {
	switch {
	case c == 0:
		return b.SpanString(change.String, "")
	case c >= 0x80:
		return b.Span(change.String, []byte{'\\', '0' + c>>6, '0' + c>>3&7, '0' + c&7})
	}
	v, p := b.Grow(change.String, 1)
	p[0] = c
	return v
}

// Signs of numeric_send.
const (
	numericPos    = 0x0000
	numericNeg    = 0x4000
	numericNaN    = 0xC000
	numericPosInf = 0xD000
	numericNegInf = 0xF000
)

// pow10 are the powers that a small numeric needs.
var pow10 = [19]int64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18}

// numericBinary reads digits of base 10,000: Σ digit[i] × 10000^(weight−i),
// shown with dscale digits after the point.
func numericBinary(b *change.Batch, p []byte) (change.Value, error) {
	if len(p) < 8 {
		return change.Value{}, errCell
	}
	n := int(binary.BigEndian.Uint16(p))
	weight := int(int16(binary.BigEndian.Uint16(p[2:])))
	sign := binary.BigEndian.Uint16(p[4:])
	scale := int(binary.BigEndian.Uint16(p[6:]))
	digits := p[8:]
	switch sign {
	case numericNaN:
		return change.SpecialDecimal(change.NaN), nil
	case numericPosInf:
		return change.SpecialDecimal(change.Infinite), nil
	case numericNegInf:
		return change.SpecialDecimal(change.NegInfinite), nil
	case numericPos, numericNeg:
	default:
		return change.Value{}, errCell
	}
	if len(digits) != 2*n || scale > 0x3FFF {
		return change.Value{}, errCell
	}
	if n == 0 {
		return change.DecimalValue(0, int16(scale)), nil
	}
	// The last digit counts 10^exp; the unscaled integer has scale decimals.
	exp := 4*(weight-n+1) + scale
	if 4*n+max(exp, 0) <= 18 && exp > -4 { // below 10^18: fits int64
		var u int64
		for i := range n {
			u = u*10_000 + int64(binary.BigEndian.Uint16(digits[2*i:]))
		}
		if exp >= 0 {
			u *= pow10[exp]
		} else {
			u /= pow10[-exp] // digits after dscale are zeros
		}
		if sign == numericNeg {
			u = -u
		}
		return change.DecimalValue(u, int16(scale)), nil
	}
	if exp > 200_000 || exp < -4 {
		return change.Value{}, errCell
	}
	u, d, base := new(big.Int), new(big.Int), big.NewInt(10_000)
	for i := range n {
		u.Mul(u, base)
		u.Add(u, d.SetUint64(uint64(binary.BigEndian.Uint16(digits[2*i:]))))
	}
	switch {
	case exp > 0:
		u.Mul(u, d.Exp(big.NewInt(10), big.NewInt(int64(exp)), nil))
	case exp < 0:
		u.Quo(u, d.Exp(big.NewInt(10), big.NewInt(int64(-exp)), nil))
	}
	if sign == numericNeg {
		u.Neg(u)
	}
	return b.BigDecimal(u, int16(scale)), nil
}

// arrayBinary reads array_send: dimensions, a flag, the element type, then
// length and lower bound of each dimension, then the elements.
func (c *Coder) arrayBinary(b *change.Batch, p []byte, at int) (change.Value, error) {
	end := at + len(p)
	if len(p) < 12 {
		return change.Value{}, errCell
	}
	n := int(binary.BigEndian.Uint32(p))
	p = p[12:]
	if n < 0 || n > 6 || len(p) < 8*n {
		return change.Value{}, errCell
	}
	if n == 0 {
		return b.Array(nil, nil), nil
	}
	dims := make([]change.Dim, n)
	total := 1
	for i := range dims {
		dims[i] = change.Dim{Len: int32(binary.BigEndian.Uint32(p)), Lower: int32(binary.BigEndian.Uint32(p[4:]))}
		p = p[8:]
		if dims[i].Len < 0 || total > len(p)/4+1 {
			return change.Value{}, errCell
		}
		total *= int(dims[i].Len)
	}
	if total > len(p)/4 { // each element has a length of 4 octets
		return change.Value{}, errCell
	}
	elems := b.Row(total)
	for i := range elems {
		if len(p) < 4 {
			return change.Value{}, errCell
		}
		size := int32(binary.BigEndian.Uint32(p))
		p = p[4:]
		if size < 0 {
			continue
		}
		if int(size) > len(p) {
			return change.Value{}, errCell
		}
		v, err := c.elem.DecodeBinary(b, p[:size], end-len(p))
		if err != nil {
			return change.Value{}, err
		}
		elems[i] = v
		p = p[size:]
	}
	return b.Array(dims, elems), nil
}

// parseInt reads a decimal integer.
func parseInt(p []byte, bits int) (int64, error) {
	return strconv.ParseInt(string(p), 10, bits)
}
