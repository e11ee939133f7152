// Rest: what is left of fan-outs that are too large for one transaction. How far
// each has come is state of the third kind, and moves with the page that it is of
// (D1, A11).

package join

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

const (
	// tellAtOnce is how many left rows are told of changes in one transaction, about,
	// while others come; tellInQuiet while none do.
	tellAtOnce  = 2048
	tellInQuiet = 4 * tellAtOnce
	// aheadPages bounds how far those who tell run ahead of those who work on it, since
	// what is in the queue is read before left rows that come later.
	aheadPages = 4
	// aheadAfter is when more are told all the same: the other group may stand still, or
	// what it has not read are records of aborted transactions.
	aheadAfter = time.Second
	// askEvery is how often the other group is looked at.
	askEvery = 10 * time.Millisecond
	// quietAfter is how long no left row came where none are expected.
	quietAfter = 3 * time.Second
)

// climbing follows the name of a reference in what is left, of those who climb.
const climbing = "\x00up"

// datedForm begins what is left in a partition, with the days of each. Without them it
// has knownForm, as it had at first.
const datedForm = 2

// restKey is that of what is left in a partition.
const restKey = "t"

// rests is what is known of what is left, without looking.
type rests struct {
	owns int            // of the table, when that was seen
	is   map[int32]bool // by partition; absent: not looked at
	told map[int32]int  // since it was begun, for people
}

// pace is what is known of those who work on what is told.
type pace struct {
	at     time.Time // when some were told last
	looked time.Time
	flow   Flow      // as it was then
	came   time.Time // when left rows came last
}

// leave notes what is left, beside what was left before: of one value both, from
// where the one is that has come less far.
func (r *Right) leave(left []*cursor) error {
	by := map[int32][]*cursor{}
	for _, c := range left {
		by[c.origin.Partition] = append(by[c.origin.Partition], c)
	}
	for part, cs := range by {
		before, err := r.left(part)
		if err != nil {
			return err
		}
		for _, c := range cs {
			joined := false
			for _, b := range before {
				if b.of == c.of && b.value == c.value && b.up == c.up {
					b.after, b.days, joined = min(b.after, c.after), b.days.hull(c.days), true
				}
			}
			if !joined {
				before = append(before, c)
			}
		}
		if err := r.put(part, before); err != nil {
			return err
		}
	}
	return nil
}

// left reads what is left in a partition; its key was fetched.
func (r *Right) left(part int32) ([]*cursor, error) {
	v := r.table.Get(part, restKey)
	if v == nil {
		return nil, nil
	}
	form := func() error {
		return state.ErrForm.New("what is left to be told is written in another form in partition %d of topic %s", part, r.table.Topic().Name)
	}
	days := 0 // octets that say them
	switch v[0] {
	case knownForm:
	case datedForm:
		days = 16
	default:
		return nil, form()
	}
	var cs []*cursor
	for v = v[1:]; len(v) > 0; {
		name, rest, ok := text(v)
		value, rest, ok2 := text(rest)
		after, rest, ok3 := text(rest)
		if !ok || !ok2 || !ok3 || len(rest) < 8+days {
			return nil, form()
		}
		name, up := strings.CutSuffix(name, climbing)
		c := &cursor{value: value, up: up, after: after, days: always, time: int64(binary.BigEndian.Uint64(rest)), origin: change.Coord{Partition: part}}
		if days > 0 {
			c.days = span{int64(binary.BigEndian.Uint64(rest[8:])), int64(binary.BigEndian.Uint64(rest[16:]))}
		}
		v = rest[8+days:]
		if c.of = r.plan.ref(name); c.of == nil {
			continue // a reference that there is no more has no dependents
		}
		if days == 0 && c.of.isDated() {
			c.after = "" // members had no days: from the first
		}
		cs = append(cs, c)
	}
	return cs, nil
}

func text(p []byte) (s string, rest []byte, ok bool) {
	n, size := binary.Uvarint(p)
	if size <= 0 || n > uint64(len(p)-size) {
		return "", nil, false
	}
	return string(p[size : size+int(n)]), p[size+int(n):], true
}

// put sets what is left in a partition.
func (r *Right) put(part int32, cs []*cursor) error {
	if r.seen(); len(cs) == 0 {
		delete(r.rests.is, part) // looked at again when that is committed
		return r.table.Put(part, restKey, nil)
	}
	r.rests.is[part], r.pace.at = true, time.Now()
	v := []byte{datedForm}
	for _, c := range cs {
		name := c.of.name
		if c.up {
			name += climbing
		}
		for _, s := range []string{name, c.value, c.after} {
			v = appendSpan(v, s)
		}
		for _, n := range []int64{c.time, c.days.first, c.days.last} {
			v = binary.BigEndian.AppendUint64(v, uint64(n))
		}
	}
	return r.table.Put(part, restKey, v)
}

// seen forgets what was known when partitions have moved since.
func (r *Right) seen() {
	if r.rests.is == nil || r.rests.owns != r.table.Owns() {
		r.rests = rests{owns: r.table.Owns(), is: map[int32]bool{}, told: map[int32]int{}}
	}
}

// Rest tells a page of what is left in one of the partitions; for the engine.
func (r *Right) Rest(ctx context.Context, owned []int32, out pipeline.Outlet) (doing string, err error) {
	r.seen()
	want := map[int32][]string{}
	for _, p := range owned {
		if is, looked := r.rests.is[p]; is || !looked {
			want[p] = []string{restKey}
		}
	}
	if len(want) == 0 {
		return "", nil
	}
	if err := r.table.Fetch(ctx, want); err != nil {
		return "", err
	}
	done := false
	for _, p := range owned {
		if want[p] == nil {
			continue
		}
		cs, err := r.left(p)
		if err != nil {
			return "", err
		}
		if r.rests.is[p] = len(cs) > 0; len(cs) == 0 {
			continue
		}
		if !done { // one partition's page is one transaction
			most, err := r.room(ctx)
			if err != nil {
				return "", err
			}
			if most == 0 {
				return r.doing(p, cs[len(cs)-1]), nil
			}
			if r.allKept != nil {
				if err := r.allKept(ctx); err != nil {
					return "", err
				}
			}
			done = true
			rest, n, err := r.pages(ctx, cs, most, out)
			if err != nil {
				return "", err
			}
			r.rests.told[p] += n
			if err := r.put(p, rest); problem.Has(err, state.ErrTooLarge) {
				if rest, err = nil, r.all(ctx, rest, out); err == nil {
					err = r.put(p, nil)
				}
				if err != nil {
					return "", err
				}
			} else if err != nil {
				return "", err
			}
			if cs = rest; len(cs) == 0 {
				delete(r.rests.told, p)
				continue
			}
		}
		doing = r.doing(p, cs[len(cs)-1])
	}
	return doing, nil
}

// room is how many may be told now; 0: the left group has enough to do.
func (r *Right) room(ctx context.Context) (most int, err error) {
	if r.flow == nil {
		return r.most, nil
	}
	now, s := time.Now(), &r.pace
	if now.Sub(s.looked) < askEvery {
		return 0, nil
	}
	f, err := r.flow(ctx)
	if err != nil {
		return 0, err
	}
	if f.Ends != s.flow.Ends && now.Sub(s.looked) < quietAfter {
		s.came = now
	}
	s.flow, s.looked = f, now
	if most = r.most; now.Sub(s.came) > quietAfter {
		most *= tellInQuiet / tellAtOnce
	}
	if f.Queued >= int64(aheadPages*most) && now.Sub(s.at) < r.patience {
		return 0, nil
	}
	return most, nil
}

// all tells the rest at once: more is left than a record may hold.
func (r *Right) all(ctx context.Context, left []*cursor, out pipeline.Outlet) error {
	_, _, err := r.pages(ctx, left, math.MaxInt, out)
	return err
}

// doing says what is being told, and who is waited for.
func (r *Right) doing(p int32, c *cursor) string {
	s := fmt.Sprintf("telling who depends on %s %s: %d rows so far", c.of.name, c.value, r.rests.told[p])
	if n := r.pace.flow.Queued; n > 0 {
		s += fmt.Sprintf(", %d of all who were told are still to be worked off", n)
	}
	return s
}
