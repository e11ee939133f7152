// Doctor: what `tallywire doctor` says of a mapping.

package mapping

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
)

// Doctor implements pipeline.Doctor: it holds each mapping against the table
// that its topic is filled from.
func (s *Stage) Doctor(ctx context.Context) []pipeline.Finding {
	if s.inner {
		return nil // the stage before the lookups says it
	}
	fs := s.doctorLookups(ctx)
	for _, e := range s.order {
		what := fmt.Sprintf("%s fills %s", e.from, e.to.Topic)
		t, err := s.env.Tables(ctx, e.from)
		if err != nil {
			fs = append(fs, pipeline.Finding{What: what, Err: err})
			continue
		}
		if t == nil {
			continue // who fills it is asked of all topics
		}
		p, bad := s.fit(e, t)
		for _, err := range bad {
			fs = append(fs, pipeline.Finding{What: what, Err: err})
		}
		switch {
		case len(bad) > 0:
		case e.rows != nil:
			fs = append(fs, p.identity(what, t))
		default:
			fs = append(fs, p.identity(what, t))
			empty, defaults := p.empty()
			if len(empty) > 0 {
				fs = append(fs, pipeline.Finding{What: what, Advice: fmt.Sprintf("nothing fills %s: %s has no such columns, and no field names another", strings.Join(empty, ", "), e.from)})
			}
			if len(defaults) > 0 {
				fs = append(fs, pipeline.Finding{What: what, Advice: fmt.Sprintf("each record has the contract's default of %s: %s has no such columns, and no field names another", strings.Join(defaults, ", "), e.from)})
			}
		}
	}
	return fs
}

// empty lists the fields that are always null, and those that always are what
// their contract says.
func (p *plan) empty() (empty, defaults []string) {
	for i := range p.fields {
		f, name := &p.fields[i], p.to.Columns[i].Name
		switch {
		case f.kind != constantValue || !f.value.IsNull() || f.commitTime || p.e.sources[i].named:
		case f.otherwise != nil:
			defaults = append(defaults, fmt.Sprintf("%s (%q)", name, f.otherwise))
		default:
			empty = append(empty, name)
		}
	}
	return empty, defaults
}

// identity says what an old row, or a large column, would be missing.
func (p *plan) identity(what string, t *change.Table) pipeline.Finding {
	f := pipeline.Finding{What: what}
	if t.OldFull {
		return f
	}
	full := fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", t.SQLName())
	if !p.inKey && !p.gives {
		f.Err = ErrUnchanged.New("%s has no key, so what its rows gave in %s cannot be remembered, and a delete or an update does not tell it", t.Topic, p.to.Topic).
			WithRemedy("Give %s a primary key, or: %s", t.SQLName(), full).At("%s", p.e.path)
		return f
	}
	var large []string
	look := func(cols []int) {
		for _, c := range cols {
			if name := t.Columns[c].Name; mayBeLeftOut(&t.Columns[c]) && !slices.Contains(t.Key, c) && !slices.Contains(large, name) {
				large = append(large, name)
			}
		}
	}
	look(p.whereCols)
	if p.each != nil {
		look(p.each.Columns)
	}
	for i := range p.fields {
		look(p.fields[i].cols)
	}
	if len(large) > 0 {
		f.Advice = fmt.Sprintf("an update that leaves a value of some 2 kB or more in %s as it is comes without it, and is parked; %s sends it", strings.Join(large, ", "), full)
		if t.Partial {
			f.Advice += ", but not while columns of it are left out: its updates would fail"
		}
	}
	return f
}

// mayBeLeftOut: a column whose values may be so large that they are stored out
// of line, and are not sent when they did not change.
func mayBeLeftOut(c *change.Column) bool {
	switch c.Kind {
	case change.String, change.Bytes, change.JSON, change.Text, change.Array, change.Decimal:
		return c.Precision <= 0 // a numeric of so many digits is never so large
	}
	return false
}
