package transform

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/state"
)

// waiter is a Keeper of two topics. When flush is set it empties Redis in the
// midst of a batch, and from then on waits until the state of the topic that
// the batch is not of was rebuilt, as one group of a join waits for the other.
type waiter struct {
	*enginetest.Copier
	rdb      *goredis.Client
	states   []*state.Store
	flush    atomic.Bool
	waiting  string // a topic
	restored map[string]int
}

func (w *waiter) Stores() []*state.Store { return w.states }

func (w *waiter) keep(ctx context.Context, in *change.Batch, restoring bool) error {
	return state.Apply(ctx, w.states, in, restoring, func(goredis.Pipeliner, func(*change.Change) bool) error { return nil })
}

func (w *waiter) Restore(ctx context.Context, in *change.Batch) error {
	defer in.Release()
	for _, r := range in.Ranges {
		w.restored[r.Topic.Name]++
	}
	return w.keep(ctx, in, true)
}

func (w *waiter) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	if w.flush.Swap(false) {
		if err := w.rdb.FlushAll(ctx).Err(); err != nil {
			in.Release()
			return err
		}
		clear(w.restored)
		for _, s := range w.states {
			if s.Topic() != in.Ranges[0].Topic.Name {
				w.waiting = s.Topic()
			}
		}
	}
	if w.waiting != "" && w.restored[w.waiting] == 0 {
		in.Release()
		return state.ErrUnknown.New("the state of %s is not there", w.waiting)
	}
	if err := w.keep(ctx, in, false); err != nil {
		in.Release()
		return err
	}
	return w.Copier.Apply(ctx, in, out)
}

// Invariant 6. Redis is emptied while a group works on one of its topics, and
// what it then waits for waits for the state of another one. If the group did
// not look after that while it holds its records, both would wait until the
// session is given up: 20 s in which nothing moves.
func TestTransformRebuildsWhatOthersWaitFor(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	e, err := embedded.StartMiniRedis("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if b.Env.Redis, err = redis.Open(t.Context(), e.Addr()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Env.Redis.Close(); err != nil {
			t.Error(err)
		}
	})
	other := *b.In
	other.Topic = b.Source + ".other"
	others := &enginetest.TopicBed{Bed: b.Bed, In: other.Index(), Outs: b.Outs, Client: b.Client}
	if _, err := b.Outs.Ensure(t.Context(), others.In); err != nil {
		t.Fatal(err)
	}
	w := &waiter{Copier: &enginetest.Copier{Topic: b.Output()}, rdb: b.Env.Redis, restored: map[string]int{}}
	for _, topic := range []string{b.In.Topic, other.Topic} {
		w.states = append(w.states, state.NewStore(b.Env.Redis, b.Env.Obs.Log, b.Source, topic))
	}
	spec := b.TransformSpec(w)
	spec.CoPartitioned = []string{b.In.Topic, other.Topic}
	b.Many(30)
	others.Many(30)
	transforming(b, b.Env, spec)
	n := func() int {
		if _, err := b.Direct.Topic(t.Context(), b.Output()); err != nil {
			return 0
		}
		return len(b.Read(b.Output()))
	}
	b.Eventually("both topics to be read", func() (bool, string) { return n() == 60, fmt.Sprint(n()) })
	began := time.Now()
	w.flush.Store(true)
	b.Put(enginetest.Row{Op: change.Update, ID: 7, Val: "after the flush"})
	b.Eventually("the record after the flush", func() (bool, string) { return n() == 61, fmt.Sprint(n()) })
	if took := time.Since(began); took > holdAtMost/2 {
		t.Errorf("it took %v", took)
	}
}
