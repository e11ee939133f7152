// columns: where the kept columns stand in the rows of a record's own schema.

package join

import (
	"slices"
	"sync"

	"github.com/tallywire/tallywire/change"
)

// columns remembers, per Table, the index of each kept column; −1: the writer
// did not know it. Safe for concurrent use.
type columns struct {
	mu sync.Mutex
	m  map[*change.Table][]int
}

// maxTables bounds what is remembered; Tables come with writer schemas.
const maxTables = 1024

func (c *columns) of(t *change.Table, s *side) ([]int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.m[t]; ok {
		return at, nil
	}
	at := make([]int, len(s.cols))
	for i, name := range s.cols {
		var err error
		if at[i], err = s.columnOf(t, name); err != nil {
			return nil, err
		}
	}
	if c.m == nil || len(c.m) >= maxTables {
		c.m = map[*change.Table][]int{}
	}
	c.m[t] = slices.Clip(at)
	return at, nil
}

// columnOf gives the index of a kept column in t, or −1 for one that may be null
// and that the writer did not know.
func (s *side) columnOf(t *change.Table, name string) (int, error) {
	at, want := t.Column(name), &s.table.Columns[s.table.Column(name)]
	if at < 0 && !want.Nullable {
		return at, ErrColumns.New("a record of %s has no field %s", s.topic, name)
	}
	if at >= 0 && t.Columns[at].Kind != want.Kind {
		return at, ErrColumns.New("field %s of a record of %s is %s, its contract says %s", name, s.topic, t.Columns[at].Kind, want.Kind)
	}
	return at, nil
}

// kept cuts the kept columns out of a row; values stay where they are.
func kept(b *change.Batch, row []change.Value, cols []int) []change.Value {
	out := b.Row(len(cols))
	for i, c := range cols {
		if c >= 0 {
			out[i] = row[c]
		}
	}
	return out
}
