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

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

// knownForm begins each value: the form of the rest.
const knownForm = 1

// head begins the values of a side's rows: another head, other columns, another
// topic under this name, or from before records that were passed over.
func (s *side) head(t *change.Topic, gaps uint32) []byte {
	h := fnv.New32a()
	fmt.Fprint(h, s.cols, t.ID, gaps)
	return h.Sum([]byte{knownForm})
}

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
// of before counts any more.
func (r *Right) reach(g change.Range) (reached, error) {
	at := r.reached(g.Topic, g.Partition)
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
	if r.end == nil {
		return math.MaxInt64, nil
	}
	at := slices.IndexFunc(r.states, func(s *state.Store) bool { return s.Topic() == t.Name })
	if at < 0 {
		return math.MaxInt64, nil
	}
	epoch := r.states[at].Epoch(t, part)
	if v := r.table.Get(part, rebuiltKey(t.Name)); len(v) > 9 && v[0] == knownForm && string(v[9:]) == epoch {
		return int64(binary.BigEndian.Uint64(v[1:])), nil
	}
	end, err := r.end(ctx, t, part)
	if err != nil {
		return 0, err
	}
	v := binary.BigEndian.AppendUint64([]byte{knownForm}, uint64(end))
	return end, r.table.Put(part, rebuiltKey(t.Name), append(v, epoch...))
}

// known compares each change with what was committed of its row, notes what is to
// be committed now, and gives who must be told. A side of −1 is left out; a row
// that cannot be remembered is rejected, and its side becomes −1. before gets what
// was committed of each, where that is known.
func (r *Right) known(ctx context.Context, in *change.Batch, keys []string, sides []int, rows, before []keptRow, reject func(*change.Change, error)) ([]dep, error) {
	want := map[int32][]string{}
	for _, g := range in.Ranges {
		want[g.Partition] = append(want[g.Partition], nextKey(g.Topic), wholeKey(g.Topic.Name), rebuiltKey(g.Topic.Name))
	}
	for i := range in.Changes {
		c := &in.Changes[i]
		if sides[i] >= 0 {
			p := c.Coord.Partition
			want[p] = append(want[p], restKey, nextKey(c.Coord.Topic), wholeKey(c.Table.Topic), rebuiltKey(c.Table.Topic), knownKey(c.Table.Topic, keys[i]))
		}
	}
	if err := r.table.Fetch(ctx, want); err != nil {
		return nil, err
	}
	ranged := map[place]reached{}
	for _, g := range in.Ranges {
		was, err := r.reach(g)
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
	var head []byte
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
			}
			head = r.plan.sides[sides[i]].head(c.Coord.Topic, at.gaps)
		}
		s, part, key := sides[i], c.Coord.Partition, knownKey(c.Table.Topic, keys[i])
		was := r.table.Get(part, key)
		if was != nil && was[0] != knownForm {
			return nil, state.ErrForm.New("a row of %s is known in form %x in partition %d of topic %s", c.Table.Topic, was[0], part, r.table.Topic().Name)
		}
		whole := was != nil || r.table.Get(part, wholeKey(c.Table.Topic)) != nil
		if was != nil && !bytes.HasPrefix(was, head) {
			was, whole = nil, false
		}
		if was != nil {
			var ok bool
			if before[i], ok = r.plan.sides[s].read(in, string(was[len(head):])); !ok {
				return nil, state.ErrForm.New("a row of %s is known in another form in partition %d of topic %s", c.Table.Topic, part, r.table.Topic().Name)
			}
		}
		replayed := c.Coord.Offset < at.next && !outside(in.Ranges, c)
		whole = whole && !replayed && c.Coord.Offset >= until
		var now []byte
		if c.Op != change.Delete {
			now = r.plan.sides[s].append(slices.Clip(head), in, rows[i])
		}
		if whole && bytes.Equal(was, now) {
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
		for _, f := range r.plan.refs {
			if f.side != s {
				continue
			}
			for _, v := range f.named(in, keys[i], before[i], rows[i]) {
				if j, is := seen[[2]string{f.name, v}]; is {
					deps[j].origin = i
					continue
				}
				seen[[2]string{f.name, v}] = len(deps)
				deps = append(deps, dep{f, v, i})
			}
		}
	}
	return deps, nil
}
