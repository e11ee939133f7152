// ReadBack: the positions that stand in a topic below an offset.

package dedupe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

// ErrReadBack: the window could not be read.
var ErrReadBack = problem.Define("TW-DEDUPE-READBACK", problem.Retry,
	"The records before the start offset, by which repetitions are told from new records, cannot be read now.",
	"Nothing to do while Kafka recovers; tallywire tries again by itself.")

const (
	// Window is how many offsets back the highest position is looked for. One
	// record would do, as positions rise; aborted records and markers lie
	// between.
	Window = 512
	// readBackTimeout bounds the reading of one partition's window.
	readBackTimeout = 15 * time.Second
)

// ReadBack reads from Kafka: committed records in [before−Window, before).
func ReadBack(env *pipeline.Env) func(ctx context.Context, t *change.Topic, partition int32, before int64) (Last, error) {
	return func(ctx context.Context, t *change.Topic, partition int32, before int64) (last Last, err error) {
		if before <= 0 {
			return Last{}, nil
		}
		ctx, cancel := context.WithTimeout(ctx, readBackTimeout)
		defer cancel()
		last, err = readBack(ctx, env.Kafka, t, partition, before)
		if err != nil && problem.Of(err) == nil && !errors.Is(err, context.Canceled) {
			err = ErrReadBack.New("%w", err)
		}
		return last, err
	}
}

func readBack(ctx context.Context, cluster *kafka.Cluster, t *change.Topic, partition int32, before int64) (last Last, err error) {
	starts, err := cluster.Admin().ListStartOffsets(ctx, t.Name)
	if err != nil {
		return Last{}, fmt.Errorf("listing the first offsets: %w", err)
	}
	first, ok := starts.Lookup(t.Name, partition)
	if !ok || first.Err != nil {
		return Last{}, fmt.Errorf("listing the first offset: %w", first.Err)
	}
	from := max(before-Window, first.Offset)
	if from >= before {
		return Last{}, nil
	}
	// The end that tells when enough was read: the record at `before` or
	// later, or a marker there. The stage has a batch of records from there
	// on, so one exists and is committed.
	c, err := cluster.Client(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{t.Name: {partition: kgo.NewOffset().At(from)}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.ConsumeResetOffset(kgo.NoResetOffset()))
	if err != nil {
		return Last{}, fmt.Errorf("making a client: %w", err)
	}
	defer c.Close()
	for {
		fs := c.PollRecords(ctx, Window)
		if err := fs.Err0(); err != nil {
			return Last{}, err
		}
		if es := fs.Errors(); len(es) > 0 {
			return Last{}, es[0].Err
		}
		it := fs.RecordIter()
		for !it.Done() {
			r := it.Next()
			if r.Offset >= before-1 && (r.Offset >= before || r.Attrs.IsControl()) {
				return last, nil
			}
			if err := last.note(r); err != nil {
				return Last{}, err
			}
			if r.Offset == before-1 {
				return last, nil
			}
		}
	}
}

// note takes a record below the start into account.
func (l *Last) note(r *kgo.Record) error {
	if r.Value == nil || r.Attrs.IsControl() {
		return nil // tombstones have the position of the delete before them
	}
	var (
		pos  change.Pos
		half bool
		err  error
	)
	for _, h := range r.Headers {
		switch h.Key {
		case kafka.HeaderPos:
			if pos, err = change.ParsePos(h.Value); err != nil {
				return nil //nolint:nilerr // a garbage header: the record itself is rejected where it is read
			}
		case "__debezium.newkey":
			half = true
		}
	}
	if !pos.IsZero() && (l.Pos.IsZero() || pos.System != l.Pos.System || pos.Compare(l.Pos) >= 0) {
		*l = Last{pos, half}
	}
	return nil
}
