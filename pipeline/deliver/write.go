// One poll of the deliver loop: decoded into batches, written, what failed
// parked, what it released noted, offsets committed.

package deliver

import (
	"context"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/parked"
)

// sinkBatch is what one Write takes, and where its changes came from.
type sinkBatch struct {
	batch *change.Batch
	items []item
	bytes int
	// counted: WriteWithOffsets moves the sink's offsets by the batch's Ranges.
	counted bool
}

// item is one record of a sinkBatch that says something about its key.
type item struct {
	rec   *kgo.Record
	owned *consume.Owned
	key   string // topic, 0x1F, record key
	at    int    // index of the change in the batch, or -1
	err   error  // at -1: why it was rejected
}

func newSinkBatch(counted bool) *sinkBatch { return &sinkBatch{batch: change.Get(), counted: counted} }

// add decodes a record into the batch. A reject becomes an item too; other
// errors are returned.
func (pc *sinkBatch) add(ctx context.Context, s *session, pl *consume.Owned, rec *kgo.Record) error {
	n := pc.batch.Len()
	pc.bytes += len(rec.Key) + len(rec.Value)
	it := item{rec: rec, owned: pl, at: n}
	if err := consume.Decode(ctx, s.decoder, pc.batch, pl, rec); err != nil {
		if pipeline.Classify(err) != problem.Reject {
			return err
		}
		s.comp.Failed(problem.Reject.String(), outage.CodeOf(err))
		it.at, it.err = -1, err
	} else if pc.batch.Len() == n {
		return nil
	}
	it.key = string(parked.AppendKey(nil, rec.Topic, parked.RecordKey(rec)))
	pc.items = append(pc.items, it)
	return nil
}

// deliverPolled writes a poll and commits its offsets. Called again with the
// same poll it does all of it again.
func (s *session) deliverPolled(ctx context.Context, p *consume.Polled) error {
	c := cutter{s: s, parking: s.parked.Begin(), again: newSinkBatch(false), fresh: newSinkBatch(s.keeper != nil)}
	defer c.release()
	for _, r := range p.Runs {
		if err := c.run(ctx, r); err != nil {
			return err
		}
	}
	if err := c.rest(ctx); err != nil {
		return err
	}
	places, was := make([]*consume.Owned, 0, len(p.Runs)), make([]int64, 0, len(p.Runs))
	for _, r := range p.Runs {
		was = append(was, r.Owned.Next)
		r.Owned.Next = r.End()
		places = append(places, r.Owned)
	}
	if err := s.commitParking(ctx, places, c.parking); err != nil {
		for i, pl := range places {
			pl.Next = was[i]
		}
		return err
	}
	s.account(p)
	return nil
}

// cutter cuts a poll into what one Write takes, and writes it.
type cutter struct {
	s       *session
	parking *parked.Txn
	again   *sinkBatch // below the sink's own offset: what failed there is found again
	fresh   *sinkBatch // the rest, with the Ranges that it covers
}

func (c *cutter) release() { c.again.batch.Release(); c.fresh.batch.Release() }

// run takes the records of one partition.
func (c *cutter) run(ctx context.Context, r *consume.Run) error {
	from := max(r.Owned.Next, r.Owned.Stored)
	cover := func(to int64) {
		if from < to {
			c.fresh.batch.Ranges = append(c.fresh.batch.Ranges, change.Range{Topic: r.Owned.Topic, Partition: r.Owned.Partition, From: from, To: to})
			from = to
		}
	}
	for _, rec := range r.Records {
		if rec.Attrs.IsControl() {
			continue
		}
		pc := &c.fresh
		if rec.Offset < r.Owned.Stored {
			pc = &c.again
		}
		if (*pc).bytes > 0 && (*pc).bytes+len(rec.Key)+len(rec.Value) > c.s.spec.MaxBytes {
			if pc == &c.fresh {
				cover(rec.Offset)
				if err := c.older(ctx); err != nil {
					return err
				}
			}
			if err := c.flush(ctx, pc); err != nil {
				return err
			}
		}
		if err := (*pc).add(ctx, c.s, r.Owned, rec); err != nil {
			return err
		}
	}
	cover(r.End())
	return nil
}

// older writes what comes again, before what is newer.
func (c *cutter) older(ctx context.Context) error {
	if len(c.again.items) == 0 {
		return nil
	}
	return c.flush(ctx, &c.again)
}

// rest writes what is left at the end of a poll.
func (c *cutter) rest(ctx context.Context) error {
	if err := c.older(ctx); err != nil {
		return err
	}
	if len(c.fresh.items) == 0 && (c.s.keeper == nil || len(c.fresh.batch.Ranges) == 0) {
		return nil
	}
	return c.flush(ctx, &c.fresh)
}

func (c *cutter) flush(ctx context.Context, pc **sinkBatch) error {
	full := *pc
	*pc = newSinkBatch(full.counted)
	defer full.batch.Release()
	return c.s.write(ctx, full, c.parking)
}

// write gives a batch to the sink and resolves what became of each key: the
// last record of a key counts, since entities carry their full state (G2).
func (s *session) write(ctx context.Context, pc *sinkBatch, parking *parked.Txn) error {
	began := time.Now()
	var failures []pipeline.Failure
	var err error
	switch {
	case pc.counted:
		failures, err = s.keeper.WriteWithOffsets(ctx, s.id, pc.batch)
		if problem.Has(err, pipeline.ErrFenced) {
			err = ErrOwner.New("writing %d changes: %w", pc.batch.Len(), err)
		}
	case pc.batch.Len() > 0:
		failures, err = s.spec.Sink.Write(ctx, pc.batch)
	}
	if err != nil {
		return err
	}
	if pc.counted {
		s.comp.Txn(time.Since(began))
	}
	failed, err := s.tryLast(ctx, pc, failures)
	if err != nil {
		return err
	}
	// Who waits for what was delivered is looked up when it is there: who parks
	// itself later tries once more by itself (Set.Seen).
	if !s.alone {
		if err := s.parked.Follow(ctx, s.env.Kafka.Shared(), s.env.Kafka); err != nil {
			return err
		}
	}
	s.resolveParked(pc, failed, parking)
	return nil
}

// tryLast gives the failures by change index. Of a key that failed, the last
// version in the batch was not tried when an earlier one failed: it is now.
func (s *session) tryLast(ctx context.Context, pc *sinkBatch, failures []pipeline.Failure) (map[int]pipeline.Failure, error) {
	failed := make(map[int]pipeline.Failure, len(failures))
	if len(failures) == 0 {
		return failed, nil
	}
	byChange := make(map[int]*item, len(pc.items))
	last := map[string]*item{}
	for i := range pc.items {
		it := &pc.items[i]
		if it.at >= 0 {
			byChange[it.at] = it
			last[it.key] = it
		}
	}
	b := change.Get()
	defer b.Release()
	var of []int
	tried := map[string]bool{}
	for _, f := range failures {
		it := byChange[f.Index]
		if it == nil || f.Err == nil {
			panic("BUG: a sink reported a failure without error, or of a change that is not in the batch")
		}
		failed[f.Index] = f
		if l := last[it.key]; l.at > f.Index && !tried[it.key] {
			tried[it.key] = true
			b.AppendFrom(pc.batch, &pc.batch.Changes[l.at])
			of = append(of, l.at)
		}
	}
	if len(of) == 0 {
		return failed, nil
	}
	more, err := s.spec.Sink.Write(ctx, b)
	if err != nil {
		return nil, err
	}
	for _, at := range of {
		delete(failed, at)
	}
	for _, f := range more {
		failed[of[f.Index]] = pipeline.Failure{Index: of[f.Index], Err: f.Err, WaitsFor: f.WaitsFor}
	}
	return failed, nil
}

// resolveParked notes what failed, what was delivered after all, and what waited
// for that.
func (s *session) resolveParked(pc *sinkBatch, failed map[int]pipeline.Failure, parking *parked.Txn) {
	anyBad := len(failed) > 0
	for i := range pc.items {
		anyBad = anyBad || pc.items[i].at < 0
	}
	if !anyBad && s.parked.Len() == 0 && parking.Empty() {
		return
	}
	last := make(map[string]int, len(pc.items))
	for i := range pc.items {
		last[pc.items[i].key] = i
	}
	var names []string
	for i := range pc.items {
		it := &pc.items[i]
		if last[it.key] != i {
			continue
		}
		f, failure := failed[it.at]
		if it.at < 0 {
			f, failure = pipeline.Failure{Err: it.err}, true
		}
		if failure {
			if it.at >= 0 {
				s.comp.Failed(problem.Reject.String(), outage.CodeOf(f.Err))
			}
			p := s.parkedOf(pc, it, f)
			parking.Park(&p)
			continue
		}
		parking.Release(it.owned.Topic.ID, []byte(it.key), it.rec.Partition, it.rec.Offset)
		if s.parked.Waits() || !parking.Empty() {
			names = appendNames(names, pc.batch, &pc.batch.Changes[it.at])
		}
	}
	parking.Delivered(names)
}

func (s *session) parkedOf(pc *sinkBatch, it *item, f pipeline.Failure) control.Parked {
	key := ""
	if it.at >= 0 {
		key = parked.KeyText(pc.batch, &pc.batch.Changes[it.at])
	}
	p := parked.Of(s.spec.Name, control.KindSink, it.owned.Topic, it.rec, key, f.Err)
	p.WaitsFor = f.WaitsFor
	return p
}

// appendNames appends the names under which others may wait for a change:
// topic/key, table/key, entity/key.
func appendNames(dst []string, b *change.Batch, c *change.Change) []string {
	key := parked.KeyText(b, c)
	dst = append(dst, c.Table.Topic+"/"+key)
	if n := c.Table.Name; n != c.Table.Topic {
		dst = append(dst, n+"/"+key)
	}
	if _, entity, ok := strings.Cut(c.Table.Topic, "."); ok && entity != c.Table.Name {
		dst = append(dst, entity+"/"+key)
	}
	return dst
}

// account counts what was delivered.
func (s *session) account(p *consume.Polled) {
	type sums struct {
		n, bytes int
		oldest   time.Time
	}
	byTopic := map[string]*sums{}
	for _, r := range p.Runs {
		t := byTopic[r.Owned.Topic.Name]
		if t == nil {
			t = &sums{}
			byTopic[r.Owned.Topic.Name] = t
		}
		for _, rec := range r.Records {
			if rec.Attrs.IsControl() {
				continue
			}
			t.n++
			t.bytes += len(rec.Key) + len(rec.Value)
			if t.oldest.IsZero() || rec.Timestamp.Before(t.oldest) {
				t.oldest = rec.Timestamp
			}
		}
		s.comp.Lag(r.Owned.Topic.Name, r.Owned.Partition, max(r.High-r.Owned.Next, 0))
	}
	now := time.Now()
	for topic, t := range byTopic {
		if t.n == 0 {
			continue
		}
		s.comp.In(topic, t.n, t.bytes)
		s.comp.Out(topic, t.n, t.bytes)
		if t.oldest.UnixMilli() > 0 {
			s.comp.Latency(topic, now.Sub(t.oldest))
		}
	}
}
