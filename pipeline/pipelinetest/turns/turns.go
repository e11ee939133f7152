// Package turns lets a test choose, at each round trip to Redis, who of those that
// talk to it goes on, so that any interleaving can happen, and the same seed gives
// the same.
package turns

import (
	"context"
	"math/rand/v2"
	"slices"

	goredis "github.com/redis/go-redis/v9"
)

// Scheduler lets one actor go on at a time, and chooses which at each round
// trip to Redis; so any interleaving of the groups' pipelines can happen, and
// the same seed gives the same.
type Scheduler struct {
	Rng   *rand.Rand
	at    chan *Actor
	Flush func() // Redis may be lost before any round trip
	// Choose is who of those that wait goes on, in the order of their places;
	// nil: chance says.
	Choose func(waiting []*Actor) int
}

// Actor is one running step of a group.
type Actor struct {
	N    int // its place among those that run
	goOn chan struct{}
	done bool
}

type actorKey struct{}

// New makes one; it is a hook for the clients of those that take turns.
func New(rng *rand.Rand) *Scheduler { return &Scheduler{Rng: rng, at: make(chan *Actor)} }

// DialHook implements redis.Hook.
func (s *Scheduler) DialHook(next goredis.DialHook) goredis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (s *Scheduler) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		s.wait(ctx)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook implements redis.Hook.
func (s *Scheduler) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		s.wait(ctx)
		return next(ctx, cmds)
	}
}

func (s *Scheduler) wait(ctx context.Context) {
	if a, ok := ctx.Value(actorKey{}).(*Actor); ok {
		s.at <- a
		<-a.goOn
	}
}

// Run lets the functions go on, one round trip of one of them at a time, until
// all have returned.
func (s *Scheduler) Run(ctx context.Context, flushPerMille int, fs ...func(ctx context.Context)) {
	for n, f := range fs {
		a := &Actor{N: n, goOn: make(chan struct{})}
		go func() {
			s.at <- a // none runs before it is chosen
			<-a.goOn
			f(context.WithValue(ctx, actorKey{}, a))
			a.done = true
			s.at <- a
		}()
	}
	running, live := len(fs), len(fs)
	var waiting []*Actor
	for live > 0 {
		for running > 0 {
			a := <-s.at
			running--
			if a.done {
				live--
			} else {
				waiting = append(waiting, a)
			}
		}
		if len(waiting) == 0 {
			continue
		}
		// Who arrived first depends on the machine; the choice must not.
		slices.SortFunc(waiting, func(a, b *Actor) int { return a.N - b.N })
		if s.Rng.IntN(1000) < flushPerMille {
			s.Flush()
		}
		choose := s.Choose
		if choose == nil {
			choose = func(waiting []*Actor) int { return s.Rng.IntN(len(waiting)) }
		}
		i := choose(waiting)
		a := waiting[i]
		waiting = append(waiting[:i], waiting[i+1:]...)
		running++
		a.goOn <- struct{}{}
	}
}
