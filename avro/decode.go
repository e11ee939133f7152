// Decode: from Confluent's wire format to a change, through a program that is
// compiled once per writer schema. Records come from outside: every length is
// checked against what is left, nesting and work are bounded, and a record that
// does not end where its schema does is refused.

package avro

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/tallywire/tallywire/change"
)

// Decoder reads records of any topic. Safe for concurrent use.
type Decoder struct {
	reg      *Registry
	mu       sync.Mutex // serialises compiling
	programs atomic.Pointer[map[programKey]*program]
}

// Headers are what is told beside an envelope; nil: there is no such header.
type Headers struct {
	Pos        []byte // tw.pos: change.AppendPos
	Unchanged  []byte // tw.unchanged: Encoder.AppendUnchanged
	Unknown    []byte // tw.unknown: Encoder.AppendUnknown
	Text       []byte // tw.text: Memo.Texts of the row after
	TextBefore []byte // tw.text.before: of the row before
	Before     []byte // tw.before: change.AppendPos
}

// programKey: the key's schema names the key's columns, so it belongs to it.
type programKey struct {
	topic      string
	value, key int32 // schema ids; 0: none
}

// NewDecoder makes a Decoder that fetches writer schemas from reg.
func NewDecoder(reg *Registry) *Decoder {
	d := &Decoder{reg: reg}
	d.programs.Store(&map[programKey]*program{})
	return d
}

// Append reads one record and appends the change that it holds to b; at is
// where it was read.
//
// A raw record (an envelope) gives Op, Old, New, XID and Time (the commit, in
// microseconds) as it says; Pos from its header, zero when there is none; the
// columns that its headers name as not sent become Unchanged, and those that
// they have as text get that. A raw tombstone appends nothing.
//
// A canonical record gives Update with New, or for a null value Delete with an
// Old row that holds the key, all else Unchanged; Pos is zero, but for records of
// tallywire's own topics, and Time millis*1000 (millis: the record's timestamp).
//
// Rejects: TW-AVRO-GARBAGE, TW-AVRO-UNKNOWN-SCHEMA, TW-AVRO-SCHEMA. With them,
// and with the registry's own errors, nothing was appended. Once the schemas of
// a topic are known it does not allocate beyond the Batch.
func (d *Decoder) Append(ctx context.Context, b *change.Batch, at change.Coord, key, value []byte, h Headers, millis int64) error {
	if value == nil {
		return d.appendTombstone(ctx, b, at, key, millis)
	}
	pk := programKey{topic: topicName(at)}
	var ok bool
	if pk.value, ok = wireID(value); !ok {
		return garbage(at, "the value does not start with a magic octet 0 and a schema id")
	}
	if key != nil {
		if pk.key, ok = wireID(key); !ok {
			return garbage(at, "the key does not start with a magic octet 0 and a schema id")
		}
	}
	p := (*d.programs.Load())[pk]
	if p == nil {
		var err error
		if p, err = d.compile(ctx, pk); err != nil {
			return err
		}
	}
	c := change.Change{Table: p.table, Time: millis * 1000, Coord: at}
	r := reader{p: value[5:], work: 16*len(value) + 1024}
	if p.raw {
		p.readEnvelope(&r, b, &c, &h)
	} else {
		c.Op = change.Update
		c.New = p.readRow(&r, b, p.after)
	}
	switch {
	case r.bad != "":
		return garbage(at, r.bad)
	case len(r.p) != 0:
		return garbage(at, "octets are left after the end of the value")
	}
	if p.placed && h.Pos != nil {
		var err error
		if c.Pos, err = change.ParsePos(h.Pos); err != nil {
			return garbage(at, "the header tw.pos is not a position")
		}
	}
	if c.Op == change.Sweep {
		before, err := change.ParsePos(h.Before)
		if err != nil || before.IsZero() {
			return garbage(at, "the header tw.before is not a position")
		}
		c.Before = &before
	}
	if c.Empties() && p.truncated != nil {
		c.Table = p.truncated
	}
	*b.Append(c.Table, c.Op) = c
	return nil
}

func (d *Decoder) appendTombstone(ctx context.Context, b *change.Batch, at change.Coord, key []byte, millis int64) error {
	if key == nil {
		return nil // a raw topic without a key has no tombstones that mean anything
	}
	pk := programKey{topic: topicName(at)}
	var ok bool
	if pk.key, ok = wireID(key); !ok {
		return garbage(at, "the key does not start with a magic octet 0 and a schema id")
	}
	p := (*d.programs.Load())[pk]
	if p == nil {
		var err error
		if p, err = d.compile(ctx, pk); err != nil {
			return err
		}
	}
	if p.raw {
		return nil
	}
	t := p.table
	r := reader{p: key[5:]}
	text := r.octets()
	if r.bad != "" || len(r.p) != 0 {
		return garbage(at, "the key is not a string")
	}
	row := b.Row(len(t.Columns))
	for i := range row {
		row[i] = change.UnchangedValue()
	}
	if len(t.Key) == 1 {
		row[t.Key[0]] = b.Span(change.String, text)
	} else {
		parts, ok := change.SplitKey(nil, text, len(t.Key))
		if !ok {
			return garbage(at, "the key has another number of parts than its contract")
		}
		for i, part := range parts {
			row[t.Key[i]] = b.Span(change.String, part)
		}
	}
	c := b.Append(t, change.Delete)
	c.Old, c.Time, c.Coord = row, millis*1000, at
	return nil
}

func topicName(at change.Coord) string {
	if at.Topic == nil {
		return ""
	}
	return at.Topic.Name
}

// wireID reads the head of Confluent's wire format.
func wireID(p []byte) (int32, bool) {
	if len(p) < 5 || p[0] != 0 {
		return 0, false
	}
	id := binary.BigEndian.Uint32(p[1:])
	return int32(id), id != 0 && id <= 1<<31-1
}

func garbage(at change.Coord, what string) error {
	return ErrGarbage.New("record at offset %d of partition %d of %s: %s", at.Offset, at.Partition, topicName(at), what)
}

// compile makes a program and keeps it.
func (d *Decoder) compile(ctx context.Context, pk programKey) (*program, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := *d.programs.Load()
	if p := old[pk]; p != nil {
		return p, nil
	}
	p, err := d.build(ctx, pk)
	if err != nil {
		return nil, err
	}
	const most = 4096 // schemas come from outside: bounded, and cheap to compile again
	now := make(map[programKey]*program, len(old)+1)
	if len(old) < most {
		for k, v := range old {
			now[k] = v
		}
	}
	now[pk] = p
	d.programs.Store(&now)
	return p, nil
}

func (d *Decoder) build(ctx context.Context, pk programKey) (*program, error) {
	var key *node
	if pk.key != 0 {
		n, err := d.schema(ctx, pk.key)
		if err != nil {
			return nil, err
		}
		key = n
	}
	if pk.value == 0 { // a tombstone
		if key.typ == "record" {
			return &program{raw: true}, nil
		}
		all, err := d.reg.contracts()
		if err != nil {
			return nil, ErrTable.New("reading the contracts: %w", err)
		}
		c := all[pk.topic]
		if c == nil {
			c = internalContract(pk.topic)
		}
		if c == nil || key.typ != "string" {
			return nil, ErrUnreadableSchema.New("a tombstone of topic %s, which has no contract", pk.topic)
		}
		return &program{table: c.Table}, nil
	}
	n, err := d.schema(ctx, pk.value)
	if err != nil {
		return nil, err
	}
	all, err := d.reg.contracts()
	if err != nil {
		return nil, ErrTable.New("reading the contracts: %w", err)
	}
	p, err := compileProgram(n, key, pk.topic, all)
	if err != nil {
		return nil, ErrUnreadableSchema.New("schema %d of topic %s: %w", pk.value, pk.topic, err)
	}
	if p.own && pk.key == 0 {
		last, err := d.reg.latest(ctx, pk.topic+"-key")
		if err != nil {
			return nil, err
		}
		if last != nil {
			// Where that names what the row does not have, it is of another shape,
			// and the truncate says nothing of a key.
			if t, err := compileProgram(n, last, pk.topic, all); err == nil {
				p.truncated = t.table
			}
		}
	}
	return p, nil
}

func (d *Decoder) schema(ctx context.Context, id int32) (*node, error) {
	text, err := d.reg.SchemaByID(ctx, id)
	if err != nil {
		return nil, err
	}
	n, err := parseSchema(text)
	if err != nil {
		return nil, ErrUnreadableSchema.New("schema %d: %w", id, err)
	}
	return n, nil
}

// compileProgram compiles a writer schema; key is the key's schema or nil. all
// are the contracts.
func compileProgram(n, key *node, topic string, all Catalogue) (*program, error) {
	if n.typ != "record" {
		return nil, fmt.Errorf("a %s, where a record is expected", n.typ)
	}
	if n.field("after") != nil && n.field("before") != nil && n.field("op") != nil {
		return compileEnvelope(n, key, topic)
	}
	p := &program{table: &change.Table{Name: entity(topic), Topic: topic, OldFull: true}, placed: internalContract(topic) != nil}
	if err := p.compileRow(&p.after, n); err != nil {
		return nil, err
	}
	p.table.Index()
	p.table.Key = keyOf(n, p.table)
	if p.table.Key == nil {
		if c := all[topic]; c != nil {
			for _, k := range c.Table.Key {
				i := p.table.Column(c.Table.Columns[k].Name)
				if i < 0 {
					return nil, fmt.Errorf("the key field %s of its contract is missing", c.Table.Columns[k].Name)
				}
				p.table.Key = append(p.table.Key, i)
			}
		}
	}
	return p, nil
}
