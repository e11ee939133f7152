// Package pgoutput reads the row messages of Postgres's logical replication
// (PostgreSQL documentation, "Logical Replication Message Formats") and the
// rows of COPY in binary ("COPY, Binary Format") into a change.Batch, without
// allocation and without a connection. Who speaks with the server describes
// the relations to a Framer and tells it where transactions begin;
// sources/postgres does.
//
// It works in two halves. A Framer, of the one goroutine that reads a stream,
// looks at no more than the head of a message and puts its octets into the
// batch's arena; that is all that must be done in order. The batch carries
// them as Rows, which decode themselves where the batch is (rows.go), with any
// number of batches at once. binary.go and text.go read the cells, and types.go
// says which column is read how.
package pgoutput

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

var errShort = errors.New("the message ends early")

// ErrText asks for the stream to be opened again with cells as text.
var ErrText = problem.Define("TW-PG-TEXT", problem.Retry,
	"A column came up whose type is read as text; the stream is opened again in text.",
	"Nothing to do.")

// Relation reads the rows of one table shape. It does not change any more once
// a Framer has it.
type Relation struct {
	Table    *change.Table
	Cells    []Coder // of each column that is published
	Identity []bool  // of these, which an old tuple of kind 'K' carries
	At       []int   // of these, which column of Table it is, -1: it is left out; nil: Table has all
	Skip     bool    // published, but not to be captured: its rows count, and are not read
}

// KeyCells says which cells of a row are its key, in the key's order.
func (r *Relation) KeyCells() []int {
	if r.At == nil {
		return r.Table.Key
	}
	cells := make([]int, len(r.Table.Key))
	for i, k := range r.Table.Key {
		cells[i] = slices.Index(r.At, k)
	}
	return cells
}

// Name is what the column of a cell is called; "": it is left out.
func (r *Relation) Name(cell int) string {
	if r.At != nil {
		if cell = r.At[cell]; cell < 0 {
			return ""
		}
	}
	return r.Table.Columns[cell].Name
}

// taken moves the values of a row to where Table has their columns.
func (r *Relation) taken(row []change.Value) []change.Value {
	if r.At == nil || row == nil {
		return row
	}
	for i, at := range r.At {
		if at >= 0 {
			row[at] = row[i]
		}
	}
	return row[:len(r.Table.Columns):len(r.Table.Columns)]
}

// Text reports whether a column has no binary decoder: the stream then has to
// send text.
func (r *Relation) Text() bool {
	for i := range r.Cells {
		if !r.Cells[i].Binary() {
			return true
		}
	}
	return false
}

// described is a Relation with where the batch under way has it.
type described struct {
	*Relation
	text  bool
	batch uint64 // the batch that index is of
	index uint32 // in Rows.relations
}

// Framer puts the rows of one session into batches. The octets of a row lie in
// its batch's arena as
//
//	octets of the row, 4 │ kind, 1 │ index of the relation in this batch, 3 │ the row
//
// in the machine's own order of octets; a row of kind I, U or D is a message of
// pgoutput as it came. Not safe for concurrent use.
type Framer struct {
	// Pos is where the rows that follow stand, Pos.Ordinal that of the last
	// change that was framed or passed over.
	Pos change.Pos
	// Explain makes the problem that decoding a batch returns of what is wrong
	// with a row. Called by many goroutines.
	Explain func(at change.Pos, err error) error

	xid  uint32
	time int64

	rels   map[uint32]*described
	lastID uint32
	last   *described

	// The batch under way.
	batch   uint64 // counts batches; 0: none yet
	rows    *Rows  // nil between batches
	placed  bool   // the batch knows Pos, xid and time of what follows
	changes int
	values  int
	tables  []*change.Table

	// The transaction's octets: all before the hashed'th of the arena.
	sum    *xxhash.Digest
	hashed int
}

// NewFramer gives a Framer that knows no relation yet.
func NewFramer(explain func(at change.Pos, err error) error) *Framer {
	return &Framer{Explain: explain, rels: map[uint32]*described{}, sum: xxhash.New()}
}

// Relation is what was defined for id, or nil.
func (f *Framer) Relation(id uint32) *Relation {
	if d := f.rels[id]; d != nil {
		return d.Relation
	}
	return nil
}

// Define describes the rows of id that follow. Rows framed before keep the
// Relation that they were framed with, in the same batch too.
func (f *Framer) Define(id uint32, r *Relation) {
	f.rels[id], f.last = &described{Relation: r, text: r.Text()}, nil
}

func (f *Framer) relation(id uint32) (*described, error) {
	if f.last != nil && f.lastID == id {
		return f.last, nil
	}
	d := f.rels[id]
	if d == nil {
		return nil, fmt.Errorf("a row of relation %d, which was not described", id)
	}
	f.lastID, f.last = id, d
	return d, nil
}

// Begin is the start of a transaction, or of whatever the rows that follow
// belong to: xid 0 if none, time in µs since 1970 UTC. b is the batch under
// way, or nil.
func (f *Framer) Begin(b *change.Batch, pos change.Pos, xid uint32, time int64) {
	f.Pos, f.xid, f.time, f.placed = pos, xid, time, false
	f.sum.Reset()
	f.hashed = 0
	if b != nil {
		f.hashed = len(b.Raw())
	}
}

// Len is the number of changes in the batch under way.
func (f *Framer) Len() int { return f.changes }

const rowHead = 8

// Kinds of rows beside pgoutput's I, U and D.
const (
	kindBegin    = 'B' // position, xid and time of what follows, see begin
	kindTruncate = 't' // of one relation; no octets
	kindRead     = 'R' // a message of kind I that is no insert: the row was read
	kindCopy     = 'C' // of COPY: number of cells, 2 octets; of each its length, 4, and its octets
)

// head appends the head of a row.
func (f *Framer) head(b *change.Batch, d *described, kind byte, size int) {
	if f.rows == nil {
		f.open(b)
	}
	if !f.placed {
		f.begin(b)
	}
	index := uint32(0)
	if d != nil {
		if d.batch != f.batch {
			d.batch, d.index = f.batch, uint32(len(f.rows.relations))
			f.rows.relations = append(f.rows.relations, d.Relation)
			f.tables = append(f.tables, d.Table)
		}
		index = d.index
	}
	b.AppendRaw(binary.NativeEndian.AppendUint64(make([]byte, 0, rowHead), uint64(uint32(size))|uint64(kind)<<32|uint64(index)<<40))
}

// open begins a batch.
func (f *Framer) open(b *change.Batch) {
	f.batch++
	f.rows, f.placed = rowsPool.Get().(*Rows), false
	f.rows.explain = f.Explain
	f.hashed = len(b.Raw())
}

// begin appends the state that the rows that follow are in.
func (f *Framer) begin(b *change.Batch) {
	f.placed = true
	var p [rowHead + beginSize]byte
	binary.NativeEndian.PutUint64(p[:], beginSize|kindBegin<<32)
	binary.NativeEndian.PutUint32(p[rowHead:], f.xid)
	binary.NativeEndian.PutUint64(p[rowHead+4:], uint64(f.time))
	change.AppendPos(p[:rowHead+12], f.Pos)
	b.AppendRaw(p[:])
}

const beginSize = 4 + 8 + change.PosSize

// Append frames one row message of pgoutput, of which b keeps nothing but a
// copy; each change, also of a table that is not captured, takes the next
// ordinal. The batches of successive calls are the same until Finish. Errors:
// ErrText, or a plain error for a message that cannot be framed; they name
// table and column, never the cell. What else is wrong with a row is found in
// Decode.
func (f *Framer) Append(b *change.Batch, msg []byte) error {
	if len(msg) < 6 {
		return errShort
	}
	id := binary.BigEndian.Uint32(msg[1:])
	switch msg[0] {
	case 'I', 'U', 'D':
	case 'T':
		return f.truncate(b, msg, id)
	default:
		return fmt.Errorf("a message of kind %q among rows", msg[0])
	}
	d, err := f.relation(id)
	if err != nil {
		return err
	}
	if d.Skip {
		f.passed(b, msg, 1)
		return nil
	}
	if d.text {
		if at := d.binaryText(msg); at >= 0 {
			c := &d.Table.Columns[at]
			return ErrText.New("column %s of %s, of type %s", c.Name, d.Table.Topic, c.Type)
		}
	}
	f.head(b, d, msg[0], len(msg))
	b.AppendRaw(msg)
	f.Pos.Ordinal++
	f.changes++
	f.values += len(d.Cells)
	if msg[0] == 'U' {
		f.values += len(d.Cells) // an old row is likely
	}
	return nil
}

// AppendRead frames a row that was read, as AppendInsert makes it.
func (f *Framer) AppendRead(b *change.Batch, msg []byte) error {
	d, err := f.relation(binary.BigEndian.Uint32(msg[1:]))
	if err != nil {
		return err
	}
	f.head(b, d, kindRead, len(msg))
	b.AppendRaw(msg)
	f.Pos.Ordinal++
	f.changes++
	f.values += len(d.Cells)
	return nil
}

// AppendCopy frames one row of COPY in binary.
func (f *Framer) AppendCopy(b *change.Batch, id uint32, row []byte) error {
	d, err := f.relation(id)
	if err != nil {
		return err
	}
	f.head(b, d, kindCopy, len(row))
	b.AppendRaw(row)
	f.Pos.Ordinal++
	f.changes++
	f.values += len(d.Cells)
	return nil
}

// truncate: number of relations, options, the relations.
func (f *Framer) truncate(b *change.Batch, msg []byte, n uint32) error {
	if uint64(len(msg)) != 6+4*uint64(n) {
		return errShort
	}
	f.passed(b, msg, 0)
	for p := msg[6:]; len(p) > 0; p = p[4:] {
		d, err := f.relation(binary.BigEndian.Uint32(p))
		if err != nil {
			return err
		}
		if d.Skip {
			f.Pos.Ordinal++
			f.placed = false
			continue
		}
		f.head(b, d, kindTruncate, 0)
		f.Pos.Ordinal++
		f.changes++
	}
	return nil
}

// Count says how many changes a row message stands for, without reading it.
func Count(msg []byte) (uint64, error) {
	if len(msg) > 0 && msg[0] == 'T' {
		if len(msg) < 6 {
			return 0, errShort
		}
		return uint64(binary.BigEndian.Uint32(msg[1:])), nil
	}
	return 1, nil
}

// Pass counts and hashes a row message of n changes that no batch takes. b is
// the batch under way, or nil.
func (f *Framer) Pass(b *change.Batch, msg []byte, n uint64) { f.passed(b, msg, n) }

func (f *Framer) passed(b *change.Batch, msg []byte, n uint64) {
	f.hash(b)
	_, _ = f.sum.Write(msg) // never fails
	if n > 0 {
		f.Pos.Ordinal += n
		f.placed = false
	}
}

// Hash is XXH64 over the row messages of the transaction so far, as they came,
// also of those that were passed over; b is the batch under way, or nil. Only
// what a batch boundary cuts has to be hashed, and it lies in the arena until
// then: nothing is spent on a transaction that stays whole.
func (f *Framer) Hash(b *change.Batch) uint64 {
	f.hash(b)
	return f.sum.Sum64()
}

func (f *Framer) hash(b *change.Batch) {
	if b == nil {
		return
	}
	raw := b.Raw()
	for at := f.hashed; at < len(raw); {
		head := binary.NativeEndian.Uint64(raw[at:])
		size := int(uint32(head))
		at += rowHead
		switch byte(head >> 32) {
		case kindBegin, kindTruncate: // of our own making
		default:
			_, _ = f.sum.Write(raw[at : at+size]) // never fails
		}
		at += size
	}
	f.hashed = len(raw)
}

// Finish makes b carry what was framed since the last Finish.
func (f *Framer) Finish(b *change.Batch) {
	if f.rows == nil {
		return
	}
	b.Carry(f.rows, f.changes, f.values, f.tables)
	clear(f.tables)
	f.rows, f.changes, f.values, f.tables = nil, 0, 0, f.tables[:0]
}
