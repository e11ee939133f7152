// lookup: finding the rows that left rows refer to, in few round trips: one per
// hop, whatever the number of rows. What several rows refer to is read once.

package join

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	twredis "github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/pipeline/state"
)

// perCommand bounds the fields of one command, so that no single one holds up
// the server.
const perCommand = 512

// refRow is a row that was asked for; row is nil when it is missing.
type refRow struct {
	key  string
	row  []change.Value
	of   *shape       // of a source's row
	read bool         // it was asked for, and the answer is here
	fits map[int]bool // by reference with a condition: whether it holds
}

// group holds the rows among which the date decides, latest first.
type group struct {
	key     string
	members []*refRow
	sorted  bool
}

// item is one left row to be evaluated.
type item struct {
	at    int    // index of its change in the batch, −1: none
	key   string // canonical key
	part  int32  // partition of the left topic
	left  keptRow
	rows  []*refRow // per reference; of one in force by date, set by evaluate; of one that climbs, where it stands
	grps  []*group  // per reference that is in force by date
	waits bool      // evaluated: something is missing

	climbs map[int]*climb // per reference that climbs
	bad    error          // a condition that has no value
	done   int            // so many references are settled
}

// lookup is the work of one Apply. Rows live in the memory of b.
type lookup struct {
	p      *plan
	rdb    *redis.Client
	from   *state.ConsistentRead // readers: left, then sides
	b      *change.Batch
	rows   []map[string]*refRow // per side
	groups []map[string]*group  // per reference
	text   []byte
	group  []byte // a name that is compared
	bad    error  // a row in Redis that is not what was written
	scope  scope  // what conditions run on
}

func newLookup(p *plan, rdb *redis.Client, from *state.ConsistentRead, b *change.Batch) *lookup {
	l := &lookup{p: p, rdb: rdb, from: from, b: b, rows: make([]map[string]*refRow, len(p.sides)), groups: make([]map[string]*group, len(p.refs))}
	for i := range l.rows {
		l.rows[i] = map[string]*refRow{}
	}
	for i, r := range p.refs {
		if r.inForce != nil {
			l.groups[i] = map[string]*group{}
		}
	}
	return l
}

// fetch is the rows that the next pipeline asks for.
type fetch struct {
	rows   [][]*refRow // per side
	groups [][]*group  // per reference
}

// run finds the own rows of those items that have none, then all references.
// Only after it returned nil may a nil row be taken as missing.
func (l *lookup) run(ctx context.Context, items []*item) error {
	p := l.rdb.Pipeline()
	l.from.Begin(ctx, p)
	own := l.fetchOwn(ctx, p, items)
	if len(own) > 0 {
		if err := l.exec(ctx, p); err != nil {
			return err
		}
		l.takeOwn(own, items)
		p = l.rdb.Pipeline()
	}
	for round := 1; round <= l.p.rounds; round++ {
		// A climb goes on for as many hops as the highest of them has.
		for ask := l.wanted(items, round); ask != nil; ask = l.climb(items, round) {
			take := l.queue(ctx, p, ask)
			if round == l.p.rounds {
				l.from.End(ctx, p) // the last of them counts
			}
			if err := l.exec(ctx, p); err != nil {
				return err
			}
			take()
			p = l.rdb.Pipeline()
		}
	}
	if err := l.from.Err(); err != nil {
		return err
	}
	return l.bad
}

func (l *lookup) exec(ctx context.Context, p redis.Pipeliner) error {
	if _, err := p.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return twredis.Classify("looking up references", err)
	}
	return nil
}

// ownFetch is a fetch of left rows.
type ownFetch struct {
	cmd   *redis.SliceCmd
	items []*item
}

func (l *lookup) fetchOwn(ctx context.Context, p redis.Pipeliner, items []*item) []ownFetch {
	by := map[int32][]*item{}
	for _, it := range items {
		if it.left.vals == nil {
			by[it.part] = append(by[it.part], it)
		}
	}
	var out []ownFetch
	for part, its := range by {
		for some := range slices.Chunk(its, perCommand) {
			fields := make([]string, len(some))
			for i, it := range some {
				fields[i] = it.key
			}
			out = append(out, ownFetch{p.HMGet(ctx, l.from.RowsKey(0, part), fields...), some})
		}
	}
	return out
}

func (l *lookup) takeOwn(asks []ownFetch, items []*item) {
	for _, a := range asks {
		for i, v := range a.cmd.Val() {
			if s, ok := v.(string); ok {
				a.items[i].left = l.read(s, l.p.left)
			}
		}
	}
}

func (l *lookup) read(s string, of *side) keptRow {
	row, ok := of.read(l.b, s)
	if !ok {
		l.bad = state.ErrLost.New("a kept row of %s cannot be read", of.topic)
		return keptRow{}
	}
	return row
}

func (l *lookup) newFetch() *fetch {
	return &fetch{rows: make([][]*refRow, len(l.p.sides)), groups: make([][]*group, len(l.p.refs))}
}

// any says whether anything is asked.
func (a *fetch) any() bool {
	return slices.ContainsFunc(a.rows, func(rs []*refRow) bool { return len(rs) > 0 }) || slices.ContainsFunc(a.groups, func(gs []*group) bool { return len(gs) > 0 })
}

// wanted finds what the items need in this round and was not asked yet.
func (l *lookup) wanted(items []*item, round int) *fetch {
	a := l.newFetch()
	for _, r := range l.p.refs {
		switch {
		case r.inForce == nil && r.round == round:
			for _, it := range items {
				if key, ok := l.on(it, r); ok {
					it.rows[r.at] = l.want(a, r.side, key)
				}
			}
		case r.inForce != nil && r.round == round+1:
			for _, it := range items {
				key, ok := l.on(it, r)
				if !ok {
					continue
				}
				g := l.groups[r.at][string(key)]
				if g == nil {
					g = &group{key: string(key)}
					l.groups[r.at][g.key] = g
					a.groups[r.at] = append(a.groups[r.at], g)
				}
				it.grps[r.at] = g
			}
		case r.inForce != nil && r.round == round:
			for _, g := range l.groups[r.at] {
				for i, m := range g.members {
					g.members[i] = l.want(a, r.side, []byte(m.key))
				}
			}
		}
	}
	return a
}

// want gives the row of a key, and has it fetched if nobody asked yet.
func (l *lookup) want(a *fetch, side int, key []byte) *refRow {
	f := l.rows[side][string(key)]
	if f == nil {
		f = &refRow{key: string(key)}
		l.rows[side][f.key] = f
		a.rows[side] = append(a.rows[side], f)
	}
	return f
}

// on is the text that names the row of a reference; false when what it comes
// from is missing or null. Valid until the next call.
func (l *lookup) on(it *item, r *ref) (name []byte, ok bool) {
	row := it.left.vals
	if r.root >= 0 {
		row = l.row(it, l.p.refs[r.root])
	}
	l.text, ok = r.on.append(l.text[:0], l.b, row)
	return l.text, ok
}

// row is the row of a reference, or nil.
func (l *lookup) row(it *item, r *ref) []change.Value {
	f := it.rows[r.at]
	if r.at < it.done {
		if f == nil {
			return nil
		}
		return f.row
	}
	if f == nil && r.inForce != nil {
		f, _ = l.inForce(it, r)
	}
	if f == nil || r.climbs() && !it.climbs[r.at].arrived() || !l.fits(it, r, f) {
		return nil
	}
	return f.row
}

// inForce picks by date: from <= day and (to is null or day < to); of several
// one that agrees with the other references, then the latest from, then the
// highest key. nil: none is in force.
func (l *lookup) inForce(it *item, r *ref) (chosen *refRow, agrees bool) {
	g := it.grps[r.at]
	if it.left.vals == nil || g == nil {
		return nil, false
	}
	var day int64
	if r.inForce.at >= 0 {
		on := it.left.vals[r.inForce.at]
		if on.IsNull() {
			return nil, false
		}
		day = dayOf(on)
	}
	for _, m := range l.latest(g, r) {
		if r.inForce.at >= 0 && (day < r.inForce.first(m.row) || day > r.inForce.last(m.row)) || !l.fits(it, r, m) {
			continue
		}
		if r.agreed(l, it, m) {
			return m, true
		}
		if chosen == nil {
			chosen = m // where none agrees, it is what the row is told to disagree with
		}
	}
	return chosen, false
}

// dayOf is the day of a date, or that on which a clock without a zone shows a time.
func dayOf(v change.Value) int64 {
	if v.Kind() != change.Timestamp || v.Int() == change.PosInfinity || v.Int() == change.NegInfinity {
		return v.Int()
	}
	const day = 24 * 60 * 60 * 1_000_000
	n := v.Int() / day
	if v.Int()%day < 0 {
		n--
	}
	return n
}

// first and last are the days from and to which a row is in force.
func (f *inForce) first(row []change.Value) int64 {
	if f.from < 0 || row[f.from].IsNull() {
		return math.MinInt64
	}
	return dayOf(row[f.from])
}

func (f *inForce) last(row []change.Value) int64 {
	if f.to < 0 {
		return math.MaxInt64
	}
	switch to := row[f.to]; {
	case to.IsNull():
		return math.MaxInt64
	case to.Int() == change.NegInfinity:
		return math.MinInt64
	case f.inclusive || to.Int() == change.PosInfinity:
		return dayOf(to)
	default:
		return dayOf(to) - 1
	}
}

// latest are the members that are there, the latest first. An index may have more
// than its group has.
func (l *lookup) latest(g *group, r *ref) []*refRow {
	f := r.inForce
	if !g.sorted {
		g.members = slices.DeleteFunc(g.members, func(m *refRow) bool {
			if m.row == nil {
				return true
			}
			of, named := f.group.append(l.group[:0], l.b, m.row)
			l.group = of
			return !named || string(of) != g.key
		})
		slices.SortFunc(g.members, func(a, b *refRow) int {
			if c := cmp.Compare(f.first(b.row), f.first(a.row)); c != 0 {
				return c
			}
			return natural(b.key, a.key)
		})
		g.sorted = true
	}
	return g.members
}

// natural orders keys by their part after the last slash: as numbers when both
// are (without leading zeros), else as text.
func natural(a, b string) int {
	x, y := a[strings.LastIndexByte(a, '/')+1:], b[strings.LastIndexByte(b, '/')+1:]
	if digits(x) && digits(y) {
		if c := cmp.Compare(len(x), len(y)); c != 0 {
			return c
		}
	}
	if c := strings.Compare(x, y); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// queue puts what is asked on a pipeline; the function given back takes the
// answers after it was executed.
func (l *lookup) queue(ctx context.Context, p redis.Pipeliner, a *fetch) func() {
	type rowsFetch struct {
		cmd  *redis.SliceCmd
		rows []*refRow
		side int
	}
	type groupFetch struct {
		cmd *redis.StringSliceCmd
		g   *group
	}
	var rows []rowsFetch
	var groups []groupFetch
	for s, fs := range a.rows {
		n := l.from.Topic(s + 1).Partitions
		by := make([][]*refRow, n)
		for _, f := range fs {
			part := kafka.Partition([]byte(f.key), n)
			by[part] = append(by[part], f)
		}
		for part, fs := range by {
			for some := range slices.Chunk(fs, perCommand) {
				fields := make([]string, len(some))
				for i, f := range some {
					fields[i] = f.key
				}
				rows = append(rows, rowsFetch{p.HMGet(ctx, l.from.RowsKey(s+1, int32(part)), fields...), some, s})
			}
		}
	}
	for r, gs := range a.groups {
		if len(gs) == 0 {
			continue
		}
		s, ix := l.p.refs[r].side, l.p.refs[r].inForce.members.name
		for _, g := range gs {
			groups = append(groups, groupFetch{p.ZRangeByLex(ctx, l.from.IndexKey(s+1, ix, g.key), &redis.ZRangeBy{Min: "-", Max: "+"}), g})
		}
	}
	return func() {
		for _, q := range rows {
			for i, v := range q.cmd.Val() {
				q.rows[i].read = true
				if s, ok := v.(string); ok {
					row := l.read(s, l.p.sides[q.side])
					q.rows[i].row, q.rows[i].of = row.vals, row.shape
				}
			}
		}
		for _, q := range groups {
			for _, key := range q.cmd.Val() {
				q.g.members = append(q.g.members, &refRow{key: key})
			}
		}
	}
}
