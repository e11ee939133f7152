// Scan: reading a range of one partition to its very end, without a group.
// A consumer cannot tell "nothing left" from "nothing yet" when the last
// offsets of the range are markers or were compacted away; a plain Fetch can,
// since it says which offset comes next.

package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
)

const (
	scanWaitMillis = 500
	scanBytes      = 8 << 20
)

// scanPatience is how long a scan waits for one open transaction: longer than
// those of ours can last.
var scanPatience = 2 * time.Minute

// Scan gives fn the committed records of partition p of t from offset from up
// to but not including to, as far as they are still there, markers of
// transactions too; a record is valid during the call. It waits for
// transactions that are open below to, two minutes for each. cl may be any client of the cluster. An
// error of fn ends it, and is returned as it is; others are ErrUnavailable, ErrRefused or ErrOffsetRange.
func Scan(ctx context.Context, cl *kgo.Client, t *change.Topic, p int32, from, to int64, fn func(*kgo.Record) error) error {
	if from >= to {
		return nil
	}
	doing := fmt.Sprintf("reading offsets %d to %d of partition %d of topic %q", from, to-1, p, t.Name)
	var leader *kgo.Broker
	moved := time.Now()
	for next := from; next < to; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if leader == nil {
			b, err := leaderOf(ctx, cl, t.Name, p)
			if err != nil {
				return Wrap(err, "%s: finding its leader", doing)
			}
			leader = b
		}
		fp, after, err := fetch(ctx, leader, t, p, next)
		if err != nil {
			return Wrap(err, "%s", doing)
		}
		if fp.Err != nil {
			if !errors.Is(fp.Err, kerr.OffsetOutOfRange) {
				return Wrap(fp.Err, "%s", doing)
			}
			start, err := startOf(ctx, kadm.NewClient(cl), t, p)
			if err != nil {
				return err
			}
			if start <= next {
				return ErrOffsetRange.New("%s: offset %d does not exist, though the partition starts at %d", doing, next, start)
			}
			next = start
			continue
		}
		for _, r := range fp.Records {
			if r.Offset >= to {
				return nil
			}
			if err := fn(r); err != nil {
				return err
			}
		}
		if after == next && fp.LastStableOffset >= to {
			return nil // the rest was compacted away: nothing is there, and nothing is to come
		}
		if after == next && fp.HighWatermark < to {
			return ErrUnavailable.New("%s: it ends at %d for now", doing, fp.HighWatermark)
		}
		switch {
		case after > next:
			moved = time.Now()
		case time.Since(moved) > scanPatience:
			return ErrUnavailable.New("%s: a transaction has been open at offset %d for %v", doing, fp.LastStableOffset, scanPatience)
		}
		next = after
	}
	return nil
}

// StartOf is the first offset of a partition that is there.
func (c *Cluster) StartOf(ctx context.Context, t *change.Topic, partition int32) (int64, error) {
	return startOf(ctx, c.admin, t, partition)
}

func startOf(ctx context.Context, adm *kadm.Client, t *change.Topic, partition int32) (int64, error) {
	starts, err := adm.ListStartOffsets(ctx, t.Name)
	if err != nil {
		return 0, Wrap(err, "listing where topic %q starts", t.Name)
	}
	o, ok := starts.Lookup(t.Name, partition)
	if !ok || o.Err != nil {
		return 0, ErrUnavailable.New("partition %d of topic %q has no known start", partition, t.Name)
	}
	return o.Offset, nil
}

// EndOf is the offset behind the last record of a partition, committed or not.
func (c *Cluster) EndOf(ctx context.Context, t *change.Topic, partition int32) (int64, error) {
	ends, err := c.admin.ListEndOffsets(ctx, t.Name)
	if err != nil {
		return 0, Wrap(err, "listing where topic %q ends", t.Name)
	}
	o, ok := ends.Lookup(t.Name, partition)
	if !ok || o.Err != nil {
		return 0, ErrUnavailable.New("partition %d of topic %q has no known end", partition, t.Name)
	}
	return o.Offset, nil
}

func leaderOf(ctx context.Context, cl *kgo.Client, topic string, p int32) (*kgo.Broker, error) {
	m, err := kadm.NewClient(cl).Metadata(ctx, topic)
	if err != nil {
		return nil, err
	}
	d := m.Topics[topic]
	if d.Err != nil {
		return nil, d.Err
	}
	pd, ok := d.Partitions[p]
	if !ok {
		return nil, kerr.UnknownTopicOrPartition
	}
	if pd.Err != nil {
		return nil, pd.Err
	}
	return cl.Broker(int(pd.Leader)), nil
}

// fetch reads once and says which offset comes after what it got.
func fetch(ctx context.Context, leader *kgo.Broker, t *change.Topic, p int32, from int64) (kgo.FetchPartition, int64, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel = scanWaitMillis, 1, scanBytes, 1
	req.SessionEpoch = -1
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = t.Name, t.ID
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch = p, from, scanBytes, -1
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	raw, err := leader.RetriableRequest(ctx, req) // a connection that broke is no reason to begin a rebuild again
	if err != nil {
		return kgo.FetchPartition{}, 0, err
	}
	resp := raw.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return kgo.FetchPartition{}, 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return kgo.FetchPartition{}, 0, fmt.Errorf("the broker answered for %d topics instead of one: %w", len(resp.Topics), kerr.UnknownServerError)
	}
	fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		KeepControlRecords: true, Offset: from, IsolationLevel: kgo.ReadCommitted(), Topic: t.Name, Partition: p,
	}, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	return fp, next, nil
}

// SettledEnds gives where each partition of t ends, by partition, once nothing is
// open below it: what a predecessor left open has been decided, and its markers
// are there. It waits for two minutes.
func (c *Cluster) SettledEnds(ctx context.Context, t *change.Topic) ([]int64, error) {
	list := func(what func(context.Context, ...string) (kadm.ListedOffsets, error)) ([]int64, error) {
		listed, err := what(ctx, t.Name)
		if err == nil {
			err = listed.Error()
		}
		if err != nil {
			return nil, Wrap(err, "listing where topic %q ends", t.Name)
		}
		out := make([]int64, t.Partitions)
		for p := range out {
			o, is := listed.Lookup(t.Name, int32(p))
			if !is {
				return nil, ErrUnavailable.New("partition %d of topic %q has no known end", p, t.Name)
			}
			out[p] = o.Offset
		}
		return out, nil
	}
	ends, err := list(c.admin.ListEndOffsets)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		stable, err := list(c.admin.ListCommittedOffsets)
		if err != nil {
			return nil, err
		}
		open := -1
		for p := range ends {
			if stable[p] < ends[p] {
				open = p
			}
		}
		if open < 0 {
			return ends, nil
		}
		if time.Since(began) > scanPatience {
			return nil, ErrUnavailable.New("a transaction has been open at offset %d of partition %d of topic %q for %v", stable[open], open, t.Name, scanPatience)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
