// Polled: the records of one poll by partition, so that a change can be traced
// back to the octets it came from.

package consume

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
	"github.com/tallywire/tallywire/pipeline"
)

// Run is what was polled of one partition, in order of offset.
type Run struct {
	Owned   *Owned
	Records []*kgo.Record
	Silent  []bool           // parallel: decoded to no change (control records, raw tombstones)
	High    int64            // the partition's end as the fetch saw it
	last    map[string]int64 // offset of the last record per key that is not silent; built when asked for
	cut     *kgo.Record      // the first that was left for later; nil: none
}

// Polled is what was polled, by partition; several polls may be added.
type Polled struct {
	Runs    []*Run
	byPlace map[*Owned]*Run
	Count   int // records, control records not counted
	Bytes   int // of keys and values
}

// NewPolled is nothing polled yet.
func NewPolled() *Polled { return &Polled{byPlace: map[*Owned]*Run{}} }

// Add takes what one poll brought. It fails on the first error of a fetch.
func (p *Polled) Add(a *Assignment, fs kgo.Fetches) error {
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
		pl := a.Find(ftp.Topic, ftp.Partition)
		if pl == nil {
			failed = pipeline.ErrTxnUnknown.New("records of partition %d of topic %q came, which is not assigned here any more", ftp.Partition, ftp.Topic)
			return
		}
		r := p.byPlace[pl]
		if r == nil {
			r = &Run{Owned: pl}
			p.byPlace[pl] = r
			p.Runs = append(p.Runs, r)
		}
		expect := pl.Next
		if n := len(r.Records); n > 0 {
			expect = r.Records[n-1].Offset + 1
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
		r.Records = append(r.Records, ftp.Records...)
		r.High = ftp.HighWatermark
		for _, rec := range ftp.Records {
			if !rec.Attrs.IsControl() {
				p.Count++
				p.Bytes += len(rec.Key) + len(rec.Value)
			}
		}
	})
	if failed != nil {
		return failed
	}
	for _, r := range p.Runs {
		r.Silent = append(r.Silent, make([]bool, len(r.Records)-len(r.Silent))...)
	}
	sort.SliceStable(p.Runs, func(i, j int) bool {
		a, b := p.Runs[i].Owned, p.Runs[j].Owned
		if a.order != b.order {
			return a.order < b.order
		}
		return a.Partition < b.Partition
	})
	return nil
}

func fetchError(a *Assignment, ftp kgo.FetchTopicPartition) error {
	if errors.Is(ftp.Err, kerr.OffsetOutOfRange) {
		pl := a.Find(ftp.Topic, ftp.Partition)
		if pl != nil && pl.compacted {
			// The next session starts where the topic does, or finds that it
			// ends too early.
			return kafka.ErrUnavailable.New("offset %d of partition %d of topic %q was compacted away: %w", pl.Next, ftp.Partition, ftp.Topic, ftp.Err)
		}
		if pl != nil {
			return kafka.ErrOffsetRange.New("offset %d of partition %d of topic %q was to be read next and is not there: %w", pl.Next, ftp.Partition, ftp.Topic, ftp.Err)
		}
		return kafka.ErrOffsetRange.New("partition %d of topic %q: %w", ftp.Partition, ftp.Topic, ftp.Err)
	}
	var lost *kgo.ErrDataLoss
	if errors.As(ftp.Err, &lost) {
		return kafka.ErrOffsetRange.New("partition %d of topic %q: the broker lost records that it had confirmed: %w", ftp.Partition, ftp.Topic, ftp.Err)
	}
	if errors.Is(ftp.Err, kerr.FencedInstanceID) {
		return Fenced(ftp.Err, "reading as a member of it")
	}
	if ftp.Topic == "" {
		return kafka.Wrap(ftp.Err, "reading as a member of the group")
	}
	return kafka.Wrap(ftp.Err, "reading partition %d of topic %q", ftp.Partition, ftp.Topic)
}

// End is the offset where the partition continues after the run.
func (r *Run) End() int64 {
	if r.cut != nil {
		return r.cut.Offset
	}
	return r.Records[len(r.Records)-1].Offset + 1
}

// Cut leaves the records from i on for a later poll: End is where they begin.
// See Polled.Cut.
func (r *Run) Cut(i int) {
	if i == len(r.Records) {
		return
	}
	r.cut, r.Records, r.Silent, r.last = r.Records[i], r.Records[:i], r.Silent[:i], nil
}

// Cut is where the runs continue that were cut: where the client is to read on
// (kgo.Client.SetOffsets) once the rest of the poll is committed. Nil: none was.
func (p *Polled) Cut() map[string]map[int32]kgo.EpochOffset {
	var out map[string]map[int32]kgo.EpochOffset
	for _, r := range p.Runs {
		if r.cut == nil {
			continue
		}
		if out == nil {
			out = map[string]map[int32]kgo.EpochOffset{}
		}
		name := r.Owned.Topic.Name
		if out[name] == nil {
			out[name] = map[int32]kgo.EpochOffset{}
		}
		out[name][r.Owned.Partition] = kgo.EpochOffset{Epoch: -1, Offset: r.cut.Offset}
	}
	return out
}

// Index finds a record by its offset, -1 when it is not in the run.
func (r *Run) Index(offset int64) int {
	i := sort.Search(len(r.Records), func(i int) bool { return r.Records[i].Offset >= offset })
	if i == len(r.Records) || r.Records[i].Offset != offset {
		return -1
	}
	return i
}

// IsLast reports whether no later record of the run with the same key brings a
// newer version. Call it after all of the run is decoded.
func (r *Run) IsLast(i int) bool {
	rec := r.Records[i]
	if rec.Key == nil {
		return true
	}
	if r.last == nil {
		r.last = make(map[string]int64, len(r.Records))
		for j, x := range r.Records {
			if !r.Silent[j] {
				r.last[string(x.Key)] = x.Offset
			}
		}
	}
	return r.last[string(rec.Key)] <= rec.Offset
}

// Decode appends the change of a record of pl to b, or nothing when it
// holds none.
func Decode(ctx context.Context, d *avro.Decoder, b *change.Batch, pl *Owned, r *kgo.Record) error {
	return d.Append(ctx, b, pl.Coord(r.Offset), r.Key, r.Value, kafka.Headers(r), r.Timestamp.UnixMilli())
}

// SetLag tells how far the group is from the ends of its partitions, and
// whether an open transaction keeps it from them (A5).
func SetLag(ctx context.Context, a *Assignment, comp *obs.Component, skip string) error {
	places := a.List()
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
		e, ok1 := ends.Lookup(p.Topic.Name, p.Partition)
		s, ok2 := stable.Lookup(p.Topic.Name, p.Partition)
		if ok1 && ok2 && e.Err == nil && s.Err == nil && p.Topic.Name != skip {
			comp.Stable(p.Topic.Name, p.Partition, p.stableAge(s.Offset, e.Offset, now))
		}
		if ok1 && e.Err == nil && p.Topic.Name != skip && p.Next >= 0 {
			comp.Lag(p.Topic.Name, p.Partition, max(e.Offset-p.Next, 0))
		}
	}
	return nil
}

// stableAge is for how long the last stable offset has stood still below the
// end, by what was seen of it. Under load it is below the end all the time, and
// moves.
func (p *Owned) stableAge(stable, end int64, now time.Time) time.Duration {
	switch {
	case stable >= end:
		p.stableAt = time.Time{}
		return 0
	case p.stableAt.IsZero() || p.stable != stable:
		p.stable, p.stableAt = stable, now
	}
	return now.Sub(p.stableAt)
}

const (
	// IdlePoll is how long a poll waits before the idle work is looked at.
	IdlePoll = 500 * time.Millisecond
	// LagEvery is how often the lag of a group is looked up.
	LagEvery = 2 * time.Second
)
