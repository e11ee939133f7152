// Work at rest: pages of what a stage left for later, such as the rest of a large
// fan-out, each in a transaction of its own, between polls. Nothing is polled in it,
// so the offsets are committed as they are, with the member's generation: an owner
// who was replaced meanwhile writes nothing (A11).

package transform

import (
	"context"
	"strings"
	"time"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
)

// restAgain is how long a page is left alone that could not be done.
const restAgain = 200 * time.Millisecond

// rest does one page, if there is any.
func (s *session) rest(ctx context.Context) error {
	if _, ready := s.assignment.Current(); s.spec.Rest == nil || !ready || time.Now().Before(s.restAt) {
		return nil
	}
	if err := s.prepare(ctx); err != nil { // assigned since
		return err
	}
	tx := &txn{session: s, polled: consume.NewPolled()}
	err := outage.Guard(func() error { return tx.rest(ctx) })
	switch {
	case err == nil:
		return nil
	case tx.began.IsZero() && pipeline.Classify(err) == problem.Retry && ctx.Err() == nil:
		// Such as state of others that is being rebuilt: the poll goes on.
		s.comp.Failed("retry", outage.CodeOf(err))
		s.restAt = time.Now().Add(restAgain)
		s.comp.Is(obs.Running, strings.TrimPrefix(s.resting+", trying again: "+outage.ReasonOf(err), ", "))
		return nil
	case !tx.ended && !tx.began.IsZero():
		tx.abort(ctx)
	}
	return err
}

// rest is do, of a page.
func (tx *txn) rest(ctx context.Context) error {
	tx.start()
	work, cancel := context.WithTimeout(ctx, tx.spec.TxnTimeout*4/5)
	defer cancel()
	var parts []int32
	for _, p := range tx.assignment.List() {
		if p.Topic.Name == tx.parked.Topic.Name {
			parts = append(parts, p.Partition)
		}
	}
	if len(parts) == 0 {
		return nil
	}
	was := tx.resting
	doing, err := tx.spec.Rest(work, parts, &tx.chain[len(tx.spec.Stages)])
	if err != nil {
		return err
	}
	kept := tx.stateRecords()
	if tx.resting = doing; len(kept) > 0 {
		if err := tx.produceEncoded(work); err != nil {
			return err
		}
		for _, r := range kept {
			if err := tx.produce(work, r); err != nil {
				return err
			}
		}
		if err := tx.commit(ctx, tx.asTheyAre); err != nil {
			return err
		}
		tx.encoder.put(tx.records)
		tx.account()
	}
	if was != doing || !tx.restAt.IsZero() {
		tx.comp.Is(obs.Running, doing)
		tx.restAt = time.Time{}
	}
	return tx.keepState(ctx, kept)
}

// asTheyAre makes the offsets of the partitions whose state is written part of the
// transaction, without moving them.
func (tx *txn) asTheyAre(ctx context.Context) error {
	of := map[int32]bool{}
	for _, e := range tx.state {
		of[e.Partition] = true
	}
	var offsets []kafka.Offset
	for _, p := range tx.assignment.List() {
		if of[p.Partition] && p.Topic.Name != tx.parked.Topic.Name {
			offsets = append(offsets, kafka.Offset{Topic: p.Topic, Partition: p.Partition, At: p.Next, Metadata: consume.TokenOf(p.Topic)})
		}
	}
	cl := tx.group.Client()
	as := kafka.GroupMember{Group: pipeline.GroupOf(tx.spec.Name), Instance: tx.member.Instance()}
	as.ID, as.Generation = cl.GroupMetadata()
	return kafka.CommitInTransaction(ctx, cl, tx.transactional(tx.parked.Topic.Name).ID, tx.v2, as, offsets)
}
