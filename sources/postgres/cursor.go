// The row cursor: pgoutput's Insert, Update, Delete and Truncate messages
// (PostgreSQL documentation, "Logical Replication Message Formats") into a
// Batch, without allocation.

package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tallywire/tallywire/change"
)

var errShort = errors.New("the message ends early")

// cursor holds the relations of a session and the transaction that rows
// belong to.
type cursor struct {
	rels   map[uint32]*relation
	lastID uint32
	last   *relation

	pos  change.Pos // of the transaction; Ordinal is that of the last change
	xid  uint32
	time int64 // of its commit, µs since 1970 UTC
}

func (c *cursor) relation(id uint32) (*relation, error) {
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

func (c *cursor) define(id uint32, r *relation) {
	c.rels[id], c.last = r, nil
}

// count says how many changes a row message stands for, without reading it.
func count(msg []byte) (uint64, error) {
	if len(msg) > 0 && msg[0] == 'T' {
		if len(msg) < 6 {
			return 0, errShort
		}
		return uint64(binary.BigEndian.Uint32(msg[1:])), nil
	}
	return 1, nil
}

// append reads one row message and appends its change to b; each change, also
// of a table that is not captured, takes the next ordinal. After an error b
// may hold garbage.
func (c *cursor) append(b *change.Batch, msg []byte) error {
	if len(msg) < 6 {
		return errShort
	}
	id := binary.BigEndian.Uint32(msg[1:])
	if msg[0] == 'T' {
		return c.truncate(b, msg, id)
	}
	c.pos.Ordinal++
	r, err := c.relation(id)
	if err != nil || r.skip {
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
	ch := b.Append(r.table, op)
	ch.XID, ch.Time, ch.Pos, ch.Old, ch.New = c.xid, c.time, c.pos, old, new
	return nil
}

// truncate: number of relations, options, the relations.
func (c *cursor) truncate(b *change.Batch, msg []byte, n uint32) error {
	if uint64(len(msg)) != 6+4*uint64(n) {
		return errShort
	}
	for p := msg[6:]; len(p) > 0; p = p[4:] {
		c.pos.Ordinal++
		r, err := c.relation(binary.BigEndian.Uint32(p))
		if err != nil {
			return err
		}
		if r.skip {
			continue
		}
		ch := b.Append(r.table, change.Truncate)
		ch.XID, ch.Time, ch.Pos = c.xid, c.time, c.pos
	}
	return nil
}

// tuple reads one row. A column that was not sent is taken from `from`, the
// complete old row, or else is Unchanged; of a key-only tuple, all columns that
// are not of the replica identity are Unchanged.
func (r *relation) tuple(b *change.Batch, p []byte, from []change.Value, keyOnly bool) ([]change.Value, []byte, error) {
	if len(p) < 2 {
		return nil, nil, errShort
	}
	n := int(binary.BigEndian.Uint16(p))
	p = p[2:]
	if n != len(r.cols) {
		return nil, nil, fmt.Errorf("a row of %d columns of %s, which has %d", n, r.table.Topic, len(r.cols))
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
			if keyOnly && !r.identity[i] {
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
			var err error
			switch c := &r.cols[i]; {
			case kind == 't':
				row[i], err = c.decodeText(b, p[:size])
			case !c.binary():
				return nil, nil, ErrText.New("column %s of %s, of type %s", r.table.Columns[i].Name, r.table.Topic, r.table.Columns[i].Type)
			default:
				row[i], err = c.decodeBinary(b, p[:size])
			}
			if err != nil { // without the cell: it may be a restricted field (invariant 13)
				return nil, nil, fmt.Errorf("column %s of %s: %d octets are no %s", r.table.Columns[i].Name, r.table.Topic, size, r.table.Columns[i].Type)
			}
			p = p[size:]
		default:
			return nil, nil, fmt.Errorf("column %s of %s: a cell of kind %q", r.table.Columns[i].Name, r.table.Topic, kind)
		}
	}
	return row, p, nil
}
