// Rows: how one is kept: its columns one after the other, each a kind and its
// content. Short, exact, and read without a schema.

package state

import (
	"encoding/binary"
	"math"
	"math/big"

	"github.com/tallywire/tallywire/change"
)

// RowVersion is that of the form of AppendRow: part of the Shape of what is kept
// in it.
const RowVersion = 1

// Tags beyond the kinds of change.
const (
	tagBigDecimal = 0x80 + iota
	tagNaN
	tagInfinite
	tagNegInfinite
	tagInterval
)

// AppendRow appends the values of row, which lie in b, at cols; −1 is a column
// that the writer of the record did not know: null. It panics at arrays, and
// at times with a zone.
func AppendRow(dst []byte, b *change.Batch, row []change.Value, cols []int) []byte {
	for _, c := range cols {
		if c < 0 {
			dst = append(dst, byte(change.Null))
			continue
		}
		dst = appendValue(dst, b, row[c])
	}
	return dst
}

func appendValue(dst []byte, b *change.Batch, v change.Value) []byte {
	switch k := v.Kind(); k {
	case change.Null, change.Unchanged:
		return append(dst, byte(change.Null))
	case change.Bool, change.Int, change.Date, change.Time, change.Timestamp, change.TimestampTZ:
		return binary.AppendVarint(append(dst, byte(k)), v.Int())
	case change.Float32, change.Float64:
		return binary.LittleEndian.AppendUint64(append(dst, byte(k)), math.Float64bits(v.Float64()))
	case change.Decimal:
		switch v.Form() {
		case change.NaN:
			return append(dst, tagNaN)
		case change.Infinite:
			return append(dst, tagInfinite)
		case change.NegInfinite:
			return append(dst, tagNegInfinite)
		}
		if n, ok := v.Small(); ok {
			return binary.AppendVarint(binary.AppendVarint(append(dst, byte(k)), int64(v.Scale())), n)
		}
		text := b.Unscaled(new(big.Int), v).Append(nil, 10)
		dst = binary.AppendVarint(append(dst, tagBigDecimal), int64(v.Scale()))
		return append(binary.AppendUvarint(dst, uint64(len(text))), text...)
	case change.Interval:
		months, days, us := b.IntervalParts(v)
		dst = binary.AppendVarint(append(dst, tagInterval), int64(months))
		return binary.AppendVarint(binary.AppendVarint(dst, int64(days)), us)
	case change.String, change.Bytes, change.UUID, change.JSON, change.Enum, change.Text:
		p := b.Bytes(v)
		return append(binary.AppendUvarint(append(dst, byte(k)), uint64(len(p))), p...)
	default:
		panic("BUG: a column of kind " + k.String() + ", which cannot be kept")
	}
}

// ReadRow reads n values into the memory of b; false: not what AppendRow wrote of
// n columns.
func ReadRow(b *change.Batch, p string, n int) ([]change.Value, bool) {
	row := b.Row(n)
	for i := range row {
		if len(p) == 0 {
			return nil, false
		}
		tag := p[0]
		p = p[1:]
		ok := true
		switch change.Kind(tag) {
		case change.Null:
		case change.Bool, change.Int, change.Date, change.Time, change.Timestamp, change.TimestampTZ:
			var x int64
			if x, p, ok = varint(p); ok {
				row[i] = number(change.Kind(tag), x)
			}
		case change.Float32, change.Float64:
			if ok = len(p) >= 8; ok {
				f := math.Float64frombits(binary.LittleEndian.Uint64([]byte(p[:8])))
				p = p[8:]
				if row[i] = change.Float64Value(f); change.Kind(tag) == change.Float32 {
					row[i] = change.Float32Value(float32(f))
				}
			}
		case change.Decimal:
			var scale, x int64
			if scale, p, ok = varint(p); !ok {
				break
			}
			if x, p, ok = varint(p); ok {
				row[i] = change.DecimalValue(x, int16(scale))
			}
		case change.String, change.Bytes, change.UUID, change.JSON, change.Enum, change.Text:
			var text string
			if text, p, ok = span(p); ok {
				row[i] = b.SpanString(change.Kind(tag), text)
			}
		case tagNaN:
			row[i] = change.SpecialDecimal(change.NaN)
		case tagInfinite:
			row[i] = change.SpecialDecimal(change.Infinite)
		case tagNegInfinite:
			row[i] = change.SpecialDecimal(change.NegInfinite)
		case tagInterval:
			var parts [3]int64
			for j := range parts {
				if parts[j], p, ok = varint(p); !ok {
					break
				}
			}
			if ok {
				row[i] = b.Interval(int32(parts[0]), int32(parts[1]), parts[2])
			}
		case tagBigDecimal:
			var scale int64
			var text string
			if scale, p, ok = varint(p); !ok {
				break
			}
			if text, p, ok = span(p); ok {
				var x *big.Int
				if x, ok = new(big.Int).SetString(text, 10); ok {
					row[i] = b.BigDecimal(x, int16(scale))
				}
			}
		default:
			ok = false
		}
		if !ok {
			return nil, false
		}
	}
	return row, len(p) == 0
}

func number(k change.Kind, x int64) change.Value {
	switch k {
	case change.Bool:
		return change.BoolValue(x != 0)
	case change.Date:
		return change.DateValue(x)
	case change.Time:
		return change.TimeValue(x)
	case change.Timestamp:
		return change.TimestampValue(x)
	case change.TimestampTZ:
		return change.TimestampTZValue(x)
	default:
		return change.IntValue(x)
	}
}

func uvarint(p string) (uint64, string, bool) {
	var x uint64
	for i := 0; i < len(p) && i < binary.MaxVarintLen64; i++ {
		x |= uint64(p[i]&0x7F) << (7 * i)
		if p[i] < 0x80 {
			return x, p[i+1:], true
		}
	}
	return 0, p, false
}

func varint(p string) (int64, string, bool) {
	u, rest, ok := uvarint(p)
	return int64(u>>1) ^ -int64(u&1), rest, ok
}

func span(p string) (string, string, bool) {
	n, rest, ok := uvarint(p)
	if !ok || n > uint64(len(rest)) {
		return "", p, false
	}
	return rest[:n], rest[n:], true
}
