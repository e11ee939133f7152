// Doctor: what `tallywire doctor` says of a join.

package join

import (
	"context"
	"fmt"

	"github.com/tallywire/tallywire/pipeline"
)

// Doctor implements pipeline.Doctor for the topic that is enriched.
func (l *Left) Doctor(ctx context.Context) []pipeline.Finding { return l.doctor(ctx, l.plan.left) }

// Doctor implements pipeline.Doctor for the references.
func (r *Right) Doctor(ctx context.Context) []pipeline.Finding {
	return r.doctor(ctx, r.plan.sides...)
}

// doctor holds what is kept of each side against the records that are there: by
// their contract they fit, but another may have written them.
func (j *join) doctor(ctx context.Context, sides ...*side) []pipeline.Finding {
	var fs []pipeline.Finding
	for _, s := range sides {
		if s.raw != "" {
			continue // a mapping writes it
		}
		what := fmt.Sprintf("the fields of %s that are used", s.topic)
		t, err := j.tables(ctx, s.topic)
		if err != nil {
			fs = append(fs, pipeline.Finding{What: what, Err: err})
			continue
		}
		if t == nil {
			continue // nothing is written yet
		}
		well := true
		for _, name := range s.cols {
			if _, err := s.columnOf(t, name); err != nil {
				fs, well = append(fs, pipeline.Finding{What: what, Err: err}), false
			}
		}
		if well {
			fs = append(fs, pipeline.Finding{What: what})
		}
	}
	return fs
}
