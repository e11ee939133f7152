// Rows: how a row is kept, and how one of a source comes here. A source's columns
// have no contract, so their kinds travel with each row.

package join

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/pipeline/state"
)

// keptRow is a row as it is kept: a value per column of its side.
type keptRow struct {
	vals  []change.Value
	shape *shape     // of a source's row; nil: its contract says it
	pos   change.Pos // where its source has the change; of sides that keep it
}

// shape is the kinds of a side's columns; one of the kind Null was not there.
type shape struct {
	id   int
	text string
	cols []change.Column
}

// shapes are those that were met, each once. Safe for concurrent use.
type shapes struct {
	mu sync.Mutex
	m  map[string]*shape
	n  int
}

// of is the shape of what text says, for columns of these names; nil: it says
// nothing.
func (x *shapes) of(names []string, text []byte) *shape {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.m[string(text)]; s != nil {
		return s
	}
	x.n++ // also of those that are forgotten
	s := &shape{id: x.n, text: string(text)}
	for p := text; len(p) > 0; {
		var c change.Column
		var ok bool
		if c, p, ok = readKind(p); !ok {
			return nil
		}
		s.cols = append(s.cols, c)
	}
	if len(s.cols) != len(names) {
		return nil
	}
	for i := range s.cols {
		s.cols[i].Name = names[i]
	}
	if x.m == nil || len(x.m) >= maxTables {
		x.m = map[string]*shape{}
	}
	x.m[s.text] = s
	return s
}

// CanKeep says whether values of a column can be kept.
func CanKeep(c *change.Column) bool { return c.Kind != change.Array && c.Kind != change.TimeTZ }

// appendKind appends what has to be known of a column to read its values.
func appendKind(dst []byte, c *change.Column) []byte {
	dst = append(dst, byte(c.Kind))
	switch c.Kind {
	case change.Decimal:
		dst = binary.AppendVarint(binary.AppendVarint(dst, int64(c.Precision)), int64(c.Scale))
	case change.Int:
		dst = append(dst, byte(c.Width))
	}
	return dst
}

func readKind(p []byte) (c change.Column, rest []byte, ok bool) {
	c.Kind, c.Nullable, p = change.Kind(p[0]), true, p[1:]
	switch c.Kind {
	case change.Decimal:
		precision, n := binary.Varint(p)
		if n <= 0 {
			return c, nil, false
		}
		scale, m := binary.Varint(p[n:])
		if m <= 0 {
			return c, nil, false
		}
		c.Precision, c.Scale, p = int16(precision), int16(scale), p[n+m:]
	case change.Int:
		if len(p) == 0 {
			return c, nil, false
		}
		c.Width, p = int8(p[0]), p[1:]
	}
	c.Type = c.Kind.String()
	return c, p, true
}

// appendSpan appends a text behind its length.
func appendSpan(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// AppendRow appends columns of a source's row, with their names and kinds: the
// record of a topic of rows (avro.Rows). CanKeep says which can be.
func AppendRow(dst []byte, b *change.Batch, t *change.Table, row []change.Value, cols []int) []byte {
	var head []byte
	for _, c := range cols {
		head = appendKind(appendSpan(head, t.Columns[c].Name), &t.Columns[c])
	}
	dst = append(binary.AppendUvarint(dst, uint64(len(head))), head...)
	return state.AppendRow(dst, b, row, cols)
}

// header is what the head of such a record says, for a side.
type header struct {
	n     int   // columns of the record
	short bool  // it lacks one that is used: it was written before that was
	at    []int // per column of the side, that of the record; −1: it has none
	shape *shape
}

// headers are those that were met. Safe for concurrent use.
type headers struct {
	mu sync.Mutex
	m  map[string]*header
}

// of reads a head, or remembers it.
func (x *headers) of(s *side, head []byte) (*header, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h := x.m[string(head)]; h != nil {
		return h, nil
	}
	h := &header{at: make([]int, len(s.cols))}
	kinds := make([][]byte, len(s.cols))
	for i := range h.at {
		h.at[i], kinds[i] = -1, []byte{byte(change.Null)}
	}
	for p := head; len(p) > 0; h.n++ {
		name, rest, ok := text(p)
		if !ok || len(rest) == 0 {
			return nil, errRow(s)
		}
		c, after, ok := readKind(rest)
		if !ok {
			return nil, errRow(s)
		}
		if i := slices.Index(s.cols, name); i >= 0 {
			h.at[i], kinds[i] = h.n, appendKind(nil, &c)
		}
		p = after
	}
	for i, at := range h.at {
		h.short = h.short || at < 0 && !s.may[s.cols[i]]
	}
	if h.shape = s.shapes.of(s.cols, slices.Concat(kinds...)); h.shape == nil {
		return nil, errRow(s)
	}
	if x.m == nil || len(x.m) >= maxTables {
		x.m = map[string]*header{}
	}
	x.m[string(head)] = h
	return h, nil
}

func errRow(s *side) error { return ErrRow.New("a record of %s", s.topic) }

// take reads the row of a record, which is no delete, into the memory of b. Without
// values: it was written before all its columns were used, and will be written anew
// (a mapping makes sure of that).
func (s *side) take(b *change.Batch, c *change.Change, by *columns) (keptRow, error) {
	if s.raw == "" {
		cols, err := by.of(c.Table, s)
		if err != nil {
			return keptRow{}, err
		}
		return keptRow{vals: kept(b, c.New, cols), pos: c.Pos}, nil
	}
	if len(c.New) != len(rowsTable.Columns) || c.New[1].Kind() != change.Bytes {
		return keptRow{}, errRow(s)
	}
	p := b.Bytes(c.New[1])
	n, size := binary.Uvarint(p)
	if size <= 0 || n > uint64(len(p)-size) {
		return keptRow{}, errRow(s)
	}
	h, err := s.headers.of(s, p[size:size+int(n)])
	if err != nil || h.short {
		return keptRow{}, err
	}
	all, ok := state.ReadRow(b, string(p[size+int(n):]), h.n)
	if !ok {
		return keptRow{}, errRow(s)
	}
	return keptRow{kept(b, all, h.at), h.shape, c.Pos}, nil
}

// rowsTable is the shape of all topics of rows.
var rowsTable = avro.Rows("_tallywire.rows").Table

// append appends a row as it is kept.
func (s *side) append(dst []byte, b *change.Batch, r keptRow) []byte {
	if s.placed {
		dst = change.AppendPos(dst, r.pos)
	}
	if r.shape != nil {
		dst = appendSpan(dst, r.shape.text)
	}
	return state.AppendRow(dst, b, r.vals, s.all)
}

// read undoes append.
func (s *side) read(b *change.Batch, p string) (r keptRow, ok bool) {
	if s.placed {
		if len(p) < change.PosSize {
			return r, false
		}
		var err error
		if r.pos, err = change.ParsePos([]byte(p[:change.PosSize])); err != nil {
			return r, false
		}
		p = p[change.PosSize:]
	}
	if s.raw != "" {
		of, rest, ok := text([]byte(p))
		if !ok {
			return r, false
		}
		if r.shape = s.shapes.of(s.cols, []byte(of)); r.shape == nil {
			return r, false
		}
		p = string(rest)
	}
	r.vals, ok = state.ReadRow(b, p, len(s.cols))
	return r, ok
}

// naming is columns whose values name a row: the text of its key, or of its group.
type naming struct {
	cols    []int
	between []string      // literal text before the first, between, after the last; nil: none
	program *expr.Program // computes the name of the columns; nil: their texts are it
	text    string        // of program
}

// append appends the name that a row gives; false: part of it is null, so it names
// nothing.
func (n *naming) append(dst []byte, b *change.Batch, row []change.Value) ([]byte, bool) {
	if row == nil {
		return dst, false
	}
	if n.program != nil {
		r := expr.Row{Batch: b, Of: make([]change.Value, len(n.cols))}
		for i, c := range n.cols {
			r.Of[i] = row[c]
		}
		v, err := n.program.Value(&r, &nameColumn)
		if err != nil || v.IsNull() {
			return dst, false
		}
		return b.AppendByValue(dst, v), true
	}
	for _, c := range n.cols {
		if row[c].IsNull() {
			return dst, false
		}
	}
	switch {
	case n.between != nil:
		dst = append(dst, n.between[0]...)
		for i, c := range n.cols {
			dst = append(b.AppendByValue(dst, row[c]), n.between[i+1]...)
		}
	case len(n.cols) == 1:
		dst = b.AppendByValue(dst, row[n.cols[0]])
	default:
		parts := make([]change.Value, len(n.cols))
		for i, c := range n.cols {
			parts[i] = row[c]
		}
		dst = change.AppendParts(dst, b, parts...)
	}
	return dst, true
}

// nameColumn is what computed names are.
var nameColumn = change.Column{Name: "the name of a row", Kind: change.String, Type: "text"}

// index is a sorted set per name: the keys of the rows that give it.
type index struct {
	name string
	by   naming
	// of is the group that a row is found by, whose name stands before its key,
	// and a zero octet; nil: its key is all.
	of *naming
	// day is the column with the day on which something is in force, which stands
	// before the key (dated.go); −1: none.
	day int
}

// member is what stands in the index for a row.
func (x *index) member(b *change.Batch, key string, row []change.Value) (string, bool) {
	if x.of == nil {
		return key, true
	}
	group, ok := x.of.append(nil, b, row)
	return string(group) + "\x00" + key, ok
}
