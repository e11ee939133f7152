package pipelinetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

// StageCase describes a stage to StageSuite.
type StageCase struct {
	// New gives the stage with empty state. Called once per subtest or more.
	New func(tb testing.TB) pipeline.Stage
	// Input gives the same changes at every call, with Ranges and Coords that
	// begin at offset 0, in one batch: several keys, several versions each.
	Input func(tb testing.TB) *change.Batch
	// Bad gives a batch in which changes are refused that the stage must
	// refuse; nil if it refuses none. Rejects is how many.
	Bad     func(tb testing.TB) *change.Batch
	Rejects int
	// Wipe loses the state of the stage that New gave last; nil if it keeps none.
	Wipe func(tb testing.TB)
	// State is what the stage that New gave last reads and writes; nil: nothing.
	State func(tb testing.TB) *state.Table
	// EatsReplays: a second Apply of the same records may emit nothing,
	// although nothing was committed between. Only for a stage that is told of
	// commits otherwise; leave it false.
	EatsReplays bool
}

// StageSuite runs every duty of a Stage, and of a Keeper when it is one.
func StageSuite(t *testing.T, c StageCase) {
	t.Run("EmitsTheSameHoweverBatchesAreCut", c.cut)
	t.Run("ReplayEmitsAgain", c.replay)
	t.Run("KeepsNothingOfABatch", c.poison)
	t.Run("RejectIsReportedAndTheOthersGoOn", c.reject)
	t.Run("FailedSendIsReturned", c.sendFails)
	t.Run("OutputTellsWhereItCameFrom", c.coords)
	t.Run("ReadAndWrittenState", func(t *testing.T) {
		if c.State == nil {
			return // not a capability of this stage
		}
		t.Run("AbortLeavesNothing", c.abort)
		t.Run("LossChangesNothing", c.lose)
		t.Run("DeathBeforeRedisChangesNothing", c.die)
	})
	t.Run("State", func(t *testing.T) {
		if _, ok := c.New(t).(pipeline.Keeper); !ok {
			return // not a capability of this stage
		}
		t.Run("LostStateChangesNothing", c.wipe)
		t.Run("RestoreEmitsNothing", c.restore)
	})
}

// engine applies batches as the transform loop does: state is checked, and
// rebuilt from what was applied before.
type engine struct {
	t     *testing.T
	stage pipeline.Stage
	out   *Recorder
	done  []*change.Batch // copies of what was applied, for rebuilding

	table *state.Table             // nil: none
	log   map[int32][]*state.Entry // its changelog: an entry by offset, nil: a marker
	dies  bool                     // what is committed from now on does not come to Redis
}

func (e *engine) apply(b *change.Batch) error {
	e.t.Helper()
	ctx := ctxOf(e.t)
	for _, r := range b.Ranges {
		e.check(ctx, r.Topic, r.Partition, r.From)
	}
	e.done = append(e.done, clone(b))
	if e.table == nil {
		return e.stage.Apply(ctx, b, e.out)
	}
	if err := e.attempt(ctx, b); err != nil {
		return err
	}
	return e.commit(ctx)
}

// attempt applies a batch in a transaction that is not ended; once more, when
// state was lost before.
func (e *engine) attempt(ctx context.Context, b *change.Batch) error {
	e.t.Helper()
	defer b.Release()
	sent := len(e.out.Sent)
	for again := false; ; again = true {
		for _, r := range b.Ranges {
			e.own(ctx, r.Partition)
		}
		e.table.Begin()
		err := e.stage.Apply(ctx, clone(b), e.out)
		if !problem.Has(err, state.ErrLost) || again {
			return err
		}
		e.out.Sent = e.out.Sent[:sent]
	}
}

// commit ends a transaction as Kafka does, and tells Redis.
func (e *engine) commit(ctx context.Context) error {
	es, ends := e.table.Changes(), map[int32]int64{}
	for i := range es {
		p := es[i].Partition
		e.log[p] = append(e.log[p], &es[i])
		ends[p] = int64(len(e.log[p]))
	}
	for p := range ends {
		e.log[p] = append(e.log[p], nil)
	}
	if e.dies {
		e.table.Forget()
		return nil
	}
	return e.table.Committed(ctx, es, ends)
}

// own takes the state of a partition as the engine does.
func (e *engine) own(ctx context.Context, partition int32) {
	e.t.Helper()
	if e.table.Owned(partition) {
		return
	}
	log := e.log[partition]
	end := int64(len(log))
	from, ok, err := e.table.Own(ctx, partition, end, time.Hour)
	if err != nil {
		e.t.Fatalf("owning the state of partition %d: %v", partition, err)
	}
	if ok {
		return
	}
	var es []state.Entry
	for _, x := range log[from:] {
		if x != nil {
			es = append(es, *x)
		}
	}
	if err := e.table.Load(ctx, partition, es, end, true); err != nil {
		e.t.Fatalf("loading the state of partition %d: %v", partition, err)
	}
}

func (e *engine) check(ctx context.Context, topic *change.Topic, partition int32, committed int64) {
	e.t.Helper()
	k, ok := e.stage.(pipeline.Keeper)
	if !ok {
		return
	}
	for _, s := range k.Stores() {
		if s.Topic() != topic.Name {
			continue
		}
		from, ok, err := s.Check(ctx, topic, partition, committed)
		if err != nil {
			e.t.Fatalf("checking the state of %s: %v", topic.Name, err)
		}
		if ok {
			continue
		}
		sent := len(e.out.Sent)
		for _, b := range e.done {
			if part := within(b, topic, partition, from, committed); part != nil {
				if err := k.Restore(ctx, part); err != nil {
					e.t.Fatalf("Restore: %v", err)
				}
			}
		}
		if len(e.out.Sent) > sent {
			e.t.Fatalf("Restore emitted %v", e.out.Sent[sent:])
		}
		if err := s.Replayed(ctx, topic, partition, committed); err != nil {
			e.t.Fatalf("Replayed: %v", err)
		}
		if _, ok, err := s.Check(ctx, topic, partition, committed); err != nil || !ok {
			e.t.Fatalf("after Restore the state is still behind: %v", err)
		}
	}
}

// clone copies a batch.
func clone(b *change.Batch) *change.Batch {
	d := change.Get()
	for i := range b.Changes {
		d.AppendFrom(b, &b.Changes[i])
	}
	d.Ranges = append(d.Ranges, b.Ranges...)
	return d
}

// within copies what a batch has of a partition from `from` up to `to`.
func within(b *change.Batch, t *change.Topic, p int32, from, to int64) *change.Batch {
	d := change.Get()
	for i := range b.Changes {
		if c := &b.Changes[i]; c.Coord.Topic == t && c.Coord.Partition == p && c.Coord.Offset >= from && c.Coord.Offset < to {
			d.AppendFrom(b, c)
		}
	}
	for _, r := range b.Ranges {
		if r.Topic == t && r.Partition == p && r.From < to && r.To > from {
			d.Ranges = append(d.Ranges, change.Range{Topic: t, Partition: p, From: max(r.From, from), To: min(r.To, to)})
		}
	}
	if len(d.Ranges) == 0 {
		d.Release()
		return nil
	}
	return d
}

// split cuts a batch into batches of n changes, ranges too.
func split(b *change.Batch, n int) []*change.Batch {
	var out []*change.Batch
	type part struct {
		t *change.Topic
		p int32
	}
	at := map[part]int64{}
	var order []change.Range
	for _, r := range b.Ranges {
		at[part{r.Topic, r.Partition}] = r.From
		order = append(order, r)
	}
	for from := 0; from < len(b.Changes); from += n {
		d := change.Get()
		end := map[part]int64{}
		for i := from; i < min(from+n, len(b.Changes)); i++ {
			c := &b.Changes[i]
			d.AppendFrom(b, c)
			end[part{c.Coord.Topic, c.Coord.Partition}] = c.Coord.Offset + 1
		}
		for _, r := range order {
			k := part{r.Topic, r.Partition}
			if to, ok := end[k]; ok {
				d.Ranges = append(d.Ranges, change.Range{Topic: r.Topic, Partition: r.Partition, From: at[k], To: to})
				at[k] = to
			}
		}
		out = append(out, d)
	}
	return out
}

func (c *StageCase) engine(t *testing.T) *engine {
	t.Helper()
	e := &engine{t: t, stage: c.New(t), out: &Recorder{}}
	if c.State == nil {
		return e
	}
	e.table, e.log = c.State(t), map[int32][]*state.Entry{}
	b := c.Input(t)
	e.table.Open(&change.Topic{Name: "_tallywire.state.suite", ID: [16]byte{7}, Partitions: b.Ranges[0].Topic.Partitions}, 0)
	b.Release()
	return e
}

// runCut applies the input in batches of n changes (0: one batch) and gives
// what was sent, by key in order.
func (c *StageCase) runCut(t *testing.T, n int) []string {
	t.Helper()
	e := c.engine(t)
	b := c.Input(t)
	batches := []*change.Batch{b}
	if n > 0 {
		batches = split(b, n)
		b.Release()
	}
	for _, x := range batches {
		if err := e.apply(x); err != nil {
			t.Fatalf("Apply: %v", err)
		}
	}
	return e.out.byKey()
}

// byKey writes out what was sent, sorted by topic and key, in order within one.
func (r *Recorder) byKey() []string {
	sent := slices.Clone(r.Sent)
	slices.SortStableFunc(sent, func(a, b Sent) int {
		return compareStrings(a.Topic+"\x00"+a.Key, b.Topic+"\x00"+b.Key)
	})
	out := make([]string, len(sent))
	for i, s := range sent {
		out[i] = s.String()
	}
	return out
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func same(t *testing.T, why string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s:\ngot  %q\nwant %q", why, got, want)
	}
}

func (c *StageCase) cut(t *testing.T) {
	want := c.runCut(t, 0)
	if len(want) == 0 {
		t.Fatal("nothing was emitted: the case tests nothing")
	}
	for _, n := range []int{1, 2, 3} {
		same(t, fmt.Sprintf("order per key, or content, depends on batches of %d", n), c.runCut(t, n), want)
	}
}

func (c *StageCase) replay(t *testing.T) {
	if c.EatsReplays || c.State != nil { // its duty is AbortLeavesNothing
		return
	}
	e := c.engine(t)
	if err := e.apply(c.Input(t)); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	first := e.out.byKey()
	e.out.Sent = nil
	if err := e.apply(c.Input(t)); err != nil {
		t.Fatalf("Apply again: %v", err)
	}
	same(t, "an aborted transaction's records came again and something else came out", e.out.byKey(), first)
}

func (c *StageCase) poison(t *testing.T) {
	want := c.runCut(t, 2)
	change.PoisonOnRelease(true)
	defer change.PoisonOnRelease(false)
	same(t, "memory of a released batch was used", c.runCut(t, 2), want)
}

func (c *StageCase) reject(t *testing.T) {
	if c.Bad == nil {
		return
	}
	e := c.engine(t)
	b := c.Bad(t)
	bad := map[change.Coord]bool{}
	good := map[change.Coord]bool{}
	for i := range b.Changes {
		good[b.Changes[i].Coord] = true
	}
	if err := e.apply(b); err != nil {
		t.Fatalf("a bad change stopped the stage: %v", err)
	}
	for _, r := range e.out.Rejects {
		if r.Err == nil || !good[r.Coord] {
			t.Fatalf("rejected without reason, or nothing that came in: %+v", r)
		}
		bad[r.Coord] = true
	}
	if len(bad) != c.Rejects {
		t.Fatalf("%d changes were rejected, want %d: %+v", len(bad), c.Rejects, e.out.Rejects)
	}
	for _, s := range e.out.Sent {
		if bad[s.Coord] {
			t.Fatalf("a rejected change was sent all the same: %s", s)
		}
	}
	if len(good) > len(bad) && len(e.out.Sent) == 0 {
		t.Fatal("the good changes beside a bad one were lost")
	}
}

func (c *StageCase) sendFails(t *testing.T) {
	e := c.engine(t)
	e.out.Fail = errors.New("no room")
	if err := e.apply(c.Input(t)); !errors.Is(err, e.out.Fail) {
		t.Fatalf("Apply: %v, want the error of Send: the offsets would be committed without the records", err)
	}
}

func (c *StageCase) coords(t *testing.T) {
	e := c.engine(t)
	b := c.Input(t)
	in := map[change.Coord]bool{}
	for i := range b.Changes {
		in[b.Changes[i].Coord] = true
	}
	if err := e.apply(b); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	for _, s := range e.out.Sent {
		if !in[s.Coord] {
			t.Fatalf("%s has coordinates %v of no input: if it cannot be encoded, nobody knows what to park", s, s.Coord)
		}
	}
}

func (c *StageCase) wipe(t *testing.T) {
	if c.Wipe == nil {
		t.Fatal("a Keeper needs Wipe in its case")
	}
	want := c.runCut(t, 1)
	e := c.engine(t)
	b := c.Input(t)
	batches := split(b, 1)
	b.Release()
	for i, x := range batches {
		if i%2 == 1 {
			c.Wipe(t)
			c.settle(e)
		}
		if err := e.apply(x); err != nil {
			t.Fatalf("Apply: %v", err)
		}
	}
	same(t, "results changed when the state was lost", e.out.byKey(), want)
}

// settle lets the states look again, which they do now and then only.
func (c *StageCase) settle(e *engine) {
	for _, s := range e.stage.(pipeline.Keeper).Stores() {
		s.CheckEvery = 0
	}
}

func (c *StageCase) restore(t *testing.T) {
	e := c.engine(t)
	b := c.Input(t)
	if err := e.apply(clone(b)); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	c.settle(e)
	c.Wipe(t)
	for _, r := range b.Ranges { // check fails when Restore emits
		e.check(ctxOf(t), r.Topic, r.Partition, r.To)
	}
	b.Release()
}

func (c *StageCase) abort(t *testing.T) {
	want := c.runCut(t, 2)
	e := c.engine(t)
	b := c.Input(t)
	batches := split(b, 2)
	b.Release()
	for _, x := range batches {
		sent := len(e.out.Sent)
		if err := e.attempt(ctxOf(t), clone(x)); err != nil {
			t.Fatalf("Apply: %v", err)
		}
		e.out.Sent = e.out.Sent[:sent]
		if err := e.apply(x); err != nil {
			t.Fatalf("Apply again: %v", err)
		}
	}
	same(t, "a transaction that was aborted left something of its state", e.out.byKey(), want)
}

func (c *StageCase) lose(t *testing.T) {
	if c.Wipe == nil {
		t.Fatal("a stage with state needs Wipe in its case")
	}
	want := c.runCut(t, 1)
	e := c.engine(t)
	b := c.Input(t)
	batches := split(b, 1)
	b.Release()
	for i, x := range batches {
		if i%2 == 1 {
			c.Wipe(t)
		}
		if err := e.apply(x); err != nil {
			t.Fatalf("Apply: %v", err)
		}
	}
	same(t, "results changed when Redis was emptied", e.out.byKey(), want)
}

func (c *StageCase) die(t *testing.T) {
	want := c.runCut(t, 1)
	e := c.engine(t)
	b := c.Input(t)
	batches := split(b, 1)
	b.Release()
	for i, x := range batches {
		e.dies = i%3 == 1
		if err := e.apply(x); err != nil {
			t.Fatalf("Apply: %v", err)
		}
	}
	same(t, "results changed when what was committed did not come to Redis", e.out.byKey(), want)
}
