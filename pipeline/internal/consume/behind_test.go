package consume_test

import (
	"context"
	"testing"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// If this failed, a component that halted would show the lag that it had then
// for ever: nothing, as a rule.
func TestShowBehind(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		b.Many(30)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			consume.ShowBehind(ctx, b.Direct, b.Env.Obs.Component("sink", b.Source), pipeline.GroupOf(b.Source), []string{b.In.Topic})
		}()
		defer func() { cancel(); <-done }()
		total := func(v obs.View) (n int64) {
			for _, lag := range v.Lag {
				n += lag
			}
			return n
		}
		// A transaction's marker has an offset of its own.
		b.Shows(b.Env, "sink", "all of it", func(v obs.View) bool { return total(v) >= 30 })
		next := map[int32]int64{}
		for _, r := range b.Read(b.In.Topic) {
			next[r.Partition] = max(next[r.Partition], r.Offset+1)
		}
		b.HasRead(next, consume.TokenOf)
		b.Shows(b.Env, "sink", "that it was read", func(v obs.View) bool { return total(v) < 30 })
		b.Many(60)
		b.Shows(b.Env, "sink", "that it grows", func(v obs.View) bool { return total(v) >= 60 })
	})
}
