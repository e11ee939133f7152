// Beside: where rows that are read beside the stream meet it. The order of the log
// is not that in which transactions become visible, so no mark in the log tells
// which of the two is newer: it is judged by what the snapshot sees that the rows
// were read under (rules C1 and C6).
//
// From before the first row of a table is read, the stream keeps the keys of its
// changes. Rows that were read under a snapshot wait until the stream has passed
// all that the snapshot sees. Then they are held against the changes that it does
// not see: those are newer, and what they say counts. The rest goes out, at a place
// of its own between two transactions.

package postgres

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// snapshot is which transactions one sees (PostgreSQL documentation, "System
// Information Functions", pg_current_snapshot).
type snapshot struct {
	xmin, xmax decimal
	running    map[decimal]bool
}

// parseSnapshot reads xmin:xmax:xip,….
func parseSnapshot(text string) (*snapshot, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return nil, ErrProtocol.New("a snapshot %q", text)
	}
	s := &snapshot{running: map[decimal]bool{}}
	if err := s.xmin.UnmarshalText([]byte(parts[0])); err != nil {
		return nil, ErrProtocol.New("a snapshot %q", text)
	}
	if err := s.xmax.UnmarshalText([]byte(parts[1])); err != nil {
		return nil, ErrProtocol.New("a snapshot %q", text)
	}
	for x := range strings.SplitSeq(parts[2], ",") {
		if x == "" {
			continue
		}
		var id decimal
		if err := id.UnmarshalText([]byte(x)); err != nil {
			return nil, ErrProtocol.New("a snapshot %q", text)
		}
		s.running[id] = true
	}
	return s, nil
}

// sees reports whether what a transaction that has committed did is visible.
func (s *snapshot) sees(xid decimal) bool {
	return s != nil && xid < s.xmax && (xid < s.xmin || !s.running[xid])
}

// chunk is rows of a table that were read under one snapshot, in the order of its
// key.
type chunk struct {
	id   uint32
	load *tableLoad
	rel  *pgoutput.Relation
	seen *snapshot
	head lsn // all that the snapshot sees lies before
	rows []chunkRow
	last []string // the key of the last one, as text
	end  bool     // there are no more
	of   int64    // an estimate of the rows of its table
}

type chunkRow struct {
	key   string
	cells []pgoutput.Cell
	msg   []byte // of a row as it was read: it goes out so
}

// touch is a change that the stream delivered.
type touch struct {
	xid      decimal
	old, new string          // keys; "": there is no such row
	cells    []pgoutput.Cell // the new row, where a large value was not sent again; else nil
	all      bool            // of TRUNCATE
}

// touched is what the stream delivered of a table since rows of it are read, as
// far as a snapshot that is still to be taken may not see it.
type touched struct {
	changes []touch
	shapes  []shaped
}

// shaped is a Relation message.
type shaped struct {
	xid decimal
	rel *pgoutput.Relation
}

// forget drops what a snapshot sees: all that are taken later do, too.
func (t *touched) forget(s *snapshot) {
	t.changes = slices.DeleteFunc(t.changes, func(c touch) bool { return s.sees(c.xid) })
	t.shapes = slices.DeleteFunc(t.shapes, func(c shaped) bool { return s.sees(c.xid) })
}

// verdict is what became of a chunk.
type verdict uint8

const (
	sent  verdict = iota
	again         // the table has another shape since: its rows have to be read again
)

// settle holds the rows of a chunk against what its snapshot does not see. A row of
// which a whole change was delivered is older than that, and is dropped. One of
// which a change was delivered that did not send a large value again completes that
// change: nothing after the snapshot has changed the value. Of a row that got
// another key so, the table is read once more (stream.touch).
func (t *touched) settle(c *chunk) (rows []chunkRow, v verdict) {
	for _, s := range t.shapes {
		if !c.seen.sees(s.xid) && !sameShape(s.rel, c.rel) {
			return nil, again
		}
	}
	at := make(map[string]*chunkRow, len(c.rows))
	for i := range c.rows {
		at[c.rows[i].key] = &c.rows[i]
	}
	for i := range t.changes {
		ch := &t.changes[i]
		if c.seen.sees(ch.xid) {
			continue
		}
		if ch.all {
			clear(at)
			continue
		}
		if row := at[ch.old]; row != nil && ch.old == ch.new && ch.cells != nil {
			row.complete(ch.cells)
			continue
		}
		delete(at, ch.old)
		delete(at, ch.new)
	}
	for i := range c.rows {
		if r := &c.rows[i]; at[r.key] == r {
			rows = append(rows, *r)
		}
	}
	return rows, sent
}

// complete makes of a row what a change made of it that did not send some values.
func (r *chunkRow) complete(by []pgoutput.Cell) {
	old := r.cells
	r.cells, r.msg = slices.Clone(by), nil
	for i := range r.cells {
		if r.cells[i].Kind == 'u' && i < len(old) {
			r.cells[i] = old[i]
		}
	}
}

// sameShape reports whether rows of both have the same columns and keys.
func sameShape(a, b *pgoutput.Relation) bool {
	if a.Skip || b.Skip {
		return a.Skip == b.Skip
	}
	return a.Table.Topic == b.Table.Topic && slices.Equal(a.Table.Key, b.Table.Key) && slices.Equal(a.At, b.At) &&
		slices.EqualFunc(a.Table.Columns, b.Table.Columns, func(x, y change.Column) bool {
			return x.Name == y.Name && x.TypeID == y.TypeID && x.Precision == y.Precision && x.Scale == y.Scale
		})
}

// meeting is what who reads rows has for the stream, which takes it between two
// transactions.
type meeting struct {
	record []uint32     // changes of these tables are kept from now on
	leave  []uint32     // and of these not any more
	seen   *snapshot    // what it sees need not be kept any more
	chunk  *chunk       // to be sent when its time has come
	sweeps []*tableLoad // begin where it is met
	after  lsn          // it is met when the stream is there
	reopen []*tableLoad // the stream is to be opened anew for these
	ends   chan verdict // has room for one: when it is done
}

// beside is the stream's part.
type beside struct {
	recorded map[uint32]*touched // tables of which rows are read
	seen     *snapshot           // by all that is still to be taken
	waiting  *meeting            // its chunk waits
}

// meet does what is asked between two transactions.
func (st *stream) meet(ctx context.Context) error {
	for st.part == nil && st.waiting == nil {
		select {
		case m := <-st.meetings:
			if err := st.take(ctx, m); err != nil {
				return err
			}
			continue
		default:
		}
		break
	}
	m := st.waiting
	if m == nil || max(st.at.LSN, st.idle) < m.after {
		return nil
	}
	st.waiting = nil
	if m.chunk == nil {
		return st.arrange(ctx, m)
	}
	v, err := st.sendChunk(ctx, m.chunk)
	if err != nil {
		return err
	}
	m.ends <- v
	return nil
}

// take has a meeting wait for its time, or does at once what it asks for.
func (st *stream) take(ctx context.Context, m *meeting) error {
	if m.after == 0 || m.chunk != nil {
		return st.arrange(ctx, m)
	}
	st.waiting = m
	return nil
}

func (st *stream) arrange(ctx context.Context, m *meeting) error {
	if len(m.sweeps) > 0 {
		// Rows that are read lie behind what was delivered, and so does where the
		// server has nothing for us.
		if err := st.flush(ctx); err != nil {
			return err
		}
		st.at.LSN = max(st.at.LSN, st.idle)
		st.begun(m.sweeps, st.besideAt())
	}
	if len(m.reopen) > 0 {
		return st.reopen(ctx, m.reopen)
	}
	if len(m.record) > 0 && st.recorded == nil {
		st.recorded = map[uint32]*touched{}
	}
	for _, id := range m.record {
		if st.recorded[id] == nil {
			st.recorded[id] = &touched{}
		}
	}
	for _, id := range m.leave {
		delete(st.recorded, id)
	}
	if m.chunk != nil {
		m.seen = m.chunk.seen
	}
	if m.seen != nil {
		st.seen = m.seen
		for _, t := range st.recorded {
			t.forget(m.seen)
		}
	}
	if m.chunk != nil {
		st.waiting, m.after = m, m.chunk.head
		return nil
	}
	m.ends <- sent
	return nil
}

// reopen ends the session, so that the server forgets what it cached of tables, and
// notes that it did.
func (st *stream) reopen(ctx context.Context, loads []*tableLoad) error {
	if err := st.flush(ctx); err != nil {
		return err
	}
	st.staleNoMore(loads)
	if err := st.out.Checkpoint(ctx, st.at.resume()); err != nil {
		return err
	}
	return ErrReopen.New("tables were listed in publication %q while transactions ran", st.cfg.Publication)
}

// touch keeps what a change of a recorded table did.
func (st *stream) touch(m []byte) error {
	xid := fullXID(st.xid, st.nextXID)
	if m[0] == 'T' {
		for p := m[6:]; len(p) >= 4; p = p[4:] {
			id := binary.BigEndian.Uint32(p)
			st.truncates(id, st.xid)
			if t := st.recorded[id]; t != nil && !st.seen.sees(xid) {
				t.changes = append(t.changes, touch{xid: xid, all: true})
			}
		}
		return nil
	}
	id := binary.BigEndian.Uint32(m[1:])
	t, r := st.recorded[id], st.fr.Relation(id)
	if t == nil || r == nil || r.Skip {
		return nil
	}
	c, err := touchOf(m, r)
	if err != nil {
		return err
	}
	if c.cells != nil && c.old != c.new {
		// Its large value may be in a row that nobody has read, under a key that is
		// read by now.
		st.readOnceMore(id)
	}
	if c.xid = xid; !st.seen.sees(xid) {
		t.changes = append(t.changes, c)
	}
	return nil
}

// touchOf reads what a row message does to which keys.
func touchOf(m []byte, r *pgoutput.Relation) (c touch, err error) {
	old, row, _, err := pgoutput.Tuples(m, len(r.Cells))
	if err != nil {
		return c, err
	}
	whole := true
	for i := range row {
		if row[i].Kind != 'u' || r.Name(i) == "" {
			continue
		}
		if old != nil && (old[i].Kind == 't' || old[i].Kind == 'b') {
			row[i] = old[i]
		} else {
			whole = false
		}
	}
	if row != nil {
		c.new = string(pgoutput.AppendKey(nil, row, r.KeyCells()))
	}
	switch {
	case old != nil:
		c.old = string(pgoutput.AppendKey(nil, old, r.KeyCells()))
	case m[0] == 'U':
		c.old = c.new
	}
	if !whole {
		c.cells = row
		for i := range row {
			c.cells[i].Data = slices.Clone(row[i].Data)
		}
	}
	return c, nil
}

// sendChunk sends what is left of a chunk, with how far its table is read.
func (st *stream) sendChunk(ctx context.Context, c *chunk) (verdict, error) {
	if err := st.flush(ctx); err != nil {
		return 0, err
	}
	t := st.recorded[c.id]
	if t == nil {
		t = &touched{}
	}
	rows, v := t.settle(c)
	if v != sent {
		return v, nil
	}
	resume, now := st.at.resume(), time.Now().UnixMicro()
	fr := pgoutput.NewFramer(malformed)
	fr.Define(c.id, c.rel)
	fr.Begin(nil, st.besideAt(), 0, now)
	send := func(b *change.Batch) error {
		b.Resume, b.Beside = resume, true
		st.sent = slices.Clone(resume)
		return st.out.Send(ctx, b)
	}
	// How far the table is goes with the last batch. The end of what is not there any
	// more is one by itself.
	alone := len(rows) == 0 || c.end && c.load.Sweep
	var msg []byte
	for len(rows) > 0 {
		b, size := change.Get(), 0
		for len(rows) > 0 && fr.Len() < st.batchChanges && size < batchBytes {
			if msg = rows[0].msg; msg == nil {
				msg = pgoutput.AppendInsert(nil, c.id, rows[0].cells)
			}
			if err := fr.AppendRead(b, msg); err != nil {
				b.Release()
				return 0, err
			}
			size += len(msg)
			rows = rows[1:]
		}
		fr.Finish(b)
		if len(rows) == 0 && !alone {
			if end, _, _ := st.loaded(c); end {
				delete(st.recorded, c.id)
			}
		}
		if err := send(b); err != nil {
			return 0, err
		}
	}
	if !alone {
		return sent, nil
	}
	end, before, err := st.loaded(c)
	if err != nil || !end {
		return sent, err
	}
	delete(st.recorded, c.id)
	if before == nil {
		return sent, st.out.Checkpoint(ctx, resume)
	}
	b := change.Get()
	d := b.Append(c.rel.Table, change.Sweep)
	d.Before, d.Time = before, now
	return sent, send(b)
}

// besideAt is the position that rows beside the stream begin at now.
func (st *stream) besideAt() change.Pos {
	return change.Pos{System: uint64(st.sys.id), Timeline: uint32(st.sys.timeline), LSN: uint64(st.at.LSN), Kind: change.PosSnapshot}
}
