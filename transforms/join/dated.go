// Dated: who depends on a row that is in force on some days. A rate from July on is
// told to the entries since July, not to all that a person ever booked.

package join

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/pipeline/state"
)

// dayOctets stand before the key of each member of a dated index: its day, so that
// members are in the order of their days.
const dayOctets = 4

// isDated says whether those who depend on a reference stand in the order of the days
// on which they look.
func (f *ref) isDated() bool { return f.root < 0 && f.by.day >= 0 }

// appendDay appends a day as members have it; one that is farther away than 5 million
// years is the last or the first.
func appendDay(dst []byte, day int64) []byte {
	day = min(max(day, math.MinInt32), math.MaxInt32)
	return binary.BigEndian.AppendUint32(dst, uint32(day-math.MinInt32))
}

// dayIn is the day of a row's column; false: it says none, and nothing is in force.
func dayIn(v change.Value) (int64, bool) {
	if v.Kind() != change.Date && v.Kind() != change.Timestamp {
		return 0, false
	}
	return dayOf(v), true
}

// span is days, from the first to the last; none where the last is before the first.
type span struct{ first, last int64 }

var always, never = span{math.MinInt64, math.MaxInt64}, span{0, -1}

func (s span) none() bool { return s.last < s.first }

// hull is the shortest span that holds two.
func (s span) hull(o span) span {
	switch {
	case s.none():
		return o
	case o.none():
		return s
	}
	return span{min(s.first, o.first), max(s.last, o.last)}
}

// bounds are what the members of these days lie between that come after one, as
// ZRANGEBYLEX has them.
func (s span) bounds(after string) (from, to string) {
	from, to = "-", "+"
	if s.first > math.MinInt32 {
		from = "[" + string(appendDay(nil, s.first))
	}
	if s.last < math.MaxInt32 {
		to = "(" + string(appendDay(nil, s.last+1))
	}
	if after != "" {
		from = "(" + after
	}
	return from, to
}

// days are those on which a row may be found; none where there is no row.
func (f *inForce) days(row []change.Value) span {
	if row == nil {
		return never
	}
	return span{f.first(row), f.last(row)}
}

// affected are the days on which others may find something else by a reference, after
// a row was this and is that now; without values: it was not there, or is not. Where
// its end alone is another, they lie between the two ends.
func (f *ref) affected(b *change.Batch, was, now keptRow) span {
	x := f.inForce
	a, z := x.days(was.vals), x.days(now.vals)
	if was.vals == nil || now.vals == nil || was.shape != now.shape || a.none() || z.none() ||
		!bytes.Equal(state.AppendRow(nil, b, was.vals, x.others), state.AppendRow(nil, b, now.vals, x.others)) {
		return a.hull(z)
	}
	return span{min(a.last, z.last) + 1, max(a.last, z.last)}
}

// endsOnly finds, of each reference that is in force on some days, the columns that may
// not differ where its end alone does: all others, and the end where it is read too.
func (c *ruleCompiler) endsOnly() {
	read := map[string]bool{} // "LOOKUP.NAME", by whomever
	for _, u := range c.r.Uses {
		read[u] = true
	}
	for _, r := range c.p.refs {
		if r.root >= 0 {
			of := c.p.refs[r.root]
			for _, i := range r.on.cols {
				read[of.name+"."+c.p.sides[of.side].cols[i]] = true
			}
		}
		for _, p := range []*expr.Program{r.where, r.until, r.agree} {
			if p == nil {
				continue
			}
			for _, v := range p.Vars {
				if col, own := strings.CutPrefix(v, "ref."); own {
					v = r.name + "." + col
				}
				read[v] = true
			}
		}
	}
	for _, r := range c.p.refs {
		if r.inForce == nil {
			continue
		}
		for i, name := range c.p.sides[r.side].cols {
			if i != r.inForce.to || i == r.inForce.from || read[r.name+"."+name] {
				r.inForce.others = append(r.inForce.others, i)
			}
		}
	}
}
