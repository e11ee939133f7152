// Text: the one canonical, exact text of a value.

package change

import (
	"encoding/hex"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// AppendText appends the exact text of v as PostgreSQL prints it (DateStyle
// ISO, IntervalStyle postgres, bytea_output hex, time zone UTC): booleans are t
// and f, a TimestampTZ ends in +00. Null and Unchanged give nothing.
func (b *Batch) AppendText(dst []byte, v Value) []byte {
	switch v.kind {
	case Null, Unchanged:
		return dst
	case Bool:
		if v.Bool() {
			return append(dst, 't')
		}
		return append(dst, 'f')
	case Int:
		return strconv.AppendInt(dst, int64(v.num), 10)
	case Float32:
		return appendFloat(dst, v.Float64(), 32)
	case Float64:
		return appendFloat(dst, v.Float64(), 64)
	case Decimal:
		return b.appendDecimal(dst, v)
	case String, JSON, Enum, Text:
		return append(dst, b.span(v)...)
	case Bytes:
		dst = append(dst, `\x`...)
		return hex.AppendEncode(dst, b.span(v))
	case UUID:
		return appendUUID(dst, b.span(v))
	case Date:
		return AppendDate(dst, v.Int())
	case Time:
		return AppendTime(dst, v.Int())
	case TimeTZ:
		return appendZone(AppendTime(dst, v.Int()), v.Zone())
	case Timestamp:
		return appendTimestamp(dst, v.Int(), "")
	case TimestampTZ:
		return appendTimestamp(dst, v.Int(), "+00")
	case Interval:
		m, d, us := b.IntervalParts(v)
		return appendInterval(dst, m, d, us)
	case Array:
		return b.appendArray(dst, b.ArrayOf(v))
	}
	panic("BUG: text of a value of kind " + v.kind.String())
}

// appendFloat prints as PostgreSQL since 12 does: the shortest text that reads
// back as the same number, with an exponent below 1e-4 and from 1e15 (float4:
// 1e6) on (src/common/d2s.c, f2s.c).
func appendFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	case f == 0:
		if math.Signbit(f) {
			return append(dst, "-0"...)
		}
		return append(dst, '0')
	}
	from := len(dst)
	dst = strconv.AppendFloat(dst, f, 'e', -1, bits)
	e := len(dst) - 1
	for dst[e] != 'e' {
		e--
	}
	exp := 0
	for _, c := range dst[e+2:] {
		exp = exp*10 + int(c-'0')
	}
	if dst[e+1] == '-' {
		exp = -exp
	}
	limit := 15
	if bits == 32 {
		limit = 6
	}
	if exp < -4 || exp >= limit {
		return dst
	}
	return strconv.AppendFloat(dst[:from], f, 'f', -1, bits)
}

// AppendByValue is AppendText, but equal numbers have one text, however they are
// written at the source: 5 for 5, 5.00 and 5e0, 0 for -0. For keys, and for what
// names a key: a foreign key may have another type than what it refers to.
func (b *Batch) AppendByValue(dst []byte, v Value) []byte {
	from := len(dst)
	dst = b.AppendText(dst, v)
	switch v.Kind() {
	case Decimal:
		if v.Form() != Finite || v.Scale() <= 0 {
			return dst
		}
		end := len(dst)
		for dst[end-1] == '0' {
			end--
		}
		if dst[end-1] == '.' {
			end--
		}
		return dst[:end]
	case Float32, Float64:
		if string(dst[from:]) == "-0" {
			return append(dst[:from], '0')
		}
	}
	return dst
}

func (b *Batch) appendDecimal(dst []byte, v Value) []byte {
	switch v.form {
	case NaN:
		return append(dst, "NaN"...)
	case Infinite:
		return append(dst, "Infinity"...)
	case NegInfinite:
		return append(dst, "-Infinity"...)
	}
	from := len(dst)
	if u, ok := v.Small(); ok {
		dst = strconv.AppendInt(dst, u, 10)
	} else {
		dst = b.Unscaled(new(big.Int), v).Append(dst, 10)
	}
	return pointAt(dst, from, int(v.scale))
}

// pointAt puts the point into the integer text dst[from:], scale digits from
// its end.
func pointAt(dst []byte, from, scale int) []byte {
	if scale <= 0 {
		if len(dst) == from+1 && dst[from] == '0' {
			return dst
		}
		for ; scale < 0; scale++ {
			dst = append(dst, '0')
		}
		return dst
	}
	if dst[from] == '-' {
		from++
	}
	digits := len(dst) - from
	if pad := scale + 1 - digits; pad > 0 { // at least one digit before the point
		for range pad {
			dst = append(dst, '0')
		}
		copy(dst[from+pad:], dst[from:from+digits])
		for i := range pad {
			dst[from+i] = '0'
		}
		digits += pad
	}
	dst = append(dst, 0)
	p := from + digits - scale
	copy(dst[p+1:], dst[p:])
	dst[p] = '.'
	return dst
}

func appendUUID(dst, u []byte) []byte {
	if len(u) != 16 {
		panic("BUG: a UUID value of " + strconv.Itoa(len(u)) + " octets")
	}
	for i, c := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst = append(dst, '-')
		}
		dst = append(dst, hexDigits[c>>4], hexDigits[c&15])
	}
	return dst
}

const hexDigits = "0123456789abcdef"

// AppendDate appends days since 1970-01-01 as YYYY-MM-DD, with BC as
// PostgreSQL has it, or infinity.
func AppendDate(dst []byte, days int64) []byte {
	if days == PosInfinity || days == NegInfinity {
		return appendInfinity(dst, days)
	}
	y, m, d := Civil(days)
	dst, bc := appendYMD(dst, y, m, d)
	if bc {
		dst = append(dst, " BC"...)
	}
	return dst
}

func appendInfinity(dst []byte, n int64) []byte {
	if n == NegInfinity {
		dst = append(dst, '-')
	}
	return append(dst, "infinity"...)
}

func appendYMD(dst []byte, y int64, m, d int) (_ []byte, bc bool) {
	if y <= 0 {
		y, bc = 1-y, true
	}
	for lim := int64(1000); lim > 1 && y < lim; lim /= 10 {
		dst = append(dst, '0')
	}
	dst = strconv.AppendInt(dst, y, 10)
	dst = append(dst, '-', byte('0'+m/10), byte('0'+m%10), '-', byte('0'+d/10), byte('0'+d%10))
	return dst, bc
}

// AppendTime appends microseconds since midnight as HH:MM:SS, with as many
// digits of the fraction as needed.
func AppendTime(dst []byte, us int64) []byte {
	s := us / 1e6
	h, m, sec := s/3600, s/60%60, s%60
	dst = append(dst, byte('0'+h/10), byte('0'+h%10), ':', byte('0'+m/10), byte('0'+m%10), ':', byte('0'+sec/10), byte('0'+sec%10))
	return appendFraction(dst, us%1e6)
}

// appendFraction appends .ffffff without trailing zeros, nothing for 0.
func appendFraction(dst []byte, us int64) []byte {
	if us == 0 {
		return dst
	}
	var f [7]byte
	f[0] = '.'
	for i := 6; i > 0; i-- {
		f[i] = byte('0' + us%10)
		us /= 10
	}
	n := 7
	for f[n-1] == '0' {
		n--
	}
	return append(dst, f[:n]...)
}

func appendZone(dst []byte, east int32) []byte {
	sign := byte('+')
	if east < 0 {
		sign, east = '-', -east
	}
	h, m, s := east/3600, east/60%60, east%60
	dst = append(dst, sign, byte('0'+h/10), byte('0'+h%10))
	if m != 0 || s != 0 {
		dst = append(dst, ':', byte('0'+m/10), byte('0'+m%10))
	}
	if s != 0 {
		dst = append(dst, ':', byte('0'+s/10), byte('0'+s%10))
	}
	return dst
}

const dayUS = 86_400_000_000

func appendTimestamp(dst []byte, us int64, zone string) []byte {
	if us == PosInfinity || us == NegInfinity {
		return appendInfinity(dst, us)
	}
	days, rest := us/dayUS, us%dayUS
	if rest < 0 {
		days, rest = days-1, rest+dayUS
	}
	y, m, d := Civil(days)
	dst, bc := appendYMD(dst, y, m, d)
	dst = append(dst, ' ')
	dst = AppendTime(dst, rest)
	dst = append(dst, zone...)
	if bc {
		dst = append(dst, " BC"...)
	}
	return dst
}

// appendInterval prints IntervalStyle postgres: "1 year 2 mons -3 days
// +04:05:06.7" (src/backend/utils/adt/datetime.c, EncodeInterval).
func appendInterval(dst []byte, months, days int32, us int64) []byte {
	if months == math.MaxInt32 && days == math.MaxInt32 && us == math.MaxInt64 {
		return appendInfinity(dst, PosInfinity)
	}
	if months == math.MinInt32 && days == math.MinInt32 && us == math.MinInt64 {
		return appendInfinity(dst, NegInfinity)
	}
	from := len(dst)
	negative := false // a negative part makes the next positive one show its sign
	part := func(n int64, unit string) {
		if n == 0 {
			return
		}
		if len(dst) > from {
			dst = append(dst, ' ')
		}
		if negative && n > 0 {
			dst = append(dst, '+')
		}
		dst = strconv.AppendInt(dst, n, 10)
		dst = append(dst, ' ')
		dst = append(dst, unit...)
		if n != 1 {
			dst = append(dst, 's')
		}
		negative = n < 0
	}
	part(int64(months/12), "year")
	part(int64(months%12), "mon")
	part(int64(days), "day")
	if us == 0 && len(dst) > from {
		return dst
	}
	if len(dst) > from {
		dst = append(dst, ' ')
	}
	u := uint64(us)
	if us < 0 {
		dst = append(dst, '-')
		u = -u
	} else if negative {
		dst = append(dst, '+')
	}
	h, rest := u/3_600_000_000, int64(u%3_600_000_000)
	if h < 10 {
		dst = append(dst, '0')
	}
	dst = strconv.AppendUint(dst, h, 10)
	m, s := rest/60_000_000, rest/1_000_000%60
	dst = append(dst, ':', byte('0'+m/10), byte('0'+m%10), ':', byte('0'+s/10), byte('0'+s%10))
	return appendFraction(dst, rest%1_000_000)
}

func (b *Batch) appendArray(dst []byte, a ArrayData) []byte {
	if len(a.Dims) == 0 {
		return append(dst, "{}"...)
	}
	for _, d := range a.Dims {
		if d.Lower != 1 {
			for _, d := range a.Dims {
				dst = append(dst, '[')
				dst = strconv.AppendInt(dst, int64(d.Lower), 10)
				dst = append(dst, ':')
				dst = strconv.AppendInt(dst, int64(d.Lower)+int64(d.Len)-1, 10)
				dst = append(dst, ']')
			}
			dst = append(dst, '=')
			break
		}
	}
	dst, _ = b.appendDim(dst, a.Dims, a.Elems)
	return dst
}

func (b *Batch) appendDim(dst []byte, dims []Dim, elems []Value) (_ []byte, rest []Value) {
	dst = append(dst, '{')
	for i := range dims[0].Len {
		if i > 0 {
			dst = append(dst, ',')
		}
		if len(dims) > 1 {
			dst, elems = b.appendDim(dst, dims[1:], elems)
			continue
		}
		dst = b.appendElem(dst, elems[0])
		elems = elems[1:]
	}
	return append(dst, '}'), elems
}

// appendElem quotes an element where PostgreSQL's array_out does.
func (b *Batch) appendElem(dst []byte, v Value) []byte {
	if v.kind == Null || v.kind == Unchanged {
		return append(dst, "NULL"...)
	}
	from := len(dst)
	dst = b.AppendText(dst, v)
	text := dst[from:]
	quote := len(text) == 0 || len(text) == 4 && strings.EqualFold(string(text), "null")
	escapes := 0
	for _, c := range text {
		switch c {
		case '"', '\\':
			escapes++
			quote = true
		case '{', '}', ',', ' ', '\t', '\n', '\r', '\v', '\f':
			quote = true
		}
	}
	if !quote {
		return dst
	}
	end := len(dst)
	for range escapes + 2 {
		dst = append(dst, '"')
	}
	w := len(dst) - 2
	for r := end - 1; r >= from; r-- {
		dst[w] = dst[r]
		w--
		if c := dst[r]; c == '"' || c == '\\' {
			dst[w] = '\\'
			w--
		}
	}
	dst[from], dst[len(dst)-1] = '"', '"'
	return dst
}
