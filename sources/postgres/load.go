// The initial load: every captured table by COPY, in binary, under one
// snapshot. Killed, it starts again on the same slot: the stream that follows
// replays everything since the slot was made, so that the end is the same.

package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// A batch is one piece of work for the engine. It is sent on when it holds this
// much, in octets of rows, or this many changes (Source.batchChanges, smaller
// in tests); at the end of a transaction at a part of it already, so that few
// transactions are cut, which costs a hash of their octets.
const (
	batchBytes      = 512 << 10
	maxBatchChanges = 2048
	fullAt          = 4
)

// load sends all rows, as of a snapshot that lies at or after at.LSN.
func (se *session) load(ctx context.Context, at position) error {
	se.comp.Is(obs.Restoring, "initial load")
	if !se.snapshot {
		if err := se.awaitOlder(ctx); err != nil {
			return err
		}
		if _, err := se.q.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err != nil {
			return classify("opening the snapshot of the load", err)
		}
	}
	rels, err := se.relations(ctx)
	if err != nil {
		return err
	}
	l := &loader{
		se: se, ctx: ctx, resume: at.resume(),
		fr: pgoutput.NewFramer(func(_ change.Pos, err error) error { return ErrProtocol.New("loading: %w", err) }),
	}
	pos := change.Pos{System: uint64(at.System), Timeline: uint32(at.Timeline), LSN: uint64(at.LSN), Kind: change.PosSnapshot, Ordinal: at.Attempt << 48}
	l.fr.Begin(nil, pos, 0, time.Now().UnixMicro())
	for i, r := range rels {
		if err := l.table(se.tables[i], r); err != nil {
			if l.b != nil {
				l.b.Release()
			}
			return err
		}
	}
	if _, err := se.q.Exec(ctx, "COMMIT"); err != nil {
		return classify("closing the snapshot of the load", err)
	}
	return nil
}

// awaitOlder waits until every transaction that runs now has ended. A snapshot that
// is taken later than the slot was made must see all that the slot does not
// send again; a transaction whose commit lies before the slot may still be
// invisible while it waits for a synchronous standby (C1, C4). Making a
// slot waits for the same.
func (se *session) awaitOlder(ctx context.Context) error {
	// Whoever has a transaction id holds a lock on it, in every database, until
	// the transaction is visible; prepared ones too.
	var running []string
	if err := se.q.QueryRow(ctx, "SELECT array_agg(transactionid::text) FROM "+runningSQL).Scan(&running); err != nil {
		return classify("looking for running transactions", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var left int64
		err := se.q.QueryRow(ctx, "SELECT count(*) FROM "+runningSQL+" AND transactionid::text = ANY($1)", running).Scan(&left)
		if err != nil {
			return classify("waiting for running transactions", err)
		}
		if left == 0 {
			return nil
		}
		se.comp.Is(obs.Restoring, settling)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

const (
	runningSQL = "pg_locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted"
	settling   = "initial load: waiting for the transactions that run now to end"
)

// loader reads COPY's binary format (PostgreSQL documentation, COPY, "Binary
// Format"); it is the io.Writer that pgconn copies to.
type loader struct {
	se     *session
	ctx    context.Context
	resume pipeline.Resume
	fr     *pgoutput.Framer

	rel    *pgoutput.Relation
	info   *tableInfo
	b      *change.Batch
	size   int    // octets of the rows in b
	part   []byte // of a row
	header bool
	rows   int64
	sent   error // what Send said, to be returned as it is
}

func (l *loader) table(t *tableInfo, r *pgoutput.Relation) error {
	l.rel, l.info, l.part, l.header, l.rows = r, t, nil, false, 0
	l.fr.Define(t.id, r)
	var cols []string
	for i, c := range r.Table.Columns {
		name := pgx.Identifier{c.Name}.Sanitize()
		if !r.Cells[i].Binary() {
			// As the type's output function prints it, which a cast to text need
			// not be (inet); and null by itself, not for a row of nulls.
			name = "CASE WHEN " + name + " IS DISTINCT FROM NULL THEN format('%s', " + name + ") END"
		}
		cols = append(cols, name)
	}
	only := "ONLY "
	if t.partitioned {
		only = ""
	}
	sql := "COPY (SELECT " + strings.Join(cols, ", ") + " FROM " + only + t.sql()
	if f := l.se.pub[t.String()].filter; f != nil {
		sql += " WHERE " + *f
	}
	sql += ") TO STDOUT (FORMAT binary)"
	l.progress()
	if _, err := l.se.q.PgConn().CopyTo(l.ctx, l, sql); err != nil {
		if l.sent != nil {
			return l.sent
		}
		return classify(fmt.Sprintf("loading %s", t), err)
	}
	if len(l.part) != 0 {
		return ErrProtocol.New("loading %s: the copy ends inside a row", t)
	}
	l.progress()
	return l.flush()
}

func (l *loader) progress() {
	l.se.comp.Progress("rows of "+l.info.String(), l.rows, max(l.info.rows, 0))
}

func (l *loader) flush() error {
	b := l.b
	l.b, l.size = nil, 0
	if b == nil {
		return nil
	}
	l.fr.Finish(b)
	b.Resume = l.resume
	l.progress()
	l.sent = l.se.out.Send(l.ctx, b)
	return l.sent
}

var copySignature = []byte("PGCOPY\n\xff\r\n\x00")

// Write takes COPY data, cut anywhere.
func (l *loader) Write(p []byte) (int, error) {
	n := len(p)
	if len(l.part) > 0 {
		l.part = append(l.part, p...)
		p = l.part
	}
	if !l.header {
		const size = 11 + 4 + 4 // signature, flags, length of the extension
		if len(p) >= size {
			if !bytes.Equal(p[:11], copySignature) || binary.BigEndian.Uint32(p[11:])&0xFFFF0000 != 0 {
				return 0, ErrProtocol.New("loading %s: not the binary format of COPY", l.info)
			}
			if ext := int(binary.BigEndian.Uint32(p[15:])); ext <= len(p)-size {
				l.header = true
				p = p[size+ext:]
			}
		}
	}
	for l.header {
		size, end, err := pgoutput.CopyRow(p, len(l.rel.Cells))
		if err != nil {
			return 0, ErrProtocol.New("loading %s: %w", l.info, err)
		}
		if size == 0 {
			break
		}
		row := p[:size]
		p = p[size:]
		if end {
			continue
		}
		if l.b == nil {
			l.b = change.Get()
		}
		if err := l.fr.AppendCopy(l.b, l.info.id, row); err != nil {
			return 0, ErrProtocol.New("loading %s: %w", l.info, err)
		}
		l.rows++
		if l.size += size; l.fr.Len() >= l.se.batchChanges || l.size >= batchBytes {
			if err := l.flush(); err != nil {
				return 0, err
			}
		}
	}
	l.part = append(l.part[:0], p...)
	return n, nil
}
