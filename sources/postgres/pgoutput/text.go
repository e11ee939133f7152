// Cells in Postgres's text form: pgoutput without `binary`, and whatever has no
// binary form. The session sets DateStyle ISO, IntervalStyle postgres,
// bytea_output hex and TimeZone UTC.

package pgoutput

import (
	"bytes"
	"encoding/hex"
	"math"
	"math/big"
	"strconv"

	"github.com/tallywire/tallywire/change"
)

// DecodeText reads a cell in text form that is not null, into memory of b. The
// cell is what b.Raw has from at on, and its Value may be a span of it; at is
// below 0 for a cell that lies elsewhere.
func (c *Coder) DecodeText(b *change.Batch, p []byte, at int) (change.Value, error) {
	switch c.code {
	case asNothing, asMasked, asHashed:
		return c.hidden(b, p, at, false)
	case asText:
		return span(b, change.Text, p, at), nil
	case asString:
		return span(b, change.String, p, at), nil
	case asChar:
		if len(p) == 1 {
			return charValue(b, p[0]), nil // 15 sends a high octet as it is
		}
		return span(b, change.String, p, at), nil
	case asJSON, asJSONB:
		return span(b, change.JSON, p, at), nil
	case asEnum:
		return span(b, change.Enum, p, at), nil
	case asBool:
		if len(p) == 1 && (p[0] == 't' || p[0] == 'f') {
			return change.BoolValue(p[0] == 't'), nil
		}
		return change.Value{}, errCell
	case asInt2, asInt4, asInt8:
		n, err := parseInt(p, 64)
		return change.IntValue(n), err
	case asOID:
		n, err := strconv.ParseUint(string(p), 10, 32)
		return change.IntValue(int64(n)), err
	case asFloat4:
		f, err := strconv.ParseFloat(string(p), 32)
		return change.Float32Value(float32(f)), err
	case asFloat8:
		f, err := strconv.ParseFloat(string(p), 64)
		return change.Float64Value(f), err
	case asNumeric:
		return numericText(b, p)
	case asBytes:
		return bytesText(b, p)
	case asUUID:
		return uuidText(b, p)
	case asDate:
		return dateText(p)
	case asTime:
		us, rest, ok := clock(p)
		if !ok || len(rest) != 0 {
			return change.Value{}, errCell
		}
		return change.TimeValue(us), nil
	case asTimeTZ:
		us, rest, ok := clock(p)
		if !ok {
			return change.Value{}, errCell
		}
		east, rest, ok := zone(rest)
		if !ok || len(rest) != 0 {
			return change.Value{}, errCell
		}
		return change.TimeTZValue(us, east), nil
	case asTimestamp:
		return timestampText(b, p, at, false)
	case asTimestampTZ:
		return timestampText(b, p, at, true)
	case asInterval:
		return intervalText(b, p)
	case asArray:
		return c.arrayText(b, p)
	}
	panic("BUG: a cell of no kind")
}

func numericText(b *change.Batch, p []byte) (change.Value, error) {
	switch string(p) {
	case "NaN":
		return change.SpecialDecimal(change.NaN), nil
	case "Infinity":
		return change.SpecialDecimal(change.Infinite), nil
	case "-Infinity":
		return change.SpecialDecimal(change.NegInfinite), nil
	}
	scale, digits := 0, p
	if at := bytes.IndexByte(p, '.'); at >= 0 {
		scale = len(p) - at - 1
		digits = append(append(make([]byte, 0, 24), p[:at]...), p[at+1:]...)
	}
	if scale > 0x3FFF || len(digits) == 0 {
		return change.Value{}, errCell
	}
	if len(digits) <= 18 {
		u, err := parseInt(digits, 64)
		return change.DecimalValue(u, int16(scale)), err
	}
	u, ok := new(big.Int).SetString(string(digits), 10)
	if !ok {
		return change.Value{}, errCell
	}
	return b.BigDecimal(u, int16(scale)), nil
}

func bytesText(b *change.Batch, p []byte) (change.Value, error) {
	if len(p) < 2 || p[0] != '\\' || p[1] != 'x' || len(p)%2 != 0 {
		return change.Value{}, errCell
	}
	v, dst := b.Grow(change.Bytes, len(p)/2-1)
	_, err := hex.Decode(dst, p[2:])
	return v, err
}

func uuidText(b *change.Batch, p []byte) (change.Value, error) {
	if len(p) != 36 || p[8] != '-' || p[13] != '-' || p[18] != '-' || p[23] != '-' {
		return change.Value{}, errCell
	}
	var digits [32]byte
	n := copy(digits[:], p[:8])
	n += copy(digits[n:], p[9:13])
	n += copy(digits[n:], p[14:18])
	n += copy(digits[n:], p[19:23])
	copy(digits[n:], p[24:])
	v, dst := b.Grow(change.UUID, 16)
	_, err := hex.Decode(dst, digits[:])
	return v, err
}

// number reads the digits that p begins with.
func number(p []byte) (n int64, rest []byte, ok bool) {
	i := 0
	for ; i < len(p) && i < 18 && p[i] >= '0' && p[i] <= '9'; i++ {
		n = n*10 + int64(p[i]-'0')
	}
	return n, p[i:], i > 0
}

func after(p []byte, c byte) ([]byte, bool) {
	if len(p) == 0 || p[0] != c {
		return p, false
	}
	return p[1:], true
}

// ymd reads 2024-02-29; the year may have more than four digits.
func ymd(p []byte) (y, m, d int64, rest []byte, ok bool) {
	if y, p, ok = number(p); !ok {
		return 0, 0, 0, p, false
	}
	if p, ok = after(p, '-'); !ok {
		return 0, 0, 0, p, false
	}
	if m, p, ok = number(p); !ok || m < 1 || m > 12 {
		return 0, 0, 0, p, false
	}
	if p, ok = after(p, '-'); !ok {
		return 0, 0, 0, p, false
	}
	if d, p, ok = number(p); !ok || d < 1 || d > 31 {
		return 0, 0, 0, p, false
	}
	return y, m, d, p, true
}

func infinite(p []byte) (int64, bool) {
	switch string(p) {
	case "infinity":
		return change.PosInfinity, true
	case "-infinity":
		return change.NegInfinity, true
	}
	return 0, false
}

func dateText(p []byte) (change.Value, error) {
	if n, ok := infinite(p); ok {
		return change.DateValue(n), nil
	}
	y, m, d, rest, ok := ymd(p)
	if !ok || y > 1e7 {
		return change.Value{}, errCell
	}
	switch string(rest) {
	case "":
	case " BC":
		y = 1 - y
	default:
		return change.Value{}, errCell
	}
	return change.DateValue(change.Days(y, int(m), int(d))), nil
}

// clock reads 04:05:06.789012 in microseconds; hours may be many.
func clock(p []byte) (us int64, rest []byte, ok bool) {
	h, p, ok := number(p)
	if !ok || h > math.MaxInt64/3_600_000_000-1 {
		return 0, p, false
	}
	if p, ok = after(p, ':'); !ok {
		return 0, p, false
	}
	m, p, ok := number(p)
	if !ok || m > 59 {
		return 0, p, false
	}
	if p, ok = after(p, ':'); !ok {
		return 0, p, false
	}
	s, p, ok := number(p)
	if !ok || s > 60 {
		return 0, p, false
	}
	us = ((h*60+m)*60 + s) * 1e6
	if q, dot := after(p, '.'); dot {
		unit := int64(100_000)
		for len(q) > 0 && q[0] >= '0' && q[0] <= '9' {
			us += int64(q[0]-'0') * unit
			unit /= 10
			q = q[1:]
		}
		p = q
	}
	return us, p, true
}

// zone reads +05:30 or -03, in seconds east.
func zone(p []byte) (east int32, rest []byte, ok bool) {
	if len(p) == 0 || p[0] != '+' && p[0] != '-' {
		return 0, p, false
	}
	west := p[0] == '-'
	p = p[1:]
	unit := int64(3600)
	var sum int64
	for {
		n, q, ok := number(p)
		if !ok || n > 99 {
			return 0, p, false
		}
		sum, p = sum+n*unit, q
		unit /= 60
		if q, ok = after(p, ':'); !ok || unit == 0 {
			break
		} else {
			p = q
		}
	}
	if west {
		sum = -sum
	}
	return int32(sum), p, true
}

func timestampText(b *change.Batch, p []byte, at int, zoned bool) (change.Value, error) {
	value := change.TimestampValue
	if zoned {
		value = change.TimestampTZValue
	}
	if n, ok := infinite(p); ok {
		return value(n), nil
	}
	y, m, d, rest, ok := ymd(p)
	if !ok || y > 300_000 {
		return change.Value{}, errCell
	}
	if rest, ok = after(rest, ' '); !ok {
		return change.Value{}, errCell
	}
	us, rest, ok := clock(rest)
	if !ok {
		return change.Value{}, errCell
	}
	var east int32
	if zoned {
		if east, rest, ok = zone(rest); !ok {
			return change.Value{}, errCell
		}
	}
	switch string(rest) {
	case "":
	case " BC":
		y = 1 - y
	default:
		return change.Value{}, errCell
	}
	days := change.Days(y, int(m), int(d))
	if days > math.MaxInt64/86_400_000_000-1 {
		return span(b, change.Text, p, at), nil // beyond our epoch, see beyond
	}
	return value(days*86_400_000_000 + us - int64(east)*1e6), nil
}

// intervalText reads IntervalStyle postgres: "1 year 2 mons -3 days +04:05:06".
func intervalText(b *change.Batch, p []byte) (change.Value, error) {
	switch string(p) {
	case "infinity":
		return b.Interval(math.MaxInt32, math.MaxInt32, math.MaxInt64), nil
	case "-infinity":
		return b.Interval(math.MinInt32, math.MinInt32, math.MinInt64), nil
	}
	var months, days, us int64
	for len(p) > 0 {
		if p[0] == ' ' {
			p = p[1:]
			continue
		}
		minus := p[0] == '-'
		if minus || p[0] == '+' {
			p = p[1:]
		}
		n, rest, ok := number(p)
		if !ok {
			return change.Value{}, errCell
		}
		unit := &days
		switch {
		case len(rest) > 0 && rest[0] == ':':
			if n, rest, ok = clock(p); !ok {
				return change.Value{}, errCell
			}
			unit = &us
		case bytes.HasPrefix(rest, []byte(" year")):
			rest, n, unit = rest[5:], n*12, &months
		case bytes.HasPrefix(rest, []byte(" mon")):
			rest, unit = rest[4:], &months
		case bytes.HasPrefix(rest, []byte(" day")):
			rest = rest[4:]
		default:
			return change.Value{}, errCell
		}
		if len(rest) > 0 && rest[0] == 's' {
			rest = rest[1:]
		}
		if minus {
			n = -n
		}
		*unit += n
		p = rest
	}
	return b.Interval(int32(months), int32(days), us), nil
}

// arrayText reads array_out: [2:3]={{1,NULL},{"a b","c\"d"}}.
func (c *Coder) arrayText(b *change.Batch, p []byte) (change.Value, error) {
	var dims []change.Dim
	explicit := false
	if len(p) > 0 && p[0] == '[' {
		explicit = true
		for len(p) > 0 && p[0] == '[' {
			end := bytes.IndexByte(p, ']')
			colon := bytes.IndexByte(p, ':')
			if end < 0 || colon < 0 || colon > end || len(dims) == 6 {
				return change.Value{}, errCell
			}
			lo, err := parseInt(p[1:colon], 32)
			if err != nil {
				return change.Value{}, err
			}
			hi, err := parseInt(p[colon+1:end], 32)
			if err != nil || hi < lo {
				return change.Value{}, errCell
			}
			dims = append(dims, change.Dim{Len: int32(hi - lo + 1), Lower: int32(lo)})
			p = p[end+1:]
		}
		var ok bool
		if p, ok = after(p, '='); !ok {
			return change.Value{}, errCell
		}
	}
	if !explicit {
		// Its depth is the number of braces that it opens with.
		for i := 0; i < len(p) && p[i] == '{'; i++ {
			dims = append(dims, change.Dim{Lower: 1})
		}
		if len(dims) == 0 || len(dims) > 6 {
			return change.Value{}, errCell
		}
	}
	a := arrayReader{c: c.elem, b: b, sizes: make([]int32, len(dims))}
	for i := range a.sizes {
		a.sizes[i] = -1
	}
	rest, err := a.read(p, 0)
	if err != nil || len(rest) != 0 {
		return change.Value{}, errCell
	}
	if len(a.elems) == 0 {
		return b.Array(nil, nil), nil
	}
	for i := range dims {
		if explicit && dims[i].Len != a.sizes[i] {
			return change.Value{}, errCell
		}
		dims[i].Len = a.sizes[i]
	}
	elems := b.Row(len(a.elems))
	copy(elems, a.elems)
	return b.Array(dims, elems), nil
}

type arrayReader struct {
	c     *Coder
	b     *change.Batch
	elems []change.Value
	sizes []int32 // of each dimension, -1 until known
	text  []byte
}

// read reads one braced list at a depth.
func (a *arrayReader) read(p []byte, depth int) ([]byte, error) {
	p, ok := after(p, '{')
	if !ok {
		return nil, errCell
	}
	n := int32(0)
	for {
		if len(p) == 0 {
			return nil, errCell
		}
		if p[0] == '}' && n == 0 {
			break
		}
		var err error
		if depth+1 < len(a.sizes) {
			p, err = a.read(p, depth+1)
		} else {
			p, err = a.elem(p)
		}
		if err != nil {
			return nil, err
		}
		n++
		if len(p) == 0 {
			return nil, errCell
		}
		if p[0] == ',' {
			p = p[1:]
			continue
		}
		if p[0] != '}' {
			return nil, errCell
		}
		break
	}
	if a.sizes[depth] >= 0 && a.sizes[depth] != n {
		return nil, errCell
	}
	a.sizes[depth] = n
	return p[1:], nil
}

func (a *arrayReader) elem(p []byte) ([]byte, error) {
	quoted := false
	a.text = a.text[:0]
	if len(p) > 0 && p[0] == '"' {
		quoted = true
		p = p[1:]
		for {
			if len(p) == 0 {
				return nil, errCell
			}
			if p[0] == '"' {
				p = p[1:]
				break
			}
			if p[0] == '\\' {
				if p = p[1:]; len(p) == 0 {
					return nil, errCell
				}
			}
			a.text = append(a.text, p[0])
			p = p[1:]
		}
	} else {
		for len(p) > 0 && p[0] != ',' && p[0] != '}' {
			if p[0] == '\\' {
				if p = p[1:]; len(p) == 0 {
					return nil, errCell
				}
			}
			a.text = append(a.text, p[0])
			p = p[1:]
		}
		if len(a.text) == 0 {
			return nil, errCell
		}
	}
	if !quoted && string(a.text) == "NULL" {
		a.elems = append(a.elems, change.NullValue())
		return p, nil
	}
	v, err := a.c.DecodeText(a.b, a.text, -1)
	a.elems = append(a.elems, v)
	return p, err
}
