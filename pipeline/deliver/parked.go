// Parked records of a sink: known in memory by key, kept in the control
// database, and tried again when somebody asks, or when what they wait for has
// come.

package deliver

import (
	"context"
	"slices"
	"time"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/parked"
)

// tick does what is due between polls: retries, and the lag.
func (s *session) tick(ctx context.Context) error {
	if gen, ready := s.assignment.Current(); !ready || gen != s.prepared {
		return nil
	}
	if time.Since(s.lagAt) > consume.LagEvery {
		if err := s.lag(ctx); err != nil {
			return err
		}
	}
	if s.store == nil || time.Since(s.tickAt) < s.spec.Tick && !(s.due && time.Since(s.tickAt) > 10*time.Millisecond) {
		return nil
	}
	s.tickAt, s.due = time.Now(), false
	_, waiting, err := s.store.Count(ctx, s.spec.Name)
	if err != nil {
		return err
	}
	s.othersWait = waiting > s.index.Waiting()
	if s.index.Len() == 0 {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	err = s.retryDue(ctx)
	if err == nil || s.keeper != nil || pipeline.Classify(err) != problem.Retry || ctx.Err() != nil {
		return err
	}
	// The sink is down: parked records can wait, and new ones will tell.
	s.due = true
	if e := problem.Of(err); e != nil {
		s.tickAt = s.tickAt.Add(e.After)
	}
	s.comp.Failed(problem.Retry.String(), outage.CodeOf(err))
	return nil
}

// retryDue tries due records again until nothing more is released by it. A
// chain of dependencies is at most as long as there are topics; the bound is
// for sinks whose records wait for their own kind.
func (s *session) retryDue(ctx context.Context) error {
	for range 32 {
		if gen, ready := s.assignment.Current(); !ready || gen != s.prepared || ctx.Err() != nil {
			return ctx.Err()
		}
		places := s.assignment.List()
		rows, err := s.store.Due(ctx, s.spec.Name, partIDs(places), s.spec.Patience, s.spec.MaxRecords)
		if err != nil || len(rows) == 0 {
			return err
		}
		order := map[string]int{}
		for i, t := range s.spec.Topics {
			order[t] = i
		}
		slices.SortStableFunc(rows, func(a, b control.Parked) int { return order[a.Topic] - order[b.Topic] })
		s.due = false
		if err := s.retryRows(ctx, rows); err != nil {
			return err
		}
		if !s.due && len(rows) < s.spec.MaxRecords {
			return nil
		}
	}
	s.due = true // go on after the next poll
	return nil
}

func (s *session) retryRows(ctx context.Context, rows []control.Parked) error {
	pc := newSinkBatch(false)
	defer pc.batch.Release()
	var gone []control.Parked
	for i := range rows {
		row := &rows[i]
		pl := s.assignment.Find(row.Topic, row.Partition)
		if pl == nil {
			continue
		}
		if pl.Topic.ID != row.TopicID {
			// Its version cannot be compared with records of the new topic.
			lost := pipeline.ErrTopicRecreated.New("topic %q was made anew after this record was parked", row.Topic)
			row.Code, row.Reason, row.Remedy, row.WaitsFor = lost.ID, lost.Text, "Change the row at its source again; the new record replaces this one.", ""
			gone = append(gone, *row)
			continue
		}
		rec := parked.Original(row)
		if err := pc.add(ctx, s, pl, rec); err != nil {
			return err
		}
	}
	if err := s.store.Put(ctx, gone); err != nil {
		return err
	}
	return s.write(ctx, pc)
}
