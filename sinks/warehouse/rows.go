// What a batch comes to: per entity and key the last change that fits,
// encoded; and the changes that do not fit.

package warehouse

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unsafe"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
)

// rows holds the winners of one entity in COPY BINARY's form (PostgreSQL
// documentation, COPY, "Binary Format"), to be reused from batch to batch.
type rows struct {
	buf     []byte
	start   []int // of each row in buf
	index   []int // of each row's change in the batch
	deleted []int // which rows are deletions
	seen    map[string]struct{}
	keys    []byte // what seen's strings point into
}

var copyHeader = []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")

func (r *rows) reset() {
	r.buf = append(r.buf[:0], copyHeader...)
	r.start, r.index, r.keys, r.deleted = r.start[:0], r.index[:0], r.keys[:0], r.deleted[:0]
	if r.seen == nil {
		r.seen = map[string]struct{}{}
	}
	clear(r.seen)
}

// plan sorts the batch into its entities. It goes from the end to the
// beginning: the first change met of a key that fits decides, earlier ones are
// superseded and not looked at. refused are changes that the server did not
// take. A change that does not fit is a failure, unless a later one of its key
// fits and thereby replaces it.
func (s *Sink) plan(b *change.Batch, refused map[int]error) ([]pipeline.Failure, error) {
	for _, e := range s.entities {
		e.batch.reset()
	}
	var failures []pipeline.Failure
	for i := len(b.Changes) - 1; i >= 0; i-- {
		c := &b.Changes[i]
		e := s.byTopic[c.Table.Topic]
		if e == nil {
			return nil, ErrTopic.New("a change of topic %q came to sink %q, which has no table for it", c.Table.Topic, s.name)
		}
		shape, err := e.shape(c.Table)
		if err != nil {
			return nil, err
		}
		r := &e.batch
		at := len(r.keys)
		r.keys = change.AppendKey(r.keys, b, c)
		key := r.keys[at:]
		if _, superseded := r.seen[unsafe.String(unsafe.SliceData(key), len(key))]; superseded {
			r.keys = r.keys[:at]
			continue
		}
		if err = refused[i]; err == nil {
			err = e.append(b, c, i, shape)
		}
		if err != nil {
			failures = append(failures, pipeline.Failure{Index: i, Err: err})
			r.keys = r.keys[:at]
			continue
		}
		// The string points into keys' present array: when keys grows into a
		// new one, the old array lives on through it.
		r.seen[unsafe.String(unsafe.SliceData(key), len(key))] = struct{}{}
	}
	return failures, nil
}

// shape tells for a writer's table where each of our columns comes from.
func (e *entity) shape(t *change.Table) ([]int, error) {
	if sh, ok := e.shapes[t]; ok {
		return sh, nil
	}
	sh := make([]int, len(e.columns))
	known := 0
	for i := range e.columns {
		sh[i] = t.Column(e.columns[i].name)
		if sh[i] >= 0 {
			known++
		}
	}
	if known < len(t.Columns) {
		for _, col := range t.Columns {
			if e.column(col.Name) == nil {
				return nil, ErrField.New("records of topic %s have a field %q that its contract does not know", e.topic, col.Name)
			}
		}
	}
	for _, k := range e.key {
		if sh[k] < 0 {
			return nil, ErrField.New("records of topic %s have no field %q, the key", e.topic, e.columns[k].name)
		}
	}
	if len(e.shapes) >= 1000 { // one per writer's schema; a bound all the same
		clear(e.shapes)
	}
	e.shapes[t] = sh
	return sh, nil
}

// append encodes one change as a row of the stage.
func (e *entity) append(b *change.Batch, c *change.Change, index int, shape []int) error {
	r := &e.batch
	row, deleted := c.New, c.New == nil
	if deleted {
		row = c.Old
	}
	switch {
	case c.Op == change.Truncate || c.Op == change.Message || row == nil:
		return ErrValue.New("a change of kind %q at %s carries no row", string(rune(c.Op)), coord(c))
	case c.Coord.Topic == nil:
		panic("BUG: a change without coordinates came to the warehouse")
	}
	at := len(r.buf)
	r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(len(e.columns)+4))
	for i := range e.columns {
		col := &e.columns[i]
		v := change.NullValue()
		if src := shape[i]; src >= 0 {
			v = row[src]
		}
		var err error
		if deleted && !slices.Contains(e.key, i) {
			r.buf = appendNull(r.buf)
		} else if r.buf, err = appendField(r.buf, b, col, v); err != nil {
			r.buf = r.buf[:at]
			return ErrValue.New("column %q of %s at %s: %w", col.name, e.topic, coord(c), err)
		}
	}
	r.buf = append(append(r.buf, 0, 0, 0, 16), c.Coord.Topic.ID[:]...)
	r.buf = appendInt32(append(r.buf, 0, 0, 0, 4), c.Coord.Partition)
	r.buf = appendInt64(r.buf, c.Coord.Offset)
	if deleted {
		r.buf = append(r.buf, 0, 0, 0, 1, 1)
		r.deleted = append(r.deleted, len(r.start))
	} else {
		r.buf = append(r.buf, 0, 0, 0, 1, 0)
	}
	r.start = append(r.start, at)
	r.index = append(r.index, index)
	return nil
}

func coord(c *change.Change) string {
	if c.Coord.Topic == nil {
		return "an unknown offset"
	}
	return fmt.Sprintf("%s[%d]@%d", c.Coord.Topic.Name, c.Coord.Partition, c.Coord.Offset)
}

// row gives row n's fields, nil for null, borrowed from the buffer.
func (r *rows) row(n int, fields [][]byte) [][]byte {
	p := r.buf[r.start[n]:]
	count := int(binary.BigEndian.Uint16(p))
	p = p[2:]
	fields = fields[:0]
	for range count {
		size := int32(binary.BigEndian.Uint32(p))
		p = p[4:]
		if size < 0 {
			fields = append(fields, nil)
			continue
		}
		fields = append(fields, p[:size:size])
		p = p[size:]
	}
	return fields
}

// isDeleted reads the last field of a row's fields.
func isDeleted(fields [][]byte) bool { return fields[len(fields)-1][0] == 1 }

// end finishes the buffer for COPY.
func (r *rows) end() []byte {
	r.buf = append(r.buf, 0xff, 0xff)
	return r.buf
}
