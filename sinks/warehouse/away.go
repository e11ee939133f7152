// What a warehouse missed while it was away for longer than its topics tell of
// deletions: when each partition was last read to its end, and the rows of keys
// that a topic does not hold any more (F6).

package warehouse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
)

var _ pipeline.Reconciler = (*Sink)(nil)

// readAtSQL adds the column to tables of before. It may be null: an older
// version, which may run beside this one, does not fill it.
const readAtSQL = `ALTER TABLE _tallywire.offsets ADD COLUMN IF NOT EXISTS read_at timestamptz;
COMMENT ON COLUMN _tallywire.offsets.read_at IS 'What was written to the partition before is in the tables. After longer than delete.retention.ms of the topic, rows of keys that it does not hold any more are deleted; epoch: they are, at the next start.';
`

// neverRead is how it is stored that nobody knows how far a partition was read.
var neverRead = time.Unix(0, 0).UTC()

// migrateReadAt adds the column, and says what that means for what is there.
func (s *Sink) migrateReadAt(ctx context.Context, tx pgx.Tx) error {
	var old bool
	err := tx.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = '_tallywire.offsets'::regclass AND attname = 'read_at' AND NOT attisdropped)
		AND EXISTS (SELECT FROM _tallywire.offsets WHERE next_offset > 0)`).Scan(&old)
	if err != nil {
		return err
	}
	if old {
		s.log.Info("an earlier version did not note when it had read its topics to their ends: it is taken that it had when it last wrote or started. "+
			"If it was away for long before that, rows that were deleted meanwhile may be left.",
			"remedy", "Stop the sink, run this in the warehouse, start again: UPDATE _tallywire.offsets SET read_at = 'epoch';")
	}
	_, err = tx.Exec(ctx, readAtSQL)
	return err
}

// unread notes that nobody knows how far a partition without an offset was read
// when its table has rows of it: somebody deleted the offset alone.
func unread(ctx context.Context, tx pgx.Tx, sink string, e *entity, p *change.Coord) error {
	_, err := tx.Exec(ctx, `UPDATE _tallywire.offsets SET read_at = 'epoch' WHERE sink = $1 AND topic = $2 AND partition = $3
		AND EXISTS (SELECT FROM `+e.table()+` WHERE _topic_id = $4::text::uuid AND _partition = $3)`, sink, p.Topic.Name, p.Partition, topicID(p.Topic))
	return err
}

// ReadAt implements pipeline.Reconciler. Where an earlier version wrote, Claim
// has taken the time of its last write.
func (s *Sink) ReadAt(ctx context.Context, parts []change.Coord) ([]time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]time.Time, len(parts))
	err := s.inTx(ctx, fmt.Sprintf("reading how far sink %q has read", s.name), func(tx pgx.Tx) error {
		for i := range parts {
			p := &parts[i]
			var at time.Time
			err := tx.QueryRow(ctx, `SELECT GREATEST(read_at, 'epoch') FROM _tallywire.offsets
				WHERE sink = $1 AND topic = $2 AND partition = $3 AND topic_id = $4::text::uuid`,
				s.name, p.Topic.Name, p.Partition, topicID(p.Topic)).Scan(&at)
			if err != nil && !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			if at.After(neverRead) {
				out[i] = at
			}
		}
		return nil
	})
	return out, err
}

// SetReadAt implements pipeline.Reconciler.
func (s *Sink) SetReadAt(ctx context.Context, assignment string, parts []change.Coord, at []time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inTx(ctx, fmt.Sprintf("noting how far sink %q has read", s.name), func(tx pgx.Tx) error {
		for _, i := range sorted(parts) {
			if err := s.setReadAt(ctx, tx, assignment, &parts[i], at[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// setReadAt takes the offset's lock, and sees that assignment owns it.
func (s *Sink) setReadAt(ctx context.Context, tx pgx.Tx, assignment string, p *change.Coord, at time.Time) error {
	if at.IsZero() {
		at = neverRead
	}
	tag, err := tx.Exec(ctx, `UPDATE _tallywire.offsets SET read_at = $6
		WHERE sink = $1 AND topic = $2 AND partition = $3 AND topic_id = $4::text::uuid AND owner = $5`,
		s.name, p.Topic.Name, p.Partition, topicID(p.Topic), assignment, at)
	if err == nil && tag.RowsAffected() != 1 {
		return pipeline.ErrFenced.New("noting how far %s[%d] is read: sink %q does not own it any more", p.Topic.Name, p.Partition, s.name)
	}
	return err
}

// Reconcile implements pipeline.Reconciler. It has a connection of its own: the
// sink's must stay free for the claim of a next assignment, however long keys
// takes. What was copied ends with the connection.
func (s *Sink) Reconcile(ctx context.Context, assignment string, span change.Range, at time.Time,
	keys func(take func(*change.Batch) error) error,
) (deleted, before int64, err error) {
	e := s.byTopic[span.Topic.Name]
	if e == nil {
		return 0, 0, ErrTopic.New("sink %q has no table for topic %q", s.name, span.Topic.Name)
	}
	doing := fmt.Sprintf("reconciling table %s with partition %d of its topic", e.topic, span.Partition)
	conn, err := pgx.ConnectConfig(ctx, s.config)
	if err != nil {
		return 0, 0, classify(doing+": connecting", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := conn.Close(ctx); err != nil {
			s.log.Debug("closing the session of a reconciliation", "error", err)
		}
	}()
	if _, err := conn.Exec(ctx, e.heldSQL()); err != nil {
		return 0, 0, classify(doing, err)
	}
	var buf []byte
	err = keys(func(b *change.Batch) error {
		if buf, err = e.appendKeys(buf[:0], b); err != nil {
			return err
		}
		_, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(buf), "COPY pg_temp._held FROM STDIN BINARY")
		return classify(doing, err)
	})
	if err != nil {
		return 0, 0, err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "ANALYZE pg_temp._held"); err != nil {
			return err
		}
		// The offset comes first: it is the fence (invariant 10).
		p := change.Coord{Topic: span.Topic, Partition: span.Partition}
		if err := s.setReadAt(ctx, tx, assignment, &p, at); err != nil {
			return err
		}
		gone := e.goneSQL()
		if span.From > 0 {
			err := tx.QueryRow(ctx, "SELECT count(*) FROM "+gone, topicID(span.Topic), span.Partition, span.From).Scan(&before)
			if err != nil {
				return err
			}
			if before > 0 {
				return errBefore
			}
		}
		tag, err := tx.Exec(ctx, "DELETE FROM "+gone, topicID(span.Topic), span.Partition, span.To)
		deleted = tag.RowsAffected()
		return err
	})
	switch {
	case errors.Is(err, errBefore):
		return 0, before, nil
	case err != nil:
		return 0, 0, classify(doing, err)
	}
	return deleted, 0, nil
}

// errBefore rolls back.
var errBefore = errors.New("rows are of records before the partition's start")

// heldSQL makes the table of the keys that a topic holds.
func (e *entity) heldSQL() string {
	var cols []string
	for _, k := range e.key {
		cols = append(cols, quote(e.columns[k].name)+" "+e.columns[k].typeName())
	}
	return "CREATE TEMP TABLE _held (" + strings.Join(cols, ", ") + ")"
}

// goneSQL are the rows of a topic's partition and of records before an offset
// of which the topic does not hold the key. A row that was written since the
// keys were read is of a later record, and is none of them.
func (e *entity) goneSQL() string {
	var same []string
	for _, k := range e.key {
		name := quote(e.columns[k].name)
		same = append(same, "h."+name+" = t."+name)
	}
	return e.table() + " t WHERE t._topic_id = $1::text::uuid AND t._partition = $2 AND t._offset < $3 AND NOT EXISTS (SELECT FROM pg_temp._held h WHERE " +
		strings.Join(same, " AND ") + ")"
}

// appendKeys encodes the keys of a batch for COPY. One that does not fit its
// column is of no row.
func (e *entity) appendKeys(dst []byte, b *change.Batch) ([]byte, error) {
	dst = append(dst, copyHeader...)
	for i := range b.Changes {
		c := &b.Changes[i]
		row := c.Row()
		at := len(dst)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(e.key)))
		for _, k := range e.key {
			col := &e.columns[k]
			src := c.Table.Column(col.name)
			if src < 0 {
				return dst, ErrField.New("records of topic %s have no field %q, the key", e.topic, col.name)
			}
			var err error
			if dst, err = appendField(dst, b, col, row[src]); err != nil {
				dst = dst[:at]
				break
			}
		}
	}
	return append(dst, 0xff, 0xff), nil
}
