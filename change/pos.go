// Pos: where a change stands in the order of its source.

package change

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// PosKind orders what shares one LSN.
type PosKind uint8

const (
	PosSnapshot PosKind = 1 // a row of the initial load; LSN is the slot's consistent point
	PosMessage  PosKind = 2 // a non-transactional logical message; LSN is its own
	PosCommit   PosKind = 3 // a change of a transaction; LSN is that of its commit record, as BEGIN announces it
)

// Pos is totally ordered within one source, and so are its bytes
// (bytes.Compare of AppendPos). The LSN of a row is never part of it: rows of
// concurrent transactions interleave and COPY rows share one (invariant 2).
type Pos struct {
	System   uint64 // Postgres: the system identifier
	Timeline uint32 // Postgres: the timeline
	LSN      uint64
	Kind     PosKind
	Ordinal  uint64 // PosCommit: 1, 2, … within the transaction; PosSnapshot: attempt<<48 | row
}

// PosSize is the length of an encoded Pos in bytes.
const PosSize = 8 + 4 + 8 + 1 + 8

// AppendPos appends the memcomparable form of p: big-endian fields in order.
func AppendPos(dst []byte, p Pos) []byte {
	dst = binary.BigEndian.AppendUint64(dst, p.System)
	dst = binary.BigEndian.AppendUint32(dst, p.Timeline)
	dst = binary.BigEndian.AppendUint64(dst, p.LSN)
	dst = append(dst, byte(p.Kind))
	return binary.BigEndian.AppendUint64(dst, p.Ordinal)
}

// ErrPos says that bytes are not an encoded Pos.
var ErrPos = errors.New("not an encoded position: want 29 bytes")

// ParsePos reads what AppendPos wrote.
func ParsePos(b []byte) (Pos, error) {
	if len(b) != PosSize {
		return Pos{}, ErrPos
	}
	return Pos{
		System:   binary.BigEndian.Uint64(b),
		Timeline: binary.BigEndian.Uint32(b[8:]),
		LSN:      binary.BigEndian.Uint64(b[12:]),
		Kind:     PosKind(b[20]),
		Ordinal:  binary.BigEndian.Uint64(b[21:]),
	}, nil
}

// Compare is -1, 0 or +1 as p stands before, at or after q.
func (p Pos) Compare(q Pos) int {
	switch {
	case p.System != q.System:
		return cmp(p.System, q.System)
	case p.Timeline != q.Timeline:
		return cmp(uint64(p.Timeline), uint64(q.Timeline))
	case p.LSN != q.LSN:
		return cmp(p.LSN, q.LSN)
	case p.Kind != q.Kind:
		return cmp(uint64(p.Kind), uint64(q.Kind))
	}
	return cmp(p.Ordinal, q.Ordinal)
}

func cmp(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return +1
	}
	return 0
}

// IsZero reports whether p is no position at all.
func (p Pos) IsZero() bool { return p == Pos{} }

// String gives system/timeline/LSN#ordinal, the LSN as Postgres prints it.
func (p Pos) String() string {
	return fmt.Sprintf("%d/%d/%X:%X/%d#%d", p.System, p.Timeline, p.LSN>>32, uint32(p.LSN), p.Kind, p.Ordinal)
}
