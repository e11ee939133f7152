package ingest

import (
	"context"
	"fmt"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// BenchmarkIngest sends rows through a session into Apache Kafka; an op is a
// row. With -cpuprofile, `go tool pprof -peek 'session..produce$'` shows what
// the sequencer costs, which no second core shares.
func BenchmarkIngest(b *testing.B) {
	for _, delivery := range []pipeline.Delivery{pipeline.ExactlyOnce, pipeline.AtLeastOnce} {
		b.Run(string(delivery), func(b *testing.B) {
			bed := enginetest.NewBed(b, testkit.SharedKafka(b).Addr())
			patient(bed)
			table := bed.Table()
			const rows = 400
			src := scripted(func(ctx context.Context, out pipeline.SourceOutlet) error {
				if _, err := out.Resume(ctx); err != nil {
					return err
				}
				if err := out.Prepare(ctx, []*change.Table{table}); err != nil {
					return err
				}
				b.ReportAllocs()
				b.ResetTimer()
				for n := 1; n*rows < b.N+rows; n++ {
					batch := change.Get()
					for i := range rows {
						enginetest.AppendRow(batch, table, enginetest.Row{Op: change.Create, ID: int64(n*rows + i), Val: "a note of some forty characters, as it may be"}, n, i)
					}
					batch.Resume = fmt.Appendf(nil, `{"lsn":%d}`, n)
					if err := out.Send(ctx, batch); err != nil {
						return err
					}
				}
				err := out.Checkpoint(ctx, pipeline.Resume(`{"lsn":99999999}`))
				b.StopTimer()
				return err
			})
			if err := Run(b.Context(), bed.Env, pipeline.IngestSpec{Name: bed.Source, Source: src, IngestLimits: pipeline.IngestLimits{Delivery: delivery}}); err != nil {
				b.Fatal(err)
			}
		})
	}
}
