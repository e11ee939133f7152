package dedupe_test

import (
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
	"github.com/tallywire/tallywire/transforms/dedupe"
)

func TestPositionSuite(t *testing.T) {
	tp := commits()
	pipelinetest.StageSuite(t, pipelinetest.StageCase{
		New:   func(testing.TB) pipeline.Stage { return dedupe.ByPosition(tp.back) },
		Input: func(testing.TB) *change.Batch { return tp.batch(0, 10) },
	})
}

func TestIdentitySuite(t *testing.T) {
	rdb, tp := redisClient(t), hooks(1)
	flush := func(tb testing.TB) {
		if err := rdb.FlushAll(tb.Context()).Err(); err != nil {
			tb.Fatal(err)
		}
	}
	pipelinetest.StageSuite(t, pipelinetest.StageCase{
		New: func(tb testing.TB) pipeline.Stage {
			flush(tb)
			return identity(t, rdb)
		},
		Input: func(testing.TB) *change.Batch { return tp.batch(0, 5) },
		Wipe:  flush,
		Bad: func(testing.TB) *change.Batch {
			b := tp.batch(0, 4)
			b.Changes[1].New[0] = change.NullValue()
			return b
		},
		Rejects: 1,
	})
}
