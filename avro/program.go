// Program: what the decoder does for one writer schema.

package avro

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
)

// program reads the records of one writer schema.
type program struct {
	raw    bool
	placed bool // its header says where the source has the change
	own    bool // written by tallywire: the header alone tells what is unchanged
	table  *change.Table
	// truncated is the table with its key as the registry had it last, of records
	// without a key; nil: none is known.
	truncated *change.Table
	steps     []step // raw: the envelope's fields
	after     []codec
	before    []codec
	keyOnly   bool // Old rows hold only the key: other nulls are Unchanged
	isKey     []bool
}

// step is one field of an envelope or of its source.
type step struct {
	do   what
	null int8
	of   *node // skip
	sub  []step
}

type what uint8

const (
	doSkip what = iota
	doBefore
	doAfter
	doOp
	doSource
	doMillis
	doMicros
	doXID
)

// compileRow compiles a record's fields into codecs whose columns are those of
// p.table, which it fills on first use.
func (p *program) compileRow(into *[]codec, n *node) error {
	if n.typ != "record" {
		return fmt.Errorf("a row that is a %s, not a record", n.typ)
	}
	fill := p.table.Columns == nil
	for i := range n.fields {
		col, c, err := columnOf(&n.fields[i])
		if err != nil {
			return fmt.Errorf("field %s: %w", n.fields[i].name, err)
		}
		c.at = i
		if fill {
			p.table.Columns = append(p.table.Columns, col)
		} else if i >= len(p.table.Columns) || p.table.Columns[i].Name != col.Name || p.table.Columns[i].Kind != col.Kind {
			return fmt.Errorf("before and after are of different shapes")
		}
		*into = append(*into, c)
	}
	return nil
}

func compileEnvelope(n, key *node, topic string) (*program, error) {
	p := &program{raw: true, placed: true, table: &change.Table{Topic: topic}}
	t := p.table
	parts := strings.Split(topic, ".")
	if len(parts) == 3 {
		t.Source, t.Schema, t.Name = parts[0], parts[1], parts[2]
	} else {
		t.Source, t.Name = parts[0], entity(topic)
	}
	if a, ok := n.props[attrTable]; ok {
		text, err := json.Marshal(a)
		if err != nil {
			return nil, fmt.Errorf("reading the attribute %s: %w", attrTable, err)
		}
		var attr tableAttr
		if err := json.Unmarshal(text, &attr); err != nil {
			return nil, fmt.Errorf("reading the attribute %s: %w", attrTable, err)
		}
		t.Source, t.Database, t.Schema, t.Name, t.OldFull = attr.Source, attr.Database, attr.Schema, attr.Name, attr.OldFull
		p.own, p.keyOnly = true, !attr.OldFull
	}
	for i := range n.fields {
		f := &n.fields[i]
		of, null, err := f.typ.optional()
		if err != nil { // a union that only skipping understands
			p.steps = append(p.steps, step{do: doSkip, of: f.typ})
			continue
		}
		s := step{do: doSkip, of: f.typ}
		switch f.name {
		case "before":
			s = step{do: doBefore, null: int8(null)}
			err = p.compileRow(&p.before, of)
		case "after":
			s = step{do: doAfter, null: int8(null)}
			err = p.compileRow(&p.after, of)
		case "op":
			if of.typ != "string" || null >= 0 {
				return nil, fmt.Errorf("op is no string")
			}
			s = step{do: doOp}
		case "source":
			if of.typ == "record" && null < 0 {
				s = step{do: doSource, sub: compileSource(of)}
				t.Connector = connectorOf(of)
			}
		}
		if err != nil {
			return nil, err
		}
		p.steps = append(p.steps, s)
	}
	t.Index()
	p.isKey = make([]bool, len(t.Columns))
	if key != nil && key.typ == "record" {
		for i := range key.fields {
			name := key.fields[i].name
			if s, ok := key.fields[i].props[attrName].(string); ok {
				name = s
			}
			at := t.Column(name)
			if at < 0 {
				return nil, fmt.Errorf("the key field %s is not in the row", name)
			}
			t.Key = append(t.Key, at)
			p.isKey[at] = true
		}
	}
	return p, nil
}

// connectorOf reads a connector back from its source block, for a stage that
// passes rows on as they are. Its version stands in each record, not here.
func connectorOf(n *node) *change.Connector {
	space := strings.TrimSuffix(n.name, ".Source")
	c := &change.Connector{Name: space[strings.LastIndexByte(space, '.')+1:]}
	for i := range n.fields {
		f := &n.fields[i]
		if slices.Contains(commonSource, f.name) {
			continue
		}
		if of, null, err := f.typ.optional(); err != nil || null < 0 || of.typ != "long" {
			continue
		}
		own := change.SourceField{Name: f.name}
		switch f.name {
		case "txId":
			own.Of = change.SourceXID
		case "lsn":
			own.Of = change.SourceLSN
		}
		c.Fields = append(c.Fields, own)
	}
	return c
}

func compileSource(n *node) []step {
	var steps []step
	for i := range n.fields {
		f := &n.fields[i]
		s := step{do: doSkip, of: f.typ}
		if of, null, err := f.typ.optional(); err == nil && of.typ == "long" {
			switch f.name {
			case "ts_ms":
				s = step{do: doMillis, null: int8(null)}
			case "ts_us":
				s = step{do: doMicros, null: int8(null)}
			case "txId":
				s = step{do: doXID, null: int8(null)}
			}
		}
		steps = append(steps, s)
	}
	return steps
}

// readEnvelope fills c.
func (p *program) readEnvelope(r *reader, b *change.Batch, c *change.Change, h *Headers) {
	for i := range p.steps {
		s := &p.steps[i]
		switch s.do {
		case doSkip:
			r.skip(s.of, 0)
		case doBefore:
			if r.present(s.null) {
				c.Old = p.readRow(r, b, p.before)
			}
		case doAfter:
			if r.present(s.null) {
				c.New = p.readRow(r, b, p.after)
			}
		case doOp:
			if op := r.octets(); len(op) == 1 {
				c.Op = change.Op(op[0])
			} else {
				r.fail("op is not one letter")
			}
		case doSource:
			p.readSource(r, c, s.sub)
		}
		if r.bad != "" {
			return
		}
	}
	switch c.Op {
	case change.Read, change.Create, change.Update:
		if c.New == nil {
			r.fail("op needs a row after it")
		}
	case change.Delete:
		if c.Old == nil || c.New != nil {
			r.fail("a delete needs a row before it, and none after")
		}
	case change.Truncate, change.Sweep:
		c.Old, c.New = nil, nil
	default:
		r.fail("op is none of r, c, u, d, t, s")
	}
	if r.bad != "" {
		return
	}
	if c.Old != nil && p.keyOnly {
		for i := range c.Old {
			if c.Old[i].IsNull() && !p.isKey[i] {
				c.Old[i] = change.UnchangedValue()
			}
		}
	}
	if c.Old != nil && p.own {
		p.mark(r, c.Old, h.Unknown, "tw.unknown")
		p.setTexts(r, b, c.Old, h.TextBefore, "tw.text.before")
	}
	if c.New != nil {
		if len(h.Unchanged) > 0 || p.own {
			p.mark(r, c.New, h.Unchanged, "tw.unchanged")
		} else {
			p.markPlaceholders(b, c.New)
		}
		if p.own {
			p.setTexts(r, b, c.New, h.Text, "tw.text")
		}
	}
}

// setTexts puts the values that their types cannot hold where they belong.
func (p *program) setTexts(r *reader, b *change.Batch, row []change.Value, header []byte, name string) {
	if len(header) == 0 {
		return
	}
	var texts map[string]string
	if err := json.Unmarshal(header, &texts); err != nil {
		r.fail("the header " + name + " is no JSON object of texts")
		return
	}
	for column, text := range texts {
		at := p.table.Column(column)
		if at < 0 {
			r.fail("the header " + name + " names a column that the row does not have")
			return
		}
		if row[at] = b.SpanString(change.Text, text); p.table.Columns[at].Kind == change.Decimal {
			d := reader{p: appendString(nil, text)}
			if v := readDecimalText(&d, b); d.bad == "" {
				row[at] = v
			}
		}
	}
}

func (p *program) readSource(r *reader, c *change.Change, steps []step) {
	exact := false
	for i := range steps {
		s := &steps[i]
		if s.do == doSkip {
			r.skip(s.of, 0)
			continue
		}
		if !r.present(s.null) {
			continue
		}
		n := r.long()
		switch s.do {
		case doMillis:
			if !exact {
				c.Time = n * 1000
			}
		case doMicros:
			c.Time, exact = n, true
		case doXID:
			c.XID = uint32(n)
		}
	}
}

// markPlaceholders is for a record of another writer, which has only Debezium's
// placeholder to tell what was not sent.
func (p *program) markPlaceholders(b *change.Batch, row []change.Value) {
	for i, v := range row {
		c := &p.after[i]
		if (c.form == fString || c.form == fBytes) && v.Kind() == c.kind && string(b.Bytes(v)) == placeholder {
			row[i] = change.UnchangedValue()
		}
	}
}

// mark makes the columns Unchanged that a header names.
func (p *program) mark(r *reader, row []change.Value, header []byte, of string) {
	for len(header) > 0 {
		n, escaped := 0, false
		for n < len(header) && header[n] != ',' {
			if header[n] == '\\' {
				n, escaped = n+1, true
			}
			n++
		}
		n = min(n, len(header))
		name := header[:n]
		header = header[min(n+1, len(header)):]
		if escaped {
			plain := make([]byte, 0, len(name))
			for i := 0; i < len(name); i++ {
				if name[i] == '\\' && i+1 < len(name) {
					i++
				}
				plain = append(plain, name[i])
			}
			name = plain
		}
		at := p.table.ColumnBytes(name)
		if at < 0 {
			r.fail("the header " + of + " names a column that the row does not have")
			return
		}
		row[at] = change.UnchangedValue()
	}
}

func (p *program) readRow(r *reader, b *change.Batch, cols []codec) []change.Value {
	row := b.Row(len(cols))
	for i := range cols {
		c := &cols[i]
		if c.null >= 0 && !r.present(c.null) {
			continue
		}
		row[c.at] = c.read(r, b)
		if r.bad != "" {
			return nil
		}
	}
	return row
}
