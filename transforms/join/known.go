// Known: what was committed of each reference. A change that leaves alone what
// others use of it is told to nobody (rule D1: judged by state of the third kind,
// never by what an aborted transaction may have left).

package join

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

// knownForm begins each value: the form of the rest. Those of rows have knownRow,
// or knownForm where the groups of their row are not told, as they were at first.
const (
	knownForm = 1
	knownRow  = 2
)

// head begins the values of a side's rows: another head, other columns, another
// topic under this name, or from before records that were passed over.
func (s *side) head(t *change.Topic, gaps uint32) []byte {
	h := fnv.New32a()
	fmt.Fprint(h, s.cols, t.ID, gaps)
	return h.Sum([]byte{knownRow})
}

// headSize is what a head takes, in octets.
const headSize = 5

func knownKey(topic, key string) string { return "r" + topic + "\x00" + key }

// wholeKey is there when all records of a topic's partition were seen: a row that is
// not known was not there.
func wholeKey(topic string) string { return "w" + topic }

// nextKey is that of the offset up to which a topic's partition is known: what lies
// below it is a replay, but for what was parked.
func nextKey(t *change.Topic) string { return "n" + t.Name + "\x00" + string(t.ID[:]) }

// reached is how far a partition is known.
type reached struct {
	of   *change.Topic
	next int64  // the offset up to which it is
	gaps uint32 // how often records were passed over, by whom who knows
}

func (r *Right) reached(t *change.Topic, part int32) reached {
	at := reached{of: t}
	if v := r.table.Get(part, nextKey(t)); len(v) == 13 && v[0] == knownForm {
		at.next, at.gaps = int64(binary.BigEndian.Uint64(v[1:])), binary.BigEndian.Uint32(v[9:])
	}
	return at
}

// reach notes that a range is known, and gives how far it was before. Where others
// have read in between, such as a version that does not keep what is known, nothing
// of before counts any more; nor where all is read again under lookups that find rows
// by something new.
func (r *Right) reach(ctx context.Context, g change.Range) (reached, error) {
	at := r.reached(g.Topic, g.Partition)
	switch anew, err := r.notes(ctx, g, at); {
	case err != nil:
		return at, err
	case anew:
		at.next = 0
		at.gaps++
	}
	switch {
	case g.From == 0:
		if err := r.table.Put(g.Partition, wholeKey(g.Topic.Name), []byte{knownForm}); err != nil {
			return at, err
		}
	case g.From > at.next:
		at.gaps++
		if err := r.table.Put(g.Partition, wholeKey(g.Topic.Name), nil); err != nil {
			return at, err
		}
	}
	if g.To <= at.next {
		return at, nil
	}
	v := binary.BigEndian.AppendUint64([]byte{knownForm}, uint64(g.To))
	return at, r.table.Put(g.Partition, nextKey(g.Topic), binary.BigEndian.AppendUint32(v, at.gaps))
}

// groupsKey is that of the groups that are known of each row of a topic's partition
// that was ever read: their names, and the numbers that they have in its rows.
func groupsKey(topic string) string { return "g" + topic }

// noted are those groups, in order of their numbers; false: they were not noted.
func (r *Right) noted(topic string, part int32) ([]string, bool) {
	v := r.table.Get(part, groupsKey(topic))
	switch {
	case v == nil:
		return nil, false
	case len(v) == 1:
		return nil, true
	}
	return strings.Split(string(v[1:]), "\x00"), true
}

// notes makes sure that the groups of each row are known that was read up to a range:
// a row that is deleted, or moves, is told to those who found it, and only what is
// known says who they are. anew: the range begins at the start, where they were not.
func (r *Right) notes(ctx context.Context, g change.Range, at reached) (anew bool, err error) {
	side := r.sideOf(g.Topic.Name)
	if side < 0 {
		return false, nil
	}
	names, is := r.noted(g.Topic.Name, g.Partition)
	var more []string
	for _, x := range r.plan.sides[side].groups {
		if !slices.Contains(names, x.name) {
			more = append(more, x.name)
		}
	}
	switch {
	case is && len(more) == 0:
		return false, nil
	case !is && at.next > 0: // each row was kept with what its groups are made of
	default:
		start, err := r.topics.StartOf(ctx, g.Topic, g.Partition)
		if err != nil {
			return false, err
		}
		if anew = g.From <= start; !anew && len(more) > 0 { // who names a key is known of each row
			group := r.plan.name + RightSuffix
			return false, ErrUnseen.New("partition %d of topic %s starts at offset %d, which %s had passed when lookups began to find its rows by %s", g.Partition, g.Topic.Name, start, group, strings.Join(more, ", ")).
				WithRemedy("Have it read its topics from the start: tallywire replay %s --yes. Nothing is lost meanwhile.", group)
		}
	}
	return anew, r.table.Put(g.Partition, groupsKey(g.Topic.Name), append([]byte{knownForm}, strings.Join(append(names, more...), "\x00")...))
}

// inGroup is the name of a group that a row is in; is: it is in one.
type inGroup struct {
	name string
	is   bool
}

// appendGroups appends the groups of a row, with their numbers.
func (r *Right) appendGroups(dst []byte, b *change.Batch, side int, row keptRow, names []string) []byte {
	groups := r.plan.sides[side].groups
	dst = binary.AppendUvarint(dst, uint64(len(groups)))
	for _, x := range groups {
		number := uint64(slices.Index(names, x.name)) << 1
		name, is := x.by.append(nil, b, row.vals)
		if is {
			number |= 1
		}
		dst = appendSpan(binary.AppendUvarint(dst, number), string(name))
	}
	return dst
}

// readGroups are the groups of the row that a value tells of, in the order of the
// side's; rest is the row. Those that it does not tell of, it is not in.
func (r *Right) readGroups(v []byte, side int, names []string) (out []inGroup, rest []byte, ok bool) {
	n, size := binary.Uvarint(v)
	if size <= 0 {
		return nil, nil, false
	}
	groups := r.plan.sides[side].groups
	out = make([]inGroup, len(groups))
	for v = v[size:]; n > 0; n-- {
		number, size := binary.Uvarint(v)
		if size <= 0 || number>>1 >= uint64(len(names)) {
			return nil, nil, false
		}
		name, after, ok := text(v[size:])
		if !ok {
			return nil, nil, false
		}
		if i := slices.IndexFunc(groups, func(x *index) bool { return x.name == names[number>>1] }); i >= 0 {
			out[i] = inGroup{name, number&1 == 1}
		}
		v = after
	}
	return out, v, true
}

// before are the groups of a row as it was committed, and its row if it was kept under
// this head, which begins with knownRow; false: the value has another form.
func (r *Right) before(b *change.Batch, side int, v, head []byte, names []string) (out []inGroup, row []byte, ok bool) {
	if len(v) < headSize {
		return nil, nil, false
	}
	switch v[0] {
	case knownRow:
		if out, row, ok = r.readGroups(v[headSize:], side, names); !ok {
			return nil, nil, false
		}
		if string(v[:headSize]) != string(head) {
			row = nil
		}
		return out, row, true
	case knownForm: // the row says its groups, where it is still kept so
		if string(v[1:headSize]) != string(head[1:]) {
			return nil, nil, true
		}
		was, ok := r.plan.sides[side].read(b, string(v[headSize:]))
		for _, x := range r.plan.sides[side].groups {
			name, is := x.by.append(nil, b, was.vals)
			out = append(out, inGroup{string(name), is})
		}
		return out, v[headSize:], ok
	}
	return nil, nil, false
}

func outside(ranges []change.Range, c *change.Change) bool {
	return !slices.ContainsFunc(ranges, func(r change.Range) bool {
		return r.Topic == c.Coord.Topic && r.Partition == c.Coord.Partition && r.From <= c.Coord.Offset && c.Coord.Offset < r.To
	})
}

// rebuiltKey is that of which rebuild a topic's partition was seen of last, and up
// to which offset all is told since.
//
// A rebuild reads what compaction has left: a row of which a newer version lies
// beyond the committed offset may be missing from it, and those who look it up
// wait for what was committed long ago. When the newer one comes it is news to
// them, though it says nothing new.
func rebuiltKey(topic string) string { return "e" + topic }

// until gives the offset below which each record of a partition is told.
func (r *Right) until(ctx context.Context, t *change.Topic, part int32) (int64, error) {
	at := slices.IndexFunc(r.states, func(s *state.Store) bool { return s.Topic() == t.Name })
	if at < 0 {
		return math.MaxInt64, nil // not kept here
	}
	epoch := r.states[at].Epoch(t, part)
	if v := r.table.Get(part, rebuiltKey(t.Name)); len(v) > 9 && v[0] == knownForm && string(v[9:]) == epoch {
		return int64(binary.BigEndian.Uint64(v[1:])), nil
	}
	end, err := r.topics.EndOf(ctx, t, part)
	if err != nil {
		return 0, err
	}
	v := binary.BigEndian.AppendUint64([]byte{knownForm}, uint64(end))
	return end, r.table.Put(part, rebuiltKey(t.Name), append(v, epoch...))
}

// again says whether a partition is read again that was kept already, and not committed:
// rows of then may have been seen, and compaction may have taken them from the topic
// since, so that what is known does not say who saw them.
func (r *Right) again(in *change.Batch, at change.Coord, kept *state.Store) bool {
	applied := kept.Applied(at.Topic, at.Partition)
	return slices.ContainsFunc(in.Ranges, func(g change.Range) bool {
		return g.Topic == at.Topic && g.Partition == at.Partition && g.From < applied
	})
}

// known compares each change with what was committed of its row, notes what is to
// be committed now, and gives who must be told. A side of −1 is left out; a row
// that cannot be remembered is rejected, and its side becomes −1. before gets the
// groups that each was in, as that was committed.
func (r *Right) known(ctx context.Context, in *change.Batch, keys []string, sides []int, rows []keptRow, before [][]inGroup, reject func(*change.Change, error)) ([]dep, error) {
	want := map[int32][]string{}
	for _, g := range in.Ranges {
		want[g.Partition] = append(want[g.Partition], nextKey(g.Topic), wholeKey(g.Topic.Name), rebuiltKey(g.Topic.Name), groupsKey(g.Topic.Name))
	}
	for i := range in.Changes {
		c := &in.Changes[i]
		if sides[i] >= 0 {
			p := c.Coord.Partition
			want[p] = append(want[p], restKey, nextKey(c.Coord.Topic), wholeKey(c.Table.Topic), rebuiltKey(c.Table.Topic), groupsKey(c.Table.Topic), knownKey(c.Table.Topic, keys[i]))
		}
	}
	if err := r.table.Fetch(ctx, want); err != nil {
		return nil, err
	}
	ranged := map[place]reached{}
	for _, g := range in.Ranges {
		was, err := r.reach(ctx, g)
		if err != nil {
			return nil, err
		}
		if at := (place{t: g.Topic, part: g.Partition}); ranged[at].of == nil { // not its second range
			ranged[at] = was
		}
	}
	seen := map[[2]string]int{}
	var deps []dep
	var at reached
	var last change.Coord
	var until int64
	var again bool
	var head []byte
	var names []string
	for i := range in.Changes {
		c := &in.Changes[i]
		if sides[i] < 0 {
			continue
		}
		if c.Coord.Topic != last.Topic || c.Coord.Partition != last.Partition {
			var err error
			if until, err = r.until(ctx, c.Coord.Topic, c.Coord.Partition); err != nil {
				return nil, err
			}
			last, at = c.Coord, ranged[place{t: c.Coord.Topic, part: c.Coord.Partition}]
			if at.of == nil { // what was parked, alone
				at = r.reached(c.Coord.Topic, c.Coord.Partition)
				if _, err := r.notes(ctx, change.Range{Topic: c.Coord.Topic, Partition: c.Coord.Partition, From: c.Coord.Offset, To: c.Coord.Offset}, at); err != nil {
					return nil, err
				}
			}
			again = r.again(in, c.Coord, r.states[sides[i]])
			names, _ = r.noted(c.Coord.Topic.Name, c.Coord.Partition)
			head = r.plan.sides[sides[i]].head(c.Coord.Topic, at.gaps)
		}
		s, part, key := sides[i], c.Coord.Partition, knownKey(c.Table.Topic, keys[i])
		was := r.table.Get(part, key)
		whole := was != nil || r.table.Get(part, wholeKey(c.Table.Topic)) != nil
		var row []byte
		if was != nil {
			var ok bool
			if before[i], row, ok = r.before(in, s, was, head, names); !ok {
				return nil, state.ErrForm.New("a row of %s is known in form %x in partition %d of topic %s", c.Table.Topic, was[0], part, r.table.Topic().Name)
			}
			whole = row != nil
		}
		replayed := c.Coord.Offset < at.next && !outside(in.Ranges, c)
		whole = whole && !replayed && !again && c.Coord.Offset >= until
		var now []byte
		same := was == nil
		if c.Op != change.Delete {
			now = r.appendGroups(slices.Clip(head), in, s, rows[i], names)
			n := len(now)
			now = r.plan.sides[s].append(now, in, rows[i])
			same = row != nil && bytes.Equal(row, now[n:])
		}
		if whole && same {
			continue
		}
		// What is known does not go back with a replay, which tells all the same.
		if !replayed {
			if err := r.table.Put(part, key, now); err != nil {
				if pipeline.Classify(err) != problem.Reject {
					return nil, err
				}
				reject(c, err)
				sides[i] = -1
				continue
			}
		}
		var had keptRow
		if whole && row != nil {
			var ok bool
			if had, ok = r.plan.sides[s].read(in, string(row)); !ok {
				whole = false
			}
		}
		for _, f := range r.plan.refs {
			if f.side != s {
				continue
			}
			days := always
			if whole && f.isDated() {
				if days = f.affected(in, had, rows[i]); days.none() {
					continue
				}
			}
			for _, v := range r.named(f, in, keys[i], before[i], rows[i]) {
				if j, is := seen[[2]string{f.name, v}]; is {
					deps[j].origin, deps[j].days = i, deps[j].days.hull(days)
					continue
				}
				seen[[2]string{f.name, v}] = len(deps)
				deps = append(deps, dep{f, v, days, i})
			}
		}
	}
	return deps, nil
}
