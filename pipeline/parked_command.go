// Asking for parked records to be tried again, or to be dropped: what the
// command line does.

package pipeline

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

// RetryParked asks for the parked records that match f to be tried again, and
// says how many that are. A sink finds the request in the control database
// within a second or so; a transform reads it as a command on its parked topic
// (G1). Both work when they run next, if they do not run now. Without access
// to Kafka, ParkedStore.RequestRetry does the same: a running transform turns
// the request into the command.
func RetryParked(ctx context.Context, env *Env, f control.Filter) (int, error) {
	return commandParked(ctx, env, f, commandRetry, func(s *control.ParkedStore, p *control.Parked) error {
		return s.AskRetry(ctx, p.Stage, []control.Ref{{Topic: p.Topic, RecordKey: p.RecordKey}})
	})
}

// DiscardParked drops the parked records that match f for good, and says how
// many that are. The next version of a key is taken as if nothing had been.
func DiscardParked(ctx context.Context, env *Env, f control.Filter) (int, error) {
	return commandParked(ctx, env, f, commandDiscard, func(s *control.ParkedStore, p *control.Parked) error {
		return s.Delete(ctx, p.Stage, []control.Ref{{Topic: p.Topic, RecordKey: p.RecordKey}})
	})
}

func commandParked(ctx context.Context, env *Env, f control.Filter, command string, ofSink func(*control.ParkedStore, *control.Parked) error) (int, error) {
	if env.Control == nil {
		return 0, ErrNoControl.New("parked records are listed in the control database")
	}
	store := control.NewParked(env.Control)
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
			if cl, err = env.Kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
				return i, err
			}
			defer cl.Close()
		}
		if err := sendCommand(ctx, env, cl, p, command); err != nil {
			return i, err
		}
	}
	return len(rows), nil
}

// sendCommand writes a command about a parked record of a transform. cl
// partitions by hand.
func sendCommand(ctx context.Context, env *Env, cl *kgo.Client, p *control.Parked, command string) error {
	topic := ParkedTopicOf(p.Stage)
	limit, err := env.Kafka.MaxRecordBytes(ctx, topic)
	if err != nil {
		return err
	}
	rec := &kgo.Record{
		Topic: topic, Partition: p.Partition, Timestamp: time.Now(),
		Key:     commandKey(command, appendParkedKey(nil, p.Topic, p.RecordKey)),
		Value:   appendParked(nil, p, limit),
		Headers: []kgo.RecordHeader{{Key: headerCommand, Value: []byte(command)}},
	}
	return kafka.Wrap(cl.ProduceSync(ctx, rec).FirstErr(), "sending a command to topic %q", topic)
}

// forwardRequests turns what was asked for in the control database into
// commands on the parked topic, so that either way of asking works.
func (s *groupSession) forwardRequests(ctx context.Context) error {
	var parts []control.PartID
	for _, p := range s.assignment.list() {
		if len(s.parked.byPart[p.partition]) > 0 && p.topic.Name != s.parked.topic.Name {
			parts = append(parts, control.PartID{Topic: p.topic.Name, Partition: p.partition})
		}
	}
	if len(parts) == 0 {
		return nil
	}
	rows, err := s.parked.store.Due(ctx, s.spec.Name, parts, time.Hour*24*365*100, 1000)
	if err != nil {
		// The control database is no part of this flow: it shows, and asks.
		s.comp.Failed(problem.Retry.String(), outage.CodeOf(err))
		return nil
	}
	refs := make([]control.Ref, 0, len(rows))
	for i := range rows {
		if err := sendCommand(ctx, s.env, s.side, &rows[i], commandRetry); err != nil {
			return err
		}
		refs = append(refs, control.Ref{Topic: rows[i].Topic, RecordKey: rows[i].RecordKey})
	}
	if err := s.parked.store.ClearRetry(ctx, s.spec.Name, refs); err != nil {
		s.comp.Failed(problem.Retry.String(), outage.CodeOf(err)) // the command comes once more, which does no harm
	}
	return nil
}
