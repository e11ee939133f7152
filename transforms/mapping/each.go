// Each: one row gives several records, one per element of a list in it.

package mapping

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

// tellsApart says what is wrong with a key under which the records of one list,
// or of two rows, would take each other's place.
func (e *entry) tellsApart() []error {
	var row, item, index bool
	for _, k := range e.to.Key {
		src := &e.sources[k]
		p := src.checked
		switch {
		case p != nil:
			row, item, index = row || p.NamesRow, item || p.NamesItem, index || p.NamesIndex
		case src.expression != "":
			return nil // it has mistakes
		default:
			row = row || len(src.cols) > 0
		}
	}
	wrong := "the key names neither item nor index: all records of one row would take each other's place"
	switch {
	case item, index && row:
		return nil
	case index:
		wrong = "the key names index and no column: the records of all rows would take each other's place"
	}
	return []error{ErrConfig.New("%s", wrong).At("%s", e.sources[e.to.Key[0]].path).
		WithRemedy(`Write an expression with what tells them apart, such as '"%s-" + string(row.id) + "-" + string(index)'.`, strings.ReplaceAll(e.from, ".", "-"))}
}

// lists says whether c has a row whose list is to be gone through.
func (p *plan) lists(c *change.Change) bool {
	switch c.Op {
	case change.Create, change.Read, change.Update:
		return p.each != nil && c.New != nil
	case change.Delete:
		return p.each != nil && c.Old != nil
	}
	return false
}

// items appends what becomes of the elements of a row: first the deletes of what
// it gives no more, then the records. No key is deleted that the row gives now.
func (p *plan) items(dst []change.Change, b *change.Batch, c *change.Change, sc *scratch) ([]change.Change, error) {
	if sc.given == nil {
		sc.given = map[string]bool{}
	}
	clear(sc.given)
	var gone, rows [][]change.Value
	if c.Op != change.Delete {
		err := p.over(b, c, c.New, sc, func() error {
			row, in, err := p.make(b, c, sc)
			if err != nil {
				return err
			}
			if !in { // another version of the rule may have let it in
				if gone, err = p.appendGone(gone, b, c, c.New, sc); p.waitsFor(c.New) && sc.known {
					return nil // what it gave is remembered
				}
				return err
			}
			if rows = append(rows, row); !p.note(b, row, sc) {
				return p.twice(sc.newKey)
			}
			return nil
		})
		if err != nil {
			return dst, err
		}
	}
	before := c.Op == change.Delete
	if c.Op == change.Update {
		var err error
		if before, err = p.rekeyed(b, c, sc); err != nil && !sc.knows(err) {
			return dst, err
		}
	}
	if before {
		// What has no value had none then: that version was parked, and gave nothing.
		mended := func(err error) bool { return c.Op == change.Update && problem.Has(err, ErrExpr) || sc.knows(err) }
		err := p.over(b, c, c.Old, sc, func() (err error) {
			if gone, err = p.appendGone(gone, b, c, c.Old, sc); mended(err) {
				return nil
			}
			return err
		})
		if err != nil && !mended(err) {
			return dst, err
		}
	}
	put := func(op change.Op, old, row []change.Value) {
		d := *c
		d.Table, d.Op, d.Old, d.New = p.to, op, old, row
		dst = append(dst, d)
	}
	for _, row := range gone {
		if p.note(b, row, sc) { // neither given now nor deleted already
			put(change.Delete, row, nil)
		}
	}
	for _, row := range rows {
		put(c.Op, nil, row)
	}
	return dst, nil
}

// over calls do for each element of the list of a row, which then is item.
func (p *plan) over(b *change.Batch, c *change.Change, row []change.Value, sc *scratch, do func() error) error {
	for _, col := range p.each.Columns {
		if !sent(c, row, col) {
			return p.unsent(c, "the list of "+p.to.Topic, "column "+c.Table.Columns[col].Name)
		}
	}
	n, err := p.each.Items(sc.over(b, row))
	if err != nil {
		if p.where != nil && !p.where.NamesItem && !p.where.NamesIndex {
			if in, no := p.holds(b, c, row, sc); no == nil && !in {
				return nil // the condition leaves the row out, for having no list perhaps
			}
		}
		return ErrExpr.New("the list of %s, %s: %s", p.to.Topic, p.each.Text, what(err, false)).At("%s.each", p.e.path)
	}
	for i := range n {
		sc.row.Take(i)
		if err := do(); err != nil {
			if e := problem.Of(err); e != nil {
				e.Text = fmt.Sprintf("index %d of the list: %s", i, e.Text)
			}
			return err
		}
	}
	return nil
}

// appendGone appends the key of an element that is not there any more, if it has one.
func (p *plan) appendGone(dst [][]change.Value, b *change.Batch, c *change.Change, from []change.Value, sc *scratch) ([][]change.Value, error) {
	row, err := p.gone(b, c, from, sc)
	if row == nil || err != nil {
		return dst, err
	}
	return append(dst, row), nil
}

// note notes the key of a canonical row, and says whether it is the first with it.
func (p *plan) note(b *change.Batch, row []change.Value, sc *scratch) bool {
	sc.newKey = change.AppendKeyRow(sc.newKey[:0], b, p.to, row)
	if sc.given[string(sc.newKey)] {
		return false
	}
	sc.given[string(sc.newKey)] = true
	return true
}

func (p *plan) twice(key []byte) *problem.Error {
	is := ""
	if !slices.ContainsFunc(p.key, func(k int) bool { return !p.e.shown(k) }) {
		if is = fmt.Sprintf(" %q,", key); len(is) > 100 {
			is = is[:100] + "…,"
		}
	}
	return ErrSameKey.New("the key of %s is%s that of an element before it", p.to.Topic, is)
}
