// Summed: what each row of a rule with lookups gave, with a sum of each record. Such
// a row is looked at again whenever something changes that it looks up, and then
// gives only what differs (F7).

package mapping

import (
	"bytes"
	"crypto/sha256"
	"slices"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline/state"
)

// sumSize is what a sum takes, in octets.
const sumSize = 16

// gave is a record that a row gave: its topic and key, as appendGiven writes them, and
// the sum of all of it.
type gave struct{ key, sum []byte }

// lookedUp is bySeveral of a rule with lookups, of whose rows all is known.
func (g *given) lookedUp(dst []change.Change, b *change.Batch, c *change.Change, key string, p *plan, sc *scratch) ([]change.Change, error) {
	part := c.Coord.Partition
	before := g.table.Get(part, key)
	sc.known = true
	rows, err := p.now(g.rows[:0], b, c, sc)
	sc.known = false
	if g.rows = rows; err != nil {
		return dst, err
	}
	was := readGave(g.was[:0], before)
	are := g.are[:0]
	var now []byte
	if len(rows) > 0 {
		now = append(make([]byte, 0, max(len(before), 128)), summedForm)
	}
	for i := range rows {
		from := len(now)
		now = appendGiven(now, b, p.to, rows[i].New)
		to := len(now)
		g.text = state.AppendRow(g.text[:0], b, rows[i].New, g.all(p.to))
		sum := sha256.Sum256(g.text)
		now = append(now, sum[:sumSize]...)
		are = append(are, gave{now[from:to], now[to:]})
	}
	g.was, g.are = was, are
	same := func(i int) bool {
		return i < len(was) && bytes.Equal(was[i].key, are[i].key) && bytes.Equal(was[i].sum, are[i].sum)
	}
	if len(rows) > 1 || len(was) > 1 || len(was) == 1 && (len(rows) == 0 || !bytes.Equal(was[0].key, are[0].key)) {
		// Together, deletes first, and never of a key that is given now (F5).
		told := make(map[string]bool, len(rows))
		sums := make(map[string][]byte, len(was))
		for i := range rows {
			k := g.canonical(b, p.to, rows[i].New)
			if told[k] {
				return dst, p.twice(change.AppendKeyRow(nil, b, p.to, rows[i].New))
			}
			told[k] = true
		}
		for _, w := range was {
			sums[string(w.key)] = w.sum
			topic, row, _ := nextGiven(w.key)
			dst = g.gone(dst, b, c, topic, row, told)
		}
		same = func(i int) bool { sum, is := sums[string(are[i].key)]; return is && bytes.Equal(sum, are[i].sum) }
	}
	again := g.again(c)
	for i := range rows {
		if !again || !same(i) {
			dst = append(dst, rows[i])
		}
	}
	g.claim(b, c, dst)
	return dst, g.table.Put(part, key, now)
}

// now appends what a row gives, without regard to what it gave.
func (p *plan) now(dst []change.Change, b *change.Batch, c *change.Change, sc *scratch) ([]change.Change, error) {
	switch {
	case c.Op == change.Delete:
		return dst, nil
	case p.lists(c):
		dst, err := p.items(dst, b, c, sc)
		return slices.DeleteFunc(dst, func(d change.Change) bool { return d.Op == change.Delete }), err
	}
	row, in, err := p.make(b, c, sc)
	if err != nil || !in {
		return dst, err
	}
	d := *c
	d.Table, d.Old, d.New = p.to, nil, row
	return append(dst, d), nil
}

// readGave appends the records that a value of the table tells of.
func readGave(dst []gave, value []byte) []gave {
	if len(value) == 0 || value[0] != summedForm {
		return dst
	}
	for rest := value[1:]; len(rest) > 0; {
		topic, _, after := nextGiven(rest)
		if topic == nil || len(after) < sumSize {
			break
		}
		dst = append(dst, gave{rest[:len(rest)-len(after)], after[:sumSize]})
		rest = after[sumSize:]
	}
	return dst
}

// all are the columns of a table.
func (g *given) all(t *change.Table) []int {
	cols := g.cols[t]
	if cols == nil {
		for i := range t.Columns {
			cols = append(cols, i)
		}
		if g.cols == nil {
			g.cols = map[*change.Table][]int{}
		}
		g.cols[t] = cols
	}
	return cols
}

// again says whether a row is looked at because something changed that it looks up: then
// nothing is given that was given already. A row of its own gives all, so that whoever
// reads topics again gives all again; and so does one that was parked.
func (g *given) again(c *change.Change) bool {
	return c.Coord.Topic != nil && c.Coord.Topic.Name != g.looks && slices.ContainsFunc(g.ranges, func(r change.Range) bool {
		return r.Topic == c.Coord.Topic && r.Partition == c.Coord.Partition && r.From <= c.Coord.Offset && c.Coord.Offset < r.To
	})
}
