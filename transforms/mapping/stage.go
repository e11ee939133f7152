// The stage: rows are mapped in place, into the memory of their batch.

package mapping

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

// Stage maps. It has no state. Safe for concurrent use.
type Stage struct {
	name   string
	env    *pipeline.Env
	order  []*entry
	byFrom map[string]*entry

	mu    sync.Mutex // serialises compiling
	plans atomic.Pointer[map[*change.Table]*plan]
}

// entry is one mapping as configured.
type entry struct {
	from, path string
	to         *change.Table
	contract   []avro.Field // of each column of to
	sources    []source     // one per column of to
}

// keyPrefix is what all its keys begin with: the text before the first column.
func (e *entry) keyPrefix() string {
	switch src := &e.sources[e.to.Key[0]]; {
	case src.value != nil:
		return *src.value
	case len(src.between) > 0:
		return src.between[0]
	}
	return ""
}

// closed says that text is none of the values that field i may have.
func (e *entry) closed(i int, text string) *problem.Error {
	f := &e.contract[i]
	if f.Values == nil || slices.Contains(f.Values, text) {
		return nil
	}
	is := ""
	if f.Sensitivity == avro.Public || f.Sensitivity == avro.Internal {
		if is = fmt.Sprintf(" %q,", text); len(is) > 100 {
			is = is[:100] + "…,"
		}
	}
	p := ErrValue.New("field %s of %s is%s none of %s", f.Name, e.to.Topic, is, strings.Join(f.Values, ", "))
	if near := config.Nearest(text, slices.Clone(f.Values)); near != "" {
		p.Text += fmt.Sprintf("; did you mean %q?", near)
	}
	return p
}

// has reports whether a closed list has text, without allocating.
func (e *entry) has(i int, text []byte) bool {
	for _, v := range e.contract[i].Values {
		if v == string(text) {
			return true
		}
	}
	return false
}

// plan is an entry compiled for one shape of the source table.
type plan struct {
	e       *entry
	to      *change.Table
	fields  []field
	key     []int  // fields of the canonical key, as of to.Key
	keyCols []bool // per source column: part of the canonical key
	// inKey: all columns of the canonical key are in the source's key, so an
	// update without an old row did not change it.
	inKey bool
}

type field struct {
	kind    fieldKind
	cols    []int
	between []string
	value   string
	closed  bool // it must be one of the contract's values
}

type fieldKind uint8

const (
	same     fieldKind = iota // the value as it is
	asText                    // its canonical text
	template                  // texts of several
	constant
	nothing // null
)

func fieldNames(t *change.Table) []string {
	out := make([]string, len(t.Columns))
	for i := range t.Columns {
		out[i] = t.Columns[i].Name
	}
	return out
}

// From and To list the topics read and written.
func (s *Stage) From() []string {
	out := make([]string, len(s.order))
	for i, e := range s.order {
		out[i] = e.from
	}
	return out
}

func (s *Stage) To() []string {
	var out []string
	for _, e := range s.order {
		if !slices.Contains(out, e.to.Topic) {
			out = append(out, e.to.Topic)
		}
	}
	return out
}

// maxPlans bounds what is kept per shape; shapes come from outside.
const maxPlans = 1024

func (s *Stage) plan(t *change.Table) (*plan, error) {
	if m := s.plans.Load(); m != nil {
		if p := (*m)[t]; p != nil {
			return p, nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, bad := s.compile(t)
	if len(bad) > 0 {
		return nil, errors.Join(bad...)
	}
	now := map[*change.Table]*plan{t: p}
	if m := s.plans.Load(); m != nil && len(*m) < maxPlans {
		for k, v := range *m {
			now[k] = v
		}
	}
	s.plans.Store(&now)
	return p, nil
}

// compile fits an entry to a shape of its table, or says of each column that
// does not fit why not.
func (s *Stage) compile(t *change.Table) (*plan, []error) {
	e := s.byFrom[t.Topic]
	if e == nil {
		return nil, []error{ErrUnmapped.New("topic %s has no mapping in transform %s", t.Topic, s.name).At("transforms.%s.topics", s.name)}
	}
	p := &plan{e: e, to: e.to, key: e.to.Key, keyCols: make([]bool, len(t.Columns)), inKey: true}
	var bad []error
	for i := range e.sources {
		f, err := compileField(e, t, i)
		if err != nil {
			bad = append(bad, err)
		}
		p.fields = append(p.fields, f)
	}
	if len(bad) > 0 {
		return nil, bad
	}
	for _, k := range p.key {
		for _, c := range p.fields[k].cols {
			p.keyCols[c] = true
			if !contains(t.Key, c) {
				p.inKey = false
			}
		}
	}
	return p, nil
}

// compileField fits the source of field i to the columns of t.
func compileField(e *entry, t *change.Table, i int) (field, error) {
	src, target := &e.sources[i], &e.to.Columns[i]
	f := field{between: src.between, closed: e.contract[i].Values != nil}
	for _, name := range src.cols {
		c := t.Column(name)
		if c < 0 && !src.named && target.Nullable {
			f.kind = nothing
			return f, nil
		}
		if c < 0 {
			err := ErrColumn.New("%s has no column %q for field %s of %s", t.Topic, name, target.Name, e.to.Topic).At("%s", src.path)
			if near := config.Nearest(name, fieldNames(t)); near != "" {
				err.WithRemedy("Did you mean %s?", near)
			}
			return f, err
		}
		f.cols = append(f.cols, c)
	}
	switch {
	case src.value != nil:
		f.kind, f.value = constant, *src.value
	case len(src.between) > 0:
		f.kind = template
	default:
		col := &t.Columns[f.cols[0]]
		switch {
		case col.Kind == target.Kind:
			f.kind = same
		case target.Kind == change.Decimal && col.Kind == change.Int:
			f.kind = same // the encoder writes it at the contract's scale
		case target.Kind == change.String && col.Kind != change.Bytes && col.Kind != change.Array:
			f.kind = asText
		default:
			return f, ErrColumn.New("column %s of %s is %s, field %s of %s is %s", col.Name, t.Topic, col.Type, target.Name, e.to.Topic, target.Type).At("%s", src.path)
		}
	}
	return f, nil
}

func contains(list []int, x int) bool {
	for _, v := range list {
		if v == x {
			return true
		}
	}
	return false
}

// scratch is memory for texts.
type scratch struct{ text, oldKey, newKey []byte }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// Apply maps each change where it stands. A change of the canonical key becomes
// two: a delete of the old key, then the new record.
func (s *Stage) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	var (
		last *change.Table
		p    *plan
		more []change.Change // from the first change of a key on: the batch anew
		drop bool
	)
	for i := range in.Changes {
		c := &in.Changes[i]
		if c.Table != last {
			var err error
			if p, err = s.plan(c.Table); err != nil {
				in.Release()
				return err
			}
			last = c.Table
		}
		moved, err := p.apply(in, c, sc)
		if err != nil {
			out.Reject(c, err)
			c.Op = rejected
			drop = true
		}
		if moved != nil && more == nil {
			more = append(make([]change.Change, 0, in.Len()+8), in.Changes[:i]...)
		}
		if moved != nil {
			d := *c
			d.Op, d.Old, d.New = change.Delete, moved, nil
			more = append(more, d)
		}
		if more != nil {
			more = append(more, *c)
		}
	}
	if more != nil {
		in.Changes = append(in.Changes[:0], more...)
	}
	if drop {
		in.Keep(func(c *change.Change) bool { return c.Op != rejected })
	}
	return out.Send(ctx, in)
}

// rejected marks a change that is to be dropped.
const rejected change.Op = 0

// apply maps c; moved is the row with the old key, if the key changed. On an
// error c is as it was.
func (p *plan) apply(b *change.Batch, c *change.Change, sc *scratch) (moved []change.Value, err error) {
	switch c.Op {
	case change.Truncate:
		return nil, ErrTruncate.New("table %s.%s was truncated", c.Table.Schema, c.Table.Name)
	case change.Message:
		return nil, ErrMessage.New("a logical message in %s", c.Table.Topic)
	case change.Delete:
		row, err := p.keyRow(b, c, c.Old, sc)
		if err != nil {
			return nil, err
		}
		c.Table, c.Old, c.New = p.to, row, nil
		return nil, nil
	}
	if c.New == nil {
		return nil, ErrNull.New("a change of %s without a row", c.Table.Topic)
	}
	row := b.Row(len(p.fields))
	for i := range p.fields {
		if row[i], err = p.value(b, c, i, c.New, sc); err != nil {
			return nil, err
		}
	}
	if c.Op == change.Update {
		if moved, err = p.moved(b, c, row, sc); err != nil {
			return nil, err
		}
	}
	c.Table, c.Old, c.New = p.to, nil, row
	return moved, nil
}

// moved gives the row with the old canonical key if the update changed it.
func (p *plan) moved(b *change.Batch, c *change.Change, row []change.Value, sc *scratch) ([]change.Value, error) {
	if c.Old == nil {
		if p.inKey {
			return nil, nil
		}
		return nil, p.unchanged(c, p.key[0], "the old row")
	}
	// Compare the texts of the columns first: hardly ever is there a change.
	sc.oldKey, sc.newKey = sc.oldKey[:0], sc.newKey[:0]
	for col, in := range p.keyCols {
		if !in {
			continue
		}
		if c.Old[col].IsUnchanged() {
			if contains(c.Table.Key, col) {
				continue // an old row of which only another part is known
			}
			return nil, p.unchanged(c, p.key[0], "the old value of "+c.Table.Columns[col].Name)
		}
		sc.oldKey = append(b.AppendText(sc.oldKey, c.Old[col]), 0)
		sc.newKey = append(b.AppendText(sc.newKey, c.New[col]), 0)
	}
	if bytes.Equal(sc.oldKey, sc.newKey) {
		return nil, nil
	}
	old, err := p.keyRow(b, c, c.Old, sc)
	if err != nil {
		return nil, err
	}
	sc.oldKey = change.AppendKeyRow(sc.oldKey[:0], b, p.to, old)
	sc.newKey = change.AppendKeyRow(sc.newKey[:0], b, p.to, row)
	if bytes.Equal(sc.oldKey, sc.newKey) {
		return nil, nil
	}
	return old, nil
}

// keyRow is a canonical row of which only the key is known.
func (p *plan) keyRow(b *change.Batch, c *change.Change, from []change.Value, sc *scratch) ([]change.Value, error) {
	if from == nil {
		return nil, p.unchanged(c, p.key[0], "the old row")
	}
	row := b.Row(len(p.fields))
	for i := range row {
		row[i] = change.UnchangedValue()
	}
	for _, k := range p.key {
		v, err := p.value(b, c, k, from, sc)
		if err != nil {
			return nil, err
		}
		row[k] = v
	}
	return row, nil
}

func (p *plan) unchanged(c *change.Change, field int, what string) *problem.Error {
	return ErrUnchanged.New("%s did not send %s, needed for field %s of %s", c.Table.Topic, what, p.to.Columns[field].Name, p.to.Topic).
		WithRemedy("Run ALTER TABLE %s.%s REPLICA IDENTITY FULL, then touch the row (any update).", c.Table.Schema, c.Table.Name)
}

// value makes field i from a source row.
func (p *plan) value(b *change.Batch, c *change.Change, i int, from []change.Value, sc *scratch) (change.Value, error) {
	f := &p.fields[i]
	target := &p.to.Columns[i]
	switch f.kind {
	case constant:
		return b.SpanString(change.String, f.value), nil
	case nothing:
		return change.NullValue(), nil
	}
	null := false
	for _, col := range f.cols {
		switch v := from[col]; {
		case v.IsUnchanged():
			// What an update did not send is in its old row, if that is whole.
			if c.Old != nil && len(from) > 0 && len(c.Old) == len(from) && &c.Old[0] != &from[0] && !c.Old[col].IsUnchanged() {
				from[col] = c.Old[col]
				null = null || from[col].IsNull()
				continue
			}
			return change.Value{}, p.unchanged(c, i, "column "+c.Table.Columns[col].Name)
		case v.IsNull():
			null = true
		}
	}
	if null {
		if !target.Nullable {
			return change.Value{}, ErrNull.New("field %s of %s must not be null: %s of %s is", target.Name, p.to.Topic, strings.Join(names(c.Table, f.cols), ", "), c.Table.Topic)
		}
		return change.NullValue(), nil
	}
	switch f.kind {
	case same:
		if !f.closed {
			return from[f.cols[0]], nil
		}
		sc.text = b.AppendText(sc.text[:0], from[f.cols[0]])
	case asText:
		sc.text = b.AppendText(sc.text[:0], from[f.cols[0]])
	case template:
		sc.text = append(sc.text[:0], f.between[0]...)
		for j, col := range f.cols {
			sc.text = append(b.AppendText(sc.text, from[col]), f.between[j+1]...)
		}
	}
	if f.closed && !p.e.has(i, sc.text) {
		return change.Value{}, p.e.closed(i, string(sc.text))
	}
	return b.Span(change.String, sc.text), nil
}

func names(t *change.Table, cols []int) []string {
	out := make([]string, len(cols))
	for i, c := range cols {
		out[i] = t.Columns[c].Name
	}
	return out
}
