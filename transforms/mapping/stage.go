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
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/join"
)

// Stage maps. It has no state, and is safe for concurrent use, unless it is to
// Remember what rows gave.
type Stage struct {
	given  *given // nil: nothing is remembered
	name   string
	env    *pipeline.Env
	codes  codes.Lists
	order  []*entry
	looked []*entry // rules with lookups, which others apply
	inner  bool     // it is one of those
	byFrom map[string][]*entry
	// progress is how far the group of the transform's name has read a raw topic.
	progress func(ctx context.Context, topic string) ([]progress, error)
	ends     func(ctx context.Context, t *change.Topic) ([]int64, error) // of a changelog

	mu    sync.Mutex // serialises compiling
	plans atomic.Pointer[map[*change.Table][]*plan]
}

// plan is an entry compiled for one shape of the source table.
type plan struct {
	e         *entry
	to        *change.Table
	each      *expr.Program // nil: a row gives one record
	where     *expr.Program // nil: every row
	whereCols []int
	fields    []field
	key       []int  // fields of the canonical key, as of to.Key
	keyCols   []bool // per source column: part of the canonical key, or of the list that it tells apart
	// inKey: all columns of the canonical key are in the source's key, so an
	// update without an old row did not change it.
	inKey bool
	// gives: what a row gave is remembered, since its update may move it.
	gives bool
	waits int           // column that tells what a wide row waits for; −1: it is none
	table *change.Table // of whose rows it keeps some
}

// From and To list the topics read and written.
func (s *Stage) From() []string {
	var out []string
	for _, e := range s.order {
		if !slices.Contains(out, e.from) {
			out = append(out, e.from)
		}
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

// of are the rules of a table's topic, compiled for its shape.
func (s *Stage) of(t *change.Table) ([]*plan, error) {
	if m := s.plans.Load(); m != nil {
		if p := (*m)[t]; p != nil {
			return p, nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ps, bad := s.compile(t)
	if len(bad) > 0 {
		return nil, errors.Join(bad...)
	}
	now := map[*change.Table][]*plan{t: ps}
	if m := s.plans.Load(); m != nil && len(*m) < maxPlans {
		for k, v := range *m {
			now[k] = v
		}
	}
	s.plans.Store(&now)
	return ps, nil
}

// compile fits the rules of a table's topic to its shape, or says of each column
// that does not fit why not.
func (s *Stage) compile(t *change.Table) (ps []*plan, bad []error) {
	rules := s.byFrom[t.Topic]
	if len(rules) == 0 {
		return nil, []error{ErrUnmapped.New("topic %s has no mapping in transform %s", t.Topic, s.name).At("transforms.%s.topics", s.name)}
	}
	for _, e := range rules {
		p, errs := s.fit(e, t)
		ps, bad = append(ps, p), append(bad, errs...)
	}
	return ps, bad
}

// fit compiles one rule.
func (s *Stage) fit(e *entry, t *change.Table) (*plan, []error) {
	if e.rows != nil {
		return s.fitRows(e, t)
	}
	p := &plan{e: e, to: e.to, key: e.to.Key, keyCols: make([]bool, len(t.Columns)), inKey: true, waits: -1}
	var bad []error
	scope := expr.Scope{Row: t, Codes: s.codes}
	if e.look != nil {
		p.waits, scope.Roots = t.Column(join.WaitsColumn), e.look.plan.Roots()
	}
	if e.each != "" {
		l, mistakes := expr.List(e.each, scope)
		bad = append(bad, told(ErrColumn, e.path+".each", mistakes)...)
		if scope.Each, scope.List = true, l; l != nil {
			p.each = l
			for _, c := range l.Columns {
				p.keyCols[c] = true
				p.inKey = p.inKey && slices.Contains(t.Key, c)
			}
		}
	}
	if e.where != "" {
		w, mistakes := expr.Condition(e.where, scope)
		bad = append(bad, told(ErrColumn, e.path+".where", mistakes)...)
		if w != nil {
			p.where, p.whereCols = w, w.Columns
		}
	}
	for i := range e.sources {
		f, errs := compileField(e, scope, i)
		bad = append(bad, errs...)
		p.fields = append(p.fields, f)
	}
	if len(bad) > 0 {
		return nil, bad
	}
	for _, k := range p.key {
		for _, c := range p.fields[k].cols {
			p.keyCols[c] = true
			if !slices.Contains(t.Key, c) {
				p.inKey = false
			}
		}
	}
	p.gives = s.given != nil && (e.claims || !p.inKey) && len(t.Key) > 0
	if e.look != nil {
		p.inKey, p.gives = false, s.given != nil
		return p, nil // the key was held against that of the table already
	}
	// A key that does not hold that of the source could be handed from one row to
	// another. The halves of that lie in different partitions, and when the delete
	// comes last the record is lost (F5), unless they are claims. Rows without a
	// key share a partition, and are none that could claim.
	var missing []string
	for _, c := range t.Key {
		if !slices.ContainsFunc(p.key, func(k int) bool { return slices.Contains(p.fields[k].cols, c) }) {
			missing = append(missing, t.Columns[c].Name)
		}
	}
	if e.claims && len(t.Key) == 0 {
		return nil, []error{ErrKey.New("%s has no primary key: its rows cannot claim keys of %s", t.Topic, e.to.Topic).At("%s.claims", e.path).
			WithRemedy("Give %s a primary key.", t.SQLName())}
	}
	if len(missing) > 0 && !e.claims {
		first := p.key[0]
		return nil, []error{ErrKey.New("the key of %s does not say %s, the primary key of %s: two rows could give the same key, one after the other, and a record would be lost", e.to.Topic, strings.Join(missing, ", "), t.Topic).
			At("%s", e.sources[first].path)}
	}
	return p, nil
}

// scratch is memory for texts, and what expressions run on.
type scratch struct {
	text, oldKey, newKey []byte
	row                  expr.Row
	given                map[string]bool // keys of a row's elements
	known                bool            // what the row gave before is remembered
}

// knows says whether what an error says is missing of an old row is remembered.
func (sc *scratch) knows(err error) bool { return sc.known && problem.Has(err, ErrUnchanged) }

func (sc *scratch) over(b *change.Batch, row []change.Value) *expr.Row {
	sc.row.Batch, sc.row.Of = b, row
	return &sc.row
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// Apply maps each change where it stands. A change becomes several when several
// rules read it, and when its canonical key changed: a delete of the old key,
// then the new record.
func (s *Stage) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	sc := scratches.Get().(*scratch)
	defer func() {
		sc.row = expr.Row{}
		scratches.Put(sc)
	}()
	var (
		last *change.Table
		ps   []*plan
		more []change.Change // from the first change that becomes several on: the batch anew
		drop bool

		one     bool // a row gives one record at most
		kept    bool // what it gave is remembered
		several []change.Change
	)
	if s.given != nil {
		if err := s.given.fetch(ctx, s, in); err != nil {
			in.Release()
			return err
		}
	}
	for i := range in.Changes {
		c := &in.Changes[i]
		if c.Table != last {
			var err error
			if ps, err = s.of(c.Table); err != nil {
				err = at(err, c)
				in.Release()
				return err
			}
			last, kept = c.Table, remembers(ps)
			one = len(ps) == 1 && ps[0].each == nil && !kept
		}
		var moved []change.Value
		var err error
		switch {
		case one:
			moved, err = ps[0].apply(in, c, sc)
		case kept:
			several, err = s.given.bySeveral(several[:0], in, c, s.given.keys[i], ps, sc)
		default:
			several, err = bySeveral(several[:0], in, c, ps, sc)
		}
		if err != nil {
			out.Reject(c, err)
			c.Op = dropped
		}
		drop = drop || c.Op == dropped
		if more == nil && (moved != nil || !one) {
			more = append(make([]change.Change, 0, in.Len()+8), in.Changes[:i]...)
		}
		switch {
		case more == nil:
		case err == nil && !one:
			more = append(more, several...)
		default:
			more = appendMoved(more, c, moved)
		}
	}
	if more != nil {
		in.Changes = append(in.Changes[:0], more...)
	}
	if drop {
		in.Keep(func(c *change.Change) bool { return c.Op != dropped })
	}
	return out.Send(ctx, in)
}

// at says at which record the rules did not fit: it may be older than they are.
func at(err error, c *change.Change) error {
	if e := problem.Of(err); e != nil && c.Coord.Topic != nil {
		e.Text += fmt.Sprintf("; so says the schema of the record at offset %d of partition %d", c.Coord.Offset, c.Coord.Partition)
		if c.Time != 0 {
			e.Text += ", of " + time.UnixMicro(c.Time).UTC().Format(time.DateTime)
		}
	}
	return err
}

// bySeveral appends what becomes of c by all rules of its topic: together, or an
// error. c stays as it is.
func bySeveral(dst []change.Change, b *change.Batch, c *change.Change, ps []*plan, sc *scratch) ([]change.Change, error) {
	for _, p := range ps {
		var err error
		if p.lists(c) {
			if dst, err = p.items(dst, b, c, sc); err != nil {
				return dst, err
			}
			continue
		}
		d := *c
		moved, err := p.apply(b, &d, sc)
		if err != nil {
			return dst, err
		}
		dst = appendMoved(dst, &d, moved)
	}
	return dst, nil
}

// appendMoved appends c, after the delete of the row with its old key, if it has one.
func appendMoved(dst []change.Change, c *change.Change, moved []change.Value) []change.Change {
	if moved != nil {
		d := *c
		d.Op, d.Old, d.New = change.Delete, moved, nil
		dst = append(dst, d)
	}
	if c.Op == dropped {
		return dst
	}
	return append(dst, *c)
}

// dropped marks a change of which nothing goes on: it was rejected, or it is of a
// row that never was there.
const dropped change.Op = 0

// apply maps c by one rule; moved is the row with the old key, if the key
// changed. A row for which the condition does not hold is deleted, or dropped
// when it has no key.
func (p *plan) apply(b *change.Batch, c *change.Change, sc *scratch) (moved []change.Value, err error) {
	switch c.Op {
	case change.Sweep:
		if p.e.claims {
			return nil, ErrSweep.New("rows of %s are gone that the stream did not tell of, and its rows claim keys of %s", c.Table.Topic, p.to.Topic)
		}
		c.Table = p.to
		return nil, nil
	case change.Truncate:
		if p.e.claims {
			return nil, ErrTruncate.New("%s was truncated, whose rows claim keys of %s", c.Table.Topic, p.to.Topic)
		}
		c.Table = p.to // a key is given by this partition alone; see fit
		return nil, nil
	case change.Message:
		return nil, ErrMessage.New("a logical message in %s", c.Table.Topic)
	case change.Delete:
		row, err := p.gone(b, c, c.Old, sc)
		if err != nil && !sc.knows(err) {
			return nil, err
		}
		p.leave(c, row)
		return nil, nil
	}
	if c.New == nil {
		return nil, ErrNull.New("a change of %s without a row", c.Table.Topic)
	}
	row, in, err := p.make(b, c, sc)
	if err == nil && !in {
		if row, err = p.gone(b, c, c.New, sc); sc.knows(err) || p.waitsFor(c.New) && sc.known {
			err = nil // what it gave is remembered
		}
	}
	if err != nil {
		return nil, err
	}
	if c.Op == change.Update {
		if moved, err = p.moved(b, c, row, sc); err != nil {
			return nil, err
		}
	}
	if !in {
		// Whether its record was there before is not known here: before the
		// update, or by another version of the rule.
		p.leave(c, row)
		return moved, nil
	}
	c.Table, c.Old, c.New = p.to, nil, row
	return moved, nil
}

// leave makes c the delete of the canonical row that has the key of row; nil:
// there is none.
func (p *plan) leave(c *change.Change, row []change.Value) {
	if c.Table, c.Old, c.New = p.to, row, nil; row == nil {
		c.Op = dropped
		return
	}
	c.Op = change.Delete
}

// row maps all fields.
func (p *plan) row(b *change.Batch, c *change.Change, sc *scratch) (row []change.Value, err error) {
	row = b.Row(len(p.fields))
	for i := range p.fields {
		if f := &p.fields[i]; f.kind == same && !f.closed {
			if v := c.New[f.col]; !v.IsNull() && !v.IsUnchanged() {
				row[i] = v
				continue
			}
		}
		if row[i], err = p.value(b, c, i, c.New, sc); err != nil {
			return nil, err
		}
	}
	return row, nil
}

// gone is keyRow of a row that is not there any more; nil: it never was, since
// its key is null, or has no value and the condition does not let it in.
func (p *plan) gone(b *change.Batch, c *change.Change, from []change.Value, sc *scratch) ([]change.Value, error) {
	row, err := p.keyRow(b, c, from, sc)
	if problem.Has(err, ErrNull) {
		return nil, nil
	}
	if problem.Has(err, ErrExpr) {
		if in, no := p.holds(b, c, from, sc); no == nil && !in {
			return nil, nil
		}
	}
	return row, err
}

// holds says whether a row is there for this rule.
func (p *plan) holds(b *change.Batch, c *change.Change, row []change.Value, sc *scratch) (bool, error) {
	if p.where == nil {
		return true, nil
	}
	for _, col := range p.whereCols {
		if !sent(c, row, col) {
			return false, p.unsent(c, "the condition of "+p.to.Topic, "column "+c.Table.Columns[col].Name)
		}
	}
	in, err := p.where.Holds(sc.over(b, row))
	if err != nil {
		return false, ErrExpr.New("the condition of %s, %s: %s", p.to.Topic, p.where.Text, what(err, false)).At("%s.where", p.e.path)
	}
	return in, nil
}

// sent fills a column that an update did not send from its old row, and says
// whether it is known then.
func sent(c *change.Change, from []change.Value, col int) bool {
	if !from[col].IsUnchanged() {
		return true
	}
	if c.Old == nil || len(from) == 0 || len(c.Old) != len(from) || &c.Old[0] == &from[0] || c.Old[col].IsUnchanged() {
		return false
	}
	from[col] = c.Old[col]
	return true
}

// what says why an expression failed, with values where they may be shown.
func what(err error, shown bool) string {
	f := &expr.Failure{}
	switch {
	case !errors.As(err, &f):
		return err.Error()
	case f.Value == "" || !shown:
		return f.What
	}
	value := f.Value
	if len(value) > 100 {
		value = value[:100] + "…"
	}
	return fmt.Sprintf("%s: %q", f.What, value)
}

// moved gives the row with the old canonical key if the update changed it; row
// nil: it has no key now.
func (p *plan) moved(b *change.Batch, c *change.Change, row []change.Value, sc *scratch) ([]change.Value, error) {
	is, err := p.rekeyed(b, c, sc)
	if sc.knows(err) {
		return nil, nil
	}
	if err != nil || !is {
		return nil, err
	}
	old, err := p.gone(b, c, c.Old, sc)
	if sc.knows(err) {
		return nil, nil
	}
	if err != nil || old == nil || row == nil {
		return old, err
	}
	sc.oldKey = change.AppendKeyRow(sc.oldKey[:0], b, p.to, old)
	sc.newKey = change.AppendKeyRow(sc.newKey[:0], b, p.to, row)
	if bytes.Equal(sc.oldKey, sc.newKey) {
		return nil, nil
	}
	return old, nil
}

// rekeyed says whether an update changed a column of which the key is made.
func (p *plan) rekeyed(b *change.Batch, c *change.Change, sc *scratch) (bool, error) {
	if c.Old == nil {
		if p.inKey {
			return false, nil
		}
		return false, p.unchanged(c, p.key[0], "the old row")
	}
	// Compare the columns first: hardly ever is there a change.
	sc.oldKey, sc.newKey = sc.oldKey[:0], sc.newKey[:0]
	for col, in := range p.keyCols {
		if !in {
			continue
		}
		was, is := c.Old[col], c.New[col]
		switch {
		case is.IsUnchanged(): // as it was
		case was.IsUnchanged():
			if slices.Contains(c.Table.Key, col) {
				continue // an old row of which only another part is known
			}
			return false, p.unchanged(c, p.key[0], "the old value of "+c.Table.Columns[col].Name)
		case was != is: // texts lie in two places
			sc.oldKey = append(b.AppendText(sc.oldKey, was), isNull(was))
			sc.newKey = append(b.AppendText(sc.newKey, is), isNull(is))
		}
	}
	return !bytes.Equal(sc.oldKey, sc.newKey), nil
}

// isNull ends a text, so that null is not an empty one.
func isNull(v change.Value) byte {
	if v.IsNull() {
		return 1
	}
	return 0
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
	return p.unsent(c, "field "+p.to.Columns[field].Name+" of "+p.to.Topic, what)
}

func (p *plan) unsent(c *change.Change, who, what string) *problem.Error {
	err := ErrUnchanged.New("%s did not send %s, needed for %s", c.Table.Topic, what, who).
		WithRemedy("Run ALTER TABLE %s REPLICA IDENTITY FULL (not while columns of it are left out at the source: its updates would fail), then touch the row (any update).", c.Table.SQLName())
	if p.gives {
		err.WithRemedy("What a row gave is not known, since not all records of the topic were seen: tallywire replay TRANSFORM --yes reads them from the start. Where they are gone, or this is a large value that was not sent: %s", err.WhatToDo())
	}
	return err
}

// value makes field i from a source row.
func (p *plan) value(b *change.Batch, c *change.Change, i int, from []change.Value, sc *scratch) (change.Value, error) {
	f := &p.fields[i]
	target := &p.to.Columns[i]
	switch f.kind {
	case constantText:
		return b.SpanString(change.String, f.text), nil
	case constantValue:
		if !f.value.IsNull() || target.Nullable {
			return f.value, nil
		}
	}
	null := f.kind == constantValue
	for _, col := range f.cols {
		if !sent(c, from, col) {
			return change.Value{}, p.unchanged(c, i, "column "+c.Table.Columns[col].Name)
		}
		null = null || from[col].IsNull() && f.kind != packed
	}
	var computedValue change.Value
	if f.kind == computed {
		var err error
		if computedValue, err = f.program.Value(sc.over(b, from), target); err != nil {
			return change.Value{}, ErrExpr.New("field %s of %s: %s", target.Name, p.to.Topic, what(err, p.e.shown(i))).At("%s", p.e.sources[i].path)
		}
		null = computedValue.IsNull()
	}
	if null {
		if f.commitTime && c.Time != 0 {
			return change.TimestampTZValue(c.Time), nil
		}
		if f.otherwise != nil {
			return f.otherwise.Value(b), nil
		}
		if !target.Nullable {
			return change.Value{}, ErrNull.New("field %s of %s must not be null: %s", target.Name, p.to.Topic, p.nulls(c, f))
		}
		return change.NullValue(), nil
	}
	switch f.kind {
	case same, computed:
		v := computedValue
		if f.kind == same {
			v = from[f.col]
		}
		if !f.closed {
			return v, nil
		}
		sc.text = b.AppendText(sc.text[:0], v)
	case asText:
		sc.text = f.append(sc.text[:0], b, from[f.col])
	case keyText:
		parts := make([]change.Value, len(f.cols))
		for j, col := range f.cols {
			parts[j] = from[col]
		}
		sc.text = change.AppendParts(sc.text[:0], b, parts...)
	case packed:
		sc.text = join.AppendRow(sc.text[:0], b, p.table, from, f.cols)
		return b.Span(change.Bytes, sc.text), nil
	case texts:
		sc.text = append(sc.text[:0], f.between[0]...)
		for j, col := range f.cols {
			sc.text = append(f.append(sc.text, b, from[col]), f.between[j+1]...)
		}
	}
	if f.closed && !p.e.has(i, sc.text) {
		return change.Value{}, p.e.closed(i, string(sc.text))
	}
	return b.Span(change.String, sc.text), nil
}

// append appends the text of a source's value.
func (f *field) append(dst []byte, b *change.Batch, v change.Value) []byte {
	if f.names {
		return b.AppendByValue(dst, v)
	}
	return b.AppendText(dst, v)
}

// nulls says what is null.
func (p *plan) nulls(c *change.Change, f *field) string {
	switch f.kind {
	case computed:
		return "the expression " + f.program.Text + " is"
	case constantValue:
		return c.Table.Topic + " has no such column, and the change no time"
	}
	return fmt.Sprintf("%s of %s is", strings.Join(names(c.Table, f.cols), ", "), c.Table.Topic)
}

func names(t *change.Table, cols []int) []string {
	out := make([]string, len(cols))
	for i, c := range cols {
		out[i] = t.Columns[c].Name
	}
	return out
}
