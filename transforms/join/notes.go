// notes: which left rows wait, kept in Redis for people only: nothing is decided
// by it, so it may lag behind after an abort, and is counted anew after a loss.

package join

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	twredis "github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

// notes are the counts per partition of the left topic.
type notes struct {
	comp  *obs.Component
	topic *change.Topic
	count map[int32]int64
	at    map[int32]time.Time // when it was counted last
}

// recount is how many rows the idle work looks at, at a time, after a rebuild.
const recount = 4096

// held: a partition that the engine asked about within this time is ours.
const heldWithin = 10 * time.Second

// note writes down who waits, of the rows that were evaluated.
func (l *Left) note(ctx context.Context, w *leftWork, items []*item) error {
	in := w.in
	t := l.topicOf(in)
	if t == nil {
		return nil
	}
	p := l.rdb.Pipeline()
	q := l.writer.again(ctx, p)
	l.writer = q
	var part int32 = -1
	var yes, no *command
	for _, it := range items {
		if last, own := w.last[it.key]; own && last != it.at {
			continue
		}
		if it.part != part {
			part = it.part
			notes := l.state.NotesKey(t, part)
			yes, no = q.command("SADD", notes), q.command("SREM", notes)
		}
		if it.waits {
			q.add(yes, &it.key)
		} else {
			q.add(no, &it.key)
		}
	}
	for i := range in.Changes {
		if c := &in.Changes[i]; c.Op == change.Delete {
			q.put("SREM", l.state.NotesKey(t, c.Coord.Partition), string(change.AppendKey(nil, in, c)))
		}
	}
	q.flush()
	return l.counts(ctx, p, t, l.state.Held(t, heldWithin))
}

// topicOf is the left topic, from a record of it or as it was last seen.
func (l *Left) topicOf(in *change.Batch) *change.Topic {
	for i := range in.Ranges {
		if t := in.Ranges[i].Topic; t.Name == l.plan.left.topic {
			return t
		}
	}
	return l.notes.topic
}

// counts executes p and shows how many rows wait. Not with every batch: a Redis
// may have to walk a set to count it (miniredis sorts it, a tenth of all work
// under load). The idle work comes again, and counts what is left.
func (l *Left) counts(ctx context.Context, p redis.Pipeliner, t *change.Topic, parts []int32) error {
	type count struct {
		part int32
		cmd  *redis.IntCmd
	}
	var cs []count
	now := time.Now()
	for _, part := range parts {
		if l.notes.topic == t && now.Sub(l.notes.at[part]) < 4*l.state.CheckEvery {
			continue
		}
		cs = append(cs, count{part, p.SCard(ctx, l.state.NotesKey(t, part))})
	}
	if p.Len() == 0 {
		return nil
	}
	if _, err := p.Exec(ctx); err != nil {
		return twredis.Classify("noting who waits", err)
	}
	if l.notes.topic != t {
		l.notes.topic, l.notes.count, l.notes.at = t, map[int32]int64{}, map[int32]time.Time{}
	}
	held := map[int32]bool{}
	for _, part := range l.state.Held(t, heldWithin) {
		held[part] = true
	}
	for _, c := range cs {
		l.notes.count[c.part], l.notes.at[c.part] = c.cmd.Val(), now
	}
	var sum int64
	for part, n := range l.notes.count {
		if !held[part] {
			delete(l.notes.count, part)
			delete(l.notes.at, part)
			continue
		}
		sum += n
	}
	if l.notes.comp != nil {
		l.notes.comp.Waiting(sum)
	}
	return nil
}

// idle is the state's idle work for one partition: the count, and after a
// rebuild some of the rows whose waiting is not known.
func (l *Left) idle(ctx context.Context, t *change.Topic, part int32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.allKept != nil { // told at the start, not with the first row
		if err := l.allKept(ctx); err != nil && pipeline.Classify(err) == problem.Halt {
			return err
		}
	}
	keys, err := l.rdb.SRandMemberN(ctx, l.state.TodoKey(t, part), recount).Result()
	if err != nil {
		return twredis.Classify("counting who waits", err)
	}
	p := l.rdb.Pipeline()
	if len(keys) > 0 {
		q := newWriter(ctx, p)
		err := l.recount(ctx, q, t, part, keys)
		if problem.Has(err, state.ErrUnknown) {
			return nil // the references are being rebuilt as well: later
		}
		if err != nil {
			return err
		}
		q.flush()
	}
	return l.counts(ctx, p, t, []int32{part})
}

func (l *Left) recount(ctx context.Context, q *writer, t *change.Topic, part int32, keys []string) error {
	b := change.Get()
	defer b.Release()
	n := len(l.plan.refs)
	items := make([]*item, len(keys))
	for i, key := range keys {
		items[i] = &item{at: -1, key: key, part: part, rows: make([]*refRow, n), grps: make([]*group, n)}
	}
	read, err := state.NewConsistentRead(ctx, append([]*state.Reader{l.leftReader}, l.sideReaders...)...)
	if err != nil {
		return err
	}
	read.Only(0, []int32{part})
	find := newLookup(l.plan, l.rdb, read, b)
	if err := find.run(ctx, items); err != nil {
		return err
	}
	for _, it := range items {
		if it.left.vals != nil {
			if _, waits := find.settle(it); waits {
				q.put("SADD", l.state.NotesKey(t, part), it.key)
			}
		}
		q.put("SREM", l.state.TodoKey(t, part), it.key)
	}
	return nil
}
