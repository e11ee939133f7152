// Keepers: state in Redis is compared with the committed offset before every
// batch, and rebuilt by replay when it is behind (invariant 6).

package transform

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/state"
)

// checkState compares every state of the partition's topic with the offset, below
// which all is applied, and rebuilds what is behind.
func (s *session) checkState(ctx context.Context, p *consume.Owned, offset int64) error {
	for _, k := range s.kept {
		if k.state.Topic() != p.Topic.Name {
			continue
		}
		from, ok, err := k.state.Check(ctx, p.Topic, p.Partition, offset)
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		if err := s.restore(ctx, k, p, from, offset); err != nil {
			return err
		}
		if _, ok, err := k.state.Check(ctx, p.Topic, p.Partition, offset); err != nil {
			return err
		} else if !ok {
			return state.ErrLost.New("state of partition %d of topic %q was lost again while it was rebuilt", p.Partition, p.Topic.Name)
		}
	}
	return nil
}

// checkAll is checkState of every partition that is owned, and ownState.
func (s *session) checkAll(ctx context.Context) error {
	if err := s.ownState(ctx); err != nil {
		return err
	}
	if len(s.kept) == 0 {
		return nil
	}
	for _, p := range s.assignment.List() {
		if err := s.checkState(ctx, p, p.Next); err != nil {
			return err
		}
	}
	return nil
}

// restore replays offsets from up to but not including to through the stage.
func (s *session) restore(ctx context.Context, k kept, p *consume.Owned, from, to int64) error {
	what := "state of " + p.Topic.Name
	s.comp.Is(obs.Restoring, what)
	start, err := s.env.Kafka.StartOf(ctx, p.Topic, p.Partition)
	if err != nil {
		return err
	}
	from = max(from, start) // what retention or compaction took is part of no state
	b := change.Get()
	defer func() { b.Release() }()
	bytes, done := 0, from
	flush := func(upTo int64) error {
		b.Ranges = append(b.Ranges, change.Range{Topic: p.Topic, Partition: p.Partition, From: done, To: upTo})
		full := b
		b, bytes, done = change.Get(), 0, upTo
		s.comp.Progress(what, upTo, to)
		return k.keeper.Restore(ctx, full)
	}
	err = kafka.Scan(ctx, s.side, p.Topic, p.Partition, from, to, func(r *kgo.Record) error {
		if r.Attrs.IsControl() {
			return nil
		}
		if b.Len() >= s.spec.BatchRecords || bytes+len(r.Key)+len(r.Value) > s.spec.BatchBytes && b.Len() > 0 {
			if err := flush(r.Offset); err != nil {
				return err
			}
		}
		bytes += len(r.Key) + len(r.Value)
		err := consume.Decode(ctx, s.decoder, b, p, r)
		if err != nil && pipeline.Classify(err) != problem.Reject { // rejects are parked already
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	if done < to {
		if err := flush(to); err != nil {
			return err
		}
	}
	return k.state.Replayed(ctx, p.Topic, p.Partition, to)
}

// trim deletes the records of queues behind the committed offset (D2), but for
// the last one: the embedded broker forgets the end of a partition that is
// empty when it stops, and a committed offset past the end halts.
func (s *session) trim(ctx context.Context) error {
	del := kadm.Offsets{}
	for _, p := range s.assignment.List() {
		if slices.Contains(s.spec.Trim, p.Topic.Name) && p.Next-1 > s.trimmed[p] {
			s.trimmed[p] = p.Next - 1
			del.AddOffset(p.Topic.Name, p.Partition, p.Next-1, -1)
		}
	}
	if len(del) == 0 {
		return nil
	}
	res, err := s.env.Kafka.Admin().DeleteRecords(ctx, del)
	if err == nil {
		err = res.Error()
	}
	return kafka.Wrap(err, "trimming queues behind the committed offset")
}
