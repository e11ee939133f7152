// Joined: what a mapping's rule is given of a row: its columns, and those of what
// is looked up, as one wide row.

package join

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/expr"
)

// Columns of a wide row before those of the row itself.
const (
	// KeyColumn is the key of the row, which is the key of the wide row.
	KeyColumn = "?key"
	// WaitsColumn is what the row waits for; null: nothing.
	WaitsColumn = "?waits"
)

// mostHops bounds a climb.
const mostHops = 64

// joined is the layout of wide rows: key, what it waits for, the columns of the row
// by their names, then of each lookup as LOOKUP.NAME.
type joined struct {
	topic string   // that the rule reads
	known []*shape // of left, then of the sides, by their contracts; nil: a source's
	at    []int    // per lookup: where its columns begin
	n     int
	gone  *change.Table // of a row of which only the key is known
	where *expr.Program // rows for which it is false look nothing up; nil: all do

	mu     sync.Mutex
	tables map[string]*change.Table // by shapes
	id     []byte
	of     []*shape
}

// table describes wide rows of these shapes; nil: it is not known, all is null.
func (j *joined) table(p *plan, left *shape, of []*shape) *change.Table {
	t := &change.Table{Topic: j.topic, Name: j.topic, Key: []int{0}, OldFull: true}
	t.Columns = append(t.Columns,
		change.Column{Name: KeyColumn, Kind: change.String, Type: "text"},
		change.Column{Name: WaitsColumn, Kind: change.String, Type: "text", Nullable: true})
	put := func(prefix string, s *side, is *shape) {
		for i, name := range s.cols {
			c := change.Column{Nullable: true}
			if is != nil {
				c = is.cols[i]
			}
			c.Name = prefix + name
			t.Columns = append(t.Columns, c)
		}
	}
	put("", p.left, left)
	for i, r := range p.refs {
		put(r.name+".", p.sides[r.side], of[i])
	}
	return t.Index()
}

// tableOf is the table of an item's wide row.
func (j *joined) tableOf(p *plan, it *item) *change.Table {
	j.mu.Lock()
	defer j.mu.Unlock()
	shapeOf := func(k int, there bool, is *shape) *shape {
		switch {
		case !there:
			return nil
		case is == nil:
			return j.known[k]
		}
		return is
	}
	left := shapeOf(0, true, it.left.shape)
	j.of = zeroed(j.of, len(p.refs))
	of := j.of
	j.id = j.id[:0]
	number := func(s *shape) {
		switch {
		case s == nil:
			j.id = append(j.id, 0)
		default:
			j.id = binary.AppendUvarint(j.id, uint64(s.id)+1)
		}
	}
	number(left)
	for i, r := range p.refs {
		if f := it.rows[i]; f != nil && f.row != nil {
			of[i] = shapeOf(r.side+1, true, f.of)
		}
		number(of[i])
	}
	if t := j.tables[string(j.id)]; t != nil {
		return t
	}
	t := j.table(p, left, of)
	if j.tables == nil || len(j.tables) >= maxTables {
		j.tables = map[string]*change.Table{}
	}
	j.tables[string(j.id)] = t
	return t
}

// keyRow is a wide row of which only the key is known.
func (j *joined) keyRow(b *change.Batch, key string) []change.Value {
	row := b.Row(j.n)
	for i := range row {
		row[i] = change.UnchangedValue()
	}
	row[0] = b.SpanString(change.String, key)
	return row
}

// join makes c the wide row of an item.
func (l *lookup) join(it *item, c *change.Change) error {
	j, b := &l.p.joined, l.b
	reason, waits := l.settle(it)
	if it.bad != nil {
		return it.bad
	}
	row := b.Row(j.n)
	row[0] = b.SpanString(change.String, it.key)
	if waits {
		row[1] = b.Span(change.String, reason)
	}
	copy(row[2:], it.left.vals)
	for i, f := range it.rows {
		if f != nil && f.row != nil {
			copy(row[j.at[i]:], f.row)
		}
	}
	if it.waits = waits; l.p.left.placed {
		c.Pos = it.left.pos
	}
	c.Table, c.Op, c.Old, c.New = j.tableOf(l.p, it), change.Update, nil, row
	return nil
}

// settle makes the rows of an item those that the rule is given: nil where there is
// none, or none that agrees. It says what the first is that is missing.
func (l *lookup) settle(it *item) (reason []byte, waits bool) {
	say := func(format string, args ...any) {
		if !waits {
			reason, waits = fmt.Appendf(nil, format, args...), true
		}
	}
	if l.leftOut(it) {
		clear(it.rows)
		it.done = len(it.rows)
		return nil, false
	}
	it.done = 0
	for _, r := range l.p.refs {
		name, named := l.on(it, r) // until on is called again
		f, agrees := it.rows[r.at], false
		if r.inForce != nil {
			f, agrees = l.inForce(it, r)
		}
		climb := it.climbs[r.at]
		if f != nil && (f.row == nil || r.climbs() && !climb.arrived() || !l.fits(it, r, f)) {
			f = nil
		}
		it.rows[r.at] = f
		switch {
		case !named:
			if it.rows[r.at] = nil; !r.optional {
				say("%s that is not named", r.name)
			}
		case f == nil && r.absent:
		case f == nil && r.inForce != nil:
			day := ""
			if r.inForce.at >= 0 {
				day = " on a day that is not known"
				if v := it.left.vals[r.inForce.at]; !v.IsNull() {
					day = " on " + string(l.b.AppendText(nil, v))
				}
			}
			say("%s of %s %s%s", r.name, r.what, name, day)
		case f == nil && r.climbs():
			say("%s above %s%s", r.name, name, climb.why())
		case f == nil:
			say("%s %s", r.name, name)
		case !agrees && !r.agreed(l, it, f):
			it.rows[r.at] = nil
			say("%s %s, which does not agree: %s", r.name, name, r.agree.Text)
		}
		it.done++
	}
	return reason, waits
}

// leftOut says whether the rule leaves a row out, whatever it names. Where that has no
// value the rule says so.
func (l *lookup) leftOut(it *item) bool {
	p := l.p.joined.where
	if p == nil {
		return false
	}
	on := l.over(nil)
	copy(l.scope.vals[2:], it.left.vals)
	is, err := p.Holds(on)
	return err == nil && !is
}

// scope is what conditions run on: a wide row, and ref behind it.
type scope struct {
	row  expr.Row
	vals []change.Value
}

func (l *lookup) over(ref []change.Value) *expr.Row {
	n := l.p.joined.n + len(ref)
	s := &l.scope
	s.vals = slices.Grow(s.vals[:0], n)[:n]
	clear(s.vals)
	copy(s.vals[l.p.joined.n:], ref)
	s.row.Batch, s.row.Of = l.b, s.vals
	return &s.row
}

// holds evaluates a condition; one that has no value rejects the item.
func (l *lookup) holds(it *item, r *ref, key string, p *expr.Program, on *expr.Row) bool {
	is, err := p.Holds(on)
	if err != nil && it.bad == nil {
		it.bad = ErrLookup.New("%s of lookup %s, %s: it has no value for the row %q", key, r.name, p.Text, it.key).At("%s.%s", r.path, key)
	}
	return is
}

// fits says whether a row is there, by the lookup's own condition.
func (l *lookup) fits(it *item, r *ref, f *refRow) bool {
	if r.where == nil || f.row == nil {
		return true
	}
	is, known := f.fits[r.at]
	if !known {
		if is = l.holds(it, r, "where", r.where, l.over(f.row)); it.bad != nil {
			return false // and so for whoever else names it
		}
		if f.fits == nil {
			f.fits = map[int]bool{}
		}
		f.fits[r.at] = is
	}
	return is
}

// agreed says whether a row agrees with those that the lookup has to agree with.
func (r *ref) agreed(l *lookup, it *item, m *refRow) bool {
	if r.agree == nil {
		return true
	}
	j := &l.p.joined
	on := l.over(m.row)
	copy(l.scope.vals[2:], it.left.vals)
	for _, other := range r.agreeRefs {
		copy(l.scope.vals[j.at[other.at]:], l.row(it, other))
	}
	is, err := r.agree.Holds(on)
	if err != nil && it.bad == nil {
		it.bad = ErrLookup.New("%s: it has no value for the row %q", r.agree.Text, it.key).At("%s.agree", r.path)
	}
	return is
}

// climb is how far one has come up.
type climb struct {
	seen []string // keys
	at   *refRow
	end  climbEnd
}

type climbEnd uint8

const (
	goesOn climbEnd = iota
	hasArrived
	isMissing // the row that is named
	hasNoEnd  // the topmost row does not fulfil until
	isCycle
	isTooHigh
)

func (c *climb) arrived() bool { return c != nil && c.end == hasArrived }

// why says why it did not arrive.
func (c *climb) why() string {
	if c == nil {
		return ""
	}
	switch c.end {
	case isMissing:
		if len(c.seen) > 1 {
			return fmt.Sprintf(": %s is missing", c.seen[len(c.seen)-1])
		}
	case hasNoEnd:
		return ": none fulfils until"
	case isCycle:
		return fmt.Sprintf(": %s is above itself", c.seen[len(c.seen)-1])
	case isTooHigh:
		return fmt.Sprintf(": more than %d rows", mostHops)
	}
	return ""
}

// climb finds what is to be read next of those who climb in this round; nil: all
// have come to an end.
func (l *lookup) climb(items []*item, round int) *fetch {
	var a *fetch
	for _, r := range l.p.refs {
		if !r.climbs() || r.round != round {
			continue
		}
		for _, it := range items {
			f := it.rows[r.at]
			if f == nil {
				continue
			}
			c := it.climbs[r.at]
			if c == nil {
				if c = (&climb{seen: []string{f.key}, at: f}); it.climbs == nil {
					it.climbs = map[int]*climb{}
				}
				it.climbs[r.at] = c
			}
			for c.end == goesOn {
				if a == nil {
					a = l.newFetch()
				}
				if !c.at.read {
					break // it is asked for
				}
				l.step(it, r, c, a)
			}
			it.rows[r.at] = c.at
		}
	}
	if a == nil || !a.any() {
		return nil
	}
	return a
}

// step goes up by one row.
func (l *lookup) step(it *item, r *ref, c *climb, a *fetch) {
	row := c.at.row
	switch {
	case row == nil || !l.fits(it, r, c.at):
		c.end = isMissing
		return
	case r.until != nil && l.holds(it, r, "until", r.until, l.over(row)):
		c.end = hasArrived
		return
	case it.bad != nil:
		c.end = isMissing
		return
	}
	name, above := r.over.by.append(nil, l.b, row)
	key := string(name)
	switch {
	case !above && r.until != nil:
		c.end = hasNoEnd
		return
	case !above:
		c.end = hasArrived
		return
	case slices.Contains(c.seen, key):
		c.seen, c.end = append(c.seen, key), isCycle
		return
	case len(c.seen) > mostHops:
		c.end = isTooHigh
		return
	}
	c.seen = append(c.seen, key)
	c.at = l.want(a, r.side, name)
}
