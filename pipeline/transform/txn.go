// One transaction of the transform loop: the records of one poll go through
// the chain, and what comes out, what is parked and how far was read are
// committed together, or not at all.

package transform

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
	"github.com/tallywire/tallywire/pipeline/state"
)

type txn struct {
	*session
	polled *consume.Polled

	began  time.Time // zero: no Kafka transaction is open yet
	ended  bool      // it was ended, or its end is unknown
	failed struct {
		sync.Mutex
		err error // of the first promise that failed
	}
	rejected map[*kgo.Record]error // first reason per record
	retried  []*retried
	parking  *parked.Txn
	state    []state.Entry // what it writes of its state
	outs     map[string]*outCount
	chain    []chainOutlet
	alone    bool      // it is of truncates only; see narrow
	emptied  []emptied // what those empty
	clearing *clearing // how far that is; nil: not begun, or done
	endsTake int       // what the ends found so far take, in octets, about

	records   []*records.Buffer // encoded
	sent      int               // of records, those produced
	ahead     int               // octets encoded and not yet produced
	lastTopic string
	lastOut   *outCount
}

// retried is a parked record that a command asked to try again.
type retried struct {
	rec   *kgo.Record    // the original
	owned *consume.Owned // of its input partition
}

type outCount struct {
	records, bytes int
	oldest         time.Time
}

// do works through the poll and commits. On an error the caller aborts unless
// ended is set.
func (tx *txn) do(ctx context.Context) error {
	tx.start()
	// What stays in the group's rebalance timeout stays in the transaction's.
	work, cancel := context.WithTimeout(ctx, tx.spec.TxnTimeout*4/5)
	defer cancel()
	if err := tx.narrow(work); err != nil {
		return err
	}
	if tx.alone {
		work = ctx // a long search, ahead of a short Kafka transaction
	}
	if err := tx.runCommands(work); err != nil {
		return err
	}
	for _, r := range tx.polled.Runs {
		if r.Owned.Topic.Name == tx.parked.Topic.Name {
			continue
		}
		if err := tx.checkState(work, r.Owned, r.Owned.Next); err != nil {
			return err
		}
	}
	if err := tx.apply(work); err != nil {
		return err
	}
	ends, err := tx.clear(work)
	if err != nil {
		return err
	}
	tx.resolveParked(work)
	if err := tx.produceEncoded(work); err != nil {
		return err
	}
	for _, r := range ends {
		if err := tx.produce(work, r); err != nil {
			return err
		}
	}
	for _, r := range tx.parking.Records(tx.encoder.parked) {
		if err := tx.produce(work, r); err != nil {
			return err
		}
	}
	kept := tx.stateRecords()
	for _, r := range kept {
		if err := tx.produce(work, r); err != nil {
			return err
		}
	}
	if err := tx.commit(ctx, nil); err != nil {
		return err
	}
	for _, r := range tx.polled.Runs {
		r.Owned.Next = r.End()
	}
	if cut := tx.polled.Cut(); cut != nil {
		tx.group.Client().SetOffsets(cut)
	}
	if tx.alone {
		tx.session.clearing = tx.clearing
	}
	tx.encoder.put(tx.records)
	tx.parking.Committed()
	tx.account()
	return tx.keepState(ctx, kept)
}

// start makes an empty transaction.
func (tx *txn) start() {
	tx.rejected, tx.outs = map[*kgo.Record]error{}, map[string]*outCount{}
	tx.parking = tx.parked.Begin()
	if tx.spec.State != nil {
		tx.spec.State.Begin()
	}
	tx.chain = make([]chainOutlet, len(tx.spec.Stages)+1)
	for i := range tx.chain {
		tx.chain[i] = chainOutlet{tx, i}
	}
}

// apply decodes the poll into batches and sends them through the chain.
func (tx *txn) apply(ctx context.Context) error {
	b := change.Get()
	bytes := 0
	flush := func() error {
		full := b
		b, bytes = change.Get(), 0
		return tx.chain[0].Send(ctx, full)
	}
	defer func() { b.Release() }()
	for _, r := range tx.polled.Runs {
		if r.Owned.Topic.Name == tx.parked.Topic.Name || len(r.Records) == 0 {
			continue
		}
		from := r.Owned.Next
		for i := 0; i < len(r.Records); i++ {
			rec := r.Records[i]
			if rec.Attrs.IsControl() {
				r.Silent[i] = true
				continue
			}
			if n := len(rec.Key) + len(rec.Value); b.Len() >= tx.spec.BatchRecords || b.Len() > 0 && bytes+n > tx.spec.BatchBytes {
				if from < rec.Offset {
					b.Ranges = append(b.Ranges, change.Range{Topic: r.Owned.Topic, Partition: r.Owned.Partition, From: from, To: rec.Offset})
					from = rec.Offset
				}
				if err := flush(); err != nil {
					return err
				}
			}
			bytes += len(rec.Key) + len(rec.Value)
			if err := tx.decode(ctx, b, r, i); err != nil {
				return err
			}
		}
		b.Ranges = append(b.Ranges, change.Range{Topic: r.Owned.Topic, Partition: r.Owned.Partition, From: from, To: r.End()})
	}
	if len(b.Ranges) == 0 && b.Len() == 0 {
		return nil
	}
	return flush()
}

// decode appends record i of a run to b, or rejects it.
func (tx *txn) decode(ctx context.Context, b *change.Batch, r *consume.Run, i int) error {
	rec, n := r.Records[i], b.Len()
	err := consume.Decode(ctx, tx.decoder, b, r.Owned, rec)
	if err != nil {
		if pipeline.Classify(err) != problem.Reject {
			return err
		}
		tx.rejectRecord(rec, err)
		return nil
	}
	if b.Len() > n && b.Changes[n].Empties() && !tx.alone {
		b.Changes = b.Changes[:n]
		r.Cut(i) // it comes again, at the front of its partition
		return nil
	}
	r.Silent[i] = b.Len() == n
	return nil
}

// chainOutlet i takes what stage i-1 sends; the one after the last stage writes.
type chainOutlet struct {
	tx *txn
	i  int
}

func (o *chainOutlet) Send(ctx context.Context, b *change.Batch) error {
	if o.i < len(o.tx.spec.Stages) {
		return o.tx.spec.Stages[o.i].Apply(ctx, b, &o.tx.chain[o.i+1])
	}
	defer b.Release()
	return o.tx.emit(ctx, b)
}

func (o *chainOutlet) Reject(c *change.Change, err error) { o.tx.reject(c, err) }

// reject notes the record that c came from as bad.
func (tx *txn) reject(c *change.Change, err error) {
	if c.Coord.Topic == nil {
		panic("BUG: a change was rejected that tells no record it came from")
	}
	for _, q := range tx.retried {
		if q.rec.Offset == c.Coord.Offset && q.rec.Partition == c.Coord.Partition && q.rec.Topic == c.Coord.Topic.Name {
			tx.rejectRecord(q.rec, err)
			return
		}
	}
	for _, r := range tx.polled.Runs {
		if r.Owned.Topic.Name == c.Coord.Topic.Name && r.Owned.Partition == c.Coord.Partition {
			if i := r.Index(c.Coord.Offset); i >= 0 {
				tx.rejectRecord(r.Records[i], err)
				return
			}
		}
	}
	panic("BUG: a change was rejected that is not of this transaction")
}

func (tx *txn) rejectRecord(rec *kgo.Record, err error) {
	if tx.rejected[rec] == nil {
		tx.rejected[rec] = err
		tx.comp.Failed(problem.Reject.String(), outage.CodeOf(err))
	}
}

// begin opens the Kafka transaction, before the first record is produced.
func (tx *txn) begin() error {
	if !tx.began.IsZero() {
		return nil
	}
	if err := tx.group.Begin(); err != nil {
		return tx.producerError(err, time.Now(), "beginning a transaction of transform %q", tx.spec.Name)
	}
	tx.began = time.Now()
	return nil
}

// commit ends the transaction with the offsets of the poll. Its context is not
// ended by a shutdown; an error means that the outcome is unknown, so it is
// never tried again: the session ends (A1, invariant 14).
//
// with, unless nil, is done last within it, and commits the offsets; nil: the session
// commits those of what was polled.
func (tx *txn) commit(ctx context.Context, with func(context.Context) error) error {
	if err := tx.begin(); err != nil {
		return err
	}
	ctx, cancel := tx.endContext(ctx)
	defer cancel()
	if err := tx.group.Client().Flush(ctx); err != nil {
		return tx.producerError(err, tx.began, "flushing a transaction of transform %q", tx.spec.Name)
	}
	if err := tx.promised(); err != nil { // (A3)
		return tx.producerError(err, tx.began, "producing in a transaction of transform %q", tx.spec.Name)
	}
	if err := kafka.AwaitKnown(ctx, tx.group.Client()); err != nil {
		return tx.producerError(err, tx.began, "ending a transaction of transform %q", tx.spec.Name)
	}
	if with != nil {
		if err := with(ctx); err != nil {
			return tx.producerError(err, tx.began, "committing offsets of transform %q", tx.spec.Name)
		}
	}
	tx.ended = true
	if with != nil {
		// Its offsets are part of it, with the member's generation: who became the owner
		// meanwhile waits for its end (KIP-447). The session, which committed none, would
		// not know that, and make the next end wait for half a second.
		if err := tx.group.Client().EndTransaction(ctx, kgo.TryCommit); err != nil {
			return tx.producerError(err, tx.began, "ending a transaction of transform %q", tx.spec.Name)
		}
		tx.comp.Txn(time.Since(tx.began))
		return nil
	}
	committed, err := tx.group.End(kgo.PreTxnCommitFnContext(ctx, tx.token), kgo.TryCommit)
	if err != nil {
		return tx.producerError(err, tx.began, "ending a transaction of transform %q", tx.spec.Name)
	}
	if !committed {
		return pipeline.ErrTxnUnknown.New("a transaction of transform %q was aborted: the group had moved on", tx.spec.Name)
	}
	tx.comp.Txn(time.Since(tx.began))
	return nil
}

// token puts our mark beside each offset (see tokenOf), and commits no more than
// what was done.
func (tx *txn) token(req *kmsg.TxnOffsetCommitRequest) error {
	cut := tx.polled.Cut()
	for i := range req.Topics {
		t := &req.Topics[i]
		for _, r := range tx.polled.Runs {
			if r.Owned.Topic.Name != t.Topic {
				continue
			}
			token := consume.TokenOf(r.Owned.Topic)
			for j := range t.Partitions {
				t.Partitions[j].Metadata = &token
			}
			break
		}
		for j := range t.Partitions { // what was cut off is not done
			p := &t.Partitions[j]
			if at, is := cut[t.Topic][p.Partition]; is {
				p.Offset, p.LeaderEpoch = at.Offset, at.Epoch
			}
		}
	}
	return nil
}

// abort ends the transaction without effect, so that no reader waits for its
// timeout. The session is given up in any case, so its outcome does not matter.
func (tx *txn) abort(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	tx.ended = true
	if _, err := tx.group.End(ctx, kgo.TryAbort); err != nil && !errors.Is(err, kgo.ErrClientClosed) {
		tx.comp.Log.Warn("aborting a transaction", "err", err)
	}
}

// account counts what was committed.
func (tx *txn) account() {
	for _, r := range tx.polled.Runs {
		if r.Owned.Topic.Name == tx.parked.Topic.Name {
			continue
		}
		n, bytes := 0, 0
		for _, rec := range r.Records {
			if !rec.Attrs.IsControl() {
				n++
				bytes += len(rec.Key) + len(rec.Value)
			}
		}
		if n > 0 {
			tx.comp.In(r.Owned.Topic.Name, n, bytes)
		}
		tx.comp.Lag(r.Owned.Topic.Name, r.Owned.Partition, max(r.High-r.Owned.Next, 0))
	}
	now := time.Now()
	for topic, o := range tx.outs {
		tx.comp.Out(topic, o.records, o.bytes)
		if topic != tx.parked.Topic.Name && (tx.spec.State == nil || topic != tx.spec.State.Topic().Name) && o.oldest.UnixMilli() > 0 {
			tx.comp.Latency(topic, now.Sub(o.oldest))
		}
	}
}

// resolveParked decides, per key, what is parked when the transaction commits, and
// what is released: the last record of a key counts, since entities carry
// their full state (G2).
func (tx *txn) resolveParked(ctx context.Context) {
	for _, q := range tx.retried {
		tx.resolve(ctx, q.owned, q.rec)
	}
	for _, r := range tx.polled.Runs {
		if r.Owned.Topic.Name == tx.parked.Topic.Name || tx.parked.Len() == 0 && len(tx.rejected) == 0 {
			continue
		}
		var k []byte
		for i, rec := range r.Records {
			if r.Silent[i] {
				continue
			}
			if tx.rejected[rec] == nil {
				k = parked.AppendKey(k[:0], rec.Topic, parked.RecordKey(rec))
				if _, is := tx.parked.Get(k); !is {
					continue
				}
			}
			if r.IsLast(i) {
				tx.resolve(ctx, r.Owned, rec)
			}
		}
	}
}

func (tx *txn) resolve(ctx context.Context, pl *consume.Owned, rec *kgo.Record) {
	if err := tx.rejected[rec]; err != nil {
		tx.parking.Park(tx.parkedOf(ctx, pl, rec, err))
		return
	}
	tx.parking.Release(pl.Topic.ID, parked.AppendKey(nil, rec.Topic, parked.RecordKey(rec)), rec.Partition, rec.Offset)
}
