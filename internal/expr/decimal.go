// Decimal: exact numbers, with the digits after the point that they were written
// with, and rounding by name.

package expr

import (
	"cmp"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/tallywire/tallywire/internal/config"
)

// Decimal is n × 10^-scale, immutable. Sums have the larger scale of the two,
// products the sum of both, as in PostgreSQL.
type Decimal struct {
	small int64    // n, when big is nil
	big   *big.Int // n outside of int64
	scale int
}

func decimalOf(n int64) *Decimal { return &Decimal{small: n} }

// decimal makes one of an integer that may be small.
func decimal(n *big.Int, scale int) *Decimal {
	if n.IsInt64() {
		return &Decimal{small: n.Int64(), scale: scale}
	}
	return &Decimal{big: n, scale: scale}
}

func (d *Decimal) n() *big.Int {
	if d.big != nil {
		return d.big
	}
	return big.NewInt(d.small)
}

func (d *Decimal) sign() int {
	switch {
	case d.big != nil:
		return d.big.Sign()
	case d.small < 0:
		return -1
	case d.small > 0:
		return 1
	}
	return 0
}

// maxDigits bounds the digits that a text may have.
const maxDigits = 1000

// parseDecimal reads digits with a sign, a point and an exponent.
func parseDecimal(s string) (*Decimal, error) {
	if d := parseShort(s); d != nil {
		return d, nil
	}
	digits, exp := s, 0
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		e, err := strconv.Atoi(s[i+1:])
		if err != nil || e > maxDigits || e < -maxDigits {
			return nil, fmt.Errorf("%q is no number", s)
		}
		digits, exp = s[:i], e
	}
	whole, fraction, _ := strings.Cut(digits, ".")
	bare := strings.TrimLeft(whole, "+-")
	if len(whole)-len(bare) > 1 || bare+fraction == "" || strings.Trim(bare+fraction, "0123456789") != "" || len(digits) > maxDigits {
		return nil, fmt.Errorf("%q is no number", s)
	}
	n, ok := new(big.Int).SetString(whole+fraction, 10)
	if !ok {
		return nil, fmt.Errorf("%q is no number", s)
	}
	if scale := len(fraction) - exp; scale >= 0 {
		return decimal(n, scale), nil
	}
	return decimal(n.Mul(n, pow10(exp-len(fraction))), 0), nil
}

// parseShort reads what most numbers are: up to 18 digits, a sign, a point. nil:
// it is longer, or no number.
func parseShort(s string) *Decimal {
	var n int64
	at, scale, digits := 0, -1, 0
	if s != "" && s[0] == '-' {
		at = 1
	}
	for ; at < len(s); at++ {
		switch c := s[at]; {
		case c >= '0' && c <= '9' && digits < 18:
			n, digits = 10*n+int64(c-'0'), digits+1
		case c == '.' && scale < 0:
			scale = digits
		default:
			return nil
		}
	}
	switch {
	case digits == 0:
		return nil
	case scale < 0:
		scale = digits
	}
	if s[0] == '-' {
		n = -n
	}
	return &Decimal{small: n, scale: digits - scale}
}

var ten = big.NewInt(10)

func pow10(n int) *big.Int { return new(big.Int).Exp(ten, big.NewInt(int64(n)), nil) }

// powers of ten that are small.
var powers = func() (p [19]int64) {
	p[0] = 1
	for i := 1; i < len(p); i++ {
		p[i] = 10 * p[i-1]
	}
	return p
}()

// times is a × b when it fits.
func times(a, b int64) (int64, bool) {
	if a == 0 || b == 0 {
		return 0, true
	}
	c := a * b
	return c, c/b == a && a != math.MinInt64 && b != math.MinInt64
}

// at is the same number with a larger scale.
func (d *Decimal) at(scale int) *Decimal {
	up := scale - d.scale
	if up <= 0 {
		return d
	}
	if d.big == nil && up < len(powers) {
		if n, ok := times(d.small, powers[up]); ok {
			return &Decimal{small: n, scale: scale}
		}
	}
	return decimal(new(big.Int).Mul(d.n(), pow10(up)), scale)
}

func (d *Decimal) add(e *Decimal) *Decimal {
	s := max(d.scale, e.scale)
	d, e = d.at(s), e.at(s)
	if d.big == nil && e.big == nil {
		if sum := d.small + e.small; (sum > d.small) == (e.small > 0) {
			return &Decimal{small: sum, scale: s}
		}
	}
	return decimal(new(big.Int).Add(d.n(), e.n()), s)
}

func (d *Decimal) neg() *Decimal {
	if d.big == nil && d.small != math.MinInt64 {
		return &Decimal{small: -d.small, scale: d.scale}
	}
	return decimal(new(big.Int).Neg(d.n()), d.scale)
}

func (d *Decimal) mul(e *Decimal) *Decimal {
	if d.big == nil && e.big == nil {
		if n, ok := times(d.small, e.small); ok {
			return &Decimal{small: n, scale: d.scale + e.scale}
		}
	}
	return decimal(new(big.Int).Mul(d.n(), e.n()), d.scale+e.scale)
}

func (d *Decimal) cmp(e *Decimal) int {
	s := max(d.scale, e.scale)
	d, e = d.at(s), e.at(s)
	if d.big == nil && e.big == nil {
		return cmp.Compare(d.small, e.small)
	}
	return d.n().Cmp(e.n())
}

// modes of rounding: what is done with the part that is cut off.
var modes = map[string]func(sign, half int, odd bool) bool{
	"half_even": func(_, half int, odd bool) bool { return half > 0 || half == 0 && odd },
	"half_up":   func(_, half int, _ bool) bool { return half >= 0 },
	"half_down": func(_, half int, _ bool) bool { return half > 0 },
	"up":        func(int, int, bool) bool { return true },
	"down":      func(int, int, bool) bool { return false },
	"ceiling":   func(sign, _ int, _ bool) bool { return sign > 0 },
	"floor":     func(sign, _ int, _ bool) bool { return sign < 0 },
}

func modeNames() []string {
	return []string{"half_even", "half_up", "half_down", "up", "down", "ceiling", "floor"}
}

func checkMode(mode string) error {
	if modes[mode] != nil {
		return nil
	}
	if near := config.Nearest(mode, modeNames()); near != "" {
		return fmt.Errorf("%q is no mode of rounding; did you mean %q?", mode, near)
	}
	return fmt.Errorf("%q is no mode of rounding: want one of %s", mode, strings.Join(modeNames(), ", "))
}

// maxScale bounds the digits after the point that may be asked for.
const maxScale = 100

func checkScale(scale int64) error {
	if scale < 0 || scale > maxScale {
		return fmt.Errorf("%d digits after the point: want 0 to %d", scale, maxScale)
	}
	return nil
}

// quotient is num/den rounded once, to an integer. den is not 0.
func quotient(num, den *big.Int, mode string) *big.Int {
	q, rest := new(big.Int).QuoRem(num, den, new(big.Int))
	if rest.Sign() == 0 {
		return q
	}
	sign := num.Sign() * den.Sign()
	half := new(big.Int).Lsh(rest.Abs(rest), 1).Cmp(new(big.Int).Abs(den))
	if modes[mode](sign, half, q.Bit(0) == 1) {
		q.Add(q, big.NewInt(int64(sign)))
	}
	return q
}

// smallQuotient is the same of small numbers, den above 0 and below 2^62.
func smallQuotient(num, den int64, mode string) int64 {
	q, rest := num/den, num%den
	if rest == 0 {
		return q
	}
	sign := 1
	if num < 0 {
		sign, rest = -1, -rest
	}
	if modes[mode](sign, cmp.Compare(2*rest, den), q&1 != 0) {
		q += int64(sign)
	}
	return q
}

// round gives exactly scale digits after the point.
func (d *Decimal) round(scale int, mode string) *Decimal {
	down := d.scale - scale
	switch {
	case down <= 0:
		return d.at(scale)
	case d.big == nil && down < len(powers):
		return &Decimal{small: smallQuotient(d.small, powers[down], mode), scale: scale}
	}
	return decimal(quotient(d.n(), pow10(down), mode), scale)
}

// div is d/e, rounded once to scale digits after the point. e is not 0.
func (d *Decimal) div(e *Decimal, scale int, mode string) *Decimal {
	num, den := d.n(), e.n()
	if up := scale + e.scale - d.scale; up >= 0 {
		num = new(big.Int).Mul(num, pow10(up))
	} else {
		den = new(big.Int).Mul(den, pow10(-up))
	}
	return decimal(quotient(num, den, mode), scale)
}

// int64 is the number when it is whole and fits.
func (d *Decimal) int64() (int64, bool) {
	q, rest := new(big.Int).QuoRem(d.n(), pow10(d.scale), new(big.Int))
	return q.Int64(), rest.Sign() == 0 && q.IsInt64()
}
