// Package ingest moves a source into its raw topics, exactly once. One run of
// the source is one session (session.go) with a Kafka client of its own;
// whatever goes wrong with a transaction ends the session, and the next one
// takes the truth from Kafka (invariants 1 and 14).
package ingest

import (
	"context"
	"errors"
	"sync"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/retry"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

// Run runs a source until ctx ends (nil) or it must halt (the error). It
// runs it again after outages and aborted transactions.
func Run(ctx context.Context, env *pipeline.Env, spec pipeline.IngestSpec) error {
	in := newIngest(env, spec)
	defer parked.Project(ctx, env.Kafka, env.Control, spec.Name, control.KindTransform, in.comp)()
	return retry.Run(ctx, in.comp, in.run)
}

// ingest is what outlives the sessions of one source.
type ingest struct {
	env    *pipeline.Env
	spec   pipeline.IngestSpec
	limits pipeline.IngestLimits
	comp   *obs.Component
	large  records.LargeTopics

	mu sync.Mutex
	// wanted are Tables whose topic or schemas could not be made in the last
	// session; the next one makes them before the source starts, so that no
	// transaction waits for a registry.
	wanted []*change.Table
}

func newIngest(env *pipeline.Env, spec pipeline.IngestSpec) *ingest {
	return &ingest{env: env, spec: spec, limits: spec.WithDefaults(), comp: env.Obs.Component("source", spec.Name)}
}

// run is one session. Its error is that of the session, if it failed, or that
// of the source.
func (in *ingest) run(ctx context.Context) error {
	s := newSession(ctx, in)
	if err := in.ensureWanted(ctx, s); err != nil {
		return err
	}
	// The source ends with the session, the session not with ctx: what was
	// sent before a shutdown is committed.
	sourceCtx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	err := outage.Guard(func() error { return in.spec.Source.Run(sourceCtx, s) })
	stop()
	cancel()
	failure := s.finish()
	if failure != nil {
		return failure
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // a shutdown is no failure
	}
	return err
}

func (in *ingest) want(t *change.Table) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, w := range in.wanted {
		if w == t {
			return
		}
	}
	const most = 256 // the others are met in the stream again
	if len(in.wanted) < most {
		in.wanted = append(in.wanted, t)
	}
}

func (in *ingest) ensureWanted(ctx context.Context, s *session) error {
	for {
		in.mu.Lock()
		var t *change.Table
		if len(in.wanted) > 0 {
			t = in.wanted[0]
		}
		in.mu.Unlock()
		if t == nil {
			return nil
		}
		if _, err := s.outs.Ensure(ctx, t); err != nil && !problem.Has(err, avro.ErrIncompatible) {
			return err
		}
		in.mu.Lock()
		in.wanted = in.wanted[1:]
		in.mu.Unlock()
	}
}

// rawTopic says how a raw topic is made. An existing one keeps its partitions;
// the position says whether they are still those it was filled with.
func (in *ingest) rawTopic(t *change.Table) kafka.TopicSpec {
	return kafka.TopicSpec{Name: t.Topic, Default: in.env.Partitions, Retention: in.env.Retention}
}
