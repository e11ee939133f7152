// The right group: keeps references, and tells the left rows that depend on
// them.

package join

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	twredis "github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

const (
	// pageSize and pages bound what is read of dependents at once: so many
	// keys, of so many references. What was read is sent before more is.
	pageSize = 512
	pages    = 16
)

// Right applies changes of references.
type Right struct {
	*join
	states []*state.Store // parallel to plan.sides
	cols   []columns
	table  *state.Table // what was committed of each reference, and who is still to be told
	topics Topics
	most   int // so many are told in one transaction, about
	rests  rests
	pace   pace
	flow   func(context.Context) (Flow, error) // Options.Flow
	// patience is when more are told although the left group has enough to do.
	patience time.Duration
}

// Stores is for the engine.
func (r *Right) Stores() []*state.Store { return r.states }

// State is what it reads and writes, for the engine.
func (r *Right) State() *state.Table { return r.table }

// Restore keeps what had been applied, and tells nobody.
func (r *Right) Restore(ctx context.Context, in *change.Batch) error {
	defer in.Release()
	_, err := r.write(ctx, in, true, func(*change.Change, error) {})
	return err
}

// Apply keeps the references, then sends a refresh record for each left row
// that depends on them, if what it depends on changed: of that which was
// committed, so that a redo after an abort tells too (D1).
func (r *Right) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	defer in.Release()
	if r.allKept != nil {
		if err := r.allKept(ctx); err != nil {
			return err
		}
	}
	deps, err := r.write(ctx, in, false, out.Reject)
	if err != nil {
		return err
	}
	// Written, and the answer is here: now who depends on it (invariant 8).
	return r.tell(ctx, in, deps, out)
}

// dep is a value by which others refer to something that changed.
type dep struct {
	ref    *ref
	value  string
	days   span // of a dated reference: those that matter
	origin int  // the change that it came from
}

// write keeps the rows, in order of their records, and gathers who must be told.
func (r *Right) write(ctx context.Context, in *change.Batch, restoring bool, reject func(*change.Change, error)) ([]dep, error) {
	keys := make([]string, in.Len())
	sides := make([]int, in.Len())
	rows := make([]keptRow, in.Len())
	var buf []byte
	for i := range in.Changes {
		c := &in.Changes[i]
		s := r.sideOf(c.Table.Topic)
		if s < 0 {
			return nil, ErrColumns.New("a record of topic %s, which %s does not look up", c.Table.Topic, r.plan.name)
		}
		buf = change.AppendKey(buf[:0], in, c)
		keys[i], sides[i] = string(buf), s
		if c.Op != change.Delete {
			var err error
			if rows[i], err = r.plan.sides[s].take(in, c, &r.cols[s]); err != nil {
				return nil, err
			}
			if rows[i].vals == nil {
				sides[i] = -1
				continue
			}
		}
	}
	var deps []dep
	was := make([][]inGroup, in.Len())
	if !restoring {
		var err error
		if deps, err = r.known(ctx, in, keys, sides, rows, was, reject); err != nil {
			return nil, err
		}
	}
	err := state.Apply(ctx, r.states, in, restoring, func(p redis.Pipeliner, fresh func(*change.Change) bool) error {
		type row struct {
			side int
			key  string
		}
		last := map[row]int{}
		for i := range in.Changes {
			if sides[i] >= 0 && fresh(&in.Changes[i]) {
				last[row{sides[i], keys[i]}] = i
			}
		}
		q := newWriter(ctx, p)
		for k, i := range last {
			c := &in.Changes[i]
			st, s := r.states[k.side], r.plan.sides[k.side]
			at := st.RowsKey(c.Coord.Topic, c.Coord.Partition)
			r.leaveGroups(q, st, in, c, k.side, k.key, was[i], rows[i])
			if c.Op == change.Delete {
				q.put("HDEL", at, k.key)
				continue
			}
			buf = s.append(buf[:0], in, rows[i])
			q.put("HSET", at, k.key, string(buf))
			for _, ix := range s.indexed {
				var named bool
				if buf, named = ix.by.append(buf[:0], in, rows[i].vals); !named {
					continue
				}
				if member, found := ix.member(in, k.key, rows[i].vals); found {
					q.index(q.command("ZADD", st.IndexKey(c.Coord.Topic, ix.name, string(buf))), member)
				}
			}
		}
		q.flush()
		return nil
	})
	return deps, err
}

// leaveGroups takes a row that is gone, or is of another group now, out of the
// groups that its date decides in: they are read whole, so rows that are replaced
// every night would make each lookup slower than the one before. What was committed
// of the row tells the group; only the owner of the key's partition writes it (D1).
func (r *Right) leaveGroups(q *writer, st *state.Store, b *change.Batch, c *change.Change, side int, key string, was []inGroup, now keptRow) {
	for i, x := range r.plan.sides[side].groups {
		if i >= len(was) || !was[i].is {
			continue
		}
		if to, named := x.by.append(nil, b, now.vals); named && string(to) == was[i].name {
			continue
		}
		q.put("ZREM", st.IndexKey(c.Coord.Topic, x.name, was[i].name), key)
	}
}

func (r *Right) sideOf(topic string) int {
	for i, s := range r.plan.sides {
		if s.topic == topic {
			return i
		}
	}
	return -1
}

// valueOf is what others name to refer to the row of a member of an index: its
// key, or its group.
func (f *ref) valueOf(member string) string {
	if f.inForce == nil {
		return member
	}
	group, _, _ := strings.Cut(member, "\x00")
	return group
}

// named are what others name to refer to a row: of a reference that its date
// chooses the group, also that of before.
func (r *Right) named(f *ref, b *change.Batch, key string, was []inGroup, now keptRow) []string {
	if f.inForce == nil {
		return []string{key}
	}
	var out []string
	if i := slices.Index(r.plan.sides[f.side].groups, f.inForce.members); i < len(was) && was[i].is {
		out = append(out, was[i].name)
	}
	if group, named := f.inForce.group.append(nil, b, now.vals); named && !slices.Contains(out, string(group)) {
		out = append(out, string(group))
	}
	return out
}

// cursor is who depends on one value, of whom some were told.
type cursor struct {
	of     *ref // by which the value is named
	value  string
	up     bool   // of a climb: by the rows that climb over it
	days   span   // of a dated reference: those that matter
	after  string // the last member that was read, "": none
	time   int64  // of the change that it came from
	xid    uint32
	origin change.Coord

	key string // of the sorted set
	ref *ref   // members are keys of this reference's topic; nil: left keys
	cmd *redis.StringSliceCmd
}

// place finds where its dependents are.
func (r *Right) place(c *cursor, read *state.ConsistentRead) {
	f := c.of
	switch {
	case c.up:
		c.ref = f
		c.key = read.IndexKey(f.side+1, f.over.name, c.value)
	case f.root < 0:
		c.key = read.IndexKey(0, f.by.name, c.value)
	default:
		c.ref = r.plan.refs[f.root]
		c.key = read.IndexKey(c.ref.side+1, f.by.name, c.value)
	}
}

// stacked are the cursors of who depends on a value, twice where a row climbs.
func stacked(stack []*cursor, c cursor) []*cursor {
	stack = append(stack, &c)
	if c.of.climbs() {
		above := c
		above.up = true
		stack = append(stack, &above)
	}
	return stack
}

// queue asks for the next page.
func (c *cursor) queue(ctx context.Context, p redis.Pipeliner) {
	days := always
	if c.dated() {
		days = c.days
	}
	from, to := days.bounds(c.after)
	c.cmd = p.ZRangeByLex(ctx, c.key, &redis.ZRangeBy{Min: from, Max: to, Count: pageSize})
}

// dated says whether members have a day before their keys.
func (c *cursor) dated() bool { return c.ref == nil && c.of.isDated() }

// page gives the members that came, and whether there may be more.
func (c *cursor) page() (members []string, more bool) {
	members = c.cmd.Val()
	if more = len(members) == pageSize; more {
		c.after = members[pageSize-1]
	}
	return members, more
}

// tell sends a refresh record for each left key that depends on what changed; what
// is more than a page of work is left for later (Rest).
func (r *Right) tell(ctx context.Context, in *change.Batch, deps []dep, out pipeline.Outlet) error {
	if len(deps) == 0 {
		return nil // nothing was read that others could have changed meanwhile
	}
	var stack []*cursor
	for _, d := range deps {
		c := &in.Changes[d.origin]
		stack = stacked(stack, cursor{of: d.ref, value: d.value, days: d.days, time: c.Time, xid: c.XID, origin: c.Coord})
	}
	left, _, err := r.pages(ctx, stack, r.most, out)
	if err != nil {
		return err
	}
	if err := r.leave(left); !problem.Has(err, state.ErrTooLarge) {
		return err
	}
	return r.all(ctx, left, out)
}

// pages goes through dependents, depth first, so that what is held does not grow
// with their number, until about most were told. It gives what is left, and how many
// were told. An error: nothing of it counts.
func (r *Right) pages(ctx context.Context, stack []*cursor, most int, out pipeline.Outlet) (left []*cursor, n int, err error) {
	read, err := state.NewConsistentRead(ctx, append([]*state.Reader{r.leftReader}, r.sideReaders...)...)
	if err != nil {
		return nil, 0, err
	}
	for i := range r.plan.sides {
		if !r.plan.between(i) {
			read.Only(i+1, nil) // nothing is read of it here
		}
	}
	type name struct {
		of, value string
		up        bool
	}
	told := map[name]bool{}
	note := func(c *cursor) bool {
		k := name{c.of.name, c.value, c.up}
		was := told[k]
		told[k] = true
		return !was
	}
	for _, c := range stack {
		note(c)
		r.place(c, read)
	}
	p := r.rdb.Pipeline()
	read.Begin(ctx, p)
	for len(stack) > 0 && n < most {
		top := append([]*cursor(nil), stack[max(0, len(stack)-pages):]...)
		stack = stack[:len(stack)-len(top)]
		for _, c := range top {
			c.queue(ctx, p)
		}
		if _, err := p.Exec(ctx); err != nil {
			return nil, 0, twredis.Classify("reading who depends on a reference", err)
		}
		p = r.rdb.Pipeline()
		b := change.Get()
		for _, c := range top {
			keys, more := c.page()
			if more {
				stack = append(stack, c)
			}
			for _, key := range keys {
				if c.ref == nil {
					if c.dated() {
						key = key[dayOctets:]
					}
					r.refresh(b, key, c)
					n++
					continue
				}
				for _, d := range stacked(nil, cursor{of: c.ref, value: c.ref.valueOf(key), days: always, time: c.time, xid: c.xid, origin: c.origin}) {
					if note(d) {
						r.place(d, read)
						stack = append(stack, d)
					}
				}
			}
		}
		if err := out.Send(ctx, b); err != nil {
			return nil, 0, err
		}
	}
	read.End(ctx, p)
	if _, err := p.Exec(ctx); err != nil {
		return nil, 0, twredis.Classify("reading who depends on a reference", err)
	}
	// Not known for certain: the transaction is given up with what was sent.
	return stack, n, read.Err()
}

func (r *Right) refresh(b *change.Batch, key string, from *cursor) {
	row := b.Row(len(r.plan.refresh.Columns))
	row[0] = b.SpanString(change.String, key)
	c := b.Append(r.plan.refresh, change.Update)
	c.New, c.Time, c.XID, c.Coord = row, from.time, from.xid, from.origin
}
