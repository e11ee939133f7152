// Read: the octets of one value, never trusted.

package avro

import (
	"encoding/binary"
	"math"
	"math/big"

	"github.com/tallywire/tallywire/change"
)

// reader goes through one record. bad, once set, says what is wrong with it;
// what is read after that means nothing.
type reader struct {
	p    []byte
	work int // items that may still be skipped: bounds what a few octets can ask for
	bad  string
}

func (r *reader) fail(why string) {
	if r.bad == "" {
		r.bad = why
		r.p = nil
	}
}

const short = "the record ends in the middle of a value"

// long reads a zigzag varint. The common case of one octet comes first.
func (r *reader) long() int64 {
	if len(r.p) > 0 && r.p[0] < 0x80 {
		u := r.p[0]
		r.p = r.p[1:]
		return int64(u>>1) ^ -int64(u&1)
	}
	u, n := binary.Uvarint(r.p)
	if n <= 0 {
		r.fail(short)
		return 0
	}
	r.p = r.p[n:]
	return int64(u>>1) ^ -int64(u&1)
}

// take cuts n octets.
func (r *reader) take(n int64) []byte {
	if n < 0 || n > int64(len(r.p)) {
		r.fail(short)
		return nil
	}
	p := r.p[:n:n]
	r.p = r.p[n:]
	return p
}

// octets reads bytes or a string.
func (r *reader) octets() []byte { return r.take(r.long()) }

// present reads the branch of a union whose null branch is null; -1: no union.
func (r *reader) present(null int8) bool {
	if null < 0 {
		return true
	}
	n := r.long()
	if n != 0 && n != 1 {
		r.fail("a union has no such branch")
		return false
	}
	return int8(n) != null
}

// block reads the head of a block of an array or map: 0 ends it.
func (r *reader) block() int64 {
	n := r.long()
	if n < 0 {
		n = -n
		r.long() // the block's length in octets
	}
	if n < 0 || n > int64(r.work) {
		r.fail("an array or map that is too long")
		return 0
	}
	r.work -= int(n)
	return n
}

// skip reads a value of any type and forgets it.
func (r *reader) skip(n *node, depth int) {
	if r.bad != "" {
		return
	}
	if r.work--; r.work < 0 || depth > maxSchemaDepth {
		r.fail("values that are nested too deep, or too many")
		return
	}
	switch n.typ {
	case "null":
	case "boolean":
		r.take(1)
	case "int", "long":
		r.long()
	case "float":
		r.take(4)
	case "double":
		r.take(8)
	case "bytes", "string":
		r.octets()
	case "fixed":
		r.take(int64(n.size))
	case "enum":
		r.long()
	case "union":
		i := r.long()
		if i < 0 || i >= int64(len(n.branches)) {
			r.fail("a union has no such branch")
			return
		}
		r.skip(n.branches[i], depth+1)
	case "record":
		for i := range n.fields {
			r.skip(n.fields[i].typ, depth+1)
		}
	case "array", "map":
		for r.bad == "" {
			count := r.block()
			if count == 0 {
				return
			}
			for ; count > 0 && r.bad == ""; count-- {
				if n.typ == "map" {
					r.octets()
				}
				r.skip(n.items, depth+1)
			}
		}
	}
}

// read gives the value of a field that is present.
func (c *codec) read(r *reader, b *change.Batch) change.Value {
	switch c.form {
	case fBool:
		p := r.take(1)
		if len(p) == 0 {
			return change.Value{}
		}
		if p[0] > 1 {
			r.fail("a boolean that is neither 0 nor 1")
		}
		return change.BoolValue(p[0] == 1)
	case fInt:
		n := r.long()
		if c.width <= 4 && n != int64(int32(n)) {
			r.fail("an int outside 32 bits")
		}
		return change.IntValue(n)
	case fFloat:
		if p := r.take(4); len(p) == 4 {
			return change.Float32Value(math.Float32frombits(binary.LittleEndian.Uint32(p)))
		}
	case fDouble:
		if p := r.take(8); len(p) == 8 {
			return change.Float64Value(math.Float64frombits(binary.LittleEndian.Uint64(p)))
		}
	case fString:
		return b.Span(c.kind, r.octets())
	case fBytes:
		return b.Span(change.Bytes, r.octets())
	case fFixed:
		return b.Span(change.Bytes, r.take(int64(c.size)))
	case fUUID:
		return readUUID(r, b)
	case fDate:
		n := r.long()
		switch {
		case n != int64(int32(n)):
			r.fail("a date outside 32 bits")
		case c.own && n == dateInfinity:
			n = change.PosInfinity
		case c.own && n == dateNegInfinity:
			n = change.NegInfinity
		}
		return change.DateValue(n)
	case fTimeMicros:
		return readTime(r, r.long())
	case fTimeMillis:
		n := r.long()
		if n < 0 || n > dayMicros/1000 {
			n = -1
		}
		return readTime(r, n*1000)
	case fMicros, fMillis:
		return c.readTimestamp(r)
	case fDecimal:
		return readUnscaled(r, b, r.octets(), c.scale)
	case fDecimalFixed:
		return readUnscaled(r, b, r.take(int64(c.size)), c.scale)
	case fVarScale:
		s := r.long()
		if s < -1<<15 || s > 1<<15-1 {
			r.fail("a decimal of an impossible scale")
		}
		return readUnscaled(r, b, r.octets(), int16(s))
	case fDecimalText:
		return readDecimalText(r, b)
	case fZoned:
		p := r.octets()
		us, ok := parseZonedTimestamp(p)
		if !ok && c.own && c.null < 0 { // of a key, beyond what int64 can count
			return b.Span(change.Text, p)
		}
		if !ok {
			r.fail("a text that is no zoned timestamp")
		}
		return change.TimestampTZValue(us)
	case fZonedTime:
		us, east, ok := parseZonedTime(r.octets())
		if !ok {
			r.fail("a text that is no zoned time")
		}
		return change.TimeTZValue(us, east)
	case fInterval:
		m, d, us, ok := parseISOInterval(r.octets())
		if !ok {
			r.fail("a text that is no interval")
		}
		return b.Interval(m, d, us)
	case fSymbol:
		n := r.long()
		if n < 0 || n >= int64(len(c.symbols)) {
			r.fail("an enum has no such symbol")
			return change.Value{}
		}
		return b.Span(change.Enum, c.symbols[n])
	case fArray:
		return c.readArray(r, b)
	}
	return change.Value{}
}

func (c *codec) readTimestamp(r *reader) change.Value {
	n := r.long()
	if c.form == fMillis {
		if n > math.MaxInt64/1000 || n < math.MinInt64/1000 {
			r.fail("a timestamp out of range")
		}
		n *= 1000
	} else if !c.own && (n == change.PosInfinity || n == change.NegInfinity) {
		r.fail("a timestamp out of range")
	}
	if c.kind == change.Timestamp {
		return change.TimestampValue(n)
	}
	return change.TimestampTZValue(n)
}

func readTime(r *reader, us int64) change.Value {
	if us < 0 || us > dayMicros {
		r.fail("a time of day outside 0 to 24 hours")
	}
	return change.TimeValue(us)
}

// maxDecimal is far beyond PostgreSQL's 147,455 digits.
const maxDecimal = 1 << 16

func readUnscaled(r *reader, b *change.Batch, p []byte, scale int16) change.Value {
	if len(p) == 0 || len(p) > maxDecimal {
		r.fail("a decimal without octets, or too long")
		return change.Value{}
	}
	return b.DecimalBytes(p, scale)
}

func readUUID(r *reader, b *change.Batch) change.Value {
	p := r.octets()
	v, u := b.Grow(change.UUID, 16)
	n := 0
	for i := 0; i < len(p); i++ {
		if p[i] == '-' && (i == 8 || i == 13 || i == 18 || i == 23) && len(p) == 36 {
			continue
		}
		h := unhex(p[i])
		if h > 15 || n == 32 {
			n = 33
			break
		}
		u[n/2] = u[n/2]<<4 | h
		n++
	}
	if n != 32 {
		r.fail("a text that is no UUID")
	}
	return v
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// readDecimalText reads -12.340, NaN, Infinity, -Infinity.
func readDecimalText(r *reader, b *change.Batch) change.Value {
	p := r.octets()
	switch string(p) {
	case "NaN":
		return change.SpecialDecimal(change.NaN)
	case "Infinity":
		return change.SpecialDecimal(change.Infinite)
	case "-Infinity":
		return change.SpecialDecimal(change.NegInfinite)
	}
	var (
		u            int64
		digits       int
		scale, point = 0, false
		negative     = len(p) > 0 && p[0] == '-'
		big          = false
	)
	for i, c := range p {
		switch {
		case i == 0 && negative:
		case c == '.' && !point && digits > 0:
			point = true
		case c >= '0' && c <= '9':
			digits++
			if point {
				scale++
			}
			if u > (math.MaxInt64-9)/10 {
				big = true
			} else {
				u = u*10 + int64(c-'0')
			}
		default:
			r.fail("a text that is no number")
			return change.Value{}
		}
	}
	if digits == 0 || scale > math.MaxInt16 || digits > 2*maxDecimal || point && scale == 0 {
		r.fail("a text that is no number")
		return change.Value{}
	}
	if big {
		return readBigText(b, p, int16(scale))
	}
	if negative {
		u = -u
	}
	return change.DecimalValue(u, int16(scale))
}

func readBigText(b *change.Batch, p []byte, scale int16) change.Value {
	digits := make([]byte, 0, len(p))
	for _, c := range p {
		if c != '.' {
			digits = append(digits, c)
		}
	}
	x, ok := new(big.Int).SetString(string(digits), 10)
	if !ok {
		panic("BUG: digits that are no number")
	}
	return b.BigDecimal(x, scale)
}

func (c *codec) readArray(r *reader, b *change.Batch) change.Value {
	var row []change.Value
	count := 0
	for r.bad == "" {
		n := int(r.block())
		if n == 0 {
			break
		}
		if n > len(r.p) { // each element takes an octet at least
			r.fail("an array that is longer than its record")
			break
		}
		if count+n > len(row) { // doubled, so that many small blocks cost no more than one
			more := b.Row(max(count+n, 2*len(row)))
			copy(more, row)
			row = more
		}
		for ; n > 0 && r.bad == ""; n-- {
			if c.elem.null < 0 || r.present(c.elem.null) {
				row[count] = c.elem.read(r, b)
			}
			count++
		}
	}
	if r.bad != "" {
		return change.Value{}
	}
	if count == 0 {
		return b.Array(nil, nil)
	}
	return b.Array([]change.Dim{{Len: int32(count), Lower: 1}}, row[:count:count])
}
