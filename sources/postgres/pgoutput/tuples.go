// Tuples: the cells of row messages as they came, for who compares rows by their
// keys and completes one by another without decoding them.

package pgoutput

import (
	"encoding/binary"
	"fmt"
)

// Cell is one as it came: of kind n (null), u (not sent again), t or b.
type Cell struct {
	Kind byte
	Data []byte // of t and b
}

// Tuples reads the cells of a row message of kind I, U or D, which has so many
// columns: the old row, nil when there is none, and the new one, nil of a D. They
// are spans of msg. What keyOnly tells of the old one is that it has the columns of
// the replica identity alone.
func Tuples(msg []byte, columns int) (old, new []Cell, keyOnly bool, err error) {
	for at := 5; at < len(msg); {
		kind := msg[at]
		var cells []Cell
		if cells, at, err = readCells(msg, at+1, columns); err != nil {
			return nil, nil, false, err
		}
		switch kind {
		case 'O':
			old = cells
		case 'K':
			old, keyOnly = cells, true
		case 'N':
			new = cells
		default:
			return nil, nil, false, fmt.Errorf("a tuple of kind %q", kind)
		}
	}
	if old == nil && new == nil {
		return nil, nil, false, errShort
	}
	return old, new, keyOnly, nil
}

func readCells(msg []byte, at, columns int) ([]Cell, int, error) {
	if len(msg)-at < 2 {
		return nil, 0, errShort
	}
	if n := int(binary.BigEndian.Uint16(msg[at:])); n != columns {
		return nil, 0, fmt.Errorf("a row of %d columns, want %d", n, columns)
	}
	at += 2
	cells := make([]Cell, columns)
	for i := range cells {
		if at >= len(msg) {
			return nil, 0, errShort
		}
		cells[i].Kind = msg[at]
		at++
		if k := cells[i].Kind; k == 'n' || k == 'u' {
			continue
		}
		if len(msg)-at < 4 {
			return nil, 0, errShort
		}
		size := uint64(binary.BigEndian.Uint32(msg[at:]))
		at += 4
		if size > uint64(len(msg)-at) {
			return nil, 0, errShort
		}
		cells[i].Data = msg[at : at+int(size) : at+int(size)]
		at += int(size)
	}
	return cells, at, nil
}

// AppendInsert appends a row as a message of kind I of relation id.
func AppendInsert(dst []byte, id uint32, row []Cell) []byte {
	dst = binary.BigEndian.AppendUint32(append(dst, 'I'), id)
	dst = binary.BigEndian.AppendUint16(append(dst, 'N'), uint16(len(row)))
	for _, c := range row {
		if dst = append(dst, c.Kind); c.Kind == 't' || c.Kind == 'b' {
			dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(c.Data))), c.Data...)
		}
	}
	return dst
}

// AppendKey appends the cells of the columns that make the key. Two rows whose
// cells came in one form have the same octets exactly when their keys are stored
// alike.
func AppendKey(dst []byte, row []Cell, key []int) []byte {
	for _, i := range key {
		dst = append(dst, row[i].Kind)
		dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(row[i].Data))), row[i].Data...)
	}
	return dst
}
