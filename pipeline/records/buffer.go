// Buffer: encoded changes and the memory they live in.

package records

import (
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
)

// Refused is a change that gave no record.
type Refused struct {
	Index     int    // of the change in its batch
	Topic     string // where its records would have gone
	Key       string // change.AppendKey
	RecordKey []byte // Avro; empty when the key is what cannot be encoded
	Pos       change.Pos
	Time      int64 // of the change
	Err       error // of class Reject
	// Record is the record whole, in memory of its own, when all that is wrong
	// is its size; else nil.
	Record *kgo.Record
}

// OfAside is what a Buffer has of a Table that the subjects of its topic do not take.
type OfAside struct {
	Topic      string
	Key, Value int32 // schema ids; 0: none
}

// Buffer is encoded changes and the memory they live in. The records must
// not be touched between Produce and their promises; then Reset frees all of
// it for the next changes. Not safe for concurrent use.
//
// A record is built where kgo takes it from, and its key, value and headers are
// slices of two buffers. A buffer that grows moves; the slices made before stay
// with the former one, whose octets do not change any more.
type Buffer struct {
	Records []kgo.Record
	Of      []int // for each record, the index of its change
	Refused []Refused
	Cleared []int // indexes of records that empty their topic: the first of each truncate
	Aside   []OfAside
	Bytes   int // keys and values

	buf  []byte
	hdrs []kgo.RecordHeader
	key  []byte // scratch
	old  []byte // scratch
	memo avro.Memo

	micros int64 // the time of the last record
	stamp  time.Time
}

// fill is how far a Buffer was filled.
type fill struct{ records, bytes, buf, hdrs int }

func (rs *Buffer) filled() fill {
	return fill{len(rs.Records), rs.Bytes, len(rs.buf), len(rs.hdrs)}
}

// back drops what came after it was filled so far.
func (rs *Buffer) back(m fill) {
	rs.Records, rs.Of, rs.Bytes = rs.Records[:m.records], rs.Of[:m.records], m.bytes
	rs.buf, rs.hdrs = rs.buf[:m.buf], rs.hdrs[:m.hdrs]
}

// Reset empties rs and keeps its memory. What the records of before refer to is
// the memory that is kept: it is overwritten, not cleared, which would cost as
// much as a tenth of the encoding.
func (rs *Buffer) Reset() {
	clear(rs.Refused)
	rs.Records, rs.Of, rs.Refused, rs.Cleared, rs.Bytes = rs.Records[:0], rs.Of[:0], rs.Refused[:0], rs.Cleared[:0], 0
	rs.Aside = rs.Aside[:0]
	rs.buf, rs.hdrs = rs.buf[:0], rs.hdrs[:0]
}

// reserve makes room for records with so many octets, so that buffers need not
// grow step by step: an envelope is less than twice as long as its row on the
// wire. What is more grows all the same.
func (rs *Buffer) reserve(records, octets int) {
	rs.buf = slices.Grow(rs.buf, octets)
	rs.Records, rs.Of, rs.hdrs = slices.Grow(rs.Records, records), slices.Grow(rs.Of, records), slices.Grow(rs.hdrs, records)
}

// size is the memory that rs keeps, in bytes.
func (rs *Buffer) size() int {
	return cap(rs.buf) + cap(rs.Records)*int(unsafe.Sizeof(kgo.Record{})) + cap(rs.hdrs)*int(unsafe.Sizeof(kgo.RecordHeader{})) + cap(rs.Of)*int(unsafe.Sizeof(0))
}

// Pool keeps Buffers for the next batches, the last used first. A
// sync.Pool would forget them at each garbage collection, and a busy source
// would at once make tens of MB anew, which brings the next collection.
type Pool struct {
	mu   sync.Mutex
	free []*Buffer
	held int // bytes
}

// Beyond these, Buffers are left to the collector: one that a huge row blew up,
// and more than are in flight at once.
const (
	keepBuffer = 4 << 20
	keepAll    = 48 << 20
)

// Get gives an empty Buffer.
func (l *Pool) Get() *Buffer {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.free) - 1
	if n < 0 {
		return new(Buffer)
	}
	rs := l.free[n]
	l.free[n], l.free = nil, l.free[:n]
	l.held -= rs.size()
	return rs
}

// Put takes a Buffer that nobody uses any more.
func (l *Pool) Put(rs *Buffer) {
	rs.Reset()
	n := rs.size()
	l.mu.Lock()
	defer l.mu.Unlock()
	if n <= keepBuffer && l.held+n <= keepAll {
		l.free = append(l.free, rs)
		l.held += n
	}
}
