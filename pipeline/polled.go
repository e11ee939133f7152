// polled: the records of one poll by partition, so that a change can be traced
// back to the octets it came from.

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
)

// run is what was polled of one partition, in order of offset.
type polledRun struct {
	place   *place
	records []*kgo.Record
	silent  []bool           // parallel: decoded to no change (control records, raw tombstones)
	high    int64            // the partition's end as the fetch saw it
	last    map[string]int64 // offset of the last record per key that is not silent; built when asked for
}

type polled struct {
	runs    []*polledRun
	byPlace map[*place]*polledRun
	count   int // records, control records not counted
	bytes   int // of keys and values
}

func newPolled() *polled { return &polled{byPlace: map[*place]*polledRun{}} }

// add takes what one poll brought. It fails on the first error of a fetch.
func (p *polled) add(a *assignment, fs kgo.Fetches) error {
	var failed error
	fs.EachPartition(func(ftp kgo.FetchTopicPartition) {
		if failed != nil {
			return
		}
		if ftp.Err != nil {
			if !errors.Is(ftp.Err, context.DeadlineExceeded) && !errors.Is(ftp.Err, context.Canceled) {
				failed = fetchError(a, ftp)
			}
			return
		}
		if len(ftp.Records) == 0 {
			return
		}
		pl := a.find(ftp.Topic, ftp.Partition)
		if pl == nil {
			failed = ErrTxnUnknown.New("records of partition %d of topic %q came, which is not assigned here any more", ftp.Partition, ftp.Topic)
			return
		}
		r := p.byPlace[pl]
		if r == nil {
			r = &polledRun{place: pl}
			p.byPlace[pl] = r
			p.runs = append(p.runs, r)
		}
		expect := pl.next
		if n := len(r.records); n > 0 {
			expect = r.records[n-1].Offset + 1
		}
		first := ftp.Records[0].Offset
		if first < expect {
			panic(fmt.Sprintf("BUG: record %d of partition %d of topic %q came when %d was next", first, ftp.Partition, ftp.Topic, expect))
		}
		// What was deleted before we read it is missing, never skipped (A8).
		if !pl.compacted && ftp.LogStartOffset > expect && first >= ftp.LogStartOffset {
			failed = outOfRange(pl, expect, ftp.LogStartOffset)
			return
		}
		r.records = append(r.records, ftp.Records...)
		r.high = ftp.HighWatermark
		for _, rec := range ftp.Records {
			if !rec.Attrs.IsControl() {
				p.count++
				p.bytes += len(rec.Key) + len(rec.Value)
			}
		}
	})
	if failed != nil {
		return failed
	}
	for _, r := range p.runs {
		r.silent = append(r.silent, make([]bool, len(r.records)-len(r.silent))...)
	}
	sort.SliceStable(p.runs, func(i, j int) bool {
		a, b := p.runs[i].place, p.runs[j].place
		if a.order != b.order {
			return a.order < b.order
		}
		return a.partition < b.partition
	})
	return nil
}

func fetchError(a *assignment, ftp kgo.FetchTopicPartition) error {
	if errors.Is(ftp.Err, kerr.OffsetOutOfRange) {
		pl := a.find(ftp.Topic, ftp.Partition)
		if pl != nil && pl.compacted {
			// The next session starts where the topic does, or finds that it
			// ends too early.
			return kafka.ErrUnavailable.New("offset %d of partition %d of topic %q was compacted away: %w", pl.next, ftp.Partition, ftp.Topic, ftp.Err)
		}
		if pl != nil {
			return kafka.ErrOffsetRange.New("offset %d of partition %d of topic %q was to be read next and is not there: %w", pl.next, ftp.Partition, ftp.Topic, ftp.Err)
		}
		return kafka.ErrOffsetRange.New("partition %d of topic %q: %w", ftp.Partition, ftp.Topic, ftp.Err)
	}
	var lost *kgo.ErrDataLoss
	if errors.As(ftp.Err, &lost) {
		return kafka.ErrOffsetRange.New("partition %d of topic %q: the broker lost records that it had confirmed: %w", ftp.Partition, ftp.Topic, ftp.Err)
	}
	if errors.Is(ftp.Err, kerr.FencedInstanceID) {
		return groupFenced(ftp.Err, "reading as a member of it")
	}
	if ftp.Topic == "" {
		return kafka.Wrap(ftp.Err, "reading as a member of the group")
	}
	return kafka.Wrap(ftp.Err, "reading partition %d of topic %q", ftp.Partition, ftp.Topic)
}

// end is the offset after the last record of the run.
func (r *polledRun) end() int64 { return r.records[len(r.records)-1].Offset + 1 }

// index finds a record by its offset, -1 when it is not in the run.
func (r *polledRun) index(offset int64) int {
	i := sort.Search(len(r.records), func(i int) bool { return r.records[i].Offset >= offset })
	if i == len(r.records) || r.records[i].Offset != offset {
		return -1
	}
	return i
}

// isLast reports whether no later record of the run with the same key brings a
// newer version. Call it after all of the run is decoded.
func (r *polledRun) isLast(i int) bool {
	rec := r.records[i]
	if rec.Key == nil {
		return true
	}
	if r.last == nil {
		r.last = make(map[string]int64, len(r.records))
		for j, x := range r.records {
			if !r.silent[j] {
				r.last[string(x.Key)] = x.Offset
			}
		}
	}
	return r.last[string(rec.Key)] <= rec.Offset
}

// decodeRecord appends the change of a record of pl to b, or nothing when it
// holds none.
func decodeRecord(ctx context.Context, d *avro.Decoder, b *change.Batch, pl *place, r *kgo.Record) error {
	var pos, unchanged []byte
	for i := range r.Headers {
		switch r.Headers[i].Key {
		case kafka.HeaderPos:
			pos = r.Headers[i].Value
		case kafka.HeaderUnchanged:
			unchanged = r.Headers[i].Value
		}
	}
	return d.Append(ctx, b, pl.coord(r.Offset), r.Key, r.Value, pos, unchanged, r.Timestamp.UnixMilli())
}

// setLag tells how far the group is from the ends of its partitions, and
// whether an open transaction keeps it from them (A5).
func setLag(ctx context.Context, a *assignment, comp *obs.Component, skip string) error {
	places := a.list()
	if len(places) == 0 {
		return nil
	}
	ends, err := a.cluster.Admin().ListEndOffsets(ctx, a.topics...)
	if err != nil {
		return kafka.Wrap(err, "listing where the topics end")
	}
	// Read after the ends: the last stable offset can only have grown since.
	stable, err := a.cluster.Admin().ListCommittedOffsets(ctx, a.topics...)
	if err != nil {
		return kafka.Wrap(err, "listing where the topics are stable")
	}
	now := time.Now()
	for _, p := range places {
		e, ok1 := ends.Lookup(p.topic.Name, p.partition)
		s, ok2 := stable.Lookup(p.topic.Name, p.partition)
		if ok1 && ok2 && e.Err == nil && s.Err == nil && p.topic.Name != skip {
			comp.Stable(p.topic.Name, p.partition, p.stableAge(s.Offset, e.Offset, now))
		}
		if ok1 && e.Err == nil && p.topic.Name != skip && p.next >= 0 {
			comp.Lag(p.topic.Name, p.partition, max(e.Offset-p.next, 0))
		}
	}
	return nil
}

// stableAge is for how long the last stable offset has stood still below the
// end, by what was seen of it. Under load it is below the end all the time, and
// moves.
func (p *place) stableAge(stable, end int64, now time.Time) time.Duration {
	switch {
	case stable >= end:
		p.stableAt = time.Time{}
		return 0
	case p.stableAt.IsZero() || p.stable != stable:
		p.stable, p.stableAt = stable, now
	}
	return now.Sub(p.stableAt)
}
