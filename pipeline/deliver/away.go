// A compacted topic tells for delete.retention.ms alone that a record was
// deleted. A sink that was away for longer is reconciled: what it has of keys
// that the topic does not hold any more goes (F6). This is how it is noticed,
// and what is read for it.

package deliver

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
)

// ErrAway says that rows may be left of which nobody can tell whether they were
// deleted.
var ErrAway = problem.Define("TW-SINK-AWAY", problem.Halt,
	"The sink was away for longer than its topic tells that records were deleted, and what the topic holds does not say which: rows would be deleted that are none of them.",
	"Set cleanup.policy of the topic to compact, without delete, and start again. Where that does not help, records of it were cut off: fill the table anew, that is, empty it and delete its rows in _tallywire.offsets in one transaction, then start again.")

// lookEvery is how often it is written down how far a partition is read.
var lookEvery = time.Minute

const (
	// defaultDeleteRetention is Kafka's, for a topic whose settings are unknown.
	defaultDeleteRetention = 24 * time.Hour
	// keysAtOnce is how many keys the sink is given in one call: a bound of
	// memory (M3), since a key is small.
	keysAtOnce = 4096
)

// sight is what is known of how far a partition is read. A tombstone can be gone
// delete.retention.ms after it was written, not before: it is missed if it lay
// at or above the next offset then.
type sight struct {
	readAt time.Time // what was written before is in the sink
	next   int64     // the next offset as it was when this was looked at last
	end    int64     // the partition's end then: what is read to there was written before at
	at     time.Time
	owed   bool // it was away for too long, and is to be reconciled
}

// see takes in where the partition is and ends now, and says whether it was
// away for longer than limit.
func (g *sight) see(now time.Time, next, end int64, limit time.Duration) (away bool) {
	switch {
	case g.readAt.IsZero(): // nobody knows
	case next >= end && next == g.next:
		g.readAt = now // nothing was written since the last look
	case next >= g.end:
		g.readAt = g.at // under load it is never at the end, but past where that was
	}
	if now.Sub(g.readAt) > limit {
		return true
	}
	if next >= end {
		g.readAt = now
	}
	if next >= g.end || g.at.IsZero() {
		g.end, g.at = end, now
	}
	g.next = next
	return false
}

// look sees how far each partition is read, and has the sink note it. Before
// the first write of an assignment it is decided by the offsets that are stored
// whether the sink was away; what is owed is noted before that write, so that
// it is still owed if the process is killed before it is done.
func (s *session) look(ctx context.Context) error {
	s.lookAt = time.Now()
	places := s.assignment.List()
	if s.reconciler == nil || len(places) == 0 {
		return nil
	}
	now := s.lookAt // before the ends are read: what was written before now is below them
	topics := s.spec.Inputs()
	ends, err := s.env.Kafka.Admin().ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return kafka.Wrap(err, "listing where the topics end")
	}
	settings, err := s.env.Kafka.Settings(ctx, topics...)
	if err != nil {
		return err
	}
	var parts []change.Coord
	var at []time.Time
	for _, p := range places {
		end, ok := ends.Lookup(p.Topic.Name, p.Partition)
		if !ok || end.Err != nil {
			return kafka.ErrUnavailable.New("partition %d of topic %q has no known end", p.Partition, p.Topic.Name)
		}
		next := max(p.Next, p.Stored)
		limit, compacted := allowed(settings[p.Topic.Name])
		g := s.sights[p]
		if g == nil {
			g = &sight{readAt: p.ReadAt, next: next, end: math.MaxInt64}
			s.sights[p] = g
		} else { // who reads along is not away, however short the retention
			limit = max(limit, 3*lookEvery)
		}
		if g.owed || !compacted { // else all that is gone is below the start (A8)
			continue
		}
		was := g.readAt
		if g.owed = g.see(now, next, end.Offset, limit); g.owed {
			since := "unknown"
			if !was.IsZero() {
				since = was.UTC().Format(time.RFC3339)
			}
			s.comp.Log.Info("the sink was away for longer than its topic tells of deletions", "topic", p.Topic.Name, "partition", p.Partition, "since", since, "allowed", limit)
			g.readAt = time.Time{}
		}
		if !g.readAt.Equal(was) {
			parts, at = append(parts, p.Coord(next)), append(at, g.readAt)
		}
	}
	if len(parts) == 0 {
		return nil
	}
	// Start named all of them at once.
	return owned(s.reconciler.SetReadAt(ctx, places[0].Owner, parts, at), "noting how far %d partitions are read", len(parts))
}

// owned is err, or that another process owns what was ours.
func owned(err error, format string, args ...any) error {
	if problem.Has(err, pipeline.ErrFenced) {
		return ErrOwner.New(format+": %w", append(args, err)...)
	}
	return err
}

// allowed is how long a reader of a topic may be away, a tenth less than Kafka
// says for clocks that differ, and whether compaction removes records of it.
// Where the settings may not be read both are assumed.
func allowed(settings map[string]string) (limit time.Duration, compacted bool) {
	limit, compacted = defaultDeleteRetention, true
	if ms, err := strconv.ParseInt(settings["delete.retention.ms"], 10, 64); err == nil {
		limit = time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
	}
	if policy, ok := settings["cleanup.policy"]; ok {
		compacted = strings.Contains(policy, "compact")
	}
	return limit - limit/10, compacted
}

// errMoved ends a reconciliation of which the partition was taken away: its
// next owner does it.
var errMoved = errors.New("the partition is assigned anew")

// reconcile does one partition that it is owed to, if there is one. It runs
// between polls, when a rebalance need not wait for it.
func (s *session) reconcile(ctx context.Context) error {
	gen, ready := s.assignment.Current()
	if !ready || gen != s.prepared {
		return nil
	}
	for _, p := range s.assignment.List() {
		if g := s.sights[p]; g != nil && g.owed {
			err := s.reconcilePartition(ctx, gen, p, g)
			if errors.Is(err, errMoved) {
				return nil
			}
			return owned(err, "reconciling partition %d of topic %q", p.Partition, p.Topic.Name)
		}
	}
	return nil
}

func (s *session) reconcilePartition(ctx context.Context, gen int64, p *consume.Owned, g *sight) error {
	s.comp.Is(obs.Restoring, "reconciling "+p.Topic.Name+": rows deleted while it was away")
	began := time.Now()
	from, err := s.intact(ctx, p)
	if err != nil {
		return err
	}
	end, err := s.stableEnd(ctx, p)
	if err != nil {
		return err
	}
	k := keyReader{s: s, p: p, gen: gen, batch: change.Get()}
	defer func() { k.batch.Release() }()
	span := change.Range{Topic: p.Topic, Partition: p.Partition, From: from, To: end}
	if s.env.Kafka.StartMoves() {
		span.From = 0
	}
	deleted, before, err := s.reconciler.Reconcile(ctx, p.Owner, span, began, func(take func(*change.Batch) error) error {
		k.take = take
		if err := k.read(ctx, from, end); err != nil {
			return err
		}
		// Of a record that was superseded while this was read, the newer one
		// lies behind.
		more, err := s.stableEnd(ctx, p)
		if err != nil {
			return err
		}
		if err := k.read(ctx, end, more); err != nil {
			return err
		}
		if err := k.flush(); err != nil {
			return err
		}
		// Nobody may have cut records off meanwhile.
		if now, err := s.intact(ctx, p); err != nil || now == from || s.env.Kafka.StartMoves() {
			return err
		}
		return ErrAway.New("the start of partition %d of topic %q moved while it was read", p.Partition, p.Topic.Name)
	})
	if err != nil {
		return err
	}
	if before > 0 {
		return ErrAway.New("partition %d of topic %q starts at offset %d, and %d rows of sink %q are of records before that: nobody can tell whether they were deleted or cut off",
			p.Partition, p.Topic.Name, from, before, s.spec.Name)
	}
	*g = sight{readAt: began, next: max(p.Next, p.Stored), end: math.MaxInt64}
	s.comp.Log.Info("reconciled with what the topic holds", "topic", p.Topic.Name, "partition", p.Partition,
		"scanned", k.scanned, "keys", k.keys, "deleted", deleted, "took", time.Since(began).Round(time.Millisecond))
	s.comp.Is(obs.Running, "")
	return nil
}

// intact gives the start of a partition of which records go by compaction alone,
// so that a key that it does not hold is deleted.
func (s *session) intact(ctx context.Context, p *consume.Owned) (start int64, err error) {
	settings, err := s.env.Kafka.Settings(ctx, p.Topic.Name)
	if err != nil {
		return 0, err
	}
	switch policy, ok := settings[p.Topic.Name]["cleanup.policy"]; {
	case !ok:
		return 0, ErrAway.New("the settings of topic %q cannot be read", p.Topic.Name).
			WithRemedy("Give tallywire's user DescribeConfigs on topic %s, then start again.", p.Topic.Name)
	case policy != "compact":
		return 0, ErrAway.New("cleanup.policy of topic %q is %q: its records go for other reasons than compaction too", p.Topic.Name, policy)
	}
	return s.env.Kafka.StartOf(ctx, p.Topic, p.Partition)
}

// stableEnd is the offset below which no transaction of the partition is open.
func (s *session) stableEnd(ctx context.Context, p *consume.Owned) (int64, error) {
	ends, err := s.env.Kafka.Admin().ListCommittedOffsets(ctx, p.Topic.Name)
	if err != nil {
		return 0, kafka.Wrap(err, "listing where topic %q is stable", p.Topic.Name)
	}
	var end kadm.ListedOffset
	var ok bool
	if end, ok = ends.Lookup(p.Topic.Name, p.Partition); !ok || end.Err != nil {
		return 0, kafka.ErrUnavailable.New("partition %d of topic %q has no known end", p.Partition, p.Topic.Name)
	}
	return end.Offset, nil
}

// keyReader gives the sink the keys of which a partition holds a value. One
// whose tombstone is still there, behind the value, is among them: the sink
// reads the tombstone yet.
type keyReader struct {
	s             *session
	p             *consume.Owned
	gen           int64
	take          func(*change.Batch) error
	batch         *change.Batch
	scanned, keys int64
}

func (k *keyReader) read(ctx context.Context, from, to int64) error {
	return kafka.Scan(ctx, k.s.env.Kafka.Shared(), k.p.Topic, k.p.Partition, from, to, func(r *kgo.Record) error {
		if k.scanned++; k.scanned%1024 == 0 {
			if err := k.mine(); err != nil {
				return err
			}
		}
		if r.Attrs.IsControl() || r.Value == nil || r.Key == nil {
			return nil
		}
		bare := kgo.Record{Key: r.Key, Offset: r.Offset, Timestamp: r.Timestamp} // without a value it decodes to its key alone
		switch err := consume.Decode(ctx, k.s.decoder, k.batch, k.p, &bare); {
		case problem.Has(err, avro.ErrGarbage):
			return nil // never was the key of a row
		case err != nil && pipeline.Classify(err) == problem.Reject:
			return ErrAway.New("the key of record %d of partition %d of topic %q cannot be read, so it cannot be told whose it is: %w", r.Offset, k.p.Partition, k.p.Topic.Name, err).
				WithRemedy("Have its schema in the registry again, then start again. Else fill the table anew: empty it and delete its rows in _tallywire.offsets in one transaction, then start again.")
		case err != nil:
			return err
		}
		if k.batch.Len() < keysAtOnce {
			return nil
		}
		return k.flush()
	})
}

// mine is errMoved when the partition may belong to another process by now.
func (k *keyReader) mine() error {
	if gen, _ := k.s.assignment.Current(); gen != k.gen {
		return errMoved
	}
	return nil
}

func (k *keyReader) flush() error {
	if err := k.mine(); err != nil || k.batch.Len() == 0 {
		return err
	}
	k.keys += int64(k.batch.Len())
	err := k.take(k.batch)
	k.batch.Reset()
	return err
}
