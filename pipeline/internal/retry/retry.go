// Package retry is the loop that runs a component again after an outage, and
// stops it for good when going on would lose data.
package retry

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

// First is the mean of the first pause; each further one is twice as long.
const First = 200 * time.Millisecond

const (
	longest = 15 * time.Second // mean of the longest pause
	// A run that lasted this long had a success in it: the next failure is a
	// new one and starts with the first pause.
	forgiven = 20 * time.Second
)

// Run calls run until it returns nil, ctx ends, or it fails with what is not
// to be tried again (outage.Classify). Between calls it pauses with jitter, at least
// as long as the problem asks for (problem.Error.After). It keeps the
// component's state: Retrying with the reason during a pause, Halted when it
// gives up, Failed when run panics, Stopped when it ends; run itself sets Running when it is.
//
// The error is nil when run ended or ctx did, else the one that halted it. An
// error that comes with the end of ctx is not a failure.
func Run(ctx context.Context, comp *obs.Component, run func(ctx context.Context) error) error {
	pause := &backoff.ExponentialBackOff{
		InitialInterval: First, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: longest,
	}
	for {
		began := time.Now()
		err := outage.Guard(func() error { return run(ctx) })
		if err == nil || ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) {
				comp.Log.Info("stopping", "while", err)
			}
			comp.Is(obs.Stopped, "")
			return nil
		}
		class, code := outage.Classify(err), outage.CodeOf(err)
		comp.Failed(class.String(), code)
		if p := (*outage.Panic)(nil); errors.As(err, &p) {
			comp.Ails(obs.Failed, outage.ReasonOf(err), outage.RemedyOf(err))
			comp.Log.Error("failed", "code", code, "err", err, "remedy", outage.RemedyOf(err), "stack", p.Stack)
			return err
		}
		if class != problem.Retry {
			comp.Ails(obs.Halted, outage.ReasonOf(err), outage.RemedyOf(err))
			comp.Log.Error("halted", "code", code, "err", err, "remedy", outage.RemedyOf(err))
			return err
		}
		if time.Since(began) > forgiven {
			pause.Reset()
		}
		wait := pause.NextBackOff()
		if e := problem.Of(err); e != nil && e.After > wait {
			wait = e.After
		}
		comp.Ails(obs.Retrying, outage.ReasonOf(err), outage.RemedyOf(err))
		comp.Log.Warn("trying again", "in", wait, "code", code, "err", err)
		if !Sleep(ctx, wait) {
			comp.Is(obs.Stopped, "")
			return nil
		}
	}
}

// Sleep pauses for d; false when ctx ended before.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
