// What the chain sends is encoded first and produced last: whatever may have
// to wait (the registry, topics, Redis) is done before the Kafka transaction
// begins, so that readers never wait for it (A5).

package transform

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

// Encoded records are kept until they are that large, in octets; then the
// transaction begins, although the stages are not done with the poll.
const emitAhead = 16 << 20

// recordEncoder encodes for one session, and lends the memory of records.
type recordEncoder struct {
	outputs *records.Outputs
	queues  map[string]bool
	parked  int // what a record of the parked topic may have, in octets
	free    []*records.Buffer
}

func newRecordEncoder(ctx context.Context, env *pipeline.Env, spec pipeline.TransformSpec) (*recordEncoder, error) {
	e := &recordEncoder{queues: map[string]bool{}}
	for _, q := range spec.Queues {
		e.queues[q] = true
	}
	e.outputs = records.NewOutputs(env.Kafka, env.Registry, func(t *change.Table) kafka.TopicSpec {
		return kafka.TopicSpec{Name: t.Topic, Partitions: env.Partitions, Compact: !e.queues[t.Topic]}
	}, spec.MaxRecordBytes, nil)
	n, err := env.Kafka.MaxRecordBytes(ctx, parked.TopicOf(spec.Name))
	e.parked = n
	return e, err
}

func (e *recordEncoder) get() *records.Buffer {
	if n := len(e.free); n > 0 {
		r := e.free[n-1]
		e.free = e.free[:n-1]
		return r
	}
	return new(records.Buffer)
}

// put takes records back whose promises are all fulfilled.
func (e *recordEncoder) put(rs []*records.Buffer) {
	for _, r := range rs {
		if len(e.free) < 8 && r.Bytes < emitAhead {
			r.Reset()
			e.free = append(e.free, r)
		}
	}
}

// emit encodes a batch. A change that cannot be encoded, or is too large, is
// rejected by itself.
func (tx *txn) emit(ctx context.Context, b *change.Batch) error {
	tx.takeTruncates(b)
	if b.Len() == 0 {
		return nil
	}
	if err := tx.encoder.outputs.EnsureAll(ctx, b); err != nil {
		return err
	}
	rs := tx.encoder.get()
	if err := tx.encoder.outputs.Encode(rs, b, 0, b.Len()); err != nil {
		return err
	}
	for _, r := range rs.Refused {
		tx.reject(&b.Changes[r.Index], r.Err)
	}
	tx.records = append(tx.records, rs)
	tx.ahead += rs.Bytes
	if tx.ahead > emitAhead {
		return tx.produceEncoded(ctx)
	}
	return nil
}

// produceEncoded hands over what was encoded since the last time.
func (tx *txn) produceEncoded(ctx context.Context) error {
	for ; tx.sent < len(tx.records); tx.sent++ {
		rs := tx.records[tx.sent]
		for i := range rs.Records {
			if err := tx.produce(ctx, &rs.Records[i]); err != nil {
				return err
			}
		}
	}
	tx.ahead = 0
	return nil
}

// produce hands a record to the client. What becomes of it is told later, to
// the promise: every one is looked at before the commit (A3).
func (tx *txn) produce(ctx context.Context, r *kgo.Record) error {
	if err := tx.begin(); err != nil {
		return err
	}
	if r.Topic != tx.lastTopic || tx.lastOut == nil {
		tx.lastTopic, tx.lastOut = r.Topic, tx.outs[r.Topic]
		if tx.lastOut == nil {
			tx.lastOut = &outCount{oldest: r.Timestamp}
			tx.outs[r.Topic] = tx.lastOut
		}
	}
	o := tx.lastOut
	o.records++
	o.bytes += len(r.Key) + len(r.Value)
	if r.Timestamp.Before(o.oldest) {
		o.oldest = r.Timestamp
	}
	tx.group.Produce(ctx, r, tx.promise)
	return nil
}

func (tx *txn) promise(_ *kgo.Record, err error) {
	if err == nil {
		return
	}
	tx.failed.Lock()
	defer tx.failed.Unlock()
	if tx.failed.err == nil {
		tx.failed.err = err
	}
}

func (tx *txn) promised() error {
	tx.failed.Lock()
	defer tx.failed.Unlock()
	return tx.failed.err
}
