// Parking in a transaction: the records of the parked topic, and the commands
// that arrive on it.

package transform

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
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

// runCommands does what the parked topic asks for, before the poll's own
// records: those are newer.
func (tx *txn) runCommands(ctx context.Context) error {
	var retry []string
	octets := 0
	for _, r := range tx.polled.Runs {
		if r.Owned.Topic.Name != tx.parked.Topic.Name {
			continue
		}
		for _, rec := range r.Records {
			c := tx.parked.Hear(rec)
			if c == nil {
				continue
			}
			key, ref, is := tx.parked.About(c)
			if is && c.Name == parked.CommandRetry && octets > tx.spec.BatchBytes {
				tx.parking.Again(c)
				continue
			}
			octets += ref.Size
			tx.parking.Done(c)
			switch {
			case !is:
				tx.comp.Log.Info("a command is about a record that is not parked any more", "command", c.Name, "topic", c.About.Topic, "offset", c.About.Offset)
			case c.Name == parked.CommandDiscard:
				tx.parking.Drop(key, ref.Partition)
			case c.Name == parked.CommandRetry && !slices.Contains(retry, key):
				retry = append(retry, key)
			}
		}
	}
	whole, lost, err := tx.parked.Read(ctx, tx.side, tx.env.Kafka, retry)
	if err != nil {
		return err
	}
	for i := range lost {
		tx.unable(&lost[i].Parked, lost[i].Err)
	}
	slices.SortFunc(whole, func(a, b control.Parked) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Offset, b.Offset))
	})
	for i := range whole {
		if err := tx.retry(ctx, &whole[i]); err != nil {
			return err
		}
	}
	return nil
}

// unable parks p again because it cannot even be tried.
func (tx *txn) unable(p *control.Parked, err *problem.Error) {
	tx.comp.Log.Warn("a parked record cannot be tried again", "topic", p.Topic, "offset", p.Offset, "err", err)
	p.Code, p.Reason, p.Remedy, p.LastAt = err.ID, err.Text, err.WhatToDo(), time.Now().UTC()
	tx.parking.Park(p)
}

// retry sends a parked record through the chain again.
func (tx *txn) retry(ctx context.Context, p *control.Parked) error {
	pl, orig := tx.assignment.Find(p.Topic, p.Partition), parked.Original(p)
	switch {
	case pl == nil:
		tx.unable(p, parked.NotRead(p))
		return nil
	case pl.Topic.ID != p.TopicID: // it cannot be compared with records of the new topic
		tx.unable(p, pipeline.ErrTopicRecreated.New("topic %q was made anew after this record was parked", p.Topic).
			WithRemedy("Change the row at its source again; the new record replaces this one."))
		return nil
	}
	tx.retried = append(tx.retried, &retried{orig, pl})
	b := change.Get()
	if err := consume.Decode(ctx, tx.decoder, b, pl, orig); err != nil {
		b.Release()
		if pipeline.Classify(err) != problem.Reject {
			return err
		}
		tx.rejectRecord(orig, err)
		return nil
	}
	return tx.chain[0].Send(ctx, b)
}
