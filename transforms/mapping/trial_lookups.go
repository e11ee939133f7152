// Trial of lookups: the groups that look up, one after the other, over topics in
// memory.

package mapping

import (
	"context"
	"log/slog"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
	"github.com/tallywire/tallywire/transforms/join"
)

// lookupTrial is the groups of all rules with lookups.
type lookupTrial struct {
	rdb   *redis.Client
	rules []*ruleTrial
	logs  map[string]*logTrial
}

// ruleTrial is those of one rule.
type ruleTrial struct {
	left  *join.Left
	right *join.Right
	rule  *Stage
	own   string   // the topic of the rule's rows
	sides []string // topics that are looked up
}

// logTrial is a topic of one partition, of which only the end is known.
type logTrial struct {
	topic *change.Topic
	next  int64
}

// Use has the trial look rows up, in a Redis that is its own and empty. Without it, a
// stage with lookups cannot be tried.
func (t *Trial) Use(rdb *redis.Client) { t.look = &lookupTrial{rdb: rdb} }

// forget begins with nothing.
func (l *lookupTrial) forget(ctx context.Context, s *Stage) error {
	if err := l.rdb.FlushDB(ctx).Err(); err != nil {
		return err
	}
	l.rules, l.logs = nil, map[string]*logTrial{}
	log := slog.New(slog.DiscardHandler)
	for i, e := range s.looked {
		plan := e.look.plan
		r := &ruleTrial{rule: s.behind(e), own: plan.Left(), sides: plan.Topics()}
		r.left, r.right = join.New(plan, join.Options{Redis: l.rdb, Log: log, Topics: l})
		for j, table := range []*state.Table{r.rule.remember(l.rdb, log, e.look.name, plan.Left()), r.right.State()} {
			table.Open(&change.Topic{Name: "_trial", ID: [16]byte{1, byte(i), byte(j)}, Partitions: 1}, 0)
			if _, ok, err := table.Own(ctx, 0, 0, 0); err != nil || !ok {
				panic("BUG: a state of which nothing was ever written is not known")
			}
		}
		l.rules = append(l.rules, r)
	}
	return nil
}

func (l *lookupTrial) log(topic string) *logTrial {
	if l.logs[topic] == nil {
		id := [16]byte{2, byte(len(l.logs)), byte(len(l.logs) >> 8)}
		l.logs[topic] = &logTrial{topic: &change.Topic{Name: topic, ID: id, Partitions: 1}}
	}
	return l.logs[topic]
}

// Topic, StartOf and EndOf are join.Topics.
func (l *lookupTrial) Topic(_ context.Context, name string) (*change.Topic, error) {
	return l.log(name).topic, nil
}

func (l *lookupTrial) StartOf(context.Context, *change.Topic, int32) (int64, error) { return 0, nil }

func (l *lookupTrial) EndOf(_ context.Context, t *change.Topic, _ int32) (int64, error) {
	return l.log(t.Name).next, nil
}

// reads says whether a rule reads a topic.
func (l *lookupTrial) reads(topic string) bool {
	return slices.ContainsFunc(l.rules, func(r *ruleTrial) bool { return r.own == topic || slices.Contains(r.sides, topic) })
}

// put adds changes to a batch, at the ends of their topics.
func (l *lookupTrial) put(b *change.Batch, from *change.Batch, cs []change.Change) {
	for i := range cs {
		log := l.log(cs[i].Table.Topic)
		d := b.AppendFrom(from, &cs[i])
		d.Coord = change.Coord{Topic: log.topic, Offset: log.next}
		b.Ranges = append(b.Ranges, change.Range{Topic: log.topic, From: log.next, To: log.next + 1})
		log.next++
	}
}

// feed gives changes of topics that are read to those who read them, and what comes out
// to out, which is asked for each batch; it goes on with what of that is read itself.
func (l *lookupTrial) feed(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	for in.Len() > 0 {
		next := change.Get()
		for _, r := range l.rules {
			if err := l.rule(ctx, r, in, next, out); err != nil {
				next.Release()
				return err
			}
		}
		in.Release()
		in = next
	}
	in.Release()
	return nil
}

// rule has one rule read changes. Those that it gives, and that are read, go to next.
func (l *lookupTrial) rule(ctx context.Context, r *ruleTrial, in, next *change.Batch, out pipeline.Outlet) error {
	var looked, own []change.Change
	for i := range in.Changes {
		c := &in.Changes[i]
		if slices.Contains(r.sides, c.Table.Topic) {
			looked = append(looked, *c)
		}
		if c.Table.Topic == r.own {
			own = append(own, *c)
		}
	}
	if len(looked)+len(own) == 0 {
		return nil
	}
	for _, k := range []pipeline.Keeper{r.left, r.right} {
		for _, s := range k.Stores() {
			if err := l.check(ctx, s); err != nil {
				return err
			}
		}
	}
	told := &gathered{out: out}
	if len(looked) > 0 {
		b := change.Get()
		l.side(b, in, looked)
		if err := r.right.Apply(ctx, b, told); err != nil {
			return err
		}
	}
	b := change.Get()
	l.side(b, in, own)
	if told.b != nil {
		l.put(b, told.b, told.b.Changes)
		told.b.Release()
	}
	if b.Len() == 0 {
		b.Release()
		return nil
	}
	return r.left.Apply(ctx, b, &through{r.rule, &chained{l, next, out}})
}

// side adds changes where both groups of a rule have them.
func (l *lookupTrial) side(b *change.Batch, from *change.Batch, cs []change.Change) {
	for i := range cs {
		d := b.AppendFrom(from, &cs[i])
		d.Coord = cs[i].Coord
		b.Ranges = append(b.Ranges, change.Range{Topic: d.Coord.Topic, From: d.Coord.Offset, To: d.Coord.Offset + 1})
	}
}

// check makes a store ready of which nothing was ever written.
func (l *lookupTrial) check(ctx context.Context, s *state.Store) error {
	t := l.log(s.Topic()).topic
	if _, ok, err := s.Check(ctx, t, 0, 0); ok || err != nil {
		return err
	}
	if err := s.Replayed(ctx, t, 0, 0); err != nil {
		return err
	}
	_, _, err := s.Check(ctx, t, 0, 0)
	return err
}

// gathered keeps what is sent.
type gathered struct {
	b   *change.Batch
	out pipeline.Outlet // for what is rejected
}

func (g *gathered) Send(_ context.Context, b *change.Batch) error {
	defer b.Release()
	if g.b == nil {
		g.b = change.Get()
	}
	for i := range b.Changes {
		g.b.AppendFrom(b, &b.Changes[i])
	}
	return nil
}

func (g *gathered) Reject(c *change.Change, err error) { g.out.Reject(c, err) }

// through applies a stage to what is sent.
type through struct {
	stage pipeline.Stage
	out   pipeline.Outlet
}

func (t *through) Send(ctx context.Context, b *change.Batch) error {
	return t.stage.Apply(ctx, b, t.out)
}

func (t *through) Reject(c *change.Change, err error) { t.out.Reject(c, err) }

// chained keeps what is read by rules, and passes all on.
type chained struct {
	l    *lookupTrial
	next *change.Batch
	out  pipeline.Outlet
}

func (c *chained) Send(ctx context.Context, b *change.Batch) error {
	for i := range b.Changes {
		if c.l.reads(b.Changes[i].Table.Topic) {
			c.l.put(c.next, b, b.Changes[i:i+1])
		}
	}
	return c.out.Send(ctx, b)
}

func (c *chained) Reject(d *change.Change, err error) { c.out.Reject(d, err) }
