package deliver

import (
	"context"

	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// delivering runs a sink until the test ends, or stop is called.
func delivering(b *enginetest.TopicBed, env *pipeline.Env, spec pipeline.DeliverSpec) (stop func() error, ended <-chan error) {
	return b.Running(func(ctx context.Context) error { return Run(ctx, env, spec) })
}
