package pipeline

import (
	"context"
	"fmt"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/testkit"
)

// BenchmarkIngest sends rows through a session into Apache Kafka; an op is a
// row. With -cpuprofile, `go tool pprof -peek 'session..produce$'` shows what
// the sequencer costs, which no second core shares.
func BenchmarkIngest(b *testing.B) {
	for _, delivery := range []Delivery{ExactlyOnce, AtLeastOnce} {
		b.Run(string(delivery), func(b *testing.B) {
			bed := newBed(b, testkit.SharedKafka(b).Addr())
			patient(bed)
			table := bed.table()
			const rows = 400
			src := scripted(func(ctx context.Context, out SourceOutlet) error {
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
						appendRow(batch, table, row{op: change.Create, id: int64(n*rows + i), val: "a note of some forty characters, as it may be"}, n, i)
					}
					batch.Resume = fmt.Appendf(nil, `{"lsn":%d}`, n)
					if err := out.Send(ctx, batch); err != nil {
						return err
					}
				}
				err := out.Checkpoint(ctx, Resume(`{"lsn":99999999}`))
				b.StopTimer()
				return err
			})
			if err := RunIngest(b.Context(), bed.env, IngestSpec{Name: bed.source, Source: src, IngestLimits: IngestLimits{Delivery: delivery}}); err != nil {
				b.Fatal(err)
			}
		})
	}
}
