// How a poll ends: its offsets are committed alone, or, when something is parked
// or released, in one Kafka transaction with that (G5). Either commit carries
// the member's generation, so that an owner which was paused and replaced
// changes nothing (A11).

package deliver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/parked"
)

// txnTimeout is what a killed process may keep readers of the parked topic
// waiting (A5).
const txnTimeout = 30 * time.Second

// errCommit marks a failed offset commit: the group has moved on.
var errCommit = errors.New("committing offsets")

// commit makes next of the partitions the group's offset, with our token.
func (s *session) commit(ctx context.Context, places []*consume.Owned) error {
	if len(places) == 0 {
		return nil
	}
	offsets := map[string]map[int32]kgo.EpochOffset{}
	tokens := map[string]string{}
	for _, p := range places {
		m := offsets[p.Topic.Name]
		if m == nil {
			m = map[int32]kgo.EpochOffset{}
			offsets[p.Topic.Name] = m
			tokens[p.Topic.Name] = consume.TokenOf(p.Topic)
		}
		m[p.Partition] = kgo.EpochOffset{Epoch: -1, Offset: p.Next}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for i := range req.Topics {
			t := &req.Topics[i]
			token, ok := tokens[t.Topic]
			if !ok {
				return fmt.Errorf("BUG: a commit of topic %q (%x) that was not asked for", t.Topic, t.TopicID)
			}
			for j := range t.Partitions {
				t.Partitions[j].Metadata = &token
			}
		}
		return nil
	})
	var failed error
	s.group.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if failed = err; err != nil {
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil && failed == nil {
					failed = err
				}
			}
		}
	})
	if errors.Is(failed, kerr.FencedInstanceID) {
		return consume.Fenced(failed, "committing offsets of sink %q", s.spec.Name)
	}
	if failed != nil {
		return errors.Join(kafka.Wrap(failed, "committing offsets of sink %q", s.spec.Name), errCommit)
	}
	for _, p := range places {
		p.Unsigned = false
	}
	return nil
}

// commitParking is commit in one transaction with what is parked and released.
// places are those whose offsets say that it was this owner who did it, moved
// or not.
func (s *session) commitParking(ctx context.Context, places []*consume.Owned, tx *parked.Txn) error {
	if tx.Empty() {
		return s.commit(ctx, places)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), txnTimeout/2)
	defer cancel()
	if err := s.writer.commit(ctx, s, places, tx); err != nil {
		return errors.Join(err, errCommit) // whatever it was: the next session reads the truth (A1)
	}
	tx.Committed()
	s.due = s.due || tx.Asks()
	for _, p := range places {
		p.Unsigned = false
	}
	return nil
}

// parkedWriter is a session's transactional producer.
type parkedWriter struct {
	d     *deliver
	id    string
	cl    *kgo.Client
	v2    bool
	limit int // of a record of the parked topic, in octets
}

// newWriter takes the sink's transactional id, which ends what a predecessor
// left open (A4, A5).
func (d *deliver) newWriter(ctx context.Context, topic string) (*parkedWriter, error) {
	ours := kafka.Transactional{
		ID: "tallywire." + d.spec.Name + "." + d.env.Instance, Timeout: txnTimeout, Group: true,
		Topics: func(context.Context) ([]string, error) { return []string{topic}, nil },
	}
	if err := d.env.Kafka.TakeOver(ctx, ours); err != nil {
		return nil, err
	}
	w := &parkedWriter{d: d, id: ours.ID}
	var err error
	if w.v2, err = d.env.Kafka.TransactionsV2(ctx); err != nil {
		return nil, err
	}
	if w.limit, err = d.env.Kafka.MaxRecordBytes(ctx, topic); err != nil {
		return nil, err
	}
	w.cl, err = d.env.Kafka.Client(append(ours.Opts(d.env.Kafka),
		kgo.ConcurrentTransactionsBackoff(2*time.Millisecond),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(16<<20),
	)...)
	if err != nil {
		return nil, err
	}
	if _, _, err := w.cl.ProducerID(ctx); err != nil {
		w.cl.Close()
		return nil, w.judge(err, time.Now(), "taking the transactional id of sink %q", d.spec.Name)
	}
	return w, nil
}

func (w *parkedWriter) close() { w.cl.Close() }

func (w *parkedWriter) judge(err error, began time.Time, format string, args ...any) error {
	return consume.ProducerError(err, began, txnTimeout, format, args...)
}

func (w *parkedWriter) commit(ctx context.Context, s *session, places []*consume.Owned, tx *parked.Txn) (err error) {
	began := time.Now()
	doing := fmt.Sprintf("parking records of sink %q", w.d.spec.Name)
	if err := w.cl.BeginTransaction(); err != nil {
		return w.judge(err, began, "%s", doing)
	}
	open := true
	defer func() {
		if !open {
			return
		}
		// The session is given up in any case; this is for those who read.
		if aerr := w.cl.AbortBufferedRecords(ctx); aerr == nil {
			aerr = w.cl.EndTransaction(ctx, kgo.TryAbort)
			if aerr != nil {
				w.d.comp.Log.Warn("aborting a transaction", "err", aerr)
			}
		}
	}()
	var failed atomic.Pointer[error]
	for _, r := range tx.Records(w.limit) {
		w.cl.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		})
	}
	if err := w.cl.Flush(ctx); err != nil {
		return w.judge(err, began, "%s", doing)
	}
	if e := failed.Load(); e != nil { // (A3)
		return w.judge(*e, began, "%s", doing)
	}
	offsets := make([]kafka.Offset, len(places))
	for i, p := range places {
		offsets[i] = kafka.Offset{Topic: p.Topic, Partition: p.Partition, At: p.Next, Metadata: consume.TokenOf(p.Topic)}
	}
	if err := kafka.CommitInTransaction(ctx, w.cl, w.id, w.v2, s.as, offsets); err != nil {
		return w.judge(err, began, "committing offsets of sink %q", w.d.spec.Name)
	}
	open = false
	if err := kafka.Commit(ctx, w.cl); err != nil {
		return w.judge(err, began, "ending a transaction of sink %q", w.d.spec.Name)
	}
	return nil
}
