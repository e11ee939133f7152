// Batch: many changes and the memory that they live in.

package change

import (
	"fmt"
	"math/big"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Op is what happened to a row; its byte is Debezium's letter.
type Op byte

const (
	Read     Op = 'r' // a row of the initial load
	Create   Op = 'c'
	Update   Op = 'u'
	Delete   Op = 'd' // New is nil
	Truncate Op = 't' // neither Old nor New
	Message  Op = 'm'

	// Sweep: of the rows that the table has now all came since Before, in this
	// partition; those that came before and not since are not there any more. Neither
	// Old nor New.
	Sweep Op = 's'
)

// Change is one change of one row. Old and New are slices of the Batch's
// memory, one Value per column of Table, or nil.
type Change struct {
	Table *Table
	Op    Op
	XID   uint32 // the source's transaction, 0 if none
	Time  int64  // commit time at the source, microseconds since 1970 UTC
	Pos   Pos    // at the source
	Coord Coord  // where it was read from Kafka; zero when it comes from a source
	Old   []Value
	New   []Value

	Before *Pos // of a Sweep; else nil
}

// Empties reports whether a change ends rows that it does not name: a Truncate, a
// Sweep.
func (c *Change) Empties() bool { return c.Op == Truncate || c.Op == Sweep }

// Row is the row that carries the key: New, or Old for a delete.
func (c *Change) Row() []Value {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

// Batch is owned by one stage at a time. The owner hands it on or releases it;
// after that no slice or Value of it may be used. Not safe for concurrent use.
type Batch struct {
	Changes []Change
	Ranges  []Range // what it covers of Kafka; empty when it comes from a source
	// Resume is the source's token: when this batch and all before it are
	// durable, the source may go on from here. Nil: not a boundary.
	Resume []byte
	// Beside: its changes are no part of the source's stream, and lie behind all
	// that Resume counts as delivered, such as rows that were read anew. The engine
	// gives each a Pos of its own (pipeline.Besider); with the one that it has it
	// would pass for an old one.
	Beside bool

	arena  []byte
	slabs  [][]Value // rows are cut from these; they never move
	slab   int       // the slab in use
	arrays []ArrayData
	rows   Rows // nil: all is decoded
	want   expected
	free   atomic.Bool
}

// Rows are changes in the form in which their source has them, in the arena of
// the Batch that carries them (AppendRaw). A source, which has one goroutine
// for one stream, thereby leaves the decoding to the engine's workers.
type Rows interface {
	// Decode appends the changes to b that Carry announced, in their order.
	// It is called once, by b's owner, on any goroutine, while the source goes
	// on; the Rows are not used afterwards. The error ends the session that b
	// belongs to, like one of Source.Run.
	Decode(b *Batch) error
}

// expected is what Decode will make.
type expected struct {
	changes, values int
	tables          []*Table
}

const slabSize = 4096

var pool = sync.Pool{New: func() any { return new(Batch) }}

// Get gives an empty Batch.
func Get() *Batch {
	b := pool.Get().(*Batch)
	b.free.Store(false)
	return b
}

var poison atomic.Bool

// PoisonOnRelease makes Release and Reset overwrite the batch's memory, so that
// a test sees a value that was kept too long. For tests: it costs time.
func PoisonOnRelease(on bool) { poison.Store(on) }

// Release gives the batch's memory back. Releasing twice panics.
func (b *Batch) Release() {
	if b.free.Swap(true) {
		panic("BUG: change.Batch released twice")
	}
	b.Reset()
	const keep = 8 << 20 // a batch blown up by one huge row is not kept
	if cap(b.arena) <= keep {
		pool.Put(b)
	}
}

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	if poison.Load() {
		b.poison()
	}
	clear(b.Changes)
	b.Changes = b.Changes[:0]
	b.Ranges = b.Ranges[:0]
	b.Resume, b.Beside = nil, false
	b.arena = b.arena[:0]
	kept := b.slabs[:0]
	for _, s := range b.slabs {
		if cap(s) <= 16*slabSize && len(kept) < 64 {
			kept = append(kept, s[:0])
		}
	}
	clear(b.slabs[len(kept):])
	b.slabs, b.slab = kept, 0
	b.arrays = b.arrays[:0]
	clear(b.want.tables)
	b.rows, b.want = nil, expected{tables: b.want.tables[:0]}
}

func (b *Batch) poison() {
	a := b.arena[:cap(b.arena)]
	for i := range a {
		a[i] = 0xDB
	}
	for _, s := range b.slabs {
		s = s[:cap(s)]
		for i := range s {
			s[i] = Value{kind: Text, num: 1 << 60, n: 0xDBDBDBDB}
		}
	}
	cs := b.Changes[:cap(b.Changes)]
	for i := range cs {
		cs[i] = Change{Op: 0xDB}
	}
}

// Size is the memory in use, in bytes; with what Decode will take.
func (b *Batch) Size() int {
	n := len(b.arena) + b.Len()*int(unsafe.Sizeof(Change{})) + b.want.values*int(unsafe.Sizeof(Value{}))
	for _, s := range b.slabs {
		n += len(s) * int(unsafe.Sizeof(Value{}))
	}
	return n
}

// Len is the number of changes, those to be decoded included.
func (b *Batch) Len() int { return len(b.Changes) + b.want.changes }

// Carry makes a batch without changes one of rows to be decoded: to so many
// changes of these Tables, each named once, with so many Values in all.
func (b *Batch) Carry(rows Rows, changes, values int, tables []*Table) {
	if b.Len() > 0 || b.rows != nil {
		panic("BUG: a change.Batch that is to carry rows has changes already")
	}
	b.rows = rows
	b.want = expected{changes, values, append(b.want.tables[:0], tables...)}
}

// Take takes over the rows that from carries, with the arena that they lie in;
// b must be empty, and from is empty afterwards. A worker decodes all that it
// gets in one batch of its own: rows then come into memory that is in its cache,
// and the batches on their way to it need no more than their arena. It reports
// false, and does nothing, when from carries no rows.
func (b *Batch) Take(from *Batch) bool {
	if from.rows == nil {
		return false
	}
	if b.Len() > 0 || b.rows != nil || len(b.arena) > 0 {
		panic("BUG: a change.Batch that is not empty takes the rows of another")
	}
	b.arena, from.arena = from.arena, b.arena
	b.rows, from.rows = from.rows, nil
	b.want, from.want = from.want, b.want
	return true
}

// Expected are the Tables of the changes that are to be decoded. Borrowed,
// valid until Decode.
func (b *Batch) Expected() []*Table { return b.want.tables }

// Decode makes Changes of the rows that the batch carries, if it carries any;
// whoever takes batches from a source calls it before Changes is read. After an
// error the batch is good for Release alone.
func (b *Batch) Decode() error {
	rows := b.rows
	if rows == nil {
		return nil
	}
	want := b.want.changes
	clear(b.want.tables)
	b.rows, b.want = nil, expected{tables: b.want.tables[:0]}
	if err := rows.Decode(b); err != nil {
		return err
	}
	if len(b.Changes) != want {
		panic(fmt.Sprintf("BUG: %d changes were decoded, %d expected", len(b.Changes), want))
	}
	return nil
}

// AppendRaw puts octets into the arena as they are, for Rows.
func (b *Batch) AppendRaw(p []byte) {
	if cap(b.arena)-len(b.arena) < len(p) {
		// By doubling: append would grow a large arena by quarters, and copy it
		// three times as often on the way to the size of a batch.
		b.arena = slices.Grow(b.arena, max(len(p), len(b.arena)))
	}
	b.arena = append(b.arena, p...)
}

// Raw is what the arena holds: borrowed, valid until Release, not to be
// written. Values that are made meanwhile do not move it from under the caller.
func (b *Batch) Raw() []byte { return b.arena[:len(b.arena):len(b.arena)] }

// Row cuts a row of n null values. It stays where it is until Release.
func (b *Batch) Row(n int) []Value {
	for {
		if b.slab == len(b.slabs) {
			b.slabs = append(b.slabs, make([]Value, 0, max(slabSize, n)))
		}
		s := b.slabs[b.slab]
		if len(s)+n <= cap(s) {
			row := s[len(s) : len(s)+n : len(s)+n]
			clear(row)
			b.slabs[b.slab] = s[:len(s)+n]
			return row
		}
		b.slab++
	}
}

// Append adds a change and returns it for filling in; the pointer is valid
// until the next Append.
func (b *Batch) Append(t *Table, op Op) *Change {
	if n := len(b.Changes); n < cap(b.Changes) {
		b.Changes = b.Changes[:n+1]
		b.Changes[n] = Change{Table: t, Op: op}
		return &b.Changes[n]
	}
	b.Changes = append(b.Changes, Change{Table: t, Op: op})
	return &b.Changes[len(b.Changes)-1]
}

// Grow gives n fresh octets of the arena to be filled at once, and their Value
// of the given spanned kind. The slice is valid until the next call that
// writes to the arena.
func (b *Batch) Grow(k Kind, n int) (Value, []byte) {
	at := len(b.arena)
	if at+n <= cap(b.arena) {
		b.arena = b.arena[:at+n]
	} else {
		b.arena = append(b.arena, make([]byte, n)...)
	}
	return Value{kind: k, num: uint64(at), n: uint32(n)}, b.arena[at : at+n]
}

// Span copies p into the arena as a value of kind String, Bytes, UUID, JSON,
// Enum or Text.
func (b *Batch) Span(k Kind, p []byte) Value {
	at := len(b.arena)
	b.arena = append(b.arena, p...)
	return Value{kind: k, num: uint64(at), n: uint32(len(p))}
}

// SpanAt is Span of n octets that lie in the arena already, from at on.
func (b *Batch) SpanAt(k Kind, at, n int) Value {
	return Value{kind: k, num: uint64(at), n: uint32(n)}
}

// SpanString is Span of a string.
func (b *Batch) SpanString(k Kind, s string) Value {
	at := len(b.arena)
	b.arena = append(b.arena, s...)
	return Value{kind: k, num: uint64(at), n: uint32(len(s))}
}

// Interval makes an interval value.
func (b *Batch) Interval(months, days int32, us int64) Value {
	v, p := b.Grow(Interval, 16)
	putUint32(p, uint32(months))
	putUint32(p[4:], uint32(days))
	putUint64(p[8:], uint64(us))
	return v
}

// IntervalParts reads an interval value.
func (b *Batch) IntervalParts(v Value) (months, days int32, us int64) {
	p := b.Bytes(v)
	return int32(getUint32(p)), int32(getUint32(p[4:])), int64(getUint64(p[8:]))
}

// BigDecimal makes unscaled × 10^-scale of any size.
func (b *Batch) BigDecimal(unscaled *big.Int, scale int16) Value {
	if unscaled.IsInt64() {
		return DecimalValue(unscaled.Int64(), scale)
	}
	at := len(b.arena)
	b.arena = appendTwosComplement(b.arena, unscaled)
	return Value{kind: Decimal, form: finiteBig, scale: scale, num: uint64(at), n: uint32(len(b.arena) - at)}
}

// DecimalBytes makes unscaled × 10^-scale from the big-endian two's complement
// of the unscaled integer, of at least one octet and not necessarily the
// shortest. p is copied where it is needed.
func (b *Batch) DecimalBytes(p []byte, scale int16) Value {
	for len(p) > 1 && (p[0] == 0 && p[1] < 0x80 || p[0] == 0xFF && p[1] >= 0x80) {
		p = p[1:]
	}
	if len(p) <= 8 {
		u := int64(int8(p[0]))
		for _, c := range p[1:] {
			u = u<<8 | int64(c)
		}
		return DecimalValue(u, scale)
	}
	at := len(b.arena)
	b.arena = append(b.arena, p...)
	return Value{kind: Decimal, form: finiteBig, scale: scale, num: uint64(at), n: uint32(len(p))}
}

// Unscaled sets x to the unscaled integer of a finite Decimal and returns it.
func (b *Batch) Unscaled(x *big.Int, v Value) *big.Int {
	if v.form == finiteBig {
		return setTwosComplement(x, b.span(v))
	}
	return x.SetInt64(int64(v.num))
}

// Bytes are the octets of a spanned value, in the arena: borrowed, valid until
// Release, not to be written. For a large decimal: two's complement.
func (b *Batch) Bytes(v Value) []byte {
	if spannedKinds>>v.kind&1 == 0 {
		v.mustSpan()
	}
	return b.arena[v.num : v.num+uint64(v.n) : v.num+uint64(v.n)]
}

func (v Value) mustSpan() {
	if !v.spanned() {
		panic(fmt.Sprintf("BUG: %s value has no octets", v.kind))
	}
}

func (b *Batch) span(v Value) []byte {
	return b.arena[v.num : v.num+uint64(v.n) : v.num+uint64(v.n)]
}

// String copies the text of a spanned value.
func (b *Batch) String(v Value) string { return string(b.Bytes(v)) }

// ArrayData is the content of an Array value: its dimensions with their lower
// bounds, and the elements in row-major order. No dimensions: empty.
type ArrayData struct {
	Dims  []Dim
	Elems []Value
}

// Dim is one dimension of an array.
type Dim struct{ Len, Lower int32 }

// Array makes an array value; elems must be of this batch (see Row).
func (b *Batch) Array(dims []Dim, elems []Value) Value {
	b.arrays = append(b.arrays, ArrayData{dims, elems})
	return Value{kind: Array, num: uint64(len(b.arrays) - 1)}
}

// ArrayOf reads an array value.
func (b *Batch) ArrayOf(v Value) ArrayData { return b.arrays[v.num] }

// Copy brings a value of another batch into this one.
func (b *Batch) Copy(from *Batch, v Value) Value {
	switch {
	case v.kind == Array:
		a := from.ArrayOf(v)
		elems := b.Row(len(a.Elems))
		for i, e := range a.Elems {
			elems[i] = b.Copy(from, e)
		}
		return b.Array(append([]Dim(nil), a.Dims...), elems)
	case v.spanned():
		at := len(b.arena)
		b.arena = append(b.arena, from.span(v)...)
		v.num = uint64(at)
	}
	return v
}

// CopyRow is Copy of each value; nil stays nil.
func (b *Batch) CopyRow(from *Batch, row []Value) []Value {
	if row == nil {
		return nil
	}
	out := b.Row(len(row))
	for i, v := range row {
		out[i] = b.Copy(from, v)
	}
	return out
}

// AppendFrom copies a change of another batch to the end of this one.
func (b *Batch) AppendFrom(from *Batch, c *Change) *Change {
	old, new := b.CopyRow(from, c.Old), b.CopyRow(from, c.New)
	d := b.Append(c.Table, c.Op)
	*d = *c
	d.Old, d.New = old, new
	return d
}

// Keep drops the changes for which keep is false, in place and in order.
func (b *Batch) Keep(keep func(*Change) bool) {
	n := 0
	for i := range b.Changes {
		if keep(&b.Changes[i]) {
			if n != i {
				b.Changes[n] = b.Changes[i]
			}
			n++
		}
	}
	b.Changes = b.Changes[:n]
}

func putUint32(p []byte, v uint32) {
	_ = p[3]
	p[0], p[1], p[2], p[3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
}
func putUint64(p []byte, v uint64) { putUint32(p, uint32(v>>32)); putUint32(p[4:], uint32(v)) }
func getUint32(p []byte) uint32 {
	_ = p[3]
	return uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
}
func getUint64(p []byte) uint64 { return uint64(getUint32(p))<<32 | uint64(getUint32(p[4:])) }
