// Parking in a transaction: the records of the parked topic, and the commands
// that arrive on it.

package pipeline

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

// parkedOf describes a record that is to be parked; its key is shown as a
// person knows it when the record can be decoded.
func (tx *txn) parkedOf(ctx context.Context, pl *place, rec *kgo.Record, err error) *control.Parked {
	key := ""
	b := change.Get()
	if derr := decodeRecord(ctx, tx.decoder, b, pl, rec); derr == nil && b.Len() == 1 {
		key = readKey(b, &b.Changes[0])
	}
	b.Release()
	p := parkRecord(tx.spec.Name, control.KindTransform, pl.topic, rec, key, err)
	return &p
}

// readKey is the canonical key as text; its separator shows as a slash.
func readKey(b *change.Batch, c *change.Change) string {
	return strings.ReplaceAll(string(change.AppendKey(nil, b, c)), "\x1f", "/")
}

// produceParked writes parked records, releases, and the ends of commands.
func (tx *txn) produceParked(ctx context.Context, parked []control.Parked, released []release) error {
	topic := tx.parked.topic.Name
	for i := range parked {
		p := &parked[i]
		r := &kgo.Record{
			Topic: topic, Partition: p.Partition, Key: appendParkedKey(nil, p.Topic, p.RecordKey),
			Value: appendParked(nil, p, tx.encoder.parked), Timestamp: time.UnixMilli(p.Millis),
		}
		if err := tx.produce(ctx, r); err != nil {
			return err
		}
	}
	now := time.Now()
	for _, g := range released {
		r := &kgo.Record{Topic: topic, Partition: g.partition, Key: appendParkedKey(nil, g.Topic, g.RecordKey), Timestamp: now}
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
	for _, r := range tx.polled.runs {
		if r.place.topic.Name != tx.parked.topic.Name {
			continue
		}
		for _, rec := range r.records {
			command := commandOf(rec)
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

// commandOf is the command of a record of the parked topic, or "" when it is
// none, or the end of one.
func commandOf(rec *kgo.Record) string {
	if rec.Attrs.IsControl() || rec.Value == nil || len(rec.Key) == 0 || rec.Key[0] != unitSeparator {
		return ""
	}
	for _, h := range rec.Headers {
		if h.Key == headerCommand {
			return string(h.Value)
		}
	}
	return ""
}

func (tx *txn) runCommand(ctx context.Context, command string, rec *kgo.Record) error {
	p, omitted, err := parseParked(tx.spec.Name, rec.Value)
	if err != nil {
		// Anybody may write a command; a bad one does nothing, visibly.
		tx.comp.Failed(problem.Reject.String(), outage.CodeOf(err))
		tx.comp.Log.Warn("ignoring a command", "command", command, "partition", rec.Partition, "offset", rec.Offset, "err", err)
		return nil
	}
	parkedKey := appendParkedKey(nil, p.Topic, p.RecordKey)
	ref, is := tx.parked.byPart[rec.Partition][string(parkedKey)]
	pl := tx.assignment.find(p.Topic, p.Partition)
	if !is || ref.offset != p.Offset || ref.topicID != p.TopicID || p.Partition != rec.Partition || pl == nil || pl.topic.ID != p.TopicID ||
		!bytes.Equal(rec.Key, commandKey(command, parkedKey)) {
		tx.comp.Log.Info("a command is about a record that is not parked any more", "command", command, "topic", p.Topic, "offset", p.Offset)
		return nil
	}
	switch command {
	case commandDiscard:
		tx.discards = append(tx.discards, release{control.Ref{Topic: p.Topic, RecordKey: p.RecordKey}, p.Partition})
		return nil
	case commandRetry:
	default:
		tx.comp.Log.Warn("ignoring an unknown command", "command", command)
		return nil
	}
	orig := originalRecord(&p)
	if omitted {
		found := false
		err := kafka.Scan(ctx, tx.side, pl.topic, p.Partition, p.Offset, p.Offset+1, func(r *kgo.Record) error {
			orig.Value, found = r.Value, true
			return nil
		})
		if err != nil && Classify(err) == problem.Retry {
			return err
		}
		if !found {
			tx.comp.Log.Warn("a parked record cannot be tried again: it was too large to keep, and is gone from its topic", "topic", p.Topic, "offset", p.Offset)
			return nil
		}
	}
	tx.retried = append(tx.retried, &retried{orig, pl, ref})
	b := change.Get()
	err = decodeRecord(ctx, tx.decoder, b, pl, orig)
	if err != nil {
		b.Release()
		if Classify(err) != problem.Reject {
			return err
		}
		tx.rejectRecord(orig, err)
		return nil
	}
	return tx.chain[0].Send(ctx, b)
}
