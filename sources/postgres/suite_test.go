package postgres

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
)

// upstream is a database with one table, for the conformance suite.
type upstream struct {
	*db
	last *Source
}

func (u *upstream) Source(testing.TB) pipeline.Source {
	u.free(u.config().Slot) // of the run before
	u.last = u.source()
	return u.last
}

func (u *upstream) Put(_ testing.TB, key, version int) {
	if u.last != nil { // what is put after a start is to come by the stream
		ctx, cancel := context.WithTimeout(u.t.Context(), testkit.Patience)
		defer cancel()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for u.last.comp.View().State != obs.Running {
			select {
			case <-ctx.Done():
				u.t.Fatal("the source does not run")
			case <-tick.C:
			}
		}
	}
	u.sql("INSERT INTO things VALUES (%d, '%s') ON CONFLICT (id) DO UPDATE SET mark = excluded.mark", key, pipelinetest.MarkOf(version))
}

func (u *upstream) Delete(_ testing.TB, key int) { u.sql("DELETE FROM things WHERE id = %d", key) }

func (u *upstream) MarkOf(s pipelinetest.Sent) string {
	var id int
	var word string
	var v int
	if n, err := fmt.Sscanf(s.Row, "id=%d mark=%s %d", &id, &word, &v); n != 3 || err != nil {
		return ""
	}
	return pipelinetest.MarkOf(v)
}

// Lost if this fails: the engine relies on what this source does not do.
func TestConformance(t *testing.T) {
	pipelinetest.SourceSuite(t, pipelinetest.SourceCase{Upstream: func(tb testing.TB) pipelinetest.SourceUpstream {
		d := newDB(tb.(*testing.T), shared(tb.(*testing.T)))
		d.sql("CREATE TABLE things(id int PRIMARY KEY, mark text); ALTER TABLE things REPLICA IDENTITY FULL")
		return &upstream{db: d}
	}})
}
