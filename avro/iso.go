// ISO: the texts of zoned times and intervals, as Debezium writes them.

package avro

import (
	"math"
	"strconv"

	"github.com/tallywire/tallywire/change"
)

const dayMicros = 86_400_000_000

// appendZonedTimestamp writes YYYY-MM-DDTHH:MM:SS.ffffffZ with digits of the
// fraction, more when the value has more; years before 1 or after 9999 with a
// sign, as java.time does; or infinity, -infinity.
func appendZonedTimestamp(dst []byte, us int64, digits int) []byte {
	switch us {
	case change.PosInfinity:
		return append(dst, "infinity"...)
	case change.NegInfinity:
		return append(dst, "-infinity"...)
	}
	days, rest := floorDiv(us, dayMicros), us
	rest -= days * dayMicros
	y, m, d := change.Civil(days)
	if digits == 6 && y > 0 && y <= 9999 {
		return appendCommonTimestamp(dst, uint32(y), uint32(m), uint32(d), uint64(rest))
	}
	switch {
	case y > 9999:
		dst = append(dst, '+')
	case y < 0:
		dst = append(dst, '-')
		y = -y
	}
	for lim := int64(1000); lim > 1 && y < lim; lim /= 10 {
		dst = append(dst, '0')
	}
	dst = strconv.AppendInt(dst, y, 10)
	dst = append(dst, '-', byte('0'+m/10), byte('0'+m%10), '-', byte('0'+d/10), byte('0'+d%10), 'T')
	dst = appendClock(dst, rest, digits)
	return append(dst, 'Z')
}

// pairs are the two digits of 00 to 99.
const pairs = "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899"

// common is the form of almost every timestamp; put fills the digits in.
const common = "0000-00-00T00:00:00.000000Z"

// appendCommonTimestamp writes the common form.
func appendCommonTimestamp(dst []byte, y, m, d uint32, us uint64) []byte {
	at := len(dst)
	dst = append(dst, common...)
	p := dst[at : at+len(common)]
	put := func(i int, n uint32) {
		p[i], p[i+1] = pairs[2*n], pairs[2*n+1]
	}
	s, f := uint32(us/1_000_000), uint32(us%1_000_000)
	put(0, y/100)
	put(2, y%100)
	put(5, m)
	put(8, d)
	put(11, s/3600)
	put(14, s/60%60)
	put(17, s%60)
	put(20, f/10_000)
	put(22, f/100%100)
	put(24, f%100)
	return dst
}

// parseCommonTimestamp reads the common form; ok is false for any other.
func parseCommonTimestamp(p []byte) (us int64, ok bool) {
	if len(p) != len(common) || p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':' || p[19] != '.' || p[26] != 'Z' {
		return 0, false
	}
	bad := false
	two := func(i int) int64 {
		a, b := p[i]-'0', p[i+1]-'0'
		bad = bad || a > 9 || b > 9
		return int64(a)*10 + int64(b)
	}
	y, m, d := two(0)*100+two(2), two(5), two(8)
	h, min, s := two(11), two(14), two(17)
	f := two(20)*10_000 + two(22)*100 + two(24)
	if bad || m < 1 || m > 12 || d < 1 || d > 31 || h > 23 || min > 59 || s > 59 {
		return 0, false
	}
	return change.Days(y, int(m), int(d))*dayMicros + ((h*60+min)*60+s)*1_000_000 + f, true
}

// appendClock writes HH:MM:SS and at least digits of the fraction.
func appendClock(dst []byte, us int64, digits int) []byte {
	s := us / 1e6
	dst = append(dst, byte('0'+s/36000), byte('0'+s/3600%10), ':', byte('0'+s/600%6), byte('0'+s/60%10), ':', byte('0'+s/10%6), byte('0'+s%10))
	f := us % 1e6
	var text [6]byte
	need := 0
	for i := 5; i >= 0; i-- {
		text[i] = byte('0' + f%10)
		if f%10 != 0 && need == 0 {
			need = i + 1
		}
		f /= 10
	}
	if digits < 0 || digits > 6 {
		digits = 6
	}
	if n := max(need, digits); n > 0 {
		dst = append(append(dst, '.'), text[:n]...)
	}
	return dst
}

// appendZonedTime writes HH:MM:SS[.f] and the offset ±HH:MM[:SS], which
// Debezium would turn to UTC and lose; UTC itself is Z.
func appendZonedTime(dst []byte, us int64, east int32) []byte {
	dst = appendClock(dst, us, 0)
	if east == 0 {
		return append(dst, 'Z')
	}
	sign := byte('+')
	if east < 0 {
		sign, east = '-', -east
	}
	h, m, s := east/3600, east/60%60, east%60
	dst = append(dst, sign, byte('0'+h/10), byte('0'+h%10), ':', byte('0'+m/10), byte('0'+m%10))
	if s != 0 {
		dst = append(dst, ':', byte('0'+s/10), byte('0'+s%10))
	}
	return dst
}

// appendISOInterval writes P1Y2M3DT4H5M6.78S, each part with its own sign.
func appendISOInterval(dst []byte, months, days int32, us int64) []byte {
	switch {
	case months == math.MaxInt32 && days == math.MaxInt32 && us == math.MaxInt64:
		return append(dst, "infinity"...)
	case months == math.MinInt32 && days == math.MinInt32 && us == math.MinInt64:
		return append(dst, "-infinity"...)
	case months == 0 && days == 0 && us == 0:
		return append(dst, "PT0S"...)
	}
	part := func(n int64, unit byte) {
		if n != 0 {
			dst = append(strconv.AppendInt(dst, n, 10), unit)
		}
	}
	dst = append(dst, 'P')
	part(int64(months/12), 'Y')
	part(int64(months%12), 'M')
	part(int64(days), 'D')
	if us == 0 {
		return dst
	}
	dst = append(dst, 'T')
	part(us/3_600_000_000, 'H')
	part(us/60_000_000%60, 'M')
	rest := us % 60_000_000
	if rest == 0 {
		return dst
	}
	if rest < 0 {
		dst, rest = append(dst, '-'), -rest
	}
	dst = strconv.AppendInt(dst, rest/1_000_000, 10)
	if f := rest % 1_000_000; f != 0 {
		at := len(dst)
		dst = append(dst, ".000000"...)
		for i := 6; i > 0; i-- {
			dst[at+i] = byte('0' + f%10)
			f /= 10
		}
		for dst[len(dst)-1] == '0' {
			dst = dst[:len(dst)-1]
		}
	}
	return append(dst, 'S')
}

// scan reads a text from the left.
type scan struct {
	p   []byte
	bad bool
}

func (s *scan) has(c byte) bool {
	if len(s.p) > 0 && s.p[0] == c {
		s.p = s.p[1:]
		return true
	}
	return false
}

func (s *scan) want(c byte) {
	if !s.has(c) {
		s.bad = true
	}
}

// digits reads min to max digits.
func (s *scan) digits(min, max int) (n int64) {
	i := 0
	for ; i < max && i < len(s.p) && s.p[i] >= '0' && s.p[i] <= '9'; i++ {
		n = n*10 + int64(s.p[i]-'0')
	}
	if i < min {
		s.bad = true
	}
	s.p = s.p[i:]
	return n
}

// clock reads HH:MM:SS[.ffffff], at most 24:00:00; finer digits must be zero.
func (s *scan) clock() int64 {
	h := s.digits(2, 2)
	s.want(':')
	m := s.digits(2, 2)
	var sec int64
	if s.has(':') {
		sec = s.digits(2, 2)
	}
	us := ((h*60+m)*60 + sec) * 1_000_000
	us += s.fraction()
	if m > 59 || sec > 59 || us > dayMicros {
		s.bad = true
	}
	return us
}

// fraction reads .ffffff as microseconds.
func (s *scan) fraction() (us int64) {
	if !s.has('.') {
		return 0
	}
	n := 0
	for ; len(s.p) > 0 && s.p[0] >= '0' && s.p[0] <= '9'; n++ {
		if n < 6 {
			us = us*10 + int64(s.p[0]-'0')
		} else if s.p[0] != '0' {
			s.bad = true
		}
		s.p = s.p[1:]
	}
	if n == 0 {
		s.bad = true
	}
	for ; n < 6; n++ {
		us *= 10
	}
	return us
}

// offset reads Z or ±HH[:MM[:SS]] in seconds east.
func (s *scan) offset() int64 {
	if s.has('Z') {
		return 0
	}
	sign := int64(1)
	if s.has('-') {
		sign = -1
	} else {
		s.want('+')
	}
	n := s.digits(2, 2) * 3600
	if s.has(':') {
		n += s.digits(2, 2) * 60
		if s.has(':') {
			n += s.digits(2, 2)
		}
	}
	return sign * n
}

func parseZonedTimestamp(p []byte) (us int64, ok bool) {
	if us, ok := parseCommonTimestamp(p); ok {
		return us, true
	}
	switch string(p) {
	case "infinity":
		return change.PosInfinity, true
	case "-infinity":
		return change.NegInfinity, true
	}
	s := scan{p: p}
	sign := int64(1)
	if s.has('-') {
		sign = -1
	} else {
		s.has('+')
	}
	y := sign * s.digits(4, 9)
	s.want('-')
	m := s.digits(2, 2)
	s.want('-')
	d := s.digits(2, 2)
	s.want('T')
	clock := s.clock()
	zone := s.offset()
	if s.bad || len(s.p) != 0 || m < 1 || m > 12 || d < 1 || d > 31 || y > 300_000 || y < -300_000 {
		return 0, false
	}
	days := change.Days(y, int(m), int(d))
	const last = math.MaxInt64 / dayMicros // the last whole day that int64 holds
	if days > last || days < -last {
		return 0, false
	}
	us = addSat(addSat(days*dayMicros, clock, &s.bad), -zone*1_000_000, &s.bad)
	return us, !s.bad
}

func parseZonedTime(p []byte) (us int64, east int32, ok bool) {
	s := scan{p: p}
	us = s.clock()
	zone := s.offset()
	if s.bad || len(s.p) != 0 {
		return 0, 0, false
	}
	return us, int32(zone), true
}

// parseISOInterval reads what appendISOInterval and Debezium write. Fields that
// overflow make it fail.
func parseISOInterval(p []byte) (months, days int32, us int64, ok bool) {
	switch string(p) {
	case "infinity":
		return math.MaxInt32, math.MaxInt32, math.MaxInt64, true
	case "-infinity":
		return math.MinInt32, math.MinInt32, math.MinInt64, true
	}
	s := scan{p: p}
	s.want('P')
	var mon, day, micros int64
	clock := false
	for len(s.p) > 0 && !s.bad {
		if !clock && s.has('T') {
			clock = true
			continue
		}
		sign := int64(1)
		if s.has('-') {
			sign = -1
		}
		n := sign * s.digits(1, 12)
		frac := sign * s.fraction()
		if len(s.p) == 0 {
			return 0, 0, 0, false
		}
		unit := s.p[0]
		s.p = s.p[1:]
		if frac != 0 && unit != 'S' {
			return 0, 0, 0, false
		}
		switch {
		case !clock && unit == 'Y':
			mon += n * 12
		case !clock && unit == 'M':
			mon += n
		case !clock && unit == 'D':
			day += n
		case clock && unit == 'H' && n <= math.MaxInt64/3_600_000_000 && n >= math.MinInt64/3_600_000_000:
			micros = addSat(micros, n*3_600_000_000, &s.bad)
		case clock && unit == 'M' && n <= math.MaxInt64/60_000_000 && n >= math.MinInt64/60_000_000:
			micros = addSat(micros, n*60_000_000, &s.bad)
		case clock && unit == 'S':
			micros = addSat(micros, n*1_000_000+frac, &s.bad)
		default:
			return 0, 0, 0, false
		}
	}
	if s.bad || len(p) < 3 || mon != int64(int32(mon)) || day != int64(int32(day)) {
		return 0, 0, 0, false
	}
	return int32(mon), int32(day), micros, true
}

func addSat(a, b int64, bad *bool) int64 {
	c := a + b
	if (c > a) != (b > 0) && b != 0 {
		*bad = true
	}
	return c
}
