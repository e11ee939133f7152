// How far each group is, as the other one asks: the left one before its first row
// (gate), the right one before each page of a fan-out (flow).

package join

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/pipeline"
)

// gate: at a start, left rows wait until the references have been read that
// were there. Else each of them would be emitted as waiting first, and again
// when its reference arrives: right, but three times the work.
type gate struct {
	cluster *kafka.Cluster
	group   string
	topics  []string
	since   time.Time
	ends    kadm.ListedOffsets // at the first look
}

// Gate asks whether the group that keeps what the one of this name looks up has read
// what its topics had at the first asking (Options.Gate).
func Gate(cluster *kafka.Cluster, name string, topics []string) func(context.Context) error {
	return (&gate{cluster: cluster, group: pipeline.GroupOf(name + RightSuffix), topics: topics}).open
}

// open gives nil when the group has committed what was there at the first
// look, or after gateTimeout.
func (g *gate) open(ctx context.Context) error {
	if g.since.IsZero() {
		ends, err := g.cluster.Admin().ListCommittedOffsets(ctx, g.topics...)
		if err != nil {
			return kafka.Wrap(err, "listing the ends of the references")
		}
		g.ends, g.since = ends, time.Now()
	}
	if time.Since(g.since) > gateTimeout {
		return nil
	}
	done, err := g.cluster.Admin().FetchOffsets(ctx, g.group)
	if err != nil {
		return kafka.Wrap(err, "reading how far the group %s is", g.group)
	}
	var behind int64
	g.ends.Each(func(o kadm.ListedOffset) {
		if o.Err != nil || o.Offset <= 0 {
			return
		}
		at, _ := done.Lookup(o.Topic, o.Partition)
		behind += max(o.Offset-max(at.At, 0), 0)
	})
	if behind > 0 {
		return ErrRightBehind.New("%d records of references are still to be read by %s", behind, g.group)
	}
	return nil
}

// Flow is what the right group wants to know of the left one.
type Flow struct {
	Queued int64 // refresh records that it has still to work off
	Ends   int64 // of the partitions of left rows, added up: others than before, and some came
}

// FlowOf asks for that of the group of this name (Options.Flow).
func FlowOf(cluster *kafka.Cluster, name, left, queue string) func(context.Context) (Flow, error) {
	group := pipeline.GroupOf(name)
	return func(ctx context.Context) (f Flow, err error) {
		ends, err := cluster.Admin().ListCommittedOffsets(ctx, left, queue)
		if err != nil {
			return f, kafka.Wrap(err, "listing the ends of %s and %s", left, queue)
		}
		done, err := cluster.Admin().FetchOffsets(ctx, group)
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return f, kafka.Wrap(err, "reading how far the group %s is", group)
		}
		ends.Each(func(o kadm.ListedOffset) {
			if o.Err != nil {
				return
			}
			if o.Topic == left {
				f.Ends += o.Offset
			} else if at, is := done.Lookup(o.Topic, o.Partition); is {
				f.Queued += max(o.Offset-at.At, 0)
			}
		})
		return f, nil
	}
}
