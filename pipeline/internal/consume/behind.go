// Behind: how far a group falls behind while it does not run.

package consume

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/pipeline/internal/retry"
)

// ShowBehind sets the lag of a component that halted, until ctx ends: its group
// stands still, and what it reads grows. While other members have its partitions
// they tell, and it shows none.
func ShowBehind(ctx context.Context, c *kafka.Cluster, comp *obs.Component, group string, topics []string) {
	for {
		if err := behind(ctx, c, comp, group, topics); err != nil && ctx.Err() == nil {
			comp.Log.Debug("looking at how far the group is behind", "err", err)
		}
		if !retry.Sleep(ctx, LagEvery) {
			return
		}
	}
}

func behind(ctx context.Context, c *kafka.Cluster, comp *obs.Component, group string, topics []string) error {
	adm := c.Admin()
	groups, err := adm.DescribeGroups(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return err
	}
	if len(groups[group].Members) > 0 {
		comp.Partitions()
		return nil
	}
	committed, err := adm.FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // it has read nothing yet
		return err
	}
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	ends, err := adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	for topic, of := range ends {
		for p, end := range of {
			start, is := starts.Lookup(topic, p)
			if end.Err != nil || !is || start.Err != nil {
				continue
			}
			at := start.Offset
			if done, is := committed.Lookup(topic, p); is && done.Err == nil {
				at = max(at, done.At)
			}
			comp.Lag(topic, p, max(end.Offset-at, 0))
		}
	}
	return nil
}
