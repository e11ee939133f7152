// CheckSink: what was committed against what a sink holds.

package history

import (
	"fmt"
	"maps"
	"slices"
)

// SinkRow is a row, or a document, that a sink holds.
type SinkRow struct {
	Key string
	Row Row
}

// Projection says what a sink should hold of a row of the source; in is false
// for a row that it should not hold.
type Projection func(Row) (key string, want Row, in bool)

// CheckSink names each row that a sink lacks, holds twice, holds in an older
// state or with values that it never had, or should not hold. Columns that the
// projection does not give are not looked at. Numbers of scale are compared as
// they are written.
func (h *History) CheckSink(name string, rows []SinkRow, project Projection) []Finding {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tables[name]
	if t == nil {
		panic(fmt.Sprintf("BUG: the history is not of table %q", name))
	}
	type expected struct {
		want Row
		life *life
	}
	now, once := map[string]expected{}, map[string]*life{}
	for _, l := range t.rows {
		for i, s := range l.states {
			if s == nil {
				continue
			}
			k, want, in := project(s)
			if !in {
				continue
			}
			once[k] = l
			if i == len(l.states)-1 {
				now[k] = expected{want, l}
			}
		}
	}
	var out []Finding
	seen := map[string]int{}
	for _, r := range rows {
		got := &Change{Table: name, New: r.Row, Op: 'r'}
		seen[r.Key]++
		e, is := now[r.Key]
		switch {
		case seen[r.Key] > 1:
			out = append(out, Finding{Kind: Doubled, Table: name, Key: r.Key, Got: got, Note: fmt.Sprintf("it is there %d times", seen[r.Key])})
		case !is && once[r.Key] != nil:
			l := once[r.Key]
			out = append(out, Finding{Kind: Lost, Table: name, Key: r.Key, Of: len(l.changes), Got: got, Note: "it should be gone"})
		case !is:
			out = append(out, Finding{Kind: Invented, Table: name, Key: r.Key, Got: got})
		default:
			columns := unlike(e.want, r.Row)
			if len(columns) == 0 {
				continue
			}
			f := Finding{Kind: Wrong, Table: name, Key: r.Key, Of: len(e.life.changes), Columns: columns, Want: &Change{Table: name, Op: 'r', New: e.want}, Got: got}
			for i := len(e.life.states) - 2; i >= 0; i-- {
				if s := e.life.states[i]; s != nil {
					if k, was, in := project(s); in && k == r.Key && len(unlike(was, r.Row)) == 0 {
						f.Kind, f.Nth, f.Note = Lost, i+1, fmt.Sprintf("it is as it was after %d changes", i)
						break
					}
				}
			}
			out = append(out, f)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if seen[k] == 0 {
			e := now[k]
			out = append(out, Finding{Kind: Lost, Table: name, Key: k, Of: len(e.life.changes), Want: &Change{Table: name, Op: 'r', New: e.want}})
		}
	}
	return out
}

// unlike are the columns of want that got has otherwise.
func unlike(want, got Row) []string {
	var out []string
	for name, w := range want {
		if g, told := got[name]; !told || g != w {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
