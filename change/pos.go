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
	PosSnapshot PosKind = 1 // read beside the log, as of LSN: a row of a load
	PosMessage  PosKind = 2 // in the log by itself, at LSN
	PosCommit   PosKind = 3 // a change of a transaction that is committed at LSN
)

// Pos is totally ordered within one source, and so are its bytes
// (bytes.Compare of AppendPos). What its numbers stand for is the source's to
// say; the engine and the stages only compare. A source without a log counts:
// any number will do for LSN that rises with what it sends, over restarts too.
type Pos struct {
	System   uint64 // which upstream: the changes of one never follow those of another
	Timeline uint32 // which of its histories, after it was restored or failed over
	LSN      uint64 // log sequence number: where in that history
	Kind     PosKind
	Ordinal  uint64 // which of those that share all this: 1, 2, …
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

// String gives system/timeline/LSN/kind#ordinal, the LSN as the hexadecimal
// digits of its halves.
func (p Pos) String() string {
	return fmt.Sprintf("%d/%d/%X:%X/%d#%d", p.System, p.Timeline, p.LSN>>32, uint32(p.LSN), p.Kind, p.Ordinal)
}
