// State that is read and written: its changelog is part of the transaction, Redis
// follows when that is committed (D1, decision 43).

package transform

import (
	"context"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

// openState makes the changelog, which lies as the inputs do.
func (t *transform) openState(ctx context.Context, partitions int32) error {
	table := t.spec.State
	if table == nil {
		return nil
	}
	name := state.ChangelogOf(t.spec.Name)
	topic, err := t.env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{Name: name, Partitions: partitions, Compact: true})
	if err != nil {
		return err
	}
	if topic.Partitions != partitions {
		return pipeline.ErrCoPartition.New("topic %q has %d partitions, the inputs of transform %q have %d", name, topic.Partitions, t.spec.Name, partitions)
	}
	limit, err := t.env.Kafka.MaxRecordBytes(ctx, name)
	if err != nil {
		return err
	}
	table.Open(topic, limit)
	return nil
}

// ownState takes the state of the partitions that are owned, where it is not
// taken: what Redis lacks of the changelog is read from there.
func (s *session) ownState(ctx context.Context) error {
	table := s.spec.State
	if table == nil {
		return nil
	}
	if err := table.Confirm(ctx); err != nil {
		return err
	}
	var parts []int32
	for _, p := range s.assignment.List() {
		if p.Topic.Name == s.parked.Topic.Name && !table.Owned(p.Partition) {
			parts = append(parts, p.Partition)
		}
	}
	if len(parts) == 0 {
		return nil
	}
	ends, err := s.env.Kafka.SettledEnds(ctx, table.Topic())
	if err != nil {
		return err
	}
	young, err := s.young(ctx, table.Topic())
	if err != nil {
		return err
	}
	for _, p := range parts {
		from, ok, err := table.Own(ctx, p, ends[p], young)
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		if err := s.load(ctx, p, from, ends[p]); err != nil {
			return err
		}
	}
	return nil
}

// young is how old what is in Redis may be for the deletes since to be in the
// changelog still: half of what those stay.
func (s *session) young(ctx context.Context, topic *change.Topic) (time.Duration, error) {
	settings, err := s.env.Kafka.Settings(ctx, topic.Name)
	if err != nil {
		return 0, err
	}
	ms, err := strconv.ParseInt(settings[topic.Name]["delete.retention.ms"], 10, 64)
	if err != nil {
		return 0, nil //nolint:nilerr // one that may not be looked at is read whole
	}
	return time.Duration(ms) * time.Millisecond / 2, nil
}

// load reads the changelog of a partition from offset from up to end.
func (s *session) load(ctx context.Context, p int32, from, end int64) error {
	table := s.spec.State
	what := "state, partition " + strconv.Itoa(int(p))
	s.comp.Is(obs.Restoring, what)
	start, err := s.env.Kafka.StartOf(ctx, table.Topic(), p)
	if err != nil {
		return err
	}
	var es []state.Entry
	bytes := 0
	err = kafka.Scan(ctx, s.side, table.Topic(), p, max(from, start), end, func(r *kgo.Record) error {
		if r.Attrs.IsControl() {
			return nil
		}
		if n := len(r.Key) + len(r.Value); len(es) >= s.spec.BatchRecords || bytes+n > s.spec.BatchBytes && len(es) > 0 {
			if err := table.Load(ctx, p, es, r.Offset, false); err != nil {
				return err
			}
			s.comp.Progress(what, r.Offset, end)
			es, bytes = es[:0], 0
		}
		bytes += len(r.Key) + len(r.Value)
		e := state.Entry{Partition: p, Key: append([]byte(nil), r.Key...)}
		if r.Value != nil {
			e.Value = append([]byte{}, r.Value...)
		}
		es = append(es, e)
		return nil
	})
	if err != nil {
		return err
	}
	return table.Load(ctx, p, es, end, true)
}

// stateRecords are those of the changelog that the transaction has to hold.
func (tx *txn) stateRecords() []*kgo.Record {
	table := tx.spec.State
	if table == nil {
		return nil
	}
	tx.state = table.Changes()
	now := time.Now() // by their age, not by that of the change, deletes are dropped
	out := make([]*kgo.Record, len(tx.state))
	for i, e := range tx.state {
		out[i] = &kgo.Record{Topic: table.Topic().Name, Partition: e.Partition, Key: e.Key, Value: e.Value, Timestamp: now}
	}
	return out
}

// keepState brings Redis to what the transaction wrote of the changelog. When that
// fails the transaction stays committed: the next session reads it from there.
func (tx *txn) keepState(ctx context.Context, written []*kgo.Record) error {
	table := tx.spec.State
	if table == nil {
		return nil
	}
	ends := map[int32]int64{}
	for _, r := range written {
		ends[r.Partition] = max(ends[r.Partition], r.Offset+1)
	}
	return table.Committed(ctx, tx.state, ends)
}
