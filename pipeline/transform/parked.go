// Parking in a transaction: the records of the parked topic, and the commands
// that arrive on it.

package transform

import (
	"bytes"
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/parked"
)

// parkedOf describes a record that is to be parked; its key is shown as a
// person knows it when the record can be decoded.
func (tx *txn) parkedOf(ctx context.Context, pl *consume.Owned, rec *kgo.Record, err error) *control.Parked {
	key := ""
	b := change.Get()
	if derr := consume.Decode(ctx, tx.decoder, b, pl, rec); derr == nil && b.Len() == 1 {
		key = parked.KeyText(b, &b.Changes[0])
	}
	b.Release()
	p := parked.Of(tx.spec.Name, control.KindTransform, pl.Topic, rec, key, err)
	return &p
}

// produceParked writes parked records, releases, and the ends of commands.
func (tx *txn) produceParked(ctx context.Context, bad []control.Parked, released []parked.Release) error {
	topic := tx.parked.Topic.Name
	for i := range bad {
		p := &bad[i]
		r := &kgo.Record{
			Topic: topic, Partition: p.Partition, Key: parked.AppendKey(nil, p.Topic, p.RecordKey),
			Value: parked.Append(nil, p, tx.encoder.parked), Timestamp: time.UnixMilli(p.Millis),
		}
		if err := tx.produce(ctx, r); err != nil {
			return err
		}
	}
	now := time.Now()
	for _, g := range released {
		r := &kgo.Record{Topic: topic, Partition: g.Partition, Key: parked.AppendKey(nil, g.Topic, g.RecordKey), Timestamp: now}
		if err := tx.produce(ctx, r); err != nil {
			return err
		}
	}
	for _, c := range tx.commands {
		if err := tx.produce(ctx, &kgo.Record{Topic: topic, Partition: c.Partition, Key: c.Key, Timestamp: now}); err != nil {
			return err
		}
	}
	return nil
}

// runCommands does what the parked topic asks for, before the poll's own
// records: those are newer.
func (tx *txn) runCommands(ctx context.Context) error {
	for _, r := range tx.polled.Runs {
		if r.Owned.Topic.Name != tx.parked.Topic.Name {
			continue
		}
		for _, rec := range r.Records {
			command := parked.CommandOf(rec)
			if command == "" {
				continue
			}
			tx.commands = append(tx.commands, rec)
			if err := tx.runCommand(ctx, command, rec); err != nil {
				return err
			}
		}
	}
	return nil
}

func (tx *txn) runCommand(ctx context.Context, command string, rec *kgo.Record) error {
	p, omitted, err := parked.Parse(tx.spec.Name, rec.Value)
	if err != nil {
		// Anybody may write a command; a bad one does nothing, visibly.
		tx.comp.Failed(problem.Reject.String(), outage.CodeOf(err))
		tx.comp.Log.Warn("ignoring a command", "command", command, "partition", rec.Partition, "offset", rec.Offset, "err", err)
		return nil
	}
	parkedKey := parked.AppendKey(nil, p.Topic, p.RecordKey)
	ref, is := tx.parked.In(rec.Partition)[string(parkedKey)]
	pl := tx.assignment.Find(p.Topic, p.Partition)
	if !is || ref.Offset != p.Offset || ref.TopicID != p.TopicID || p.Partition != rec.Partition || pl == nil || pl.Topic.ID != p.TopicID ||
		!bytes.Equal(rec.Key, parked.CommandKey(command, parkedKey)) {
		tx.comp.Log.Info("a command is about a record that is not parked any more", "command", command, "topic", p.Topic, "offset", p.Offset)
		return nil
	}
	switch command {
	case parked.CommandDiscard:
		tx.discards = append(tx.discards, parked.Release{Ref: control.Ref{Topic: p.Topic, RecordKey: p.RecordKey}, Partition: p.Partition})
		return nil
	case parked.CommandRetry:
	default:
		tx.comp.Log.Warn("ignoring an unknown command", "command", command)
		return nil
	}
	orig := parked.Original(&p)
	if omitted {
		found := false
		err := kafka.Scan(ctx, tx.side, pl.Topic, p.Partition, p.Offset, p.Offset+1, func(r *kgo.Record) error {
			orig.Value, found = r.Value, true
			return nil
		})
		if err != nil && pipeline.Classify(err) == problem.Retry {
			return err
		}
		if !found {
			tx.comp.Log.Warn("a parked record cannot be tried again: it was too large to keep, and is gone from its topic", "topic", p.Topic, "offset", p.Offset)
			return nil
		}
	}
	tx.retried = append(tx.retried, &retried{orig, pl, ref})
	b := change.Get()
	err = consume.Decode(ctx, tx.decoder, b, pl, orig)
	if err != nil {
		b.Release()
		if pipeline.Classify(err) != problem.Reject {
			return err
		}
		tx.rejectRecord(orig, err)
		return nil
	}
	return tx.chain[0].Send(ctx, b)
}

// forwardRequests turns what was asked for in the control database into
// commands on the parked topic, so that either way of asking works.
func (s *session) forwardRequests(ctx context.Context) error {
	var parts []control.PartID
	for _, p := range s.assignment.List() {
		if len(s.parked.In(p.Partition)) > 0 && p.Topic.Name != s.parked.Topic.Name {
			parts = append(parts, control.PartID{Topic: p.Topic.Name, Partition: p.Partition})
		}
	}
	if len(parts) == 0 {
		return nil
	}
	rows, err := s.parked.Store().Due(ctx, s.spec.Name, parts, time.Hour*24*365*100, 1000)
	if err != nil {
		// The control database is no part of this flow: it shows, and asks.
		s.comp.Failed(problem.Retry.String(), outage.CodeOf(err))
		return nil
	}
	refs := make([]control.Ref, 0, len(rows))
	for i := range rows {
		if err := parked.Send(ctx, s.env.Kafka, s.side, &rows[i], parked.CommandRetry); err != nil {
			return err
		}
		refs = append(refs, control.Ref{Topic: rows[i].Topic, RecordKey: rows[i].RecordKey})
	}
	if err := s.parked.Store().ClearRetry(ctx, s.spec.Name, refs); err != nil {
		s.comp.Failed(problem.Retry.String(), outage.CodeOf(err)) // the command comes once more, which does no harm
	}
	return nil
}
