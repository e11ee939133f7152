// Parked records of a sink are tried again when somebody asks, when what they
// wait for has come, and after a while in any case.

package deliver

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/parked"
)

// tick does what is due between polls: retries, the lag, how far is read.
func (s *session) tick(ctx context.Context) error {
	if gen, ready := s.assignment.Current(); !ready || gen != s.prepared {
		return nil
	}
	if time.Since(s.lagAt) > consume.LagEvery {
		if err := s.lag(ctx); err != nil {
			return err
		}
	}
	if time.Since(s.lookAt) > lookEvery {
		if err := s.look(ctx); err != nil {
			return err
		}
	}
	if time.Since(s.tickAt) < s.spec.Tick && !(s.due && time.Since(s.tickAt) > 10*time.Millisecond) {
		return nil
	}
	s.tickAt, s.due = time.Now(), false
	s.writing.Lock()
	defer s.writing.Unlock()
	err := s.retryDue(ctx)
	if err == nil || s.keeper != nil || pipeline.Classify(err) != problem.Retry || ctx.Err() != nil || errors.Is(err, errCommit) {
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

// retryDue does what commands ask for until nothing more is released by it. A
// chain of dependencies is at most as long as there are topics; the bound is
// for sinks whose records wait for their own kind.
func (s *session) retryDue(ctx context.Context) error {
	for range 32 {
		if err := s.parked.Follow(ctx, s.env.Kafka.Shared(), s.env.Kafka); err != nil {
			return err
		}
		if gen, ready := s.assignment.Current(); !ready || gen != s.prepared || ctx.Err() != nil {
			return ctx.Err()
		}
		commands := s.parked.Commands(s.spec.MaxRecords)
		if len(commands) == 0 {
			return s.retryUnasked(ctx)
		}
		if err := s.obey(ctx, commands); err != nil {
			return err
		}
	}
	s.due = true // go on after the next poll
	return nil
}

// again is a set of parked records to be tried again.
type again struct {
	s       *session
	parking *parked.Txn
	keys    []string
	octets  int
	adopted []control.Parked
	places  []*consume.Owned
}

func (a *again) at(pl *consume.Owned) {
	if !slices.Contains(a.places, pl) {
		a.places = append(a.places, pl)
	}
}

// obey does what commands say, in one transaction: as many as fit a write.
func (s *session) obey(ctx context.Context, commands []*parked.Command) error {
	a := &again{s: s, parking: s.parked.Begin()}
	for _, c := range commands {
		if a.octets >= s.spec.MaxBytes {
			break // the next round
		}
		pl := s.place(c.About.Topic, c.About.Partition)
		if pl == nil {
			continue
		}
		a.at(pl)
		a.parking.Done(c)
		key, ref, is := s.parked.About(c)
		switch {
		case c.Name == parked.CommandAdopt:
			if old, is := s.parked.Get([]byte(key)); is && old.TopicID == c.About.TopicID && old.Offset >= c.About.Offset {
				continue // it is here, or a newer one is
			}
			a.octets += len(c.About.Value)
			a.parking.Drop(key, c.About.Partition) // it is shown
			a.adopted = append(a.adopted, c.About)
		case !is:
			s.comp.Log.Info("a command is about a record that is not parked any more", "command", c.Name, "topic", c.About.Topic, "offset", c.About.Offset)
		case c.Name == parked.CommandDiscard:
			a.parking.Drop(key, ref.Partition)
		case c.Name == parked.CommandRetry:
			a.octets += ref.Size
			a.keys = append(a.keys, key)
		}
	}
	return a.try(ctx)
}

// retryUnasked tries records that have waited for long, and those that what
// they wait for may have missed: another process delivered it when it could not
// know yet of who waits.
func (s *session) retryUnasked(ctx context.Context) error {
	now := time.Now()
	keys := s.parked.Seen(s.spec.MaxRecords)
	if s.alone {
		keys = nil
	}
	seen := len(keys) > 0
	if !seen {
		keys = s.parked.Overdue(now.Add(-s.spec.Patience), s.spec.MaxRecords)
	}
	if len(keys) == 0 {
		return nil
	}
	a := &again{s: s, parking: s.parked.Begin()}
	for _, k := range keys {
		ref, _ := s.parked.Get([]byte(k))
		if a.octets >= s.spec.MaxBytes {
			s.parked.NotTried(k)
			continue
		}
		a.octets += ref.Size
		a.keys = append(a.keys, k)
		s.parked.Tried(k, now)
	}
	a.parking.Quiet = true
	err := a.try(ctx)
	if err != nil && seen { // what is overdue is so again
		for _, k := range a.keys {
			s.parked.NotTried(k)
		}
	}
	return err
}

// try writes the records, and commits what became of them with the offsets of
// their partitions as they are.
func (a *again) try(ctx context.Context) error {
	s := a.s
	whole, lost, err := s.parked.Read(ctx, s.env.Kafka.Shared(), s.env.Kafka, a.keys)
	if err != nil {
		return err
	}
	for i := range a.adopted {
		p := &a.adopted[i]
		no, err := s.parked.Whole(ctx, s.env.Kafka.Shared(), s.env.Kafka, p)
		switch {
		case err != nil:
			return err
		case no != nil:
			lost = append(lost, *no)
		default:
			whole = append(whole, *p)
		}
	}
	order := map[string]int{}
	for i, t := range s.spec.Topics {
		order[t] = i
	}
	slices.SortFunc(whole, func(x, y control.Parked) int {
		return cmp.Or(order[x.Topic]-order[y.Topic], cmp.Compare(x.Offset, y.Offset))
	})
	pc := newSinkBatch(false)
	defer pc.batch.Release()
	for i := range whole {
		p := &whole[i]
		pl := s.place(p.Topic, p.Partition)
		if pl == nil {
			continue
		}
		a.at(pl)
		if pl.Topic.Name != p.Topic {
			a.unable(p, parked.NotRead(p))
			continue
		}
		if pl.Topic.ID != p.TopicID {
			// Its version cannot be compared with records of the new topic.
			lost := pipeline.ErrTopicRecreated.New("topic %q was made anew after this record was parked", p.Topic).
				WithRemedy("Change the row at its source again; the new record replaces this one.")
			a.unable(p, lost)
			continue
		}
		if err := pc.add(ctx, s, pl, parked.Original(p)); err != nil {
			return err
		}
	}
	for i := range lost {
		p := &lost[i]
		if pl := s.place(p.Topic, p.Partition); pl != nil {
			a.at(pl)
			a.unable(&p.Parked, p.Err)
		}
	}
	if err := s.write(ctx, pc, a.parking); err != nil || a.parking.Empty() {
		return err
	}
	return s.commitParking(ctx, a.places, a.parking)
}

// unable parks p again because it cannot even be tried.
func (a *again) unable(p *control.Parked, err *problem.Error) {
	if a.parking.Quiet && p.Code == err.ID {
		return // as before, and nobody asked
	}
	p.Code, p.Reason, p.Remedy, p.WaitsFor, p.LastAt = err.ID, err.Text, err.WhatToDo(), "", time.Now().UTC()
	a.parking.Park(p)
}
