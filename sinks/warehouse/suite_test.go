package warehouse

import (
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
)

func TestSinkSuite(t *testing.T) {
	var read func(tb testing.TB) map[string]string
	pipelinetest.SinkSuite(t, pipelinetest.SinkCase{
		Topic: "ps.customer",
		Mark:  "name",
		New: func(tb testing.TB) pipeline.Sink {
			dsn, conn := fresh(tb)
			s := open(tb, dsn, "ps.customer")
			if err := s.Prepare(tb.Context()); err != nil {
				tb.Fatal(err)
			}
			read = func(tb testing.TB) map[string]string {
				rows, err := conn.Query(tb.Context(), "SELECT customer_id, name FROM ps.customer")
				if err != nil {
					tb.Fatal(err)
				}
				out := map[string]string{}
				for rows.Next() {
					var key, name string
					if err := rows.Scan(&key, &name); err != nil {
						tb.Fatal(err)
					}
					out[key] = name
				}
				if rows.Err() != nil {
					tb.Fatal(rows.Err())
				}
				return out
			}
			return s
		},
		Read: func(tb testing.TB) map[string]string { return read(tb) },
		Spoil: func(b *change.Batch, c *change.Change) {
			c.New[c.Table.Column("number")] = b.SpanString(change.String, "a\x00b")
		},
	})
}
