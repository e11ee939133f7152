// Write: the octets of one value.

package avro

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"strconv"
	"sync"
	"time"

	"github.com/tallywire/tallywire/change"
)

// What a codec finds wrong with a value; Encoder.reject names the field.
var (
	errDigits  = errors.New("too many digits")
	errRange   = errors.New("out of range")
	errSpecial = errors.New("NaN or infinity")
	errShape   = errors.New("shape of the array")
	errOther   = errors.New("another kind")
)

func (c *codec) appendValue(dst []byte, b *change.Batch, v change.Value) ([]byte, error) {
	k := v.Kind()
	switch c.form {
	case fString:
		switch k {
		case change.String, change.Text, change.Enum, change.JSON:
			return appendBytes(dst, b.Bytes(v)), nil
		}
		return dst, errOther
	case fDecimal:
		if k != change.Decimal && k != change.Int {
			return dst, errOther
		}
		return c.appendDecimal(dst, b, v)
	}
	if k != c.kind {
		if k == change.Text && (c.form == fMicros || c.form == fZoned) {
			return dst, errRange // a timestamp that int64 microseconds cannot hold comes as text
		}
		return dst, errOther
	}
	switch c.form {
	case fBool:
		return append(dst, byte(v.Int()&1)), nil
	case fInt:
		n := v.Int()
		if c.width <= 4 && n != int64(int32(n)) || c.width == 2 && n != int64(int16(n)) {
			return dst, errRange
		}
		return appendLong(dst, n), nil
	case fFloat:
		return binary.LittleEndian.AppendUint32(dst, math.Float32bits(float32(v.Float64()))), nil
	case fDouble:
		return binary.LittleEndian.AppendUint64(dst, math.Float64bits(v.Float64())), nil
	case fBytes:
		return appendBytes(dst, b.Bytes(v)), nil
	case fUUID:
		return b.AppendText(append(dst, 36<<1), v), nil
	case fDate:
		return c.appendDate(dst, v.Int())
	case fTimeMicros:
		return binary.AppendVarint(dst, v.Int()), nil
	case fMicros:
		if n := v.Int(); (n == change.PosInfinity || n == change.NegInfinity) && !c.own {
			return dst, errSpecial
		}
		return binary.AppendVarint(dst, v.Int()), nil
	case fDecimalText:
		at := len(dst)
		return fixLength(b.AppendText(append(dst, 0), v), at), nil
	case fZoned:
		at := len(dst)
		return fixLength(appendZonedTimestamp(append(dst, 0), v.Int(), int(c.digits)), at), nil
	case fZonedTime:
		at := len(dst)
		return fixLength(appendZonedTime(append(dst, 0), v.Int(), v.Zone()), at), nil
	case fInterval:
		at := len(dst)
		m, d, us := b.IntervalParts(v)
		return fixLength(appendISOInterval(append(dst, 0), m, d, us), at), nil
	case fArray:
		return c.appendArray(dst, b, v)
	}
	// The other forms are those of foreign writers; no encoder is compiled of them.
	panic("BUG: no encoder for form " + strconv.Itoa(int(c.form)))
}

// appendStandIn writes, in a field that is never null, what stands for a value
// that its type cannot hold: the same for the same value, and what no value that
// it can hold gives, but for an array, which loses its dimensions.
func (c *codec) appendStandIn(dst []byte, b *change.Batch, v change.Value, text []byte) []byte {
	switch c.form {
	case fDecimal: // one more than the largest
		s := bigPool.Get().(*bigs)
		defer bigPool.Put(s)
		s.p.Exp(big.NewInt(10), s.rest.SetInt64(int64(c.digits)), nil)
		n := s.p.BitLen()/8 + 1
		return appendBytes(dst, s.p.FillBytes(make([]byte, n)))
	case fMicros: // wrapped around: before the first moment that Postgres has
		return binary.AppendVarint(dst, wrapped(text))
	case fArray:
		a := b.ArrayOf(v)
		if len(a.Elems) > 0 {
			dst = binary.AppendVarint(dst, int64(len(a.Elems)))
			for _, v := range a.Elems {
				from := len(dst)
				var err error
				if !v.IsNull() {
					if dst, err = c.elem.appendValue(append(dst, byte(1-c.elem.null)<<1), b, v); err == nil {
						continue
					}
				}
				dst = append(dst[:from], byte(c.elem.null)<<1)
			}
		}
		return append(dst, 0)
	case fString, fZoned, fZonedTime, fDecimalText, fInterval:
		return appendBytes(dst, text)
	}
	panic("BUG: a value without a form in form " + strconv.Itoa(int(c.form)))
}

// wrapped are the microseconds since 1970 of a timestamp that int64 cannot
// count, modulo 2^64.
func wrapped(text []byte) int64 {
	var year, month, day, hour, minute int64
	var seconds float64
	if _, err := fmt.Sscanf(string(text), "%d-%d-%d %d:%d:%g", &year, &month, &day, &hour, &minute, &seconds); err != nil {
		panic("BUG: a timestamp that is no timestamp")
	}
	days := time.Date(int(year), time.Month(month), int(day), 0, 0, 0, 0, time.UTC).Unix() / 86400
	return int64(uint64(days)*86_400_000_000 + uint64(hour*3600+minute*60)*1_000_000 + uint64(math.Round(seconds*1e6)))
}

func (c *codec) appendDate(dst []byte, days int64) ([]byte, error) {
	switch {
	case days == change.PosInfinity && c.own:
		days = dateInfinity
	case days == change.NegInfinity && c.own:
		days = dateNegInfinity
	case days == change.PosInfinity || days == change.NegInfinity:
		return dst, errSpecial
	case days >= dateInfinity || days <= dateNegInfinity:
		return dst, errRange
	}
	return appendLong(dst, days), nil
}

func (c *codec) appendArray(dst []byte, b *change.Batch, v change.Value) ([]byte, error) {
	a := b.ArrayOf(v)
	if len(a.Dims) > 1 || len(a.Dims) == 1 && a.Dims[0].Lower != 1 {
		return dst, errShape
	}
	if len(a.Elems) > 0 {
		dst = binary.AppendVarint(dst, int64(len(a.Elems)))
		var err error
		for _, v := range a.Elems {
			if v.IsNull() {
				dst = append(dst, byte(c.elem.null)<<1)
				continue
			}
			dst = append(dst, byte(1-c.elem.null)<<1)
			if dst, err = c.elem.appendValue(dst, b, v); err != nil {
				return dst, err
			}
		}
	}
	return append(dst, 0), nil
}

var pow10 = func() (p [19]int64) {
	p[0] = 1
	for i := 1; i < len(p); i++ {
		p[i] = p[i-1] * 10
	}
	return p
}()

// appendDecimal writes the unscaled integer at the schema's scale: exact, or
// errDigits.
func (c *codec) appendDecimal(dst []byte, b *change.Batch, v change.Value) ([]byte, error) {
	u, small := v.Small()
	if v.Kind() == change.Int {
		u, small = v.Int(), true
	} else if v.Form() != change.Finite {
		return dst, errSpecial
	}
	up := int(c.scale) - int(v.Scale())
	if small && up >= 0 && up < len(pow10) {
		if p := pow10[up]; u <= math.MaxInt64/p && u >= math.MinInt64/p {
			u *= p
			if int(c.digits) < len(pow10) && (u >= pow10[c.digits] || u <= -pow10[c.digits]) {
				return dst, errDigits
			}
			return appendUnscaled(dst, u), nil
		}
	}
	return c.appendBigDecimal(dst, b, v, up)
}

// bigs are the scratch of a large decimal.
type bigs struct {
	x, p, rest big.Int
	out        []byte
}

var bigPool = sync.Pool{New: func() any { return new(bigs) }}

func (c *codec) appendBigDecimal(dst []byte, b *change.Batch, v change.Value, up int) ([]byte, error) {
	s := bigPool.Get().(*bigs)
	defer bigPool.Put(s)
	x := &s.x
	if v.Kind() == change.Int {
		x.SetInt64(v.Int())
	} else {
		b.Unscaled(x, v)
	}
	ten := big.NewInt(10)
	if up > 0 {
		if x.Sign() != 0 && up > int(c.digits) {
			return dst, errDigits
		}
		x.Mul(x, s.p.Exp(ten, s.rest.SetInt64(int64(up)), nil))
	} else if up < 0 { // only zeros may go
		s.p.Exp(ten, s.rest.SetInt64(int64(-up)), nil)
		x.QuoRem(x, &s.p, &s.rest)
		if s.rest.Sign() != 0 {
			return dst, errDigits
		}
	}
	if x.CmpAbs(s.p.Exp(ten, s.rest.SetInt64(int64(c.digits)), nil)) >= 0 {
		return dst, errDigits
	}
	if x.IsInt64() {
		return appendUnscaled(dst, x.Int64()), nil
	}
	n := x.BitLen()/8 + 1
	if x.Sign() < 0 {
		n = s.p.Not(x).BitLen()/8 + 1
		x.Add(x, s.p.Lsh(big.NewInt(1), uint(8*n)))
	}
	if cap(s.out) < n {
		s.out = make([]byte, n)
	}
	return appendBytes(dst, x.FillBytes(s.out[:n])), nil
}

// appendUnscaled writes the shortest two's complement of u as Avro bytes.
func appendUnscaled(dst []byte, u int64) []byte {
	n := bits.Len64(uint64(u^u>>63))/8 + 1
	dst = append(dst, byte(n<<1))
	at := len(dst)
	return binary.BigEndian.AppendUint64(dst, uint64(u)<<(64-8*n))[:at+n]
}

// appendLong is binary.AppendVarint with its short forms first: most numbers of
// a business are below a million.
func appendLong(dst []byte, n int64) []byte {
	switch u := uint64(n)<<1 ^ uint64(n>>63); {
	case u < 1<<7:
		return append(dst, byte(u))
	case u < 1<<14:
		return append(dst, byte(u)|0x80, byte(u>>7))
	case u < 1<<21:
		return append(dst, byte(u)|0x80, byte(u>>7)|0x80, byte(u>>14))
	case u < 1<<28:
		return append(dst, byte(u)|0x80, byte(u>>7)|0x80, byte(u>>14)|0x80, byte(u>>21))
	}
	return binary.AppendVarint(dst, n)
}

func appendString(dst []byte, s string) []byte {
	return append(appendLong(dst, int64(len(s))), s...)
}

func appendBytes(dst, p []byte) []byte {
	return append(appendLong(dst, int64(len(p))), p...)
}

// fixLength puts the length of dst[at+1:] at dst[at], where one octet was kept
// for it; longer texts are moved.
func fixLength(dst []byte, at int) []byte {
	n := len(dst) - at - 1
	if n < 64 {
		dst[at] = byte(n << 1)
		return dst
	}
	var head [binary.MaxVarintLen64]byte
	h := binary.PutVarint(head[:], int64(n))
	dst = append(dst, head[1:h]...)
	copy(dst[at+h:], dst[at+1:at+1+n])
	copy(dst[at:], head[:h])
	return dst
}
