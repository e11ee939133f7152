// Trial: what the rules make of rows, outside of a pipeline.

package mapping

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline/state"
)

// Trial applies the rules of a stage to rows and keeps what comes out. Nothing is
// written. What rows gave is remembered, as the transform does: the first of a row
// that is applied is the first that there was. Not safe for concurrent use.
type Trial struct {
	stage    *Stage
	tables   []*state.Table
	claims   *Claims      // nil: no rule has any
	look     *lookupTrial // nil: no rule has lookups
	all      avro.Catalogue
	row      int // that is applied, where there are lookups
	encoders map[*change.Table]*avro.Encoder
	octets   []byte

	out      *change.Batch
	rejected []Rejection
}

// Rejection is a row that the rules made nothing of, or not all.
type Rejection struct {
	Row int // its index in the batch
	Err error
}

// NewTrial makes one, and takes the stage over; all are the contracts that it was
// made with.
func NewTrial(s *Stage, all avro.Catalogue) (*Trial, error) {
	log := slog.New(slog.DiscardHandler)
	t := &Trial{stage: s, tables: []*state.Table{s.Remember(nil, log)}, encoders: map[*change.Table]*avro.Encoder{}, all: all}
	for _, e := range slices.Concat(s.order, s.looked) {
		if e.rows != nil {
			continue
		}
		enc, err := avro.NewOfflineEncoder(all[e.to.Topic], e.to)
		if err != nil {
			return nil, err
		}
		t.encoders[e.to] = enc
	}
	if claims, table := s.Claims(nil, log); claims != nil {
		t.claims, t.tables = claims, append(t.tables, table)
	}
	t.Forget()
	return t, nil
}

// Forget has the next row be the first of all.
func (t *Trial) Forget() {
	for _, table := range t.tables {
		table.Open(&change.Topic{Name: "_trial", Partitions: 1}, 0)
		// Of a changelog without a record nothing is read.
		if _, ok, err := table.Own(context.Background(), 0, 0, 0); err != nil || !ok {
			panic("BUG: a state of which nothing was ever written is not known")
		}
	}
	if t.look != nil {
		t.look.rules = nil
	}
}

// Apply applies the rules to the rows of in, which it takes over, and whose Coord
// it sets. out holds the records in their order, each with the index of its row
// as Coord.Offset; the caller releases it. A record that its contract does not
// hold is rejected, as it would be on its way into the topic. An error is one of
// the rules against the table, as that of Stage.Apply.
func (t *Trial) Apply(ctx context.Context, in *change.Batch) (out *change.Batch, rejected []Rejection, err error) {
	for i := range in.Changes {
		in.Changes[i].Coord = change.Coord{Offset: int64(i)}
	}
	in.Ranges = append(in.Ranges[:0], change.Range{To: int64(in.Len())})
	t.out, t.rejected = nil, nil
	if len(t.stage.looked) > 0 {
		err = t.applyLooking(ctx, in)
	} else {
		err = t.stage.Apply(ctx, in, (*trialOutlet)(t))
	}
	if err != nil {
		return nil, nil, err
	}
	t.out.Keep(func(c *change.Change) bool {
		if c.New == nil {
			return true
		}
		var err error
		if t.octets, err = t.encoders[c.Table].AppendValue(t.octets[:0], t.out, c); err != nil {
			t.rejected = append(t.rejected, Rejection{int(c.Coord.Offset), err})
		}
		return err == nil
	})
	slices.SortStableFunc(t.rejected, func(a, b Rejection) int { return a.Row - b.Row })
	return t.out, t.rejected, nil
}

// applyLooking is Apply of rules with lookups: row by row, each to its end.
func (t *Trial) applyLooking(ctx context.Context, in *change.Batch) error {
	defer in.Release()
	if t.look == nil {
		path, _ := t.stage.Looks()
		return ErrConfig.New("rules with lookups cannot be previewed: the window has not all rows that they look up").At("%s.lookups", path).
			WithRemedy("Try them with tallywire mapping test.")
	}
	if t.look.rules == nil {
		if err := t.look.forget(ctx, t.stage); err != nil {
			return err
		}
	}
	t.out = change.Get()
	for i := range in.Changes {
		t.row = i
		one := change.Get()
		one.AppendFrom(in, &in.Changes[i]).Coord = in.Changes[i].Coord
		one.Ranges = append(one.Ranges, change.Range{From: int64(i), To: int64(i) + 1})
		fed := change.Get()
		if err := t.stage.Apply(ctx, one, &chained{t.look, fed, (*lookingOutlet)(t)}); err != nil {
			fed.Release()
			return err
		}
		if err := t.look.feed(ctx, fed, (*lookingOutlet)(t)); err != nil {
			return err
		}
	}
	return nil
}

// lookingOutlet is what all groups send to, where rules have lookups.
type lookingOutlet Trial

func (t *lookingOutlet) Send(ctx context.Context, b *change.Batch) error {
	defer b.Release()
	for i := range b.Changes {
		c := &b.Changes[i]
		c.Coord = change.Coord{Offset: int64(t.row)}
		switch {
		case strings.HasPrefix(c.Table.Topic, "_tallywire.rows."):
		case t.claims != nil && c.Table == t.stage.given.claimTable:
			one := change.Get()
			one.AppendFrom(b, c).Coord = c.Coord
			if err := t.claims.Apply(ctx, one, (*settledOutlet)(t)); err != nil {
				return err
			}
		default:
			t.out.AppendFrom(b, c).Coord = c.Coord
		}
	}
	return nil
}

func (t *lookingOutlet) Reject(_ *change.Change, err error) {
	t.rejected = append(t.rejected, Rejection{t.row, err})
}

// trialOutlet is what the stage sends to.
type trialOutlet Trial

func (t *trialOutlet) Send(ctx context.Context, b *change.Batch) error {
	if t.claims == nil {
		t.out = b
		return nil
	}
	defer b.Release()
	t.out = change.Get()
	for i := range b.Changes {
		c := &b.Changes[i]
		if c.Table != t.stage.given.claimTable {
			t.out.AppendFrom(b, c)
			continue
		}
		one := change.Get()
		one.AppendFrom(b, c)
		if err := t.claims.Apply(ctx, one, (*settledOutlet)(t)); err != nil {
			return err
		}
	}
	return nil
}

// settledOutlet is what the claims are sent to.
type settledOutlet Trial

func (t *settledOutlet) Send(_ context.Context, b *change.Batch) error {
	defer b.Release()
	for i := range b.Changes {
		t.out.AppendFrom(b, &b.Changes[i])
	}
	return nil
}

func (t *settledOutlet) Reject(c *change.Change, err error) { (*trialOutlet)(t).Reject(c, err) }

func (t *trialOutlet) Reject(c *change.Change, err error) {
	t.rejected = append(t.rejected, Rejection{int(c.Coord.Offset), err})
}

// Fills are the canonical topics that rows of a raw topic become records of.
func (s *Stage) Fills(from string) []string {
	var out []string
	for _, e := range slices.Concat(s.byFrom[from], s.looked) {
		if e.rows != nil || e.from != from {
			continue
		}
		if !slices.Contains(out, e.to.Topic) {
			out = append(out, e.to.Topic)
		}
	}
	return out
}

// Name is that of the transform.
func (s *Stage) Name() string { return s.name }
