// From a change.Value to the bytes that Postgres takes in COPY BINARY and in
// binary parameters. Every value is checked here, so that a bad one is found
// before the server sees it and can be named by its column.

package warehouse

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tallywire/tallywire/change"
)

// column is one column of a warehouse table.
type column struct {
	name       string
	kind       change.Kind // what it takes; Text takes the canonical text of anything
	precision  int16       // Decimal, -1 unconstrained
	scale      int16
	width      int8 // Int
	nullable   bool
	restricted bool
	doc        string
}

// typeName is the column's SQL type, spelled as format_type spells it.
func (c *column) typeName() string {
	switch c.kind {
	case change.Bool:
		return "boolean"
	case change.Int:
		if c.width != 0 && c.width <= 4 {
			return "integer"
		}
		return "bigint"
	case change.Float32:
		return "real"
	case change.Float64:
		return "double precision"
	case change.Decimal:
		if c.precision <= 0 {
			return "numeric"
		}
		return "numeric(" + strconv.Itoa(int(c.precision)) + "," + strconv.Itoa(int(max(c.scale, 0))) + ")"
	case change.Bytes:
		return "bytea"
	case change.UUID:
		return "uuid"
	case change.Date:
		return "date"
	case change.Time:
		return "time without time zone"
	case change.Timestamp:
		return "timestamp without time zone"
	case change.TimestampTZ:
		return "timestamp with time zone"
	case change.JSON:
		return "json"
	}
	return "text"
}

// param is parameter n, of the type that appendField writes: the column may be
// wider.
func (c *column) param(n int) string {
	base, _, _ := strings.Cut(c.typeName(), "(")
	return fmt.Sprintf("$%d::%s", n, base)
}

// fits reports whether a column of a type, as Postgres writes it, takes all that
// the contract allows: it may be wider, by hand or by a later version.
func (c *column) fits(typ string) bool { return holds(typ, c.typeName()) }

// widens reports whether a column of a type becomes the contract's without
// losing a value.
func (c *column) widens(typ string) bool { return holds(c.typeName(), typ) }

// holds reports whether every value of type narrow is one of type wide.
func holds(wide, narrow string) bool {
	numeric := func(typ string) (precision, scale int, ok bool) {
		n, _ := fmt.Sscanf(typ, "numeric(%d,%d)", &precision, &scale)
		return precision, scale, n == 2
	}
	p, s, narrowIs := numeric(narrow)
	wideP, wideS, wideIs := numeric(wide)
	switch {
	case wide == narrow:
		return true
	case narrow == "integer":
		return wide == "bigint" || wide == "numeric" || wideIs && wideP-wideS >= 10
	case narrow == "bigint":
		return wide == "numeric" || wideIs && wideP-wideS >= 19
	case narrowIs:
		return wide == "numeric" || wideIs && wideS >= s && wideP-wideS >= p-s
	case narrow == "real":
		return wide == "double precision"
	}
	return false
}

// columnKind is the kind that a column of a contract has in the warehouse:
// what Postgres has no plain counterpart for is kept as its exact text.
func columnKind(k change.Kind) change.Kind {
	switch k {
	case change.Bool, change.Int, change.Float32, change.Float64, change.Decimal, change.Bytes, change.UUID,
		change.Date, change.Time, change.Timestamp, change.TimestampTZ, change.JSON:
		return k
	}
	return change.Text
}

// Postgres counts from 2000-01-01 (PostgreSQL source, datatype/timestamp.h);
// so do the limits below.
const (
	epochDays    = 10957
	epochMicros  = epochDays * 86_400_000_000
	minDate      = -2451545
	endDate      = 2145031949
	minTimestamp = -211813488000000000
	endTimestamp = 9223371331200000000
)

// appendField appends the length and the octets of v for column c. On an error
// dst is returned as far as it got; the caller cuts it back. The error's text
// names no value (invariant 13).
func appendField(dst []byte, b *change.Batch, c *column, v change.Value) ([]byte, error) {
	switch v.Kind() {
	case change.Null:
		if !c.nullable {
			return dst, fmt.Errorf("it is null, and the column takes none")
		}
		return appendNull(dst), nil
	case change.Unchanged:
		return dst, fmt.Errorf("its value was not sent (unchanged), and a row is only written whole")
	}
	if c.kind != change.Text && c.kind != v.Kind() {
		return dst, fmt.Errorf("it is a %s, and the column is %s", v.Kind(), c.typeName())
	}
	switch c.kind {
	case change.Bool:
		if v.Bool() {
			return append(dst, 0, 0, 0, 1, 1), nil
		}
		return append(dst, 0, 0, 0, 1, 0), nil
	case change.Int:
		if c.width != 0 && c.width <= 4 {
			if v.Int() < math.MinInt32 || v.Int() > math.MaxInt32 {
				return dst, fmt.Errorf("it does not fit %s", c.typeName())
			}
			return appendInt32(append(dst, 0, 0, 0, 4), int32(v.Int())), nil
		}
		return appendInt64(dst, v.Int()), nil
	case change.Float32:
		return appendInt32(append(dst, 0, 0, 0, 4), int32(math.Float32bits(float32(v.Float64())))), nil
	case change.Float64:
		return appendInt64(dst, int64(math.Float64bits(v.Float64()))), nil
	case change.Decimal:
		return appendNumeric(dst, b, c, v)
	case change.Bytes, change.UUID:
		p := b.Bytes(v)
		return append(appendInt32(dst, int32(len(p))), p...), nil
	case change.Date:
		return appendDate(dst, v.Int())
	case change.Time:
		return appendInt64(dst, v.Int()), nil
	case change.Timestamp, change.TimestampTZ:
		return appendTimestamp(dst, v.Int())
	}
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	if k := v.Kind(); k == change.String || k == change.JSON || k == change.Enum || k == change.Text {
		dst = append(dst, b.Bytes(v)...)
	} else {
		dst = b.AppendText(dst, v)
	}
	text := dst[at+4:]
	if bytes.IndexByte(text, 0) >= 0 {
		return dst, fmt.Errorf("the text holds a NUL character, which Postgres cannot store")
	}
	if !utf8.Valid(text) {
		return dst, fmt.Errorf("the text is not valid UTF-8")
	}
	binary.BigEndian.PutUint32(dst[at:], uint32(len(text)))
	return dst, nil
}

func appendNull(dst []byte) []byte { return append(dst, 0xff, 0xff, 0xff, 0xff) }

func appendInt32(dst []byte, v int32) []byte { return binary.BigEndian.AppendUint32(dst, uint32(v)) }

func appendInt64(dst []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, 0, 0, 0, 8), uint64(v))
}

func appendDate(dst []byte, days int64) ([]byte, error) {
	d := days - epochDays
	switch {
	case days == change.PosInfinity:
		d = math.MaxInt32
	case days == change.NegInfinity:
		d = math.MinInt32
	case days < math.MinInt32 || d < minDate || d >= endDate:
		return dst, fmt.Errorf("the date is outside of what Postgres can store")
	}
	return appendInt32(append(dst, 0, 0, 0, 4), int32(d)), nil
}

func appendTimestamp(dst []byte, us int64) ([]byte, error) {
	if us != change.PosInfinity && us != change.NegInfinity {
		if us < minTimestamp+epochMicros {
			return dst, fmt.Errorf("the timestamp is outside of what Postgres can store")
		}
		us -= epochMicros // and endTimestamp lies beyond what is left of int64
	}
	return appendInt64(dst, us), nil
}

var pow10 = func() (p [19]uint64) {
	p[0] = 1
	for i := 1; i < len(p); i++ {
		p[i] = p[i-1] * 10
	}
	return
}()

// appendNumeric writes numeric's binary form: number of base-10000 digits,
// weight of the first, sign, display scale, digits (PostgreSQL source,
// numeric_send). What would be rounded or would overflow is an error: the
// server's rounding would be silent.
func appendNumeric(dst []byte, b *change.Batch, c *column, v change.Value) ([]byte, error) {
	switch v.Form() {
	case change.NaN:
		return append(dst, 0, 0, 0, 8, 0, 0, 0, 0, 0xC0, 0, 0, 0), nil
	case change.Infinite, change.NegInfinite:
		if c.precision > 0 {
			return dst, fmt.Errorf("it is infinite, and %s is not", c.typeName())
		}
		if v.Form() == change.Infinite {
			return append(dst, 0, 0, 0, 8, 0, 0, 0, 0, 0xD0, 0, 0, 0), nil
		}
		return append(dst, 0, 0, 0, 8, 0, 0, 0, 0, 0xF0, 0, 0, 0), nil
	}
	u, small := v.Small()
	scale := int(v.Scale())
	if !small || scale < 0 || scale > 16 || u == math.MinInt64 {
		return appendBigNumeric(dst, c, b.Unscaled(new(big.Int), v), scale)
	}
	abs, sign := uint64(u), uint16(0)
	if u < 0 {
		abs, sign = uint64(-u), 0x4000
	}
	whole, frac := abs/pow10[scale], abs%pow10[scale]
	if c.precision > 0 {
		if over := scale - int(c.scale); over > 0 && frac%pow10[over] != 0 {
			return dst, fmt.Errorf("it has more decimals than %s", c.typeName())
		}
		if room := int(c.precision - c.scale); room < 19 && whole >= pow10[max(room, 0)] {
			return dst, fmt.Errorf("it is too large for %s", c.typeName())
		}
	}
	var digits [10]uint16 // whole: at most 5; frac: at most 4
	var n, weight int
	for at, w := 5, whole; ; {
		if w == 0 {
			n = copy(digits[:], digits[at:5])
			weight = n - 1
			break
		}
		at--
		digits[at] = uint16(w % 10000)
		w /= 10000
	}
	padded := (scale + 3) / 4 * 4
	f := frac * pow10[padded-scale]
	for g := padded/4 - 1; g >= 0; g-- {
		d := uint16(f / pow10[4*g] % 10000)
		if n == 0 && d == 0 { // leading zeros after the point
			weight--
			continue
		}
		digits[n] = d
		n++
	}
	for n > 0 && digits[n-1] == 0 {
		n--
	}
	if n == 0 {
		weight, sign = 0, 0
	}
	dst = appendInt32(dst, int32(8+2*n))
	dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	dst = binary.BigEndian.AppendUint16(dst, uint16(int16(weight)))
	dst = binary.BigEndian.AppendUint16(dst, sign)
	dst = binary.BigEndian.AppendUint16(dst, uint16(scale))
	for _, d := range digits[:n] {
		dst = binary.BigEndian.AppendUint16(dst, d)
	}
	return dst, nil
}

// appendBigNumeric is the same for numbers of any size, by way of their text.
func appendBigNumeric(dst []byte, c *column, u *big.Int, scale int) ([]byte, error) {
	sign := uint16(0)
	if u.Sign() < 0 {
		sign = 0x4000
	}
	text := new(big.Int).Abs(u).Append(nil, 10)
	for ; scale < 0; scale++ {
		text = append(text, '0')
	}
	for len(text) < scale+1 {
		text = append([]byte{'0'}, text...)
	}
	whole, frac := bytes.TrimLeft(text[:len(text)-scale], "0"), text[len(text)-scale:]
	if c.precision > 0 {
		if over := scale - int(c.scale); over > 0 && len(bytes.TrimRight(frac[c.scale:], "0")) > 0 {
			return dst, fmt.Errorf("it has more decimals than %s", c.typeName())
		}
		if len(whole) > int(c.precision-c.scale) {
			return dst, fmt.Errorf("it is too large for %s", c.typeName())
		}
	}
	if len(whole) > 131072 || scale > 16383 { // PostgreSQL documentation, "Numeric Types"
		return dst, fmt.Errorf("it has more digits than numeric can store")
	}
	for len(whole)%4 != 0 {
		whole = append([]byte{'0'}, whole...)
	}
	for len(frac)%4 != 0 {
		frac = append(frac[:len(frac):len(frac)], '0')
	}
	weight := len(whole)/4 - 1
	var digits []uint16
	for all := slices.Concat(whole, frac); len(all) > 0; all = all[4:] {
		digits = append(digits, uint16(all[0]-'0')*1000+uint16(all[1]-'0')*100+uint16(all[2]-'0')*10+uint16(all[3]-'0'))
	}
	for len(digits) > 0 && digits[0] == 0 {
		digits = digits[1:]
		weight--
	}
	for len(digits) > 0 && digits[len(digits)-1] == 0 {
		digits = digits[:len(digits)-1]
	}
	if len(digits) == 0 {
		weight, sign = 0, 0
	}
	dst = appendInt32(dst, int32(8+2*len(digits)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(digits)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(int16(weight)))
	dst = binary.BigEndian.AppendUint16(dst, sign)
	dst = binary.BigEndian.AppendUint16(dst, uint16(scale))
	for _, d := range digits {
		dst = binary.BigEndian.AppendUint16(dst, d)
	}
	return dst, nil
}
