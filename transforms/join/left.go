// The left group: the only place that emits for a left key (invariant 8).

package join

import (
	"context"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

// Left applies left rows and refresh records.
type Left struct {
	*join
	state *state.Store
	cols  columns
	gate  func(context.Context) error // nil: open

	mu     sync.Mutex // one at a time: Apply, Restore and the idle work
	notes  notes
	writer *writer
	work   leftWork // of the last batch: its memory is used again
}

// States is for the engine.
func (l *Left) Stores() []*state.Store { return []*state.Store{l.state} }

// leftWork is one Apply or Restore taken apart.
type leftWork struct {
	in    *change.Batch
	rows  []keptRow       // per change of left that is no delete
	keys  []string        // per change, canonical key of the left row
	last  map[string]int  // per key, its last change of left in the batch
	again map[string]bool // keys to be evaluated again that are not in last

	kept []string // per change, its row as it is kept; of those that are written
	// dated: per dated index and change, the row's day and key; "": it has no day.
	dated [][]string
	text  []byte
	ends  []int
	// Of items.
	items []item
	found []*refRow
	among []*group
}

// reset makes it that of another batch.
func (w *leftWork) reset(in *change.Batch) {
	n := in.Len()
	w.in = in
	w.rows, w.keys = zeroed(w.rows, n), zeroed(w.keys, n)
	if w.last == nil {
		w.last, w.again = make(map[string]int, n), map[string]bool{}
	}
	clear(w.last)
	clear(w.again)
	w.texts(w.keys, func(dst []byte, i int) []byte { return change.AppendKey(dst, in, &in.Changes[i]) })
}

// texts makes many texts that lie in one.
func (w *leftWork) texts(out []string, one func(dst []byte, i int) []byte) {
	w.text, w.ends = w.text[:0], w.ends[:0]
	for i := range out {
		w.text = one(w.text, i)
		w.ends = append(w.ends, len(w.text))
	}
	text, from := string(w.text), 0
	for i, to := range w.ends {
		out[i], from = text[from:to], to
	}
}

// zeroed is n zero values, in the memory of s if it is large enough.
func zeroed[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	clear(s[:cap(s)])
	return s[:n]
}

func (l *Left) take(in *change.Batch) (*leftWork, error) {
	w := &l.work
	w.reset(in)
	for i := range in.Changes {
		c := &in.Changes[i]
		if c.Table.Topic != l.plan.left.topic {
			continue
		}
		if c.Op == change.Delete {
			w.last[w.keys[i]] = i
			continue
		}
		var err error
		if w.rows[i], err = l.plan.left.take(in, c, &l.cols); err != nil {
			return nil, err
		}
		if w.rows[i].vals == nil {
			c.Op = dropped
			continue
		}
		w.last[w.keys[i]] = i
	}
	return w, nil
}

func (w *leftWork) refresh(i int, left string) bool { return w.in.Changes[i].Table.Topic != left }

// write brings the state to where the batch leads: of each key the last row,
// and who depends on it. Rows in between need no entry in the indexes: they are
// evaluated after this write, with what is there by then, and are overtaken in
// the same transaction.
func (l *Left) write(ctx context.Context, w *leftWork, restoring bool) error {
	return state.Apply(ctx, l.Stores(), w.in, restoring, func(p redis.Pipeliner, fresh func(*change.Change) bool) error {
		written := func(i int) bool {
			last, is := w.last[w.keys[i]]
			return is && last == i && fresh(&w.in.Changes[i])
		}
		w.kept = zeroed(w.kept, len(w.keys))
		w.texts(w.kept, func(dst []byte, i int) []byte {
			if w.rows[i].vals == nil || !written(i) {
				return dst
			}
			return l.plan.left.append(dst, w.in, w.rows[i])
		})
		if w.dated == nil {
			w.dated = make([][]string, len(l.plan.left.indexed))
		}
		for j, ix := range l.plan.left.indexed {
			if ix.day < 0 {
				continue
			}
			w.dated[j] = zeroed(w.dated[j], len(w.keys))
			w.texts(w.dated[j], func(dst []byte, i int) []byte {
				if w.rows[i].vals == nil || !written(i) {
					return dst
				}
				if day, is := dayIn(w.rows[i].vals[ix.day]); is {
					dst = append(appendDay(dst, day), w.keys[i]...)
				}
				return dst
			})
		}
		q := l.writer.again(ctx, p)
		l.writer = q
		var buf []byte
		var at place
		idx := make([]indexes, len(l.plan.left.indexed))
		for i := range idx {
			idx[i] = indexes{}
		}
		for i := range w.keys {
			c := &w.in.Changes[i]
			if !written(i) {
				continue
			}
			if t, part := c.Coord.Topic, c.Coord.Partition; at.t != t || at.part != part {
				at = place{t: t, part: part, set: q.command("HSET", l.state.RowsKey(t, part)), del: q.command("HDEL", l.state.RowsKey(t, part))}
				if restoring {
					at.todo = q.command("SADD", l.state.TodoKey(t, part))
				}
			}
			var member any = &w.keys[i] // a text in an interface would be copied
			if c.Op == change.Delete {
				q.add(at.del, member)
				continue
			}
			q.add(at.set, member, &w.kept[i])
			for j, ix := range l.plan.left.indexed {
				member := member
				if ix.day >= 0 {
					if member = &w.dated[j][i]; w.dated[j][i] == "" {
						continue // on no day, so that nothing is found
					}
				}
				var named bool
				if buf, named = ix.by.append(buf[:0], w.in, w.rows[i].vals); !named {
					continue
				}
				q.index(idx[j].of(buf, func(v string) *command {
					return q.command("ZADD", l.state.IndexKey(at.t, ix.name, v))
				}), member)
			}
			if restoring {
				q.add(at.todo, member)
			}
		}
		q.flush()
		return nil
	})
}

// place is a partition with the commands that write to it.
type place struct {
	t              *change.Topic
	part           int32
	set, del, todo *command
}

// Restore keeps what had been applied, and emits nothing.
func (l *Left) Restore(ctx context.Context, in *change.Batch) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer in.Release()
	w, err := l.take(in)
	if err != nil {
		return err
	}
	return l.write(ctx, w, true)
}

// Apply keeps the left rows, then looks up what they refer to, and sends the
// output: for each left row one, for each refresh one more unless its row is in
// the batch anyway.
func (l *Left) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.apply(ctx, in, out); err != nil {
		in.Release()
		return err
	}
	return out.Send(ctx, in)
}

func (l *Left) apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	if l.allKept != nil {
		if err := l.allKept(ctx); err != nil {
			return err
		}
	}
	if l.gate != nil {
		if err := l.gate(ctx); err != nil {
			return err
		}
		l.gate = nil // once open, it stays open
	}
	w, err := l.take(in)
	if err != nil {
		return err
	}
	if err := l.write(ctx, w, false); err != nil {
		return err
	}
	// Written, and the answer is here: now the other side (invariant 8).
	items, own := l.items(w)
	read, err := state.NewConsistentRead(ctx, append([]*state.Reader{l.leftReader}, l.sideReaders...)...)
	if err != nil {
		return err
	}
	read.Only(0, own)
	find := newLookup(l.plan, l.rdb, read, in)
	if err := find.run(ctx, items); err != nil {
		return err
	}
	l.emit(find, w, items, out)
	if err := l.note(ctx, w, items); err != nil {
		return err
	}
	in.Keep(func(c *change.Change) bool { return c.Op != dropped })
	return nil
}

// dropped marks a change that does not go on.
const dropped change.Op = 0

// items lists what is to be evaluated; own are the partitions of left rows
// that have to be read back, for refresh records.
func (l *Left) items(w *leftWork) (items []*item, own []int32) {
	n := len(l.plan.refs)
	w.items, w.found, w.among = zeroed(w.items, w.in.Len()), zeroed(w.found, n*w.in.Len()), zeroed(w.among, n*w.in.Len())
	store, rows, grps := w.items, w.found, w.among
	seen := map[int32]bool{}
	for i := range w.in.Changes {
		c := &w.in.Changes[i]
		if (c.Op == change.Delete || c.Op == dropped) && !w.refresh(i, l.plan.left.topic) {
			continue
		}
		it := &store[i]
		it.at, it.key, it.part = i, w.keys[i], c.Coord.Partition
		it.rows, it.grps = rows[i*n:(i+1)*n:(i+1)*n], grps[i*n:(i+1)*n:(i+1)*n]
		if w.refresh(i, l.plan.left.topic) {
			_, here := w.last[it.key]
			if here || w.again[it.key] {
				continue
			}
			w.again[it.key] = true
			if !seen[it.part] {
				seen[it.part] = true
				own = append(own, it.part)
			}
		} else {
			it.left = w.rows[i]
		}
		items = append(items, it)
	}
	return items, own
}

// emit turns the changes into those of the output, in place.
func (l *Left) emit(find *lookup, w *leftWork, items []*item, out pipeline.Outlet) {
	in, p := w.in, l.plan
	done := make([]bool, in.Len())
	for _, it := range items {
		c := &in.Changes[it.at]
		done[it.at] = true
		if it.left.vals == nil {
			// A refresh of a row that is gone: its tombstone was, or will be,
			// sent for its own record.
			c.Op = dropped
			continue
		}
		if err := find.join(it, c); err != nil {
			out.Reject(c, err)
			c.Op = dropped
		}
	}
	for i := range in.Changes {
		c := &in.Changes[i]
		switch {
		case done[i], c.Op == dropped:
		case w.refresh(i, p.left.topic):
			c.Op = dropped // its row is evaluated in this batch already
		default: // a deleted row
			c.Table, c.Old, c.New = p.joined.gone, p.joined.keyRow(in, w.keys[i]), nil
		}
	}
}
