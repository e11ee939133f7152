// The initial load: every captured table by COPY, in binary, under the snapshot that
// the slot was made with. Each is noted as it is read; what is left is read beside the
// stream (reload.go).

package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

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

// load sends the rows of all tables, as of the slot's snapshot. One that is not what
// it says any more when its turn comes, or that cannot be locked then, is left to be
// read beside the stream (C5), as is all when the process dies. loads are what is
// noted of them. The last one that was read is not noted yet: as long as one is noted
// to be read, the load is known for one that is to be resumed.
func (se *session) load(ctx context.Context, at position, loads map[uint32]*tableLoad) (last uint32, err error) {
	se.comp.Is(obs.Restoring, "initial load")
	now, err := se.cfg.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer closeConn(now)
	l := &loader{
		se: se, ctx: ctx, now: now, loads: loads, resume: at.resume(),
		fr: pgoutput.NewFramer(func(_ change.Pos, err error) error { return ErrProtocol.New("loading: %w", err) }),
	}
	defer func() {
		if l.b != nil {
			l.b.Release()
		}
	}()
	pos := change.Pos{System: uint64(at.System), Timeline: uint32(at.Timeline), LSN: uint64(at.LSN), Kind: change.PosSnapshot, Ordinal: at.Attempt << 48}
	l.fr.Begin(nil, pos, 0, time.Now().UnixMicro())
	if l.pub, err = readPublication(ctx, se.q, se.cfg.Publication); err != nil {
		return 0, err
	}
	for _, t := range se.tables {
		// What is locked within a savepoint is free again when it is rolled back
		// to: no migration waits for tables that were read, or will be.
		if err := l.exec("SAVEPOINT turn"); err != nil {
			return 0, err
		}
		why, err := l.turn(t)
		if err != nil {
			return 0, err
		}
		if err := l.exec("ROLLBACK TO SAVEPOINT turn"); err != nil {
			return 0, err
		}
		if why != "" {
			se.comp.Log.Info("a table is read beside the stream", "table", t.String(), "because", why)
		}
	}
	return l.last, l.exec("COMMIT")
}

func (l *loader) exec(sql string) error {
	_, err := l.se.q.Exec(l.ctx, sql)
	return classify("loading", err)
}

// lockWait bounds the wait for a table that somebody holds: others are read
// meanwhile.
const lockWait = "2s"

// turn sends the rows of a table, or says why it has to wait.
func (l *loader) turn(was *tableInfo) (why string, err error) {
	se := l.se
	t, err := tableByID(l.ctx, se.q, was.id)
	if err != nil {
		return "", err
	}
	if t == nil {
		se.comp.Log.Warn("a table was dropped before its rows were read", "table", was.String())
		return "", nil
	}
	selected, named := se.cfg.selects(t.schema, t.name)
	switch pub := l.pub[t.String()]; {
	case !selected:
		se.comp.Log.Warn("a table was renamed to what `tables` does not match: it is not captured any more", "was", was.String(), "table", t.String())
		return "", nil
	case pub == nil:
		se.comp.Log.Warn("a table has left the publication: it is not captured any more", "publication", se.cfg.Publication, "table", t.String())
		return "", nil
	case !t.captured():
		return "", noKeyError([]*tableInfo{t})
	default:
		t.named, l.filter = named, pub.filter
	}
	cols, notNull, err := columnsOf(l.ctx, se.q, t.id)
	if err != nil {
		return "", err
	}
	if why, err := l.lock(t, cols); why != "" || err != nil {
		return why, err
	}
	r, err := se.cfg.newRelation(l.ctx, se.q, t, l.pub[t.String()].published(cols), notNull)
	if err != nil {
		return "", err
	}
	return "", l.table(t, r)
}

// filesSQL is where the rows of a table lie, or those of its partitions.
const filesSQL = `
SELECT array_agg(c.oid ORDER BY c.oid), array_agg(c.relfilenode ORDER BY c.oid) FROM pg_class c
 WHERE c.relkind = 'r' AND (c.oid = $1 OR c.oid IN (SELECT relid FROM pg_partition_tree($1) WHERE isleaf))`

// movedSQL reports whether some do not lie there any more.
const movedSQL = `
SELECT EXISTS (SELECT FROM unnest($1::oid[], $2::oid[]) f(id, file) LEFT JOIN pg_class c ON c.oid = f.id WHERE c.relfilenode IS DISTINCT FROM f.file)`

// lock keeps t as it is while its rows are read, and makes sure that it is what
// the snapshot says: under an older snapshot a table that was rewritten reads as
// empty (PostgreSQL documentation, "Caveats" of "Concurrency Control"). cols are
// its columns in the snapshot.
func (l *loader) lock(t *tableInfo, cols []wireColumn) (why string, err error) {
	if err := l.exec("SET LOCAL lock_timeout = '" + lockWait + "'"); err != nil {
		return "", err
	}
	only := "ONLY "
	if t.partitioned {
		only = "" // its partitions, too
	}
	_, err = l.se.q.Exec(l.ctx, "LOCK TABLE "+only+t.sql()+" IN ACCESS SHARE MODE")
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "55P03": // lock_not_available
		return "it is locked", nil
	case errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000"): // undefined_table, invalid_schema_name
		return "it was dropped or renamed", nil
	case err != nil:
		return "", classify(fmt.Sprintf("locking %s", t), err)
	}
	now, err := tableByID(l.ctx, l.now, t.id)
	if err != nil {
		return "", err
	}
	if now == nil || now.String() != t.String() {
		return "it was dropped or renamed", nil
	}
	have, _, err := columnsOf(l.ctx, l.now, t.id)
	if err != nil {
		return "", err
	}
	if !slices.Equal(cols, have) {
		return "its columns changed", nil
	}
	var ids, files []uint32
	if err := l.se.q.QueryRow(l.ctx, filesSQL, t.id).Scan(&ids, &files); err != nil {
		return "", classify(fmt.Sprintf("loading %s", t), err)
	}
	var moved bool
	if err := l.now.QueryRow(l.ctx, movedSQL, ids, files).Scan(&moved); err != nil {
		return "", classify(fmt.Sprintf("loading %s", t), err)
	}
	if moved {
		return "it was rewritten", nil
	}
	return "", nil
}

// awaitOlder waits until every transaction that runs now has ended: what is read then
// sees all that was delivered before, also what lies in the log and is invisible while
// it waits for a synchronous standby (C1, C4). Making a slot waits for the same. It
// calls waiting now and then meanwhile, with whose transaction it is, as
// far as that can be seen.
func awaitOlder(ctx context.Context, q *pgx.Conn, waiting func(who string) error) error {
	// Whoever has a transaction id holds a lock on it, in every database, until
	// the transaction is visible; prepared ones too.
	var running []string
	if err := q.QueryRow(ctx, "SELECT array_agg(transactionid::text) FROM "+runningSQL).Scan(&running); err != nil {
		return classify("looking for running transactions", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var left int64
		err := q.QueryRow(ctx, "SELECT count(*) FROM "+runningSQL+" AND transactionid::text = ANY($1)", running).Scan(&left)
		if err != nil {
			return classify("waiting for running transactions", err)
		}
		if left == 0 {
			return nil
		}
		who, err := holders(ctx, q, oldHoldersSQL, running)
		if err != nil {
			return err
		}
		if err := waiting(who); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

const runningSQL = "pg_locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted"

// loader reads COPY's binary format (PostgreSQL documentation, COPY, "Binary
// Format"); it is the io.Writer that pgconn copies to.
type loader struct {
	se     *session
	ctx    context.Context
	now    *pgx.Conn // sees the catalog as it is, beside the snapshot
	resume pipeline.Resume
	fr     *pgoutput.Framer
	pub    map[string]*publishedTable // as of the snapshot

	rel    *pgoutput.Relation
	filter *string
	info   *tableInfo
	b      *change.Batch
	size   int    // octets of the rows in b
	part   []byte // of a row
	header bool
	rows   int64
	loads  map[uint32]*tableLoad
	last   uint32 // the table that is read, or was last; 0: none
	sent   error  // what Send said, to be returned as it is
}

func (l *loader) table(t *tableInfo, r *pgoutput.Relation) error {
	l.se.tableLoaded(l.last, l.loads[l.last])
	l.last = t.id
	l.rel, l.info, l.part, l.header, l.rows = r, t, nil, false, 0
	l.fr.Define(t.id, r)
	var cols []string
	for i := range r.Cells {
		name := cellSQL(r, i)
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
	if l.filter != nil {
		sql += " WHERE " + *l.filter
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
