// Ends: what rules gave and others do not, for a switch between them (F7).

package mapping

import (
	"context"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/pipeline"
)

// Ends is a stage that sends, of each row, the deletes of those canonical keys
// that the former rules may have given for it, or for the row before it, and
// that the rules in force cannot give for it. It sends nothing else. Not safe for
// concurrent use.
type Ends struct {
	now, former *Stage
	tables      map[string]*change.Table // how ends are written, by topic
	fitted      map[*change.Table][]*plan
	given       map[string]bool
}

// NewEnds makes one. A key is written as the contracts in force say, all, or as
// the former do where there is none any more.
func NewEnds(now, former *Stage, all avro.Catalogue) (*Ends, error) {
	for _, of := range []*Stage{now, former} {
		if err := of.noLookups(); err != nil {
			return nil, err
		}
	}
	s := &Ends{now: now, former: former, tables: map[string]*change.Table{}, fitted: map[*change.Table][]*plan{}, given: map[string]bool{}}
	claimed := now.claimed()
	for _, e := range former.order {
		topic := e.to.Topic
		if e.claims && claimed[topic] == nil {
			return nil, ErrConfig.New("%s was filled by claims, and is not any more: nobody would take them back", topic).
				At("%s.claims", e.path).WithRemedy("Have the new rules fill it with claims: true, or a topic with another name.")
		}
		s.tables[topic] = e.to
		c := all[topic]
		if c == nil {
			continue
		}
		was, is := keyNames(e.to), keyNames(c.Table)
		if !slices.Equal(was, is) {
			return nil, ErrConfig.New("the key of %s was %s and is %s: what lies under the former cannot be named", topic, strings.Join(was, ", "), strings.Join(is, ", ")).
				At("%s.to", e.path).WithRemedy("Have the rules fill a topic with another name.")
		}
		s.tables[topic] = c.Table
	}
	return s, nil
}

func keyNames(t *change.Table) []string { return names(t, t.Key) }

// From are the raw topics that the former rules read.
func (s *Ends) From() []string { return s.former.From() }

// To are the topics that get ends, with the texts that the keys begin with.
func (s *Ends) To() map[string][]string {
	out := map[string][]string{}
	for _, e := range s.former.order {
		out[e.to.Topic] = append(out[e.to.Topic], e.keyPrefix())
	}
	return out
}

// Apply implements pipeline.Stage. An error is one of the rules in force against
// the shape of a table: a transform with these rules would halt there.
func (s *Ends) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	sc := scratches.Get().(*scratch)
	defer func() {
		sc.row = expr.Row{}
		scratches.Put(sc)
	}()
	var ends []change.Change
	for i := range in.Changes {
		c := &in.Changes[i]
		if c.Row() == nil { // a truncate: what it ended was ended then
			continue
		}
		var now []*plan
		if len(s.now.byFrom[c.Table.Topic]) > 0 {
			var err error
			if now, err = s.now.of(c.Table); err != nil {
				in.Release()
				return err
			}
		}
		clear(s.given)
		for _, p := range now {
			p.mayGive(in, c, sc, func(row []change.Value) { s.first(in, p.to, row, sc) })
		}
		for _, p := range s.fit(c.Table) {
			if p.e.claims {
				continue // what it gave is remembered, and given up when the row comes again
			}
			p.mayGive(in, c, sc, func(row []change.Value) {
				to := s.tables[p.to.Topic]
				if row = keyOf(in, p.to, to, row); s.first(in, to, row, sc) {
					d := *c
					d.Table, d.Op, d.Old, d.New = to, change.Delete, row, nil
					ends = append(ends, d)
				}
			})
		}
	}
	in.Changes = append(in.Changes[:0], ends...)
	return out.Send(ctx, in)
}

// first notes the key of a canonical row, and says whether it was not there yet.
func (s *Ends) first(b *change.Batch, t *change.Table, row []change.Value, sc *scratch) bool {
	sc.newKey = append(append(sc.newKey[:0], t.Topic...), 0)
	sc.newKey = change.AppendKeyRow(sc.newKey, b, t, row)
	if s.given[string(sc.newKey)] {
		return false
	}
	s.given[string(sc.newKey)] = true
	return true
}

// fit are the former rules for a shape of a table; none, if they do not fit it:
// the transform halted there, and gave nothing.
func (s *Ends) fit(t *change.Table) []*plan {
	ps, is := s.fitted[t]
	if !is {
		if len(s.fitted) >= maxPlans {
			clear(s.fitted)
		}
		if len(s.former.byFrom[t.Topic]) > 0 {
			ps, _ = s.former.of(t)
		}
		s.fitted[t] = ps
	}
	return ps
}

// keyOf is the key of a row of t as a row of to, whose key has the same fields.
func keyOf(b *change.Batch, t, to *change.Table, row []change.Value) []change.Value {
	if t == to {
		return row
	}
	out := b.Row(len(to.Columns))
	for i := range out {
		out[i] = change.UnchangedValue()
	}
	for i, k := range to.Key {
		out[k] = row[t.Key[i]]
	}
	return out
}

// mayGive calls take with the key of each record that the rule may have made of a
// change: of its row and of the one before it, whether the condition lets them in
// or not. What has no key, or none that is known, gave nothing.
func (p *plan) mayGive(b *change.Batch, c *change.Change, sc *scratch, take func(row []change.Value)) {
	for _, from := range [][]change.Value{c.New, c.Old} {
		if from == nil {
			continue
		}
		one := func() error {
			if row, err := p.gone(b, c, from, sc); err == nil && row != nil {
				take(row)
			}
			return nil
		}
		if p.each == nil {
			_ = one()
			continue
		}
		_ = p.over(b, c, from, sc, one) // a list that has no value gave nothing
	}
}
