// The hot path: what lies between the socket and the Kafka client, with the
// memory that it keeps between batches.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/pipeline/records"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// partitions of the topic.
const partitions = 8

func newRelation() *pgoutput.Relation {
	var types pgoutput.Types
	r := &pgoutput.Relation{Table: &change.Table{
		Source: "psa", Connector: connector, Database: "psa", Schema: "public", Name: "time_entry",
		Topic: topic, ID: relationID, OldFull: true, Key: []int{0},
	}}
	for i, c := range columns {
		types.Add(&pgoutput.Type{ID: c.oid, Class: 'b'})
		col, cell := types.Column(c.oid, c.mod)
		col.Name, col.Nullable = c.name, i > 0
		r.Table.Columns = append(r.Table.Columns, col)
		r.Cells = append(r.Cells, cell)
		r.Identity = append(r.Identity, i == 0)
	}
	r.Table.Index()
	return r
}

// The transaction that all rows belong to.
var (
	connector  = &change.Connector{Name: "postgresql", Version: "1", Fields: []change.SourceField{{Name: "txId", Of: change.SourceXID}, {Name: "lsn", Of: change.SourceLSN}, {Name: "xmin"}}}
	position   = change.Pos{System: 7_711_381_119_221_907_572, Timeline: 1, LSN: 0x16_B374D848, Kind: change.PosCommit}
	xid        = uint32(184_467)
	commitTime = time.Date(2026, 6, 30, 9, 15, 0, 123_456_000, time.UTC).UnixMicro()
)

// hot is the path.
type hot struct {
	fr      *pgoutput.Framer
	enc     *avro.Encoder
	outs    *records.Outputs
	b       *change.Batch
	out     []byte
	memo    avro.Memo
	recs    records.Buffer
	closers []func()
}

// newHot makes the path, with a registry and a Kafka within this process that
// are asked once and idle then. It is to be closed also after an error.
func newHot(ctx context.Context) (*hot, error) {
	rel := newRelation()
	h := &hot{b: change.Get(), fr: pgoutput.NewFramer(func(at change.Pos, err error) error { return fmt.Errorf("%s: %w", at, err) })}
	h.fr.Define(relationID, rel)
	srv := httptest.NewServer(srfake.New().Handler())
	h.closers = append(h.closers, h.b.Release, srv.Close)
	reg, err := avro.NewRegistry(srv.URL)
	if err != nil {
		return h, err
	}
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		return h, err
	}
	h.closers = append(h.closers, fake.Close)
	o := obs.New(slog.New(slog.DiscardHandler))
	cluster, err := kafka.New(kafka.Config{Brokers: fake.ListenAddrs()}, o)
	if err != nil {
		return h, err
	}
	h.closers = append(h.closers, cluster.Close)
	h.outs = records.NewOutputs(cluster, reg, func(t *change.Table) kafka.TopicSpec {
		return kafka.TopicSpec{Name: t.Topic, Default: partitions}
	}, 0, nil)
	if _, err := h.outs.Ensure(ctx, rel.Table); err != nil {
		return h, err
	}
	h.enc, err = avro.NewEncoder(ctx, reg, rel.Table)
	return h, err
}

func (h *hot) close() {
	for i := len(h.closers) - 1; i >= 0; i-- {
		h.closers[i]()
	}
	h.closers = nil
}

// frame is what the stream's goroutine does.
func (h *hot) frame(msgs [][]byte) error {
	h.b.Reset()
	h.fr.Begin(nil, position, xid, commitTime)
	for _, m := range msgs {
		if err := h.fr.Append(h.b, m); err != nil {
			return err
		}
	}
	h.fr.Finish(h.b)
	return nil
}

// decode is from the octets of pgoutput to a change.Batch.
func (h *hot) decode(msgs [][]byte) error {
	if err := h.frame(msgs); err != nil {
		return err
	}
	return h.b.Decode()
}

// encode is from the Batch of the last decode to key and value.
func (h *hot) encode() error {
	h.out = h.out[:0]
	h.memo.Reset()
	var err error
	for i := range h.b.Changes {
		c := &h.b.Changes[i]
		if h.out, err = h.enc.AppendKey(h.out, h.b, c); err != nil {
			return err
		}
		if h.out, err = h.enc.AppendValueWith(&h.memo, h.out, h.b, c); err != nil {
			return err
		}
	}
	return nil
}

// whole is from the octets of pgoutput to records for the Kafka client: key,
// value, headers, partition, timestamp.
func (h *hot) whole(msgs [][]byte) error {
	if err := h.decode(msgs); err != nil {
		return err
	}
	h.recs.Reset()
	if err := h.outs.Encode(&h.recs, h.b, 0, h.b.Len()); err != nil {
		return err
	}
	if len(h.recs.Refused) > 0 {
		return errors.Join(errors.New("a change gave no record"), h.recs.Refused[0].Err)
	}
	return nil
}
