// Package dedupe drops what a sender repeated, and never what is replayed
// (invariant 7). position.go is for sources that send positions; identity.go
// for those that only have business ids.
package dedupe

import (
	"context"
	"fmt"
	"sync"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
)

// Position drops a record whose position at the source is not above that of
// the records before it in its partition.
//
// The verdict on the record at offset o is a function of the topic alone: of
// the highest position among the records below o (of the last Window offsets).
// What is held in memory is that maximum for the offset where the partition
// continues; when a batch starts elsewhere (a start, an abort, a reset by
// Kafka's own tool, another topic under the same name) it is read from the
// topic again. So there is nothing that could be lost, run ahead of an aborted
// transaction, or take a replay for a repetition: a replayed record meets the
// same maximum as at first sight, and passes again.
//
// A load that starts over has a higher attempt in its positions, so it passes;
// so does another system: positions of two systems are not compared. Records
// without a position pass, and so do those that lie outside of the batch's
// ranges: parked records that are tried again.
type Position struct {
	back func(ctx context.Context, t *change.Topic, partition int32, before int64) (Last, error)

	mu   sync.Mutex
	seen map[place]progress
}

// Last is the highest position below some offset.
type Last struct {
	Pos change.Pos
	// Half: it is that of the delete that a change of the key begins with; the
	// create that follows has the same position.
	Half bool
}

// place has the topic's id in it: the offsets of a topic that was deleted and
// created again mean other records.
type place struct {
	topic     [16]byte
	partition int32
}

type progress struct {
	from int64 // where the batch begins
	next int64 // the offset that last holds for
	last Last
}

// ByPosition makes the stage. back reads what stands below an offset of a
// partition (see ReadBack).
func ByPosition(back func(ctx context.Context, t *change.Topic, partition int32, before int64) (Last, error)) *Position {
	return &Position{back: back, seen: map[place]progress{}}
}

// Apply passes what is new.
func (d *Position) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := make(map[place]progress, len(in.Ranges))
	for _, r := range in.Ranges {
		k := place{r.Topic.ID, r.Partition}
		if p, ok := now[k]; ok { // a second range of one partition
			p.next = max(p.next, r.To)
			now[k] = p
			continue
		}
		p, ok := d.seen[k]
		if !ok || p.next != r.From {
			last, err := d.back(ctx, r.Topic, r.Partition, r.From)
			if err != nil {
				in.Release()
				return fmt.Errorf("reading the positions before offset %d of partition %d of %s: %w", r.From, r.Partition, r.Topic.Name, err)
			}
			p.last = last
		}
		p.from, p.next = r.From, r.To
		now[k] = p
	}
	in.Keep(func(c *change.Change) bool {
		k := place{partition: c.Coord.Partition}
		if c.Coord.Topic != nil {
			k.topic = c.Coord.Topic.ID
		}
		p, ok := now[k]
		if !ok || c.Coord.Offset < p.from || c.Coord.Offset >= p.next {
			return true
		}
		if !p.last.passes(c.Pos, c.Op) {
			return false
		}
		if !c.Pos.IsZero() {
			p.last = Last{c.Pos, c.Op == change.Delete}
			now[k] = p
		}
		return true
	})
	if err := out.Send(ctx, in); err != nil {
		return err
	}
	for k, p := range now {
		d.seen[k] = p
	}
	return nil
}

func (l Last) passes(pos change.Pos, op change.Op) bool {
	if pos.IsZero() || l.Pos.IsZero() || pos.System != l.Pos.System {
		return true
	}
	switch pos.Compare(l.Pos) {
	case +1:
		return true
	case 0:
		return l.Half && op == change.Create
	}
	return false
}
