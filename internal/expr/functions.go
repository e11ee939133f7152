// What the functions and operators do.

package expr

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // zones are known on a machine that has none

	"golang.org/x/text/unicode/norm"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/tallywire/tallywire/change"
)

var (
	errZone = errors.New("no zone of the IANA database, such as Europe/Berlin")
	errMore = errors.New("more follows after it")
)

func infinite(n int64) bool { return n == change.PosInfinity || n == change.NegInfinity }

func add(args ...ref.Val) ref.Val {
	switch a := args[0].(type) {
	case types.Int:
		if b, ok := args[1].(types.Int); ok {
			return a.Add(b)
		}
	case types.Double:
		if b, ok := args[1].(types.Double); ok {
			return a + b
		}
	case types.String:
		if b, ok := args[1].(types.String); ok {
			return a + b
		}
	case date:
		if b, ok := args[1].(types.Int); ok {
			return plusDays(a, int64(b))
		}
	case interval:
		if b, ok := args[1].(interval); ok {
			return a.plus(b, 1)
		}
	case traits.Lister:
		if b, ok := args[1].(traits.Lister); ok {
			return a.Add(b)
		}
	}
	if a, b := toDecimal(args[0]), toDecimal(args[1]); a != nil && b != nil {
		return a.add(b)
	}
	return wrong("+", args...)
}

func subtract(args ...ref.Val) ref.Val {
	switch a := args[0].(type) {
	case types.Int:
		if b, ok := args[1].(types.Int); ok {
			return a.Subtract(b)
		}
	case types.Double:
		if b, ok := args[1].(types.Double); ok {
			return a - b
		}
	case date:
		switch b := args[1].(type) {
		case types.Int:
			if b == math.MinInt64 {
				return fail(nil, "a date out of range")
			}
			return plusDays(a, -int64(b))
		case date:
			if infinite(int64(a)) || infinite(int64(b)) {
				return fail(nil, "the days to an infinite date")
			}
			return types.Int(a - b)
		}
	case moment:
		if b, ok := args[1].(moment); ok {
			return between(int64(a), int64(b))
		}
	case datetime:
		if b, ok := args[1].(datetime); ok {
			return between(int64(a), int64(b))
		}
	case interval:
		if b, ok := args[1].(interval); ok {
			return a.plus(b, -1)
		}
	}
	if a, b := toDecimal(args[0]), toDecimal(args[1]); a != nil && b != nil {
		return a.add(b.neg())
	}
	return wrong("-", args...)
}

func multiply(args ...ref.Val) ref.Val {
	switch a := args[0].(type) {
	case types.Int:
		if b, ok := args[1].(types.Int); ok {
			return a.Multiply(b)
		}
	case types.Double:
		if b, ok := args[1].(types.Double); ok {
			return a * b
		}
	}
	if a, b := toDecimal(args[0]), toDecimal(args[1]); a != nil && b != nil {
		return a.mul(b)
	}
	return wrong("*", args...)
}

func divide(args ...ref.Val) ref.Val {
	a, ok := args[0].(types.Double)
	b, ok2 := args[1].(types.Double)
	if !ok || !ok2 {
		return wrong("/", args...)
	}
	if b == 0 {
		return fail(nil, "a division by zero")
	}
	return a / b
}

func negate(args ...ref.Val) ref.Val {
	switch a := args[0].(type) {
	case types.Int:
		return a.Negate()
	case types.Double:
		return -a
	case *Decimal:
		return a.neg()
	}
	return wrong("-", args...)
}

// order compares two values of one type, or two exact numbers.
func order(a, b ref.Val) (n int, err ref.Val) {
	compare := func(x, y int64) int {
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	}
	switch x := a.(type) {
	case types.Int:
		if y, ok := b.(types.Int); ok {
			return compare(int64(x), int64(y)), nil
		}
	case types.Double:
		if y, ok := b.(types.Double); ok {
			if math.IsNaN(float64(x)) || math.IsNaN(float64(y)) {
				return 0, fail(nil, "NaN has no order")
			}
			switch {
			case x < y:
				return -1, nil
			case x > y:
				return 1, nil
			}
			return 0, nil
		}
	case types.String:
		if y, ok := b.(types.String); ok {
			return strings.Compare(string(x), string(y)), nil
		}
	case date:
		if y, ok := b.(date); ok {
			return compare(int64(x), int64(y)), nil
		}
	case moment:
		if y, ok := b.(moment); ok {
			return compare(int64(x), int64(y)), nil
		}
	case datetime:
		if y, ok := b.(datetime); ok {
			return compare(int64(x), int64(y)), nil
		}
	}
	if x, y := toDecimal(a), toDecimal(b); x != nil && y != nil {
		return x.cmp(y), nil
	}
	return 0, wrong("a comparison", a, b)
}

func coalesce(args ...ref.Val) ref.Val {
	for _, a := range args {
		if !isNull(a) {
			return a
		}
	}
	return types.NullValue
}

func toInt(args ...ref.Val) ref.Val {
	switch a := args[0].(type) {
	case types.Int:
		return a
	case types.String:
		n, err := strconv.ParseInt(strings.TrimSpace(string(a)), 10, 64)
		if err != nil {
			return fail(a, "no whole number")
		}
		return types.Int(n)
	case types.Double:
		if n := int64(a); float64(n) == float64(a) && n != math.MaxInt64 {
			return types.Int(n)
		}
		return fail(a, "no whole number")
	case *Decimal:
		if n, ok := a.int64(); ok {
			return types.Int(n)
		}
		return fail(a, "no whole number")
	}
	return wrong("int", args...)
}

func toDouble(args ...ref.Val) ref.Val {
	switch a := args[0].(type) {
	case types.Double:
		return a
	case types.Int:
		return types.Double(a)
	case types.String, *Decimal:
		f, err := strconv.ParseFloat(strings.TrimSpace(text(a)), 64)
		if err != nil {
			return fail(a, "no number")
		}
		return types.Double(f)
	}
	return wrong("double", args...)
}

// asDecimal: a double becomes the shortest number that is read as the same
// double, which is what a person wrote.
func asDecimal(args ...ref.Val) ref.Val {
	var s string
	switch a := args[0].(type) {
	case *Decimal:
		return a
	case types.Int:
		return decimalOf(int64(a))
	case types.Double:
		if f := float64(a); math.Abs(f) < 1e15 && math.Abs(f) > 1e-6 || f == 0 {
			s = strconv.FormatFloat(f, 'f', -1, 64)
		} else {
			s = strconv.FormatFloat(f, 'g', -1, 64)
		}
	case types.String:
		s = strings.TrimSpace(string(a))
	default:
		return wrong("decimal", args...)
	}
	d, err := parseDecimal(s)
	if err != nil {
		return fail(args[0], "no number")
	}
	return d
}

// scaleAndMode reads the last two arguments of what rounds.
func scaleAndMode(args []ref.Val) (scale int, mode string, err ref.Val) {
	s, ok := args[0].(types.Int)
	m, ok2 := args[1].(types.String)
	if !ok || !ok2 {
		return 0, "", wrong("rounding", args...)
	}
	if err := checkScale(int64(s)); err != nil {
		return 0, "", fail(nil, "%s", err)
	}
	if err := checkMode(string(m)); err != nil {
		return 0, "", fail(nil, "%s", err)
	}
	return int(s), string(m), nil
}

func round(args ...ref.Val) ref.Val {
	scale, mode, err := scaleAndMode(args[1:])
	if err != nil {
		return err
	}
	if d := toDecimal(args[0]); d != nil {
		return d.round(scale, mode)
	}
	return wrong("round", args...)
}

func div4(args ...ref.Val) ref.Val {
	scale, mode, err := scaleAndMode(args[2:])
	if err != nil {
		return err
	}
	a, b := toDecimal(args[0]), toDecimal(args[1])
	switch {
	case a == nil || b == nil:
		return wrong("div", args...)
	case b.sign() == 0:
		return fail(nil, "a division by zero")
	}
	return a.div(b, scale, mode)
}

func absolute(args ...ref.Val) ref.Val {
	switch a := args[0].(type) {
	case types.Int:
		if a < 0 {
			return a.Negate()
		}
		return a
	case types.Double:
		return types.Double(math.Abs(float64(a)))
	case *Decimal:
		if a.sign() < 0 {
			return a.neg()
		}
		return a
	}
	return wrong("abs", args...)
}

// plusDays adds days.
func plusDays(d date, days int64) ref.Val {
	if infinite(int64(d)) {
		return d
	}
	sum := types.Int(d).Add(types.Int(days))
	if n, ok := sum.(types.Int); ok && !infinite(int64(n)) {
		return date(n)
	}
	return fail(nil, "a date out of range")
}

func between(a, b int64) ref.Val {
	if infinite(a) || infinite(b) {
		return fail(nil, "the time to an infinite moment")
	}
	if us, ok := types.Int(a).Subtract(types.Int(b)).(types.Int); ok {
		return interval{us: int64(us)}
	}
	return fail(nil, "a time out of range")
}

// plus adds sign × j, each part by itself.
func (i interval) plus(j interval, sign int64) ref.Val {
	months, days := int64(i.months)+sign*int64(j.months), int64(i.days)+sign*int64(j.days)
	us, ok := types.Int(i.us).Add(types.Int(sign * j.us)).(types.Int)
	if !ok || j.us == math.MinInt64 || months != int64(int32(months)) || days != int64(int32(days)) {
		return fail(nil, "an interval out of range")
	}
	return interval{months: int32(months), days: int32(days), us: int64(us)}
}

const (
	secondUS = 1_000_000
	hourUS   = 3600 * secondUS
	dayUS    = 24 * hourUS
)

// hours: a day has 24, a month has no certain number.
func hours(args ...ref.Val) ref.Val {
	i, ok := args[0].(interval)
	if !ok {
		return wrong("hours", args...)
	}
	scale, mode, err := scaleAndMode(args[1:])
	if err != nil {
		return err
	}
	if i.months != 0 {
		return fail(i, "an interval with months has no certain number of hours")
	}
	us := decimalOf(int64(i.days)).mul(decimalOf(dayUS)).add(decimalOf(i.us))
	return us.div(decimalOf(hourUS), scale, mode)
}

func asDate(args ...ref.Val) ref.Val {
	if len(args) == 3 {
		y, ok1 := args[0].(types.Int)
		m, ok2 := args[1].(types.Int)
		d, ok3 := args[2].(types.Int)
		if !ok1 || !ok2 || !ok3 {
			return wrong("date", args...)
		}
		if y < 1 || y > 9999 || m < 1 || m > 12 || d < 1 || int(d) > time.Date(int(y), time.Month(m)+1, 0, 0, 0, 0, 0, time.UTC).Day() {
			return fail(types.String(strconv.Itoa(int(y))+"-"+strconv.Itoa(int(m))+"-"+strconv.Itoa(int(d))), "there is no such date")
		}
		return date(change.Days(int64(y), int(m), int(d)))
	}
	s, ok := args[0].(types.String)
	if !ok {
		return wrong("date", args...)
	}
	t, err := time.Parse(time.DateOnly, strings.TrimSpace(string(s)))
	if err != nil {
		return fail(s, "no date such as 2026-03-31")
	}
	return date(change.Days(int64(t.Year()), int(t.Month()), t.Day()))
}

var zones sync.Map // *time.Location by name

// zone is a zone of the IANA database.
func zone(name string) (*time.Location, error) {
	if z, ok := zones.Load(name); ok {
		return z.(*time.Location), nil
	}
	if name == "" || name == "Local" { // this machine's: another tomorrow
		return nil, errZone
	}
	z, err := time.LoadLocation(name)
	if err != nil {
		return nil, errZone
	}
	zones.Store(name, z)
	return z, nil
}

func zoneOf(v ref.Val) (*time.Location, ref.Val) {
	s, ok := v.(types.String)
	if !ok {
		return nil, wrong("a zone", v)
	}
	z, err := zone(string(s))
	if err != nil {
		return nil, fail(s, "%s", err)
	}
	return z, nil
}

// floorDiv and the rest, of microseconds before 1970 too.
func floorDiv(n, by int64) (q, rest int64) {
	q, rest = n/by, n%by
	if rest < 0 {
		q, rest = q-1, rest+by
	}
	return q, rest
}

// offsetAt is a zone's distance from UTC in seconds at a moment.
func offsetAt(z *time.Location, unix int64) int64 {
	_, off := time.Unix(unix, 0).In(z).Zone()
	return int64(off)
}

// inZone is the moment at which a clock in z shows local. A time that is skipped
// in spring is taken with the distance from UTC of before; of one that comes
// twice in autumn it is the second: as PostgreSQL does.
func inZone(local int64, z *time.Location) int64 {
	s, rest := floorDiv(local, secondUS)
	before, after := offsetAt(z, s-86400), offsetAt(z, s+86400)
	at := s - after
	if before != after && offsetAt(z, at) != after {
		at = s - before
	}
	return at*secondUS + rest
}

func asMoment(args ...ref.Val) ref.Val {
	if len(args) == 1 {
		s, ok := args[0].(types.String)
		if !ok {
			return wrong("moment", args...)
		}
		t, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(string(s)))
		if err != nil {
			return fail(s, "no moment such as 2026-03-31T12:00:00+02:00")
		}
		return moment(t.UnixMicro())
	}
	z, bad := zoneOf(args[1])
	if bad != nil {
		return bad
	}
	switch a := args[0].(type) {
	case datetime:
		if infinite(int64(a)) {
			return moment(a)
		}
		return moment(inZone(int64(a), z))
	case date:
		if infinite(int64(a)) {
			return moment(a)
		}
		if a > math.MaxInt64/dayUS-1 || a < math.MinInt64/dayUS+1 {
			return fail(a, "a date out of range")
		}
		return moment(inZone(int64(a)*dayUS, z))
	}
	return wrong("moment", args...)
}

func asDatetime(args ...ref.Val) ref.Val {
	if len(args) == 1 {
		s, ok := args[0].(types.String)
		if !ok {
			return wrong("datetime", args...)
		}
		for _, form := range []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05"} { // a fraction is read too
			if t, err := time.Parse(form, strings.TrimSpace(string(s))); err == nil {
				return datetime(t.UnixMicro())
			}
		}
		return fail(s, "no time such as 2026-03-31 12:00:00")
	}
	z, bad := zoneOf(args[1])
	if bad != nil {
		return bad
	}
	a, ok := args[0].(moment)
	if !ok {
		return wrong("datetime", args...)
	}
	return shown(a, z)
}

// shown is what a clock in z shows at a moment.
func shown(m moment, z *time.Location) datetime {
	if infinite(int64(m)) {
		return datetime(m)
	}
	s, _ := floorDiv(int64(m), secondUS)
	return datetime(int64(m) + offsetAt(z, s)*secondUS)
}

func day(args ...ref.Val) ref.Val {
	var at datetime
	switch a := args[0].(type) {
	case datetime:
		at = a
	case moment:
		z, bad := zoneOf(args[1])
		if bad != nil {
			return bad
		}
		at = shown(a, z)
	default:
		return wrong("day", args...)
	}
	if infinite(int64(at)) {
		return date(at)
	}
	days, _ := floorDiv(int64(at), dayUS)
	return date(days)
}

func datePart(v ref.Val, what string) ref.Val {
	d, ok := v.(date)
	if !ok {
		return wrong(what, v)
	}
	if infinite(int64(d)) {
		return fail(nil, "an infinite date has no %s", what)
	}
	y, m, _ := change.Civil(int64(d))
	if what == "month" {
		return types.Int(m)
	}
	return types.Int(y)
}

// after is what follows a prefix that is there.
func after(args ...ref.Val) ref.Val {
	s, ok := args[0].(types.String)
	p, ok2 := args[1].(types.String)
	if !ok || !ok2 {
		return wrong("after", args...)
	}
	rest, ok := strings.CutPrefix(string(s), string(p))
	if !ok {
		return fail(s, "a text does not begin with the prefix")
	}
	return types.String(rest)
}

// normalise makes texts equal that a person would call the same: composed
// letters, single blanks, lower case.
func normalise(args ...ref.Val) ref.Val {
	s, ok := args[0].(types.String)
	if !ok {
		return wrong("normalise", args...)
	}
	return types.String(strings.ToLower(strings.Join(strings.Fields(norm.NFC.String(string(s))), " ")))
}

// fromJSON reads a JSON text; its numbers are exact.
func fromJSON(args ...ref.Val) ref.Val {
	s, ok := args[0].(types.String)
	if !ok {
		return wrong("json", args...)
	}
	d := json.NewDecoder(bytes.NewReader([]byte(s)))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errMore
		}
	}
	if err != nil {
		return fail(err, "no JSON")
	}
	return native(v)
}

// native makes an expression's value of what JSON holds.
func native(v any) ref.Val {
	switch v := v.(type) {
	case nil:
		return types.NullValue
	case bool:
		return types.Bool(v)
	case string:
		return types.String(v)
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return types.Int(n)
		}
		d, err := parseDecimal(v.String())
		if err != nil {
			return fail(err, "a number in JSON")
		}
		return d
	case []any:
		out := make([]ref.Val, len(v))
		for i := range v {
			out[i] = native(v[i])
		}
		return types.NewRefValList(types.DefaultTypeAdapter, out)
	case map[string]any:
		out := make(map[ref.Val]ref.Val, len(v))
		for k, x := range v {
			out[types.String(k)] = native(x)
		}
		return types.NewRefValMap(types.DefaultTypeAdapter, out)
	}
	return fail(nil, "JSON of an unknown kind")
}
