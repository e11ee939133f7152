package transform

import (
	"context"

	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// transforming runs a transform until the test ends, or stop is called.
func transforming(b *enginetest.TopicBed, env *pipeline.Env, spec pipeline.TransformSpec) (stop func() error, ended <-chan error) {
	return b.Running(func(ctx context.Context) error { return Run(ctx, env, spec) })
}
