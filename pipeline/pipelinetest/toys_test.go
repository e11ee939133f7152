// Toys: a source, a stage and a sink made with nothing but package pipeline and
// the noun. They pass their suites; docs/extending.md explains them.

package pipelinetest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
)

// journal is an upstream that never forgets: a list of entries. Its position is
// how many of them were read.
type journal struct {
	table *change.Table

	mu      sync.Mutex
	entries []entry
	grown   chan struct{} // closed and replaced when there is more
}

type entry struct {
	key  int64
	mark string // "": the key is deleted
}

type journalSource struct{ j *journal }

func (s journalSource) Run(ctx context.Context, out pipeline.SourceOutlet) error {
	resume, err := out.Resume(ctx)
	if err != nil {
		return err
	}
	at := 0
	if resume == nil { // where it begins is a position too: what comes from now on is not missed
		err = out.Checkpoint(ctx, pipeline.Resume("0"))
	} else {
		err = json.Unmarshal(resume, &at)
	}
	if err != nil {
		return err
	}
	if err := out.Prepare(ctx, []*change.Table{s.j.table}); err != nil {
		return err
	}
	for {
		s.j.mu.Lock()
		more, grown := s.j.entries[at:], s.j.grown
		s.j.mu.Unlock()
		for _, e := range more {
			at++
			if err := out.Send(ctx, s.batch(e, at)); err != nil {
				return err
			}
		}
		select {
		case <-grown:
		case <-out.Durable(): // a journal forgets nothing: there is nobody to tell
		case <-ctx.Done():
			return nil
		}
	}
}

// batch is one entry, a boundary behind it.
func (s journalSource) batch(e entry, at int) *change.Batch {
	b := change.Get()
	row := b.Row(2)
	row[0] = change.IntValue(e.key)
	op := change.Update
	if e.mark == "" {
		op = change.Delete
	} else {
		row[1] = b.SpanString(change.String, e.mark)
	}
	c := b.Append(s.j.table, op)
	if op == change.Delete {
		c.Old = row
	} else {
		c.New = row
	}
	c.Pos = change.Pos{System: 1, Timeline: 1, LSN: uint64(at), Kind: change.PosCommit, Ordinal: 1}
	b.Resume = fmt.Append(nil, at)
	return b
}

// What the suite asks of the upstream.

func (j *journal) Source(testing.TB) pipeline.Source { return journalSource{j} }

func (j *journal) write(e entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, e)
	close(j.grown)
	j.grown = make(chan struct{})
}

func (j *journal) Put(_ testing.TB, key, version int) {
	j.write(entry{int64(key), pipelinetest.MarkOf(version)})
}
func (j *journal) Delete(_ testing.TB, key int) { j.write(entry{key: int64(key)}) }

func (j *journal) MarkOf(s pipelinetest.Sent) string {
	var id, version int
	if n, err := fmt.Sscanf(s.Row, "id=%d mark=version %d", &id, &version); n != 2 || err != nil {
		return ""
	}
	return pipelinetest.MarkOf(version)
}

func TestToySource(t *testing.T) {
	pipelinetest.SourceSuite(t, pipelinetest.SourceCase{Upstream: func(testing.TB) pipelinetest.SourceUpstream {
		return &journal{grown: make(chan struct{}), table: (&change.Table{
			Source: "toy", Connector: &change.Connector{Name: "journal", Version: "1"}, Schema: "a", Name: "entry", Topic: "toy.a.entry", Key: []int{0},
			Columns: []change.Column{
				{Name: "id", Type: "bigint", Kind: change.Int, Width: 8, Precision: -1, Scale: -1},
				{Name: "mark", Type: "text", Kind: change.String, Nullable: true, Precision: -1, Scale: -1},
			},
		}).Index()}
	}})
}

// louder is a stage: it sends names in capitals to another topic, and refuses
// those that have no letters.
type louder struct {
	to  string
	mu  sync.Mutex
	was map[*change.Table]*change.Table // a table of the input → that of the output
}

func (l *louder) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	in.Keep(func(c *change.Change) bool {
		name := c.Table.Column("name")
		c.Table = l.output(c.Table)
		if c.New == nil {
			return true
		}
		c.New[name] = in.SpanString(change.String, strings.ToUpper(in.String(c.New[name])))
		return true
	})
	return out.Send(ctx, in)
}

func (l *louder) output(t *change.Table) *change.Table {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.was[t] == nil {
		o := *t
		o.Topic = l.to
		if l.was == nil {
			l.was = map[*change.Table]*change.Table{}
		}
		l.was[t] = o.Index()
	}
	return l.was[t]
}

func TestToyStage(t *testing.T) {
	pipelinetest.StageSuite(t, pipelinetest.StageCase{
		New: func(testing.TB) pipeline.Stage { return &louder{to: "toy.louder"} },
		Input: func(tb testing.TB) *change.Batch {
			f := pipelinetest.NewFeed(tb, "ps.customer")
			f.Mark = "name"
			return f.Batch(1, 1, 2, 1, 1, 2, 3, 1, 2, 2)
		},
	})
}

// shelf is a sink in memory: the last version of each key, by offset.
type shelf struct {
	mu   sync.Mutex
	rows map[string]shelved
}

type shelved struct {
	offset int64
	name   string
	gone   bool
}

func (s *shelf) Write(ctx context.Context, b *change.Batch) ([]pipeline.Failure, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range b.Changes {
		c := &b.Changes[i]
		key := string(change.AppendKey(nil, b, c))
		if was, ok := s.rows[key]; ok && was.offset > c.Coord.Offset {
			continue // an older version does not win
		}
		r := shelved{offset: c.Coord.Offset, gone: c.New == nil}
		if !r.gone {
			r.name = b.String(c.New[c.Table.Column("name")]) // a copy: nothing of a batch is kept
		}
		s.rows[key] = r
	}
	return nil, nil
}

func TestToySink(t *testing.T) {
	var s *shelf
	pipelinetest.SinkSuite(t, pipelinetest.SinkCase{
		Topic: "ps.customer", Mark: "name",
		New: func(testing.TB) pipeline.Sink {
			s = &shelf{rows: map[string]shelved{}}
			return s
		},
		Read: func(testing.TB) map[string]string {
			s.mu.Lock()
			defer s.mu.Unlock()
			out := map[string]string{}
			for k, r := range s.rows {
				if !r.gone {
					out[k] = r.name
				}
			}
			return out
		},
	})
}
