// Memo: what the envelopes of one transaction, and of one batch, have in
// common.

package avro

import (
	"encoding/binary"
	"slices"
	"strconv"

	"github.com/tallywire/tallywire/change"
)

// Memo holds parts of the envelope that were written before: those that depend
// on the transaction, and the time of writing. Who encodes many changes hands
// the same one to AppendValueWith; the octets are the same but for the time of
// writing, which is then that of the first envelope after Reset. Of an envelope
// of 13 columns it saves a third of the time. The zero Memo is ready for use.
// Not safe for concurrent use.
type Memo struct {
	of     *Encoder
	time   int64
	lsn    uint64
	xid    uint32
	read   bool
	placed bool // the changes have a position

	head   []byte // of the source, to the ordinal
	digits int    // of the LSN in it
	tail   []byte // from there to the op
	now    []byte // after it; empty: not known yet

	beside    bool   // something is to be told beside the last value
	missing   bool   // its row after has values that the source did not send
	unknown   bool   // its row before has values that are not known, though it should be whole
	text, was []byte // values without a form of the rows after and before, as JSON that is not closed
}

// Beside reports whether something is to be told in the headers of the last
// envelope that was written: AppendUnchanged, AppendUnknown and Texts have it.
func (m *Memo) Beside() bool { return m.beside }

// Texts gives the values that the schema's types cannot hold, of the rows after
// and before the change, each as a JSON object of texts by column, for the
// headers tw.text and tw.text.before; nil: none.
func (m *Memo) Texts() (after, before []byte) {
	if len(m.text) > 0 {
		after = slices.Concat(m.text, []byte{'}'})
	}
	if len(m.was) > 0 {
		before = slices.Concat(m.was, []byte{'}'})
	}
	return after, before
}

// begin forgets what was beside the value before.
func (m *Memo) begin() {
	if m.beside {
		m.beside, m.missing, m.unknown, m.text, m.was = false, false, false, m.text[:0], m.was[:0]
	}
}

// tell notes a value that its type cannot hold.
func (m *Memo) tell(old bool, column, text string) {
	into := &m.text
	if old {
		into = &m.was
	}
	open := byte('{')
	if len(*into) > 0 {
		open = ','
	}
	m.beside = true
	*into = append(append(append(append(*into, open), quote(column)...), ':'), quote(text)...)
}

// sequenceHead is what of source.sequence stands around the LSN.
const sequenceHead = `["","`

// Reset forgets the time of writing.
func (m *Memo) Reset() { m.of, m.now = nil, m.now[:0] }

func (m *Memo) holds(e *Encoder, c *change.Change) bool {
	return m.of == e && m.lsn == c.Pos.LSN && m.time == c.Time && m.xid == c.XID && m.read == (c.Op == change.Read) && m.placed == !c.Pos.IsZero()
}

func (m *Memo) fill(e *Encoder, c *change.Change) {
	m.of, m.time, m.lsn, m.xid, m.read, m.placed = e, c.Time, c.Pos.LSN, c.XID, c.Op == change.Read, !c.Pos.IsZero()
	p := m.head[:0]
	p = append(p, e.source...)
	p = binary.AppendVarint(p, floorDiv(c.Time, 1000))
	p = append(p, 0)
	if m.read {
		p = append(p, "\x08true"...)
	} else {
		p = append(p, "\x0afalse"...)
	}
	p = append(p, e.db...)
	if m.placed { // the transaction's LSN and the ordinal in it: rises strictly within a source
		p = append(p, 2, 0) // its length comes with the ordinal
		p = append(p, sequenceHead[:2]...)
		n := len(p)
		p = strconv.AppendUint(p, c.Pos.LSN, 10)
		m.digits = len(p) - n
		p = append(p, sequenceHead[2:]...)
	} else {
		p = append(p, 0)
	}
	m.head = p
	p = appendMicrosNanos(m.tail[:0], c.Time)
	p = append(p, e.identity...)
	for _, f := range e.table.Connector.Fields {
		switch {
		case f.Of == change.SourceXID && c.XID != 0:
			p = binary.AppendVarint(append(p, 2), int64(c.XID))
		case f.Of == change.SourceLSN && m.placed:
			p = binary.AppendVarint(append(p, 2), int64(c.Pos.LSN))
		default:
			p = append(p, 0)
		}
	}
	p = append(p, 0, 2) // transaction; the length of the op
	m.tail = p
	if len(m.now) == 0 {
		now := e.now().UnixMicro()
		m.now = appendMicrosNanos(binary.AppendVarint(append(m.now, 2), floorDiv(now, 1000)), now)
	}
}
