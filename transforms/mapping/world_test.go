// A small world in which all groups of a mapping run, each in some processes: topics
// in memory, and an engine that aborts, cuts batches anywhere, starts processes again
// and has partitions move between them, and loses Redis, in every order that a seed
// can think of.

package mapping_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest/turns"
	"github.com/tallywire/tallywire/pipeline/state"
	"github.com/tallywire/tallywire/transforms/join"
	"github.com/tallywire/tallywire/transforms/mapping"
)

const partitions = 3

// values is a record's value by column; nil is a tombstone, or of a row that is gone.
type values map[string]change.Value

type record struct {
	key      string
	row, old values // of a raw topic both
	pos      change.Pos
}

// topicLog is one topic.
type topicLog struct {
	topic *change.Topic
	table *change.Table
	raw   bool
	parts [partitions][]record
}

func (l *topicLog) append(r record) {
	p := kafka.Partition([]byte(r.key), partitions)
	l.parts[p] = append(l.parts[p], r)
}

// latest is the latest row of each key.
func (l *topicLog) latest() map[string]values {
	out := map[string]values{}
	for _, part := range l.parts {
		for _, r := range part {
			if out[r.key] = r.row; r.row == nil {
				delete(out, r.key)
			}
		}
	}
	return out
}

type world struct {
	tb     testing.TB
	rng    *rand.Rand
	texts  *change.Batch // where the values of all rows live
	logs   map[string]*topicLog
	rdb    *goredis.Client
	turns  *turns.Scheduler
	addr   string
	groups []*group
	cfg    mapping.Config
	all    avro.Catalogue
	errs   map[string]int
	spare  []*goredis.Client
	lsn    uint64 // of the last change of a source
	costed int    // records that had a cost
	good   values // a row that a test has set aside
}

// group is a consumer group.
type group struct {
	w         *world
	at        int // among the specs
	name      string
	topics    []string
	committed map[string]*[partitions]int64
	changelog [partitions][]*state.Entry // nil: a marker
	procs     []*proc
}

// proc is a process of a group, with some of the partitions.
type proc struct {
	g     *group
	rdb   *goredis.Client
	spec  pipeline.TransformSpec
	owned []int32
}

func newWorld(tb testing.TB, addr string, seed uint64, cfg mapping.Config, all avro.Catalogue, raw ...*change.Table) *world {
	w := &world{
		tb: tb, addr: addr, rng: rand.New(rand.NewPCG(seed, 1)), texts: new(change.Batch), logs: map[string]*topicLog{}, errs: map[string]int{},
		turns: turns.New(rand.New(rand.NewPCG(seed, 2))), cfg: cfg, all: all,
	}
	w.rdb = w.client(false)
	w.turns.Flush = func() {
		if err := w.rdb.FlushAll(context.Background()).Err(); err != nil {
			tb.Error(err)
		}
	}
	w.turns.Flush()
	for _, t := range raw {
		w.addLog(t.Topic, t, true)
	}
	specs := w.specs(w.rdb)
	for i, s := range specs {
		for _, topic := range slices.Concat(s.Outputs, s.Queues) {
			switch c := all[topic]; {
			case w.logs[topic] != nil:
			case c != nil:
				w.addLog(topic, c.Table, false)
			case strings.HasPrefix(topic, "_tallywire.rows."):
				w.addLog(topic, avro.Rows(topic).Table, false)
			case strings.HasPrefix(topic, "_tallywire.refresh."):
				w.addLog(topic, avro.Refresh(strings.TrimPrefix(topic, "_tallywire.refresh.")).Table, false)
			default:
				w.addLog(topic, avro.Claims(strings.TrimPrefix(topic, "_tallywire.claims.")).Table, false)
			}
		}
		g := &group{w: w, at: i, name: s.Name, topics: slices.Clone(s.Topics), committed: map[string]*[partitions]int64{}}
		for _, t := range s.CoPartitioned {
			if !slices.Contains(g.topics, t) {
				g.topics = append(g.topics, t)
			}
		}
		for _, t := range g.topics {
			g.committed[t] = new([partitions]int64)
		}
		w.groups = append(w.groups, g)
		g.rebalance(1)
	}
	return w
}

func (w *world) specs(rdb *goredis.Client) []pipeline.TransformSpec {
	env := &pipeline.Env{Redis: rdb, Partitions: partitions, Contracts: w.all}
	specs, err := mapping.Groups(env, "m", w.cfg, w.all, func(o *join.Options, _ string, _ *join.Plan) {
		o.Topics = worldTopics{w}
	}, func(topic string) []int64 {
		if len(w.groups) == 0 || w.groups[0].committed[topic] == nil {
			return nil
		}
		return w.groups[0].committed[topic][:]
	}, func() []int64 {
		var ends []int64
		for _, es := range w.groups[0].changelog {
			ends = append(ends, int64(len(es)))
		}
		return ends
	})
	if err != nil {
		w.tb.Fatal(problem.Format(err))
	}
	return specs
}

// worldTopics are its topics, none of which ever lost its beginning.
type worldTopics struct{ *world }

func (w worldTopics) Topic(_ context.Context, name string) (*change.Topic, error) {
	if name == state.ChangelogOf("m") {
		return changelog(0), nil
	}
	return w.logs[name].topic, nil
}

func (worldTopics) StartOf(context.Context, *change.Topic, int32) (int64, error) { return 0, nil }

func (w worldTopics) EndOf(_ context.Context, t *change.Topic, p int32) (int64, error) {
	return int64(len(w.logs[t.Name].parts[p])), nil
}

func (w *world) client(takesTurns bool) *goredis.Client {
	if n := len(w.spare); takesTurns && n > 0 {
		c := w.spare[n-1]
		w.spare = w.spare[:n-1]
		return c
	}
	c := goredis.NewClient(&goredis.Options{
		Addr: w.addr, Protocol: 2, DisableIdentity: true, MaxRetries: -1, ContextTimeoutEnabled: true,
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	})
	w.tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.tb.Error(err)
		}
	})
	if takesTurns {
		c.AddHook(w.turns)
	}
	return c
}

func (w *world) addLog(name string, t *change.Table, raw bool) {
	l := &topicLog{topic: &change.Topic{Name: name, Partitions: partitions}, table: t, raw: raw}
	copy(l.topic.ID[:], fmt.Sprintf("%08d", len(w.logs)))
	w.logs[name] = l
}

func (w *world) str(s string) change.Value { return w.texts.SpanString(change.String, s) }

// rebalance gives the partitions to n processes; some are those of before.
func (g *group) rebalance(n int) {
	rng := g.w.turns.Rng
	rng.Shuffle(len(g.procs), func(i, j int) { g.procs[i], g.procs[j] = g.procs[j], g.procs[i] })
	for len(g.procs) > n {
		last := g.procs[len(g.procs)-1]
		g.w.spare, g.procs = append(g.w.spare, last.rdb), g.procs[:len(g.procs)-1]
	}
	for len(g.procs) < n {
		p := &proc{g: g, rdb: g.w.client(true)}
		p.start()
		g.procs = append(g.procs, p)
	}
	for _, p := range g.procs {
		p.owned = nil
		if p.spec.State != nil {
			p.spec.State.Forget()
		}
	}
	for part := range int32(partitions) {
		p := g.procs[rng.IntN(n)]
		p.owned = append(p.owned, part)
	}
}

// start begins the process, with nothing in its memory.
func (p *proc) start() {
	p.spec = p.g.w.specs(p.rdb)[p.g.at]
	if t := p.spec.State; t != nil {
		t.CheckEvery(0)
		t.Open(changelog(p.g.at), 0)
	}
	for _, k := range p.keepers() {
		for _, s := range k.Stores() {
			s.CheckEvery = 0
		}
	}
}

// changelog is that of the group at a place.
func changelog(at int) *change.Topic {
	return &change.Topic{Name: "_tallywire.state", ID: [16]byte{42, byte(at)}, Partitions: partitions}
}

func (p *proc) keepers() (out []pipeline.Keeper) {
	for _, s := range p.spec.Stages {
		if k, is := s.(pipeline.Keeper); is {
			out = append(out, k)
		}
	}
	return out
}

// own takes the state of the partitions that are not owned.
func (p *proc) own(ctx context.Context) error {
	table := p.spec.State
	if table == nil {
		return nil
	}
	if err := table.Confirm(ctx); err != nil {
		return err
	}
	for _, part := range p.owned {
		if table.Owned(part) {
			continue
		}
		log := p.g.changelog[part]
		young := time.Hour
		if p.g.w.turns.Rng.IntN(2) == 0 {
			young = 0
		}
		from, ok, err := table.Own(ctx, part, int64(len(log)), young)
		if err != nil || ok {
			if err != nil {
				return err
			}
			continue
		}
		var es []state.Entry
		for _, e := range log[from:] {
			if e != nil {
				es = append(es, *e)
			}
		}
		if err := table.Load(ctx, part, es, int64(len(log)), true); err != nil {
			return err
		}
	}
	return nil
}

// keep is the part of a commit that the state has; now and then the process dies
// before Redis hears of it.
func (p *proc) keep(ctx context.Context) {
	table := p.spec.State
	if table == nil {
		return
	}
	es, ends := table.Changes(), map[int32]int64{}
	for i := range es {
		e := es[i]
		p.g.changelog[e.Partition] = append(p.g.changelog[e.Partition], &e)
		ends[e.Partition] = int64(len(p.g.changelog[e.Partition]))
	}
	for part := range ends {
		p.g.changelog[part] = append(p.g.changelog[part], nil)
	}
	if p.g.w.turns.Rng.IntN(10) == 0 || table.Committed(ctx, es, ends) != nil {
		table.Forget()
	}
}

// check does what the engine does before a batch.
func (p *proc) check(ctx context.Context) error {
	if err := p.own(ctx); err != nil {
		return err
	}
	for _, k := range p.keepers() {
		for _, s := range k.Stores() {
			l := p.g.w.logs[s.Topic()]
			for _, part := range p.owned {
				committed := p.g.committed[s.Topic()][part]
				from, ok, err := s.Check(ctx, l.topic, part, committed)
				if err != nil {
					return err
				}
				if ok {
					continue
				}
				if err := p.replay(ctx, k, s, l, part, from, committed); err != nil {
					return err
				}
				if _, ok, err := s.Check(ctx, l.topic, part, committed); err != nil {
					return err
				} else if !ok {
					return state.ErrLost.New("again")
				}
			}
		}
	}
	return nil
}

// replay gives what compaction has left of [from, committed) to Restore: of each key a
// tail of its records, the last one always, unless it is a tombstone with nothing left
// before it.
func (p *proc) replay(ctx context.Context, k pipeline.Keeper, s *state.Store, l *topicLog, part int32, from, committed int64) error {
	rng := p.g.w.turns.Rng
	count, seen, cut := map[string]int{}, map[string]int{}, map[string]int{}
	for _, r := range l.parts[part] {
		count[r.key]++
	}
	for _, r := range l.parts[part] {
		if _, ok := cut[r.key]; !ok {
			cut[r.key] = rng.IntN(count[r.key])
		}
	}
	gone := make([]bool, len(l.parts[part]))
	for o, r := range l.parts[part] {
		n := seen[r.key]
		seen[r.key]++
		last := n == count[r.key]-1
		gone[o] = n < cut[r.key] || last && r.row == nil && cut[r.key] == n && rng.IntN(2) == 0
	}
	for from < committed {
		to := min(from+1+rng.Int64N(6), committed)
		b := change.Get()
		for o := from; o < to; o++ {
			if !gone[o] {
				p.g.w.put(l, b, part, o)
			}
		}
		b.Ranges = append(b.Ranges, change.Range{Topic: l.topic, Partition: part, From: from, To: to})
		if err := k.Restore(ctx, b); err != nil {
			return err
		}
		from = to
	}
	return s.Replayed(ctx, l.topic, part, committed)
}

// put adds a record to a batch.
func (w *world) put(l *topicLog, b *change.Batch, part int32, offset int64) {
	rec := l.parts[part][offset]
	row := func(v values) []change.Value {
		vals := b.Row(len(l.table.Columns))
		for i := range vals {
			x, ok := v[l.table.Columns[i].Name]
			switch {
			case ok:
				vals[i] = b.Copy(w.texts, x)
			case rec.row == nil || !l.raw:
				vals[i] = change.UnchangedValue()
			}
			if !ok && rec.row != nil {
				vals[i] = change.NullValue()
			}
		}
		return vals
	}
	c := b.Append(l.table, change.Update)
	c.Coord = change.Coord{Topic: l.topic, Partition: part, Offset: offset}
	if l.raw || strings.HasPrefix(l.topic.Name, "_tallywire.") && rec.row != nil {
		c.Pos = rec.pos
	}
	switch {
	case rec.row != nil:
		c.New = row(rec.row)
	case l.raw: // the key alone: REPLICA IDENTITY DEFAULT
		c.Op, c.Old = change.Delete, row(rec.old)
	default:
		c.Op = change.Delete
		vals := row(nil)
		parts, ok := change.SplitKey(nil, []byte(rec.key), len(l.table.Key))
		if !ok {
			w.tb.Fatalf("the key %q of %s", rec.key, l.topic.Name)
		}
		for i, k := range l.table.Key {
			vals[k] = b.Span(change.String, parts[i])
		}
		c.Old = vals
	}
}

// worldOutlet gathers what a transaction would write; it is that of stage `next`-1.
type worldOutlet struct {
	p        *proc
	next     int
	recs     *[]sent
	rejected *[]error
}

type sent struct {
	topic string
	rec   record
}

func (o *worldOutlet) Send(ctx context.Context, b *change.Batch) error {
	if o.next < len(o.p.spec.Stages) {
		return o.p.spec.Stages[o.next].Apply(ctx, b, &worldOutlet{o.p, o.next + 1, o.recs, o.rejected})
	}
	defer b.Release()
	w := o.p.g.w
	for i := range b.Changes {
		c := &b.Changes[i]
		rec := record{key: string(change.AppendKey(nil, b, c)), pos: c.Pos}
		if c.Op != change.Delete {
			rec.row = values{}
			for j, v := range c.New {
				if v.IsUnchanged() {
					return errors.New("an Unchanged on its way into a compacted topic")
				}
				rec.row[c.Table.Columns[j].Name] = w.texts.Copy(b, v)
			}
		}
		if w.logs[c.Table.Topic] == nil {
			return fmt.Errorf("a record of %s", c.Table.Topic)
		}
		*o.recs = append(*o.recs, sent{c.Table.Topic, rec})
	}
	return nil
}

func (o *worldOutlet) Reject(_ *change.Change, err error) { *o.rejected = append(*o.rejected, err) }

// work takes some of what there is through the stages and commits it, or not.
func (p *proc) work(ctx context.Context, most int, abort bool) error {
	if err := p.check(ctx); err != nil {
		return err
	}
	g, rng := p.g, p.g.w.turns.Rng
	b := change.Get()
	next := map[string][partitions]int64{}
	for _, name := range g.topics {
		l, at := g.w.logs[name], *g.committed[name]
		for _, part := range p.owned {
			n := min(int64(len(l.parts[part]))-at[part], int64(most))
			if n <= 0 {
				continue
			}
			if most < 1000 {
				n = rng.Int64N(n + 1)
			}
			if n == 0 {
				continue
			}
			for o := at[part]; o < at[part]+n; o++ {
				g.w.put(l, b, part, o)
			}
			b.Ranges = append(b.Ranges, change.Range{Topic: l.topic, Partition: part, From: at[part], To: at[part] + n})
			at[part] += n
		}
		next[name] = at
	}
	if len(b.Ranges) == 0 {
		b.Release()
		return nil
	}
	return p.commit(ctx, abort, func(out pipeline.Outlet) error { return p.spec.Stages[0].Apply(ctx, b, out) }, func() {
		for name, at := range next {
			for _, part := range p.owned {
				g.committed[name][part] = at[part]
			}
		}
	})
}

func (p *proc) commit(ctx context.Context, abort bool, do func(pipeline.Outlet) error, offsets func()) error {
	var recs []sent
	var rejected []error
	if p.spec.State != nil {
		p.spec.State.Begin()
	}
	if err := do(&worldOutlet{p, 1, &recs, &rejected}); err != nil {
		return err
	}
	if len(rejected) > 0 {
		return fmt.Errorf("rejected: %w", errors.Join(rejected...))
	}
	if abort {
		if p.spec.State != nil {
			p.spec.State.Forget()
		}
		return nil
	}
	offsets()
	for _, r := range recs {
		p.g.w.logs[r.topic].append(r.rec)
	}
	p.keep(ctx)
	return nil
}

// rest does a page of what is left, and says whether there was any.
func (p *proc) rest(ctx context.Context, abort bool) (bool, error) {
	if p.spec.Rest == nil {
		return false, nil
	}
	if err := p.check(ctx); err != nil {
		return true, err
	}
	more := false
	err := p.commit(ctx, abort, func(out pipeline.Outlet) error {
		out.(*worldOutlet).next = len(p.spec.Stages)
		doing, err := p.spec.Rest(ctx, p.owned, out)
		more = doing != "" || len(*out.(*worldOutlet).recs) > 0
		return err
	}, func() {})
	return more || err != nil, err
}

func (g *group) done() bool {
	for _, name := range g.topics {
		for part := range partitions {
			if int64(len(g.w.logs[name].parts[part])) > g.committed[name][part] {
				return false
			}
		}
	}
	return true
}

// tolerate counts what the engine would try again, and fails on anything else.
func (w *world) tolerate(name string, err error) {
	if err == nil {
		return
	}
	e := problem.Of(err)
	if e == nil || e.Class != problem.Retry {
		w.tb.Errorf("%s: %s", name, problem.Format(err))
		return
	}
	w.errs[e.ID]++
}

// step lets all processes work at once for one step each.
func (w *world) step(ctx context.Context, most, flushPerMille int, calm bool) {
	var fs []func(context.Context)
	for _, g := range w.groups {
		if !calm && w.rng.IntN(8) == 0 {
			g.rebalance(1 + w.rng.IntN(3)) // they come and go
		}
		for _, p := range g.procs {
			if !calm && w.rng.IntN(4) == 0 {
				continue // not this one, this time
			}
			if !calm && w.rng.IntN(8) == 0 {
				p.start() // again, maybe after a kill
			}
			abort := !calm && w.rng.IntN(4) == 0
			resting := calm || w.rng.IntN(2) == 0
			fs = append(fs, func(ctx context.Context) {
				w.tolerate(g.name, p.work(ctx, most, abort))
				if resting {
					_, err := p.rest(ctx, abort)
					w.tolerate(g.name, err)
				}
			})
		}
	}
	w.turns.Run(ctx, flushPerMille, fs...)
}

// drain lets all come to an end.
func (w *world) drain(ctx context.Context) {
	for range 1000 {
		w.step(ctx, 1000, 0, true)
		if w.tb.Failed() {
			return
		}
		done := true
		for _, g := range w.groups {
			done = done && g.done()
		}
		if !done {
			continue
		}
		for _, g := range w.groups {
			for _, p := range g.procs {
				more, err := p.rest(ctx, false)
				w.tolerate(g.name, err)
				done = done && !more
			}
		}
		if done {
			return
		}
	}
	w.tb.Fatalf("it does not come to an end: %v", w.errs)
}

// show prints a table, for comparison.
func (w *world) show(t map[string]values, table *change.Table) string {
	var keys []string
	for k := range t {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var s strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&s, "%s:", k)
		for i := range table.Columns {
			name := table.Columns[i].Name
			if v, ok := t[k][name]; ok && !v.IsNull() {
				fmt.Fprintf(&s, " %s=%s", name, w.texts.AppendByValue(nil, v))
			}
		}
		s.WriteByte('\n')
	}
	return s.String()
}
