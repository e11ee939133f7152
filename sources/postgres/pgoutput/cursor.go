// Package pgoutput reads the row messages of Postgres's logical replication
// (PostgreSQL documentation, "Logical Replication Message Formats"): Insert,
// Update, Delete and Truncate into a change.Batch, without allocation and
// without a connection. Who speaks with the server describes the relations to
// a Cursor and tells it where transactions begin; sources/postgres does.
// cursor.go is the row cursor; binary.go and text.go read the cells, and
// types.go says which column is read how.
package pgoutput

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

var errShort = errors.New("the message ends early")

// ErrText asks for the stream to be opened again with cells as text.
var ErrText = problem.Define("TW-PG-TEXT", problem.Retry,
	"A column came up whose type is read as text; the stream is opened again in text.",
	"Nothing to do.")

// Relation reads the rows of one table shape.
type Relation struct {
	Table    *change.Table
	Cells    []Coder // of each column of Table
	Identity []bool  // the columns that an old tuple of kind 'K' carries
	Skip     bool    // published, but not to be captured: its rows count, and are not read
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

// Cursor reads the rows of one session. Pos, XID and Time are those of the
// transaction that rows belong to: set at its Begin, with Pos.Ordinal zero.
// From then on Pos.Ordinal is that of the last change. Not safe for concurrent
// use.
type Cursor struct {
	Pos  change.Pos
	XID  uint32
	Time int64 // of the commit, µs since 1970 UTC

	rels   map[uint32]*Relation
	lastID uint32
	last   *Relation
}

// NewCursor gives a cursor that knows no relation yet.
func NewCursor() *Cursor { return &Cursor{rels: map[uint32]*Relation{}} }

// Relation is what was defined for id, or nil.
func (c *Cursor) Relation(id uint32) *Relation { return c.rels[id] }

// Define describes the rows of id that follow. The cursor keeps r.
func (c *Cursor) Define(id uint32, r *Relation) {
	c.rels[id], c.last = r, nil
}

func (c *Cursor) relation(id uint32) (*Relation, error) {
	if c.last != nil && c.lastID == id {
		return c.last, nil
	}
	r := c.rels[id]
	if r == nil {
		return nil, fmt.Errorf("a row of relation %d, which was not described", id)
	}
	c.lastID, c.last = id, r
	return r, nil
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

// Append reads one row message and appends its change to b, which keeps nothing
// of msg; each change, also of a table that is not captured, takes the next
// ordinal. Errors: ErrText, or a plain error for a message that is not one of
// pgoutput's; they name table and column, never the cell. After an error b may
// hold garbage.
func (c *Cursor) Append(b *change.Batch, msg []byte) error {
	if len(msg) < 6 {
		return errShort
	}
	id := binary.BigEndian.Uint32(msg[1:])
	if msg[0] == 'T' {
		return c.truncate(b, msg, id)
	}
	c.Pos.Ordinal++
	r, err := c.relation(id)
	if err != nil || r.Skip {
		return err
	}
	var op change.Op
	var old, new []change.Value
	p := msg[5:]
	switch msg[0] {
	case 'I':
		op = change.Create
		if p[0] != 'N' {
			return fmt.Errorf("an insert with a tuple of kind %q", p[0])
		}
		new, p, err = r.tuple(b, p[1:], nil, false)
	case 'U':
		op = change.Update
		full := p[0] == 'O'
		if full || p[0] == 'K' {
			if old, p, err = r.tuple(b, p[1:], nil, !full); err != nil {
				return err
			}
		}
		if len(p) == 0 || p[0] != 'N' {
			return errors.New("an update without a new tuple")
		}
		var from []change.Value
		if full {
			from = old
		}
		new, p, err = r.tuple(b, p[1:], from, false)
	case 'D':
		op = change.Delete
		if p[0] != 'O' && p[0] != 'K' {
			return fmt.Errorf("a delete with a tuple of kind %q", p[0])
		}
		old, p, err = r.tuple(b, p[1:], nil, p[0] == 'K')
	default:
		return fmt.Errorf("a message of kind %q among rows", msg[0])
	}
	if err != nil {
		return err
	}
	if len(p) != 0 {
		return fmt.Errorf("%d octets after the row", len(p))
	}
	ch := b.Append(r.Table, op)
	ch.XID, ch.Time, ch.Pos, ch.Old, ch.New = c.XID, c.Time, c.Pos, old, new
	return nil
}

// truncate: number of relations, options, the relations.
func (c *Cursor) truncate(b *change.Batch, msg []byte, n uint32) error {
	if uint64(len(msg)) != 6+4*uint64(n) {
		return errShort
	}
	for p := msg[6:]; len(p) > 0; p = p[4:] {
		c.Pos.Ordinal++
		r, err := c.relation(binary.BigEndian.Uint32(p))
		if err != nil {
			return err
		}
		if r.Skip {
			continue
		}
		ch := b.Append(r.Table, change.Truncate)
		ch.XID, ch.Time, ch.Pos = c.XID, c.Time, c.Pos
	}
	return nil
}

// tuple reads one row. A column that was not sent is taken from `from`, the
// complete old row, or else is Unchanged; of a key-only tuple, all columns that
// are not of the replica identity are Unchanged.
func (r *Relation) tuple(b *change.Batch, p []byte, from []change.Value, keyOnly bool) ([]change.Value, []byte, error) {
	if len(p) < 2 {
		return nil, nil, errShort
	}
	n := int(binary.BigEndian.Uint16(p))
	p = p[2:]
	if n != len(r.Cells) {
		return nil, nil, fmt.Errorf("a row of %d columns of %s, which has %d", n, r.Table.Topic, len(r.Cells))
	}
	row := b.Row(n)
	for i := range row {
		if len(p) == 0 {
			return nil, nil, errShort
		}
		kind := p[0]
		p = p[1:]
		switch kind {
		case 'n':
			if keyOnly && !r.Identity[i] {
				row[i] = change.UnchangedValue()
			}
		case 'u':
			if from != nil {
				row[i] = from[i]
			} else {
				row[i] = change.UnchangedValue()
			}
		case 'b', 't':
			if len(p) < 4 {
				return nil, nil, errShort
			}
			size := binary.BigEndian.Uint32(p)
			p = p[4:]
			if uint64(size) > uint64(len(p)) {
				return nil, nil, errShort
			}
			cell, c := p[:size], &r.Cells[i]
			p = p[size:]
			if kind == 'b' { // what most cells are, without a call: a quarter less time for a row
				switch {
				case c.code == asString:
					row[i] = b.Span(change.String, cell)
					continue
				case c.code == asInt8 && size == 8:
					row[i] = change.IntValue(int64(binary.BigEndian.Uint64(cell)))
					continue
				case c.code == asInt4 && size == 4:
					row[i] = change.IntValue(int64(int32(binary.BigEndian.Uint32(cell))))
					continue
				}
			}
			var err error
			switch {
			case kind == 't':
				row[i], err = c.DecodeText(b, cell)
			case !c.Binary():
				return nil, nil, ErrText.New("column %s of %s, of type %s", r.Table.Columns[i].Name, r.Table.Topic, r.Table.Columns[i].Type)
			default:
				row[i], err = c.DecodeBinary(b, cell)
			}
			if err != nil { // without the cell: it may be a restricted field (invariant 13)
				return nil, nil, fmt.Errorf("column %s of %s: %d octets are no %s", r.Table.Columns[i].Name, r.Table.Topic, size, r.Table.Columns[i].Type)
			}
		default:
			return nil, nil, fmt.Errorf("column %s of %s: a cell of kind %q", r.Table.Columns[i].Name, r.Table.Topic, kind)
		}
	}
	return row, p, nil
}
