package dedupe_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/dedupe"
)

func TestMain(m *testing.M) {
	change.PoisonOnRelease(true)
	goleak.VerifyTestMain(m)
}

var table = (&change.Table{
	Source: "hook", Name: "event", Topic: "hook.event", Key: []int{0},
	Columns: []change.Column{{Name: "id", Kind: change.String}, {Name: "n", Kind: change.Int}},
}).Index()

// rec is one record of a topic's partition 0.
type rec struct {
	id  string
	pos change.Pos
	op  change.Op
}

// topic is a partition in memory; a record's offset is its index.
type topic struct {
	t    *change.Topic
	recs []rec
}

func newTopic(id byte, recs ...rec) *topic {
	return &topic{&change.Topic{Name: "hook.event", ID: [16]byte{id}, Partitions: 1}, recs}
}

func (tp *topic) batch(from, to int64) *change.Batch {
	b := change.Get()
	for o := from; o < to; o++ {
		r := tp.recs[o]
		c := b.Append(table, r.op)
		c.Pos, c.Coord = r.pos, change.Coord{Topic: tp.t, Offset: o}
		row := b.Row(2)
		row[0], row[1] = b.SpanString(change.String, r.id), change.IntValue(o)
		if r.op == change.Delete {
			c.Old = row
		} else {
			c.New = row
		}
	}
	b.Ranges = append(b.Ranges, change.Range{Topic: tp.t, From: from, To: to})
	return b
}

// back is ReadBack of this topic.
func (tp *topic) back(_ context.Context, t *change.Topic, _ int32, before int64) (dedupe.Last, error) {
	var last dedupe.Last
	if t.ID != tp.t.ID {
		return last, fmt.Errorf("asked for another topic")
	}
	for _, r := range tp.recs[:before] {
		if last.Pos.IsZero() || r.pos.System != last.Pos.System || r.pos.Compare(last.Pos) > 0 {
			last = dedupe.Last{Pos: r.pos, Half: r.op == change.Delete}
		}
	}
	return last, nil
}

type outlet struct {
	got      []string
	rejected []error
	fail     error
}

func (o *outlet) Send(_ context.Context, b *change.Batch) error {
	defer b.Release()
	if o.fail != nil {
		return o.fail
	}
	for i := range b.Changes {
		o.got = append(o.got, fmt.Sprintf("%s@%d", b.String(b.Changes[i].Row()[0]), b.Changes[i].Coord.Offset))
	}
	return nil
}
func (o *outlet) Reject(_ *change.Change, err error) { o.rejected = append(o.rejected, err) }

func apply(t *testing.T, s pipeline.Stage, tp *topic, from, to int64, want string) {
	t.Helper()
	var o outlet
	if err := s.Apply(t.Context(), tp.batch(from, to), &o); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(o.got, " "); got != want {
		t.Errorf("[%d, %d) passed %q, want %q", from, to, got, want)
	}
}

func at(lsn, ordinal uint64) change.Pos {
	return change.Pos{System: 1, Timeline: 1, LSN: lsn, Kind: change.PosCommit, Ordinal: ordinal}
}

func commits() *topic {
	return newTopic(1,
		rec{"a", at(10, 1), 'c'}, rec{"b", at(10, 2), 'c'}, rec{"c", at(20, 1), 'u'},
		rec{"b again", at(10, 2), 'c'}, rec{"c again", at(20, 1), 'u'}, rec{"d", at(30, 1), 'c'},
		rec{"key gone", at(40, 1), 'd'}, rec{"key born", at(40, 1), 'c'}, rec{"born again", at(40, 1), 'c'}, rec{"e", at(50, 1), 'd'})
}

// A sender's repetition must not count twice, however the records are cut.
func TestPositionDropsRepetitions(t *testing.T) {
	tp := commits()
	for cut := int64(1); cut < 10; cut++ {
		s := dedupe.ByPosition(tp.back)
		var o outlet
		for from := int64(0); from < 10; from += cut {
			if err := s.Apply(t.Context(), tp.batch(from, min(from+cut, 10)), &o); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Join(o.got, " "); got != "a@0 b@1 c@2 d@5 key gone@6 key born@7 e@9" {
			t.Errorf("cut %d: %s", cut, got)
		}
	}
}

// invariant 7: were a replay eaten, a reset by Kafka's own tool would empty
// what is rebuilt from it.
func TestPositionPassesReplays(t *testing.T) {
	tp := commits()
	s := dedupe.ByPosition(tp.back)
	apply(t, s, tp, 0, 10, "a@0 b@1 c@2 d@5 key gone@6 key born@7 e@9")
	apply(t, s, tp, 0, 3, "a@0 b@1 c@2")                              // reset to the beginning
	apply(t, s, tp, 5, 8, "d@5 key gone@6 key born@7")                // and into the middle
	apply(t, dedupe.ByPosition(tp.back), tp, 7, 10, "key born@7 e@9") // another process goes on
	apply(t, dedupe.ByPosition(tp.back), tp, 3, 6, "d@5")             // which knows what was before
	failing := &outlet{fail: context.DeadlineExceeded}                // an aborted transaction
	if err := s.Apply(t.Context(), tp.batch(8, 10), failing); err == nil {
		t.Fatal("no error")
	}
	apply(t, s, tp, 8, 10, "e@9")
}

// A load that starts over, and another source system, are not repetitions.
func TestPositionPassesReloads(t *testing.T) {
	snap := func(attempt, row uint64) change.Pos {
		return change.Pos{System: 1, Timeline: 1, LSN: 5, Kind: change.PosSnapshot, Ordinal: attempt<<48 | row}
	}
	tp := newTopic(1, rec{"a", snap(1, 1), 'r'}, rec{"b", snap(1, 2), 'r'}, rec{"a2", snap(2, 1), 'r'}, rec{"b2", snap(2, 2), 'r'},
		rec{"c", at(9, 1), 'c'}, rec{"other", change.Pos{System: 0, LSN: 1, Timeline: 1, Kind: change.PosCommit, Ordinal: 1}, 'c'})
	apply(t, dedupe.ByPosition(tp.back), tp, 0, 6, "a@0 b@1 a2@2 b2@3 c@4 other@5")
}

// A parked record that is tried again has an old position and must pass.
func TestPositionPassesParked(t *testing.T) {
	tp := commits()
	s := dedupe.ByPosition(tp.back)
	apply(t, s, tp, 0, 6, "a@0 b@1 c@2 d@5")
	b := tp.batch(1, 2)
	b.Ranges = b.Ranges[:0]
	var o outlet
	if err := s.Apply(t.Context(), b, &o); err != nil || len(o.got) != 1 {
		t.Fatalf("passed %v, %v", o.got, err)
	}
}

func redisClient(t *testing.T) *goredis.Client {
	e, err := embedded.StartMiniRedis("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := redis.Open(t.Context(), e.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func identity(t *testing.T, rdb *goredis.Client) *dedupe.Identity {
	s := dedupe.ByIdentity(&pipeline.Env{Redis: rdb, Obs: obs.New(slog.New(slog.DiscardHandler))}, "canonical", []string{"hook.event"}, []string{"id"}, time.Hour)
	s.Stores()[0].CheckEvery = 0
	return s
}

func check(t *testing.T, s *dedupe.Identity, tp *topic, committed int64, want bool) {
	t.Helper()
	_, ok, err := s.Stores()[0].Check(t.Context(), tp.t, 0, committed)
	if err != nil || ok != want {
		t.Fatalf("Check: %v, %v", ok, err)
	}
}

func hooks(id byte) *topic {
	return newTopic(id, rec{"a", change.Pos{}, 'c'}, rec{"b", change.Pos{}, 'c'}, rec{"a", change.Pos{}, 'c'}, rec{"c", change.Pos{}, 'c'}, rec{"b", change.Pos{}, 'c'})
}

// The lowest offset wins: repetitions are dropped, replays pass, also after an
// abort, in another process, and after the memory was lost.
func TestIdentity(t *testing.T) {
	rdb, tp := redisClient(t), hooks(1)
	s := identity(t, rdb)
	check(t, s, tp, 0, true)
	apply(t, s, tp, 0, 3, "a@0 b@1")
	apply(t, s, tp, 0, 3, "a@0 b@1") // the transaction was aborted
	s = identity(t, rdb)
	check(t, s, tp, 3, true)
	apply(t, s, tp, 3, 5, "c@3")
	if err := rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	var o outlet
	if err := s.Apply(t.Context(), tp.batch(4, 5), &o); err == nil {
		t.Fatal("the loss was not noticed: a repetition would pass")
	}
	check(t, s, tp, 4, false)
	if err := s.Restore(t.Context(), tp.batch(0, 4)); err != nil {
		t.Fatal(err)
	}
	check(t, s, tp, 4, true)
	apply(t, s, tp, 4, 5, "")
}

// Rows that are read anew pass for known ones: nothing says that they are there.
func TestIdentityOfASweep(t *testing.T) { // Remedy: TW-DEDUPE-SWEEP
	rdb := redisClient(t)
	tp := newTopic(1, rec{"a", change.Pos{}, 'c'}, rec{"b", change.Pos{}, 'c'})
	s := identity(t, rdb)
	check(t, s, tp, 0, true)
	b := tp.batch(0, 2)
	b.Changes[1].Op, b.Changes[1].New = change.Sweep, nil
	var o outlet
	if err := s.Apply(t.Context(), b, &o); err != nil {
		t.Fatal(err)
	}
	if len(o.rejected) != 1 || !problem.Has(o.rejected[0], dedupe.ErrSweep) || strings.Join(o.got, " ") != "a@0" {
		t.Errorf("rejected %v, passed %q", o.rejected, o.got)
	}
}

// A mistake in what names a change, or a sender that leaves it out. If this
// failed, repetitions would pass, or the whole topic stop for one record.
func TestIdentityThatIsNotThere(t *testing.T) {
	rdb := redisClient(t)
	tp := newTopic(1, rec{"a", change.Pos{}, 'c'}, rec{"b", change.Pos{}, 'c'})
	s := dedupe.ByIdentity(&pipeline.Env{Redis: rdb, Obs: obs.New(slog.New(slog.DiscardHandler))}, "canonical", []string{"hook.event"}, []string{"idd"}, time.Hour)
	check(t, s, tp, 0, true)
	var o outlet
	if err := s.Apply(t.Context(), tp.batch(0, 2), &o); !problem.Has(err, dedupe.ErrIdentity) || !strings.Contains(problem.Of(err).WhatToDo(), "id") {
		t.Fatalf("got %v, want TW-DEDUPE-IDENTITY", err)
	}
	s = identity(t, rdb) // Remedy: TW-DEDUPE-IDENTITY
	check(t, s, tp, 0, true)
	b := tp.batch(0, 2)
	b.Changes[0].New[0] = change.NullValue()
	if err := s.Apply(t.Context(), b, &o); err != nil {
		t.Fatal(err)
	}
	if len(o.rejected) != 1 || !problem.Has(o.rejected[0], dedupe.ErrNoIdentity) || strings.Join(o.got, " ") != "b@1" {
		t.Fatalf("rejected %v, passed %q", o.rejected, o.got)
	}
	tp.recs = append(tp.recs, rec{"a", change.Pos{}, 'c'}) // Remedy: TW-DEDUPE-NO-IDENTITY
	apply(t, s, tp, 2, 3, "a@2")
}

// A topic that was deleted and created again has the same identities at other
// offsets: nothing of it may be eaten for the sake of the old one.
func TestRecreatedTopicLosesNothing(t *testing.T) {
	t.Run("identity", func(t *testing.T) {
		rdb, old := redisClient(t), hooks(1)
		s := identity(t, rdb)
		check(t, s, old, 0, true)
		apply(t, s, old, 0, 5, "a@0 b@1 c@3")
		again := newTopic(2, rec{"c", change.Pos{}, 'c'}, rec{"b", change.Pos{}, 'c'}, rec{"x", change.Pos{}, 'c'}, rec{"a", change.Pos{}, 'c'})
		check(t, s, again, 0, true)
		apply(t, s, again, 0, 4, "c@0 b@1 x@2 a@3")
	})
	t.Run("position", func(t *testing.T) {
		old := commits()
		s := dedupe.ByPosition(func(ctx context.Context, tp *change.Topic, p int32, before int64) (dedupe.Last, error) {
			if tp.ID == old.t.ID {
				return old.back(ctx, tp, p, before)
			}
			return dedupe.Last{}, nil // nothing below: trimmed
		})
		apply(t, s, old, 0, 6, "a@0 b@1 c@2 d@5")
		again := commits()
		again.t.ID = [16]byte{2}
		again.recs[6].pos = at(3, 1)
		apply(t, s, again, 6, 7, "key gone@6")
	})
}
