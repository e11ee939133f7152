package ingest

import (
	"context"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// panicky rows panic when they are decoded.
type panicky struct{}

func (panicky) Decode(*change.Batch) error { panic("BUG: of a test's rows") }

// A source, or the rows it sent, meet a bug. If this failed, the process would
// end with all its components, or the source hang with its goroutines; or what
// it sent before would be lost.
func TestIngestOutlivesAPanic(t *testing.T) {
	for name, last := range map[string]func(ctx context.Context, out pipeline.SourceOutlet, table *change.Table) error{
		"source": func(context.Context, pipeline.SourceOutlet, *change.Table) error { panic("BUG: of a test's source") },
		"rows": func(ctx context.Context, out pipeline.SourceOutlet, table *change.Table) error {
			rows := change.Get()
			rows.Carry(panicky{}, 1, 2, []*change.Table{table})
			if err := out.Send(ctx, rows); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
				txs := inserts(3, 5)
				f := newFeed(b.Table(), txs)
				source := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
					runCtx, cancel := context.WithCancel(ctx)
					defer cancel()
					go func() {
						<-f.all
						cancel()
					}()
					if err := f.Run(runCtx, out); err != nil {
						return err
					}
					return last(ctx, out, f.table)
				})
				if err := runIngest(b, t.Context(), source, pipeline.IngestLimits{}); !problem.Has(err, outage.ErrPanic) {
					t.Fatalf("it ended with %v, want %s", err, outage.ErrPanic.ID)
				}
				checkOnce(b, txs)
			})
		})
	}
}
