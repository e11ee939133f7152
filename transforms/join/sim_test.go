// A small world in which both groups of a rule's lookups run: topics in memory, and an
// engine that aborts, cuts batches anywhere, restarts processes, compacts, and
// loses Redis, in every order that a seed can think of.

package join_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
)

const partitions = 3

// row is a record's value by field; nil is a tombstone.
type row map[string]change.Value

type record struct {
	key  string
	row  row
	gone bool // compaction has taken it
}

// log is one topic.
type log struct {
	topic *change.Topic
	table *change.Table
	parts [partitions][]record
	start [partitions]int64 // what lies before it was deleted
}

func (l *log) append(key string, r row) {
	p := kafka.Partition([]byte(key), partitions)
	l.parts[p] = append(l.parts[p], record{key: key, row: r})
}

// put adds a record to a batch.
func (l *log) put(b *change.Batch, part int32, offset int64, texts *change.Batch) {
	rec := l.parts[part][offset]
	c := b.Append(l.table, change.Update)
	c.Coord = change.Coord{Topic: l.topic, Partition: part, Offset: offset}
	vals := b.Row(len(l.table.Columns))
	if rec.row == nil {
		for i := range vals {
			vals[i] = change.UnchangedValue()
		}
		vals[l.table.Key[0]] = b.SpanString(change.String, rec.key)
		c.Op, c.Old = change.Delete, vals
		return
	}
	for i := range vals {
		if v, ok := rec.row[l.table.Columns[i].Name]; ok {
			vals[i] = b.Copy(texts, v)
		}
	}
	c.New = vals
}

// world is everything but the lookups.
type world struct {
	tb    testing.TB
	rng   *rand.Rand
	texts *change.Batch // where the values of all rows live
	logs  map[string]*log
	rdb   *goredis.Client
	sched *turns.Scheduler
	left  *group
	right *group
	plan  *join.Plan
	most  int // so many are told in one transaction
	flow  func(context.Context) (join.Flow, error)
	// endIsRead: the rule reads the ends of rates.
	endIsRead bool
	// compacted: compaction has left the last record of each key alone.
	compacted bool
}

// group is a consumer group with one process.
type group struct {
	w         *world
	name      string
	topics    []string
	committed map[string]*[partitions]int64
	rdb       *goredis.Client
	stage     pipeline.Keeper
	make      func() pipeline.Keeper
	errs      map[string]int

	table     *state.Table               // what the stage reads and writes; nil: nothing
	changelog [partitions][]*state.Entry // nil: a marker
}

// own takes the state of the partitions that are not owned.
func (g *group) own(ctx context.Context) error {
	if g.table == nil {
		return nil
	}
	for p := range int32(partitions) {
		if g.table.Owned(p) {
			continue
		}
		log := g.changelog[p]
		young := time.Hour
		if g.w.sched.Rng.IntN(2) == 0 {
			young = 0
		}
		from, ok, err := g.table.Own(ctx, p, int64(len(log)), young)
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
		if err := g.table.Load(ctx, p, es, int64(len(log)), true); err != nil {
			return err
		}
	}
	return nil
}

// keep is the part of a commit that the state has; now and then the process dies
// before Redis hears of it.
func (g *group) keep(ctx context.Context) {
	if g.table == nil {
		return
	}
	es, ends := g.table.Changes(), map[int32]int64{}
	for i := range es {
		p := es[i].Partition
		g.changelog[p] = append(g.changelog[p], &es[i])
		ends[p] = int64(len(g.changelog[p]))
	}
	for p := range ends {
		g.changelog[p] = append(g.changelog[p], nil)
	}
	if g.w.sched.Rng.IntN(10) == 0 || g.table.Committed(ctx, es, ends) != nil {
		g.table.Forget()
	}
}

var contracts = func() map[string]*avro.Contract {
	c, err := avro.Pack()
	if err != nil {
		panic(err)
	}
	return c
}()

const refreshTopic = "_tallywire.refresh.costed"

// wide is the log of what the left group gives.
const wide = "wide"

// costing has each entry look up what it takes to cost it.
func costing() join.Rule {
	return join.Rule{
		Name: "costed", Path: "transforms.costed.topics[0]", From: "ps.time_entry", Contracts: contracts,
		Lookups: map[string]join.Lookup{
			"project":  {Topic: "ps.project", On: "project_id"},
			"customer": {Topic: "ps.customer", On: "project.customer_id"},
			"cost_rate": {
				Topic: "ps.cost_rate", On: "row.resource_id", By: "resource_id", InForce: &join.Dated{From: "valid_from", To: "valid_to", At: "work_date"},
				Agree: "ref.currency == project.currency", Where: `ref.currency != "?" || int(ref.rate) > 0`, // no value where it is 0.5
			},
		},
		Uses: []string{"hours", "status", "project.number", "project.legal_entity", "customer.name", "cost_rate.cost_rate_id", "cost_rate.rate"},
	}
}

// compiled checks a rule.
func compiled(tb testing.TB, r join.Rule) *join.Plan {
	tb.Helper()
	plan, bad := join.Compile(r)
	if len(bad) > 0 {
		tb.Fatal(problem.Format(errors.Join(bad...)))
	}
	return plan
}

// newWorld connects to Redis at addr, a client per group, so that a scheduler
// can decide who goes on at each round trip.
func newWorld(tb testing.TB, addr string, seed uint64, rule join.Rule) *world {
	w := &world{plan: compiled(tb, rule), most: 8192, endIsRead: slices.Contains(rule.Uses, "cost_rate.valid_to"), tb: tb, rng: rand.New(rand.NewPCG(seed, 1)), texts: new(change.Batch), logs: map[string]*log{}}
	w.sched = turns.New(rand.New(rand.NewPCG(seed, 2)))
	for _, name := range []string{"ps.time_entry", "ps.project", "ps.customer", "ps.cost_rate"} {
		w.addLog(name, contracts[name].Table)
	}
	w.addLog(wide, w.plan.Table(nil))
	w.addLog(refreshTopic, avro.Refresh("costed").Table)
	w.rdb = w.client(addr)
	add := func(name string, topics []string, pick func(*join.Left, *join.Right) pipeline.Keeper) *group {
		g := &group{w: w, name: name, topics: topics, committed: map[string]*[partitions]int64{}, rdb: w.client(addr), errs: map[string]int{}}
		for _, t := range topics {
			g.committed[t] = new([partitions]int64)
		}
		g.rdb.AddHook(w.sched)
		g.make = func() pipeline.Keeper {
			l, r := join.New(w.plan, join.Options{Redis: g.rdb, Log: slog.New(slog.DiscardHandler), Topics: worldTopics{w}, Flow: w.flow})
			k := pick(l, r)
			if g.table = nil; k == pipeline.Keeper(r) {
				g.table = r.State()
				r.TellAtOnce(w.most)
				g.table.Open(&change.Topic{Name: "_tallywire.state.costed.right", ID: [16]byte{42}, Partitions: partitions}, 0)
			}
			for _, s := range k.Stores() {
				s.CheckEvery = 0
			}
			return k
		}
		g.stage = g.make()
		return g
	}
	w.left = add("left", []string{"ps.time_entry", refreshTopic}, func(l *join.Left, _ *join.Right) pipeline.Keeper { return l })
	w.right = add("right", []string{"ps.project", "ps.customer", "ps.cost_rate"}, func(_ *join.Left, r *join.Right) pipeline.Keeper { return r })
	return w
}

// worldTopics are its topics.
type worldTopics struct{ *world }

func (w worldTopics) Topic(_ context.Context, name string) (*change.Topic, error) {
	return w.logs[name].topic, nil
}

func (w worldTopics) StartOf(_ context.Context, t *change.Topic, p int32) (int64, error) {
	return w.logs[t.Name].start[p], nil
}

func (w worldTopics) EndOf(_ context.Context, t *change.Topic, p int32) (int64, error) {
	return int64(len(w.logs[t.Name].parts[p])), nil
}

func (w *world) client(addr string) *goredis.Client {
	c := goredis.NewClient(&goredis.Options{
		Addr: addr, Protocol: 2, DisableIdentity: true, MaxRetries: -1, ContextTimeoutEnabled: true,
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	})
	w.tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.tb.Error(err)
		}
	})
	return c
}

func (w *world) addLog(name string, t *change.Table) {
	l := &log{topic: &change.Topic{Name: name, Partitions: partitions}, table: t}
	copy(l.topic.ID[:], fmt.Sprintf("%-16s", name[max(0, len(name)-16):]))
	w.logs[name] = l
}

func (w *world) str(s string) change.Value { return w.texts.SpanString(change.String, s) }

// outlet gathers what a transaction would write.
type outlet struct {
	w    *world
	rest bool // of what was left: there is no record that it came from
	recs []struct {
		topic string
		rec   record
	}
	rejected []error
}

func (o *outlet) Send(_ context.Context, b *change.Batch) error {
	defer b.Release()
	for i := range b.Changes {
		c := &b.Changes[i]
		if c.Coord.Topic == nil && !o.rest {
			return errors.New("a change that tells no record that it came from")
		}
		rec := record{key: string(change.AppendKey(nil, b, c))}
		if c.Op != change.Delete {
			rec.row = row{}
			for j, v := range c.New {
				if v.IsUnchanged() {
					return errors.New("an Unchanged on its way into a compacted topic")
				}
				rec.row[c.Table.Columns[j].Name] = o.w.texts.Copy(b, v)
			}
		}
		topic := c.Table.Topic
		if topic == "ps.time_entry" { // as the rule knows it that is given the wide row
			topic = wide
		}
		o.recs = append(o.recs, struct {
			topic string
			rec   record
		}{topic, rec})
	}
	return nil
}
func (o *outlet) Reject(_ *change.Change, err error) { o.rejected = append(o.rejected, err) }

// check does what the engine does before a batch, for all partitions.
func (g *group) check(ctx context.Context) error {
	if err := g.own(ctx); err != nil {
		return err
	}
	for _, s := range g.stage.Stores() {
		l := g.w.logs[s.Topic()]
		for p := range int32(partitions) {
			committed := g.committed[s.Topic()][p]
			from, ok, err := s.Check(ctx, l.topic, p, committed)
			if err != nil {
				return err
			}
			if ok {
				continue
			}
			if err := g.replay(ctx, s, l, p, from, committed); err != nil {
				return err
			}
			if _, ok, err := s.Check(ctx, l.topic, p, committed); err != nil {
				return err
			} else if !ok {
				return state.ErrLost.New("again")
			}
		}
	}
	return nil
}

// replay gives what compaction has left of [from, committed) to Restore: of
// each key a tail of its records, the last one always, unless it is a tombstone
// with nothing left before it.
func (g *group) replay(ctx context.Context, s *state.Store, l *log, p int32, from, committed int64) error {
	rng := g.w.sched.Rng
	count, seen, cut := map[string]int{}, map[string]int{}, map[string]int{}
	for _, r := range l.parts[p] {
		count[r.key]++
	}
	for _, r := range l.parts[p] {
		if _, ok := cut[r.key]; !ok {
			if cut[r.key] = rng.IntN(count[r.key]); g.w.compacted {
				cut[r.key] = count[r.key] - 1
			}
		}
	}
	gone := make([]bool, len(l.parts[p]))
	for o, r := range l.parts[p] {
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
				l.put(b, p, o, g.w.texts)
			}
		}
		b.Ranges = append(b.Ranges, change.Range{Topic: l.topic, Partition: p, From: from, To: to})
		if err := g.stage.Restore(ctx, b); err != nil {
			return err
		}
		from = to
	}
	return s.Replayed(ctx, l.topic, p, committed)
}

// work takes some of what there is through the stage and commits it, or not.
func (g *group) work(ctx context.Context, most int, abort bool) error {
	if err := g.check(ctx); err != nil {
		return err
	}
	rng := g.w.sched.Rng
	b := change.Get()
	next := map[string][partitions]int64{}
	for _, name := range g.topics {
		l, at := g.w.logs[name], *g.committed[name]
		for p := range int32(partitions) {
			n := min(int64(len(l.parts[p]))-at[p], int64(most))
			if n <= 0 {
				continue
			}
			if most < 1000 {
				n = rng.Int64N(n + 1)
			}
			if n == 0 {
				continue
			}
			for o := at[p]; o < at[p]+n; o++ {
				if !l.parts[p][o].gone {
					l.put(b, p, o, g.w.texts)
				}
			}
			b.Ranges = append(b.Ranges, change.Range{Topic: l.topic, Partition: p, From: at[p], To: at[p] + n})
			at[p] += n
		}
		next[name] = at
	}
	if len(b.Ranges) == 0 {
		b.Release()
		return nil
	}
	out := &outlet{w: g.w}
	if g.table != nil {
		g.table.Begin()
	}
	if err := g.stage.Apply(ctx, b, out); err != nil {
		return err
	}
	if len(out.rejected) > 0 {
		return fmt.Errorf("rejected: %w", errors.Join(out.rejected...))
	}
	if abort {
		if g.table != nil {
			g.table.Forget()
		}
		return nil
	}
	for name, at := range next {
		*g.committed[name] = at
	}
	for _, r := range out.recs {
		g.w.logs[r.topic].append(r.rec.key, r.rec.row)
	}
	g.keep(ctx)
	return nil
}

// rest does a page of what is left, and says whether there was any.
func (g *group) rest(ctx context.Context, abort bool) (bool, error) {
	r, is := g.stage.(*join.Right)
	if !is {
		return false, nil
	}
	if err := g.check(ctx); err != nil {
		return true, err
	}
	var all []int32
	for p := range int32(partitions) {
		all = append(all, p)
	}
	g.table.Begin()
	out := &outlet{w: g.w, rest: true}
	doing, err := r.Rest(ctx, all, out)
	if err != nil {
		return true, err
	}
	if abort {
		g.table.Forget()
		return true, nil
	}
	for _, r := range out.recs {
		g.w.logs[r.topic].append(r.rec.key, r.rec.row)
	}
	g.keep(ctx)
	return doing != "" || len(out.recs) > 0, nil
}

func (g *group) done() bool {
	for _, name := range g.topics {
		for p := range partitions {
			if int64(len(g.w.logs[name].parts[p])) > g.committed[name][p] {
				return false
			}
		}
	}
	return true
}

// tolerate counts what the engine would try again, and fails on anything else.
func (g *group) tolerate(err error) {
	if err == nil {
		return
	}
	e := problem.Of(err)
	if e == nil || e.Class != problem.Retry {
		g.w.tb.Errorf("%s: %v", g.name, err)
		return
	}
	g.errs[e.ID]++
}

// run lets both groups work at once for one step each.
func (w *world) run(ctx context.Context, most, flushPerMille int, calm bool) {
	fs := make([]func(context.Context), 0, 2)
	for _, g := range []*group{w.left, w.right} {
		if !calm && w.rng.IntN(4) == 0 {
			continue // only one of them this time
		}
		if !calm && w.rng.IntN(8) == 0 {
			g.stage = g.make() // a restart, maybe after a kill
		}
		abort := !calm && w.rng.IntN(4) == 0
		resting := !calm && w.rng.IntN(2) == 0
		fs = append(fs, func(ctx context.Context) {
			g.tolerate(g.work(ctx, most, abort))
			if resting || calm {
				_, err := g.rest(ctx, abort)
				g.tolerate(err)
			}
		})
	}
	w.sched.Run(ctx, flushPerMille, fs...)
}

// rests does a page of what is left.
func (w *world) rests(ctx context.Context) bool {
	more, err := w.right.rest(ctx, false)
	w.right.tolerate(err)
	return more || err != nil
}

// drain lets both groups finish.
func (w *world) drain(ctx context.Context) {
	for i := 0; !w.left.done() || !w.right.done() || w.rests(ctx); i++ {
		if i == 1000 {
			w.tb.Fatalf("it does not come to an end: left %v, right %v", w.left.errs, w.right.errs)
		}
		w.run(ctx, 1000, 0, true)
		if w.tb.Failed() {
			return
		}
	}
}

// latest is the latest row of each key.
func (l *log) latest() map[string]row {
	out := map[string]row{}
	for _, part := range l.parts {
		for _, r := range part {
			if r.row == nil {
				delete(out, r.key)
			} else {
				out[r.key] = r.row
			}
		}
	}
	return out
}

// show prints a table, for comparison.
func (w *world) show(t map[string]row, table *change.Table) string {
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
				fmt.Fprintf(&s, " %s=%s", name, w.texts.AppendText(nil, v))
			}
		}
		s.WriteByte('\n')
	}
	return s.String()
}
