// Asking for parked records to be tried again, or to be dropped: what the
// command line does.

package parked

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
)

// Retry asks for the parked records that match f to be tried again, and
// says how many that are. A sink finds the request in the control database
// within a second or so; a transform reads it as a command on its parked topic
// (G1). Both work when they run next, if they do not run now. Without access
// to Kafka, ParkedStore.RequestRetry does the same: a running transform turns
// the request into the command.
func Retry(ctx context.Context, cluster *kafka.Cluster, db *pgxpool.Pool, f control.Filter) (int, error) {
	return command(ctx, cluster, db, f, CommandRetry, func(s *control.ParkedStore, p *control.Parked) error {
		return s.AskRetry(ctx, p.Stage, []control.Ref{{Topic: p.Topic, RecordKey: p.RecordKey}})
	})
}

// Discard drops the parked records that match f for good, and says how
// many that are. The next version of a key is taken as if nothing had been.
func Discard(ctx context.Context, cluster *kafka.Cluster, db *pgxpool.Pool, f control.Filter) (int, error) {
	return command(ctx, cluster, db, f, CommandDiscard, func(s *control.ParkedStore, p *control.Parked) error {
		return s.Delete(ctx, p.Stage, []control.Ref{{Topic: p.Topic, RecordKey: p.RecordKey}})
	})
}

func command(ctx context.Context, cluster *kafka.Cluster, db *pgxpool.Pool, f control.Filter, command string, ofSink func(*control.ParkedStore, *control.Parked) error) (int, error) {
	if db == nil {
		return 0, control.ErrMissing.New("parked records are listed in the control database")
	}
	store := control.NewParked(db)
	if f.Limit <= 0 {
		f.Limit = 100_000
	}
	rows, err := store.List(ctx, f)
	if err != nil {
		return 0, err
	}
	var cl *kgo.Client
	for i := range rows {
		p := &rows[i]
		if p.Kind == control.KindSink {
			if err := ofSink(store, p); err != nil {
				return i, err
			}
			continue
		}
		if cl == nil {
			if cl, err = cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
				return i, err
			}
			defer cl.Close()
		}
		if err := Send(ctx, cluster, cl, p, command); err != nil {
			return i, err
		}
	}
	return len(rows), nil
}

// Send writes a command about a parked record of a transform. cl
// partitions by hand.
func Send(ctx context.Context, cluster *kafka.Cluster, cl *kgo.Client, p *control.Parked, command string) error {
	topic := TopicOf(p.Stage)
	limit, err := cluster.MaxRecordBytes(ctx, topic)
	if err != nil {
		return err
	}
	rec := &kgo.Record{
		Topic: topic, Partition: p.Partition, Timestamp: time.Now(),
		Key:     CommandKey(command, AppendKey(nil, p.Topic, p.RecordKey)),
		Value:   Append(nil, p, limit),
		Headers: []kgo.RecordHeader{{Key: HeaderCommand, Value: []byte(command)}},
	}
	return kafka.Wrap(cl.ProduceSync(ctx, rec).FirstErr(), "sending a command to topic %q", topic)
}

// CommandOf is the command of a record of the parked topic, or "" when it is
// none, or the end of one.
func CommandOf(rec *kgo.Record) string {
	if rec.Attrs.IsControl() || rec.Value == nil || len(rec.Key) == 0 || rec.Key[0] != separator {
		return ""
	}
	for _, h := range rec.Headers {
		if h.Key == HeaderCommand {
			return string(h.Value)
		}
	}
	return ""
}
