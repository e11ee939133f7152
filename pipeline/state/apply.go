// Apply: one batch into the state, values and marks together.

package state

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
)

// Apply applies one batch to the state, atomically: what fill queues, then the
// marks of those ranges whose topics have a Store here. fill must leave out
// what fresh says is already in: a record of the batch's ranges below the mark,
// the redo of what an aborted transaction had written. (A record outside of
// the ranges is a parked one that is tried again: the newest of its key, and
// maybe never written.) It fails with ErrLost when a mark is not what this
// process left; then nothing was written.
//
// restoring: the batch came to Keeper.Restore.
func Apply(ctx context.Context, stores []*Store, in *change.Batch, restoring bool,
	fill func(p redis.Pipeliner, fresh func(*change.Change) bool) error,
) error {
	// The order of stores is the same in all calls of one stage, and each has
	// its own: this cannot deadlock.
	for _, s := range stores {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	w := apply{restoring: restoring, at: map[slotKey]int{}}
	stale := true
	for _, r := range in.Ranges {
		m, err := w.slot(stores, r.Topic, r.Partition)
		if err != nil || m == nil {
			if err != nil {
				return err
			}
			continue
		}
		// A gap is no loss: offsets of markers, and of what was compacted.
		// Only during a rebuild must the first batch continue it.
		if m.sl.m.restoring && !restoring && m.sl.m.offset < r.From {
			return m.s.lost(r.Topic, r.Partition)
		}
		m.to.restoring = restoring
		m.to.offset = max(m.to.offset, r.To)
		stale = stale && r.To <= m.sl.m.offset
	}
	var last change.Coord
	for i := range in.Changes {
		c := &in.Changes[i]
		if c.Coord.Topic == nil || c.Coord.Topic == last.Topic && c.Coord.Partition == last.Partition && !outside(in.Ranges, c) {
			continue
		}
		last = c.Coord
		if outside(in.Ranges, c) {
			m, err := w.slot(stores, c.Coord.Topic, c.Coord.Partition)
			if err != nil {
				return err
			}
			stale = stale && m == nil
		}
	}
	if len(w.ms) == 0 {
		return nil
	}
	fresh := func(c *change.Change) bool {
		if c.Coord.Topic == nil {
			return false
		}
		i, ok := w.at[slotKey{c.Coord.Topic.ID, c.Coord.Partition}]
		return ok && (c.Coord.Offset >= w.ms[i].sl.m.offset || outside(in.Ranges, c))
	}
	var f func(redis.Pipeliner) error
	if !stale {
		f = func(p redis.Pipeliner) error { return fill(p, fresh) }
	}
	return compareAndSet(ctx, w.ms[0].s.rdb, w.ms, f)
}

// apply gathers the marks of one Apply.
type apply struct {
	restoring bool
	ms        []*marked
	at        map[slotKey]int // index in ms
}

// slot gives the mark of a partition, nil when no Store here is of its topic.
func (w *apply) slot(stores []*Store, t *change.Topic, partition int32) (*marked, error) {
	k := slotKey{t.ID, partition}
	if i, ok := w.at[k]; ok {
		return w.ms[i], nil
	}
	s := storeOf(stores, t.Name)
	if s == nil {
		return nil, nil //nolint:nilnil // no state is kept of this topic
	}
	sl := s.slots[k]
	if sl == nil || !sl.sure || w.restoring && !sl.m.restoring {
		return nil, s.lost(t, partition)
	}
	m := &marked{s: s, key: markKey(namespace(s.transform, t.ID), partition), sl: sl, to: sl.m}
	w.at[k] = len(w.ms)
	w.ms = append(w.ms, m)
	return m, nil
}

func outside(ranges []change.Range, c *change.Change) bool {
	for i := range ranges {
		r := &ranges[i]
		if r.Partition == c.Coord.Partition && r.Topic.ID == c.Coord.Topic.ID && c.Coord.Offset >= r.From && c.Coord.Offset < r.To {
			return false
		}
	}
	return true
}

func storeOf(stores []*Store, topic string) *Store {
	for _, s := range stores {
		if s.topic == topic {
			return s
		}
	}
	return nil
}
