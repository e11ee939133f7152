package mapping_test

import (
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
	"github.com/tallywire/tallywire/transforms/mapping"
)

func TestSuite(t *testing.T) {
	batch := func(f *pipelinetest.Feed, fill func(b *change.Batch)) *change.Batch {
		b := change.Get()
		fill(b)
		return f.Close(b, 0)
	}
	feed := func() *pipelinetest.Feed {
		f := pipelinetest.FeedOf(rates)
		f.Fill = func(_ *change.Batch, row []change.Value, _, version int) {
			row[1] = change.IntValue(12)
			if version == 0 {
				row[5] = change.NullValue()
			}
		}
		return f
	}
	// put is an update whose old row is that of the employee before.
	put := func(f *pipelinetest.Feed, b *change.Batch, key, version int, was int64) {
		c := f.Put(b, key, version)
		c.Old = append(b.Row(0), b.Row(len(c.New))...)
		copy(c.Old, c.New)
		c.Old[1] = change.IntValue(was)
	}
	pipelinetest.StageSuite(t, pipelinetest.StageCase{
		New: func(tb testing.TB) pipeline.Stage {
			s, err := mapping.New("canonical", config(), nil, nil)
			if err != nil {
				tb.Fatal(err)
			}
			return s
		},
		Input: func(testing.TB) *change.Batch {
			f := feed()
			return batch(f, func(b *change.Batch) {
				for v := 1; v < 4; v++ {
					for k := range 3 {
						put(f, b, k, v, int64(11+v%2))
					}
				}
			})
		},
		Bad: func(testing.TB) *change.Batch {
			f := feed()
			return batch(f, func(b *change.Batch) {
				put(f, b, 1, 1, 12)
				put(f, b, 2, 0, 12)
				put(f, b, 3, 1, 12)
			})
		},
		Rejects: 1,
	})
}
