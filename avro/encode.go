// Encode: from a change to Confluent's wire format, by appending, without
// allocation.

package avro

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/tallywire/tallywire/change"
)

// Encoder writes the records of one table. It holds no scratch state: safe for
// concurrent use. The changes given to it must be of the Table that it was made
// for, or of one with the same columns in the same order.
type Encoder struct {
	raw      bool
	keyless  bool
	textKey  bool // the key is the canonical text, schema "string"
	table    *change.Table
	topic    string
	keyHead  [5]byte // magic octet and schema id
	head     [5]byte
	cols     []codec // in the order of the schema's fields
	key      []codec
	source   []byte // raw: version, connector, name
	db       []byte
	identity []byte // raw: schema, table
	now      func() time.Time
}

const keySchema = `"string"`

// NewEncoder registers the schemas of t's topic and compiles them. A Table with
// a Source gets Debezium's envelope (subjects <topic>-key and <topic>-value),
// another the record of the contract of t.Topic with a plain string as key.
// Errors: TW-AVRO-TABLE (halt) and those of Registry.Register.
func NewEncoder(ctx context.Context, reg *Registry, t *change.Table) (*Encoder, error) {
	e := &Encoder{raw: t.Source != "", table: t, topic: t.Topic, now: time.Now}
	if e.raw {
		return e, e.buildRaw(ctx, reg, t.Topic)
	}
	return e, e.buildCanonical(ctx, reg)
}

// NewEncoderAside is NewEncoder of a Table with a Source, whose schemas are
// registered under the subjects of another topic, which the registry does not check.
func NewEncoderAside(ctx context.Context, reg *Registry, t *change.Table, topic string) (*Encoder, error) {
	if err := reg.unchecked(ctx, KeySubject(topic), ValueSubject(topic)); err != nil {
		return nil, err
	}
	e := &Encoder{raw: true, table: t, topic: t.Topic, now: time.Now}
	return e, e.buildRaw(ctx, reg, topic)
}

// Schemas are the ids of the schemas that it writes; no key: 0.
func (e *Encoder) Schemas() (key, value int32) {
	return int32(binary.BigEndian.Uint32(e.keyHead[1:])), int32(binary.BigEndian.Uint32(e.head[1:]))
}

func (e *Encoder) buildRaw(ctx context.Context, reg *Registry, topic string) error {
	t := e.table
	key, value, err := EnvelopeSchemas(t)
	if err != nil {
		return err
	}
	n, err := parseSchema(value)
	if err != nil {
		return ErrTable.New("table %s.%s: %w", t.Schema, t.Name, err)
	}
	row, _, err := n.field("before").typ.optional()
	if err != nil {
		return ErrTable.New("table %s.%s: %w", t.Schema, t.Name, err)
	}
	if e.cols, err = compileFields(row, t); err != nil {
		return err
	}
	if e.keyless = key == ""; !e.keyless {
		k, err := parseSchema(key)
		if err != nil {
			return ErrTable.New("table %s.%s: %w", t.Schema, t.Name, err)
		}
		if e.key, err = compileFields(k, t); err != nil {
			return err
		}
		id, err := reg.Register(ctx, KeySubject(topic), key)
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint32(e.keyHead[1:], uint32(id))
	}
	id, err := reg.Register(ctx, ValueSubject(topic), value)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(e.head[1:], uint32(id))
	e.source = appendString(appendString(appendString(nil, t.Connector.Version), t.Connector.Name), t.Source)
	e.db = appendString(nil, t.Database)
	e.identity = appendString(appendString(nil, t.Schema), t.Name)
	return nil
}

func (e *Encoder) buildCanonical(ctx context.Context, reg *Registry) error {
	t := e.table
	all, err := reg.contracts()
	if err != nil {
		return ErrTable.New("reading the contracts: %w", err)
	}
	c := all[t.Topic]
	if c == nil {
		c = internalContract(t.Topic)
	}
	if c == nil {
		return ErrTable.New("topic %s has no contract", t.Topic).
			WithRemedy("Add a contract of that topic to a directory of `contracts`, or correct the topic in the transform.")
	}
	if err := e.compileContract(c); err != nil {
		return err
	}
	keyID, id, err := reg.RegisterContract(ctx, c)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(e.keyHead[1:], uint32(keyID))
	binary.BigEndian.PutUint32(e.head[1:], uint32(id))
	return nil
}

// compileFields compiles the fields of a record and finds their columns in t.
func compileFields(n *node, t *change.Table) ([]codec, error) {
	out := make([]codec, 0, len(n.fields))
	for i := range n.fields {
		col, c, err := columnOf(&n.fields[i])
		if err != nil {
			return nil, ErrTable.New("field %s of %s: %w", n.fields[i].name, t.Topic, err)
		}
		if c.at = t.Column(col.Name); c.at < 0 {
			return nil, ErrTable.New("%s has the field %s, which the rows given to it lack", t.Topic, col.Name)
		}
		out = append(out, c)
	}
	return out, nil
}

// Table is what the encoder was made for.
func (e *Encoder) Table() *change.Table { return e.table }

// AppendKey appends the key of c: that of its New row, or of its Old row for a
// delete. A table without a key, and a truncate, give nothing.
func (e *Encoder) AppendKey(dst []byte, b *change.Batch, c *change.Change) ([]byte, error) {
	return e.AppendKeyOf(dst, b, c.Row())
}

// AppendKeyOf appends the key of a row: for the old key of a key change, and
// for tombstones.
func (e *Encoder) AppendKeyOf(dst []byte, b *change.Batch, row []change.Value) ([]byte, error) {
	if row == nil || e.keyless {
		return dst, nil
	}
	from := len(dst)
	dst = append(dst, e.keyHead[:]...)
	if e.textKey {
		for _, k := range e.table.Key {
			if v := row[k]; v.IsNull() || v.IsUnchanged() {
				return dst[:from], ErrNull.New("key field %s of %s is null or missing", e.table.Columns[k].Name, e.topic)
			}
		}
		at := len(dst)
		dst = append(dst, 0)
		return fixLength(change.AppendKeyRow(dst, b, e.table, row), at), nil
	}
	var err error
	for i := range e.key {
		if dst, err = e.appendField(nil, dst, b, &e.key[i], row[e.key[i].at], false); err != nil {
			return dst[:from], err
		}
	}
	return dst, nil
}

// AppendValue appends the value of c: the envelope, or the contract's record of
// c.New. Do not call it for a canonical delete, whose value is null. On an
// error, a Reject that names the field and never its value, dst is returned as
// it came.
func (e *Encoder) AppendValue(dst []byte, b *change.Batch, c *change.Change) ([]byte, error) {
	var m Memo
	return e.AppendValueWith(&m, dst, b, c)
}

// AppendValueWith is AppendValue for one of many changes.
func (e *Encoder) AppendValueWith(m *Memo, dst []byte, b *change.Batch, c *change.Change) ([]byte, error) {
	from := len(dst)
	dst = append(dst, e.head[:]...)
	m.begin()
	var err error
	if e.raw {
		dst, err = e.appendEnvelope(m, dst, b, c)
	} else {
		if c.New == nil {
			panic("BUG: a canonical record without a new row has no value")
		}
		dst, err = e.appendRow(m, dst, b, c.New, false)
	}
	if err != nil {
		return dst[:from], err
	}
	return dst, nil
}

// AppendUnchanged appends the names of the columns that c's New row leaves
// unchanged, for the header tw.unchanged: joined by commas, a comma or
// backslash within a name preceded by a backslash. Nothing: complete.
func (e *Encoder) AppendUnchanged(dst []byte, c *change.Change) []byte {
	return e.appendUnsent(dst, c.New)
}

// AppendUnknown appends the names of the columns that are not known of c's Old
// row, in the same form, for the header tw.unknown. Nothing: it is whole, or of
// a table whose old rows hold the key alone.
func (e *Encoder) AppendUnknown(dst []byte, c *change.Change) []byte {
	if !e.table.OldFull {
		return dst
	}
	return e.appendUnsent(dst, c.Old)
}

func (e *Encoder) appendUnsent(dst []byte, row []change.Value) []byte {
	from := len(dst)
	for i, v := range row {
		if !v.IsUnchanged() {
			continue
		}
		if len(dst) > from {
			dst = append(dst, ',')
		}
		name := e.table.Columns[i].Name
		for j := range len(name) {
			if name[j] == ',' || name[j] == '\\' {
				dst = append(dst, '\\')
			}
			dst = append(dst, name[j])
		}
	}
	return dst
}

func (e *Encoder) appendEnvelope(m *Memo, dst []byte, b *change.Batch, c *change.Change) ([]byte, error) {
	var err error
	for i, row := range [2][]change.Value{c.Old, c.New} {
		if row == nil {
			dst = append(dst, 0)
			continue
		}
		dst = append(dst, 2)
		if dst, err = e.appendRow(m, dst, b, row, i == 0); err != nil {
			return dst, err
		}
	}
	if !m.holds(e, c) {
		m.fill(e, c)
	}
	dst = append(dst, m.head...)
	if m.placed {
		at := len(dst) - len(sequenceHead) - m.digits - 1
		dst = append(strconv.AppendUint(dst, c.Pos.Ordinal, 10), `"]`...)
		dst[at] = byte(len(dst)-at-1) << 1 // two numbers of 20 digits at most: below 64 octets
	}
	dst = append(dst, m.tail...)
	dst = append(dst, byte(c.Op))
	return append(dst, m.now...), nil
}

// appendMicrosNanos writes two nullable longs; nanoseconds that int64 cannot
// hold (before 1677, after 2262) are null.
func appendMicrosNanos(dst []byte, us int64) []byte {
	dst = binary.AppendVarint(append(dst, 2), us)
	if us > math.MaxInt64/1000 || us < math.MinInt64/1000 {
		return append(dst, 0)
	}
	return binary.AppendVarint(append(dst, 2), us*1000)
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// appendRow has the forms of most cells without a call, which is a third less
// time for a row.
func (e *Encoder) appendRow(m *Memo, dst []byte, b *change.Batch, row []change.Value, old bool) ([]byte, error) {
	var err error
	for i := range e.cols {
		c := &e.cols[i]
		v := row[c.at]
		switch k := v.Kind(); c.form {
		case fString:
			if k == c.kind {
				if c.null >= 0 {
					dst = append(dst, byte(1-c.null)<<1)
				}
				dst = appendBytes(dst, b.Bytes(v))
				continue
			}
		case fInt:
			if n := v.Int(); k == change.Int && n == int64(int32(n)) && c.width != 2 {
				if c.null >= 0 {
					dst = append(dst, byte(1-c.null)<<1)
				}
				dst = appendLong(dst, n)
				continue
			}
		case fDecimal:
			if k == change.Decimal {
				if c.null >= 0 {
					dst = append(dst, byte(1-c.null)<<1)
				}
				if dst, err = c.appendDecimal(dst, b, v); err == nil {
					continue
				}
				if c.null >= 0 {
					dst = dst[:len(dst)-1]
				}
				if dst, err = e.appendFormless(m, dst, b, c, v, old, err); err != nil {
					return dst, err
				}
				continue
			}
		case fZoned:
			if k == change.TimestampTZ {
				if c.null >= 0 {
					dst = append(dst, byte(1-c.null)<<1)
				}
				at := len(dst)
				dst = fixLength(appendZonedTimestamp(append(dst, 0), v.Int(), int(c.digits)), at)
				continue
			}
		}
		if v.IsUnchanged() {
			switch {
			case !old:
				m.beside, m.missing = true, true
			case e.table.OldFull:
				m.beside, m.unknown = true, true
			}
		}
		if dst, err = e.appendField(m, dst, b, c, v, old); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// appendField writes a field; of a key's, m is nil.
func (e *Encoder) appendField(m *Memo, dst []byte, b *change.Batch, c *codec, v change.Value, old bool) ([]byte, error) {
	switch v.Kind() {
	case change.Unchanged:
		return e.appendMissing(dst, c, old)
	case change.Null:
		if c.null < 0 {
			return dst, ErrNull.New("field %s of %s is null", c.name, e.topic)
		}
		return append(dst, byte(c.null)<<1), nil
	}
	from := len(dst)
	if c.null >= 0 {
		dst = append(dst, byte(1-c.null)<<1)
	}
	dst, problem := c.appendValue(dst, b, v)
	if problem != nil {
		return e.appendFormless(m, dst[:from], b, c, v, old, problem)
	}
	return dst, nil
}

// appendFormless writes what stands for a value that its type cannot hold, and
// notes the value itself, which goes beside the record as a text: a raw topic
// has every value there is. A contract's field refuses it.
func (e *Encoder) appendFormless(m *Memo, dst []byte, b *change.Batch, c *codec, v change.Value, old bool, problem error) ([]byte, error) {
	if !e.raw || errors.Is(problem, errOther) {
		return dst, e.reject(c, v, problem)
	}
	text := b.AppendText(nil, v)
	if m != nil {
		m.tell(old, c.name, string(text))
	}
	if c.null >= 0 {
		return append(dst, byte(c.null)<<1), nil
	}
	return c.appendStandIn(dst, b, v, text), nil
}

// appendMissing writes what stands for a value that the source did not send.
func (e *Encoder) appendMissing(dst []byte, c *codec, old bool) ([]byte, error) {
	text := c.form == fString && c.kind != change.Enum || c.form == fBytes
	if e.raw && old && c.null < 0 && text {
		return appendString(dst, placeholder), nil // left out for its size
	}
	if !e.raw || c.null < 0 {
		return dst, ErrUnchanged.New("field %s of %s was not sent by the source", c.name, e.topic)
	}
	if !old && text {
		return appendString(append(dst, byte(1-c.null)<<1), placeholder), nil
	}
	return append(dst, byte(c.null)<<1), nil
}

// reject makes a person's error of one of the codec's; never with the value.
func (e *Encoder) reject(c *codec, v change.Value, err error) error {
	switch {
	case errors.Is(err, errDigits):
		return ErrDecimalOverflow.New("field %s of %s holds a number that numeric(%d,%d) cannot", c.name, e.topic, c.digits, c.scale)
	case errors.Is(err, errRange):
		return ErrNoForm.New("field %s of %s holds a %s outside the range of its Avro type", c.name, e.topic, v.Kind())
	case errors.Is(err, errSpecial):
		return ErrNoForm.New("field %s of %s holds NaN or infinity, which its Avro type has not", c.name, e.topic)
	case errors.Is(err, errShape):
		return ErrNoForm.New("field %s of %s holds an array of several dimensions or one that does not start at 1", c.name, e.topic)
	}
	return ErrKind.New("field %s of %s is given a %s, and is of type %s", c.name, e.topic, v.Kind(), c.kind)
}
