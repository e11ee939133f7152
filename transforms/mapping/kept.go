// Kept: whether what a rule uses of raw rows was kept of all of them. The group that
// keeps rows halts when it was not, and those that look them up must not go on
// meanwhile: what they tell of rows that lack a column would be gone (F8).

package mapping

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	twredis "github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
	"github.com/tallywire/tallywire/transforms/join"
)

// keptRows asks what the group that keeps rows has noted. Not safe for concurrent use.
type keptRows struct {
	transform string
	raws      []join.Raw
	rdb       *redis.Client
	of        *state.Reader // what that group keeps
	read      func(ctx context.Context, topic string) ([]progress, error)
	ends      func(ctx context.Context, t *change.Topic) ([]int64, error) // of the changelog of that
}

// progress is where a partition of a raw topic starts, and up to where the group that
// keeps rows has read it; −1: it has not begun.
type progress struct{ start, done int64 }

// progressOf asks Kafka; nil: there is no such topic.
func progressOf(c *kafka.Cluster, transform string) func(ctx context.Context, topic string) ([]progress, error) {
	group := pipeline.GroupOf(transform)
	return func(ctx context.Context, topic string) ([]progress, error) {
		topics, err := c.Topics(ctx, topic)
		if err != nil || topics[topic] == nil {
			return nil, err
		}
		starts, err := c.Admin().ListStartOffsets(ctx, topic)
		if err == nil {
			err = starts.Error()
		}
		if err != nil {
			return nil, kafka.Wrap(err, "listing where %s starts", topic)
		}
		done, err := c.Admin().FetchOffsets(ctx, group)
		if err != nil {
			return nil, kafka.Wrap(err, "reading how far the group %s is", group)
		}
		out := make([]progress, topics[topic].Partitions)
		for p := range topics[topic].Partitions {
			start, _ := starts.Lookup(topic, p)
			out[p] = progress{start.Offset, -1}
			if at, is := done.Lookup(topic, p); is {
				out[p].done = at.At
			}
		}
		return out, nil
	}
}

// all is nil when all rows are kept with what is used of them, or will be, since none of
// their partition was read; ErrRowsUnseen when some never will, unless they are read
// again.
func (k *keptRows) all(ctx context.Context) error {
	type asking struct {
		raw  join.Raw
		part int32
		at   progress
		cmd  *redis.StringCmd
	}
	var asks []asking
	var parts []int32
	for _, raw := range k.raws {
		at, err := k.read(ctx, raw.Topic)
		if err != nil {
			return err
		}
		for p, x := range at {
			if x.done > x.start {
				asks, parts = append(asks, asking{raw: raw, part: int32(p), at: x}), append(parts, int32(p))
			}
		}
	}
	if len(asks) == 0 {
		return nil
	}
	reading, err := state.NewConsistentRead(ctx, k.of)
	if err != nil {
		return err
	}
	reading.Only(0, parts)
	// What was committed before the offsets that were read lies below these ends.
	ends, err := k.ends(ctx, reading.Topic(0))
	if err != nil {
		return err
	}
	q := k.rdb.Pipeline()
	reading.Begin(ctx, q)
	for i := range asks {
		asks[i].cmd = q.HGet(ctx, reading.RowsKey(0, asks[i].part), rowsKey(asks[i].raw.Topic))
	}
	reading.End(ctx, q)
	if _, err := q.Exec(ctx); err != nil && err != redis.Nil { //nolint:errorlint // as go-redis documents it
		return twredis.Classify("reading which rows are kept", err)
	}
	if err := reading.Err(); err != nil {
		return err
	}
	for _, a := range asks {
		var noted []byte
		if text, err := a.cmd.Result(); err == nil {
			noted = []byte(text)
		}
		switch more := notKept(noted, a.raw.Names); {
		case len(more) == 0:
		case ends[a.part]-reading.Applied(0, a.part) > 1: // more than a marker
			return join.ErrRightBehind.New("what %s has noted of partition %d of %s is still on its way", pipeline.GroupOf(k.transform), a.part, a.raw.Topic)
		default:
			return rowsUnseen(k.transform, a.raw.Topic, a.part, a.at.start, more)
		}
	}
	return nil
}
