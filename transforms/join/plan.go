// plan: a configuration checked against the contracts, and compiled.

package join

import (
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline/state"
)

// What a join can meet.
var (
	ErrConfig = problem.Define("TW-JOIN-CONFIG", problem.Halt,
		"A join does not fit the contracts of its topics.",
		"Correct the join; `tallywire check` says so without running.")
	ErrGroup = problem.Define("TW-JOIN-GROUP", problem.Reject,
		"The key of a row does not begin with its group, so its deletion could not be told to those that depend on it.",
		"Map the key as \"{group}/{id}\" and run `tallywire replay` for the mapping; then discard this case.")
	ErrOverflow = problem.Define("TW-JOIN-OVERFLOW", problem.Reject,
		"A product does not fit the field of the contract, in digits or in exactness.",
		"Correct the factors at their source, then `tallywire parked retry STAGE --all`.")
	ErrColumns = problem.Define("TW-JOIN-COLUMN", problem.Halt,
		"A record lacks a field that the join needs.",
		"Correct the join, or have the topic written with the current contract and skip what is older (kafka-consumer-groups --reset-offsets), then start again.")
	ErrLookups = problem.Define("TW-LOOKUP-CONFIG", problem.Halt,
		"A lookup of a mapping's rule cannot be.",
		"Correct it where the message says; `tallywire check` says so without running, and docs/model.md has the words.")
	ErrRow = problem.Define("TW-LOOKUP-ROW", problem.Halt,
		"A record of a topic of rows is none, or of another version.",
		"Have the rows written anew: `tallywire replay` for the mapping.")
	ErrLookup = problem.Define("TW-LOOKUP-EXPR", problem.Reject,
		"A condition of a lookup has no value for this row.",
		"Correct the value at its source. Or correct the condition, run tallywire check, start it again, and retry what is parked: tallywire parked retry STAGE --all.")
	ErrRightBehind = problem.Define("TW-JOIN-RIGHT-BEHIND", problem.Retry,
		"The references are still being read; rows wait for that before they are looked at for the first time.",
		"Nothing to do; see `tallywire status` for how far the group <name>.right is.")
)

// plan is a compiled Config.
type plan struct {
	name    string
	left    *side
	sides   []*side // of references, each topic once
	refs    []*ref
	out     *change.Table
	outKey  []int // per key column of out: the column of left.cols
	fields  []outField
	agree   []agree
	waiting int // column of out, −1: none
	rounds  int // lookups that follow each other
	refresh *change.Table
	shape   string
	joined  *joined // what a rule of a mapping is given; nil: it is a join
}

// side is a topic and the columns of it that are kept.
type side struct {
	topic   string
	table   *change.Table   // of the contract; nil: there is none
	raw     string          // the source's topic whose rows these are; "": they have a contract
	placed  bool            // where its source has the change is kept of each row
	days    []string        // columns of a source's row that have to be days
	may     map[string]bool // columns of a source's row that need not be there
	cols    []string        // in the order of a kept row
	indexed []*index
	all     []int // of cols

	shapes  shapes
	headers headers
}

func (s *side) col(name string) int {
	if i := slices.Index(s.cols, name); i >= 0 {
		return i
	}
	s.cols = append(s.cols, name)
	return len(s.cols) - 1
}

// finish is called when all is known of it.
func (s *side) finish() {
	s.all = make([]int, len(s.cols))
	for i := range s.all {
		s.all[i] = i
	}
}

// index has the rows be found by what they name; of is the group by which they
// are found themselves, nil: their key.
func (s *side) index(by naming, of *naming) *index {
	name := s.nameOf(by)
	if of != nil {
		name += "|" + s.nameOf(*of)
	}
	for _, x := range s.indexed {
		if x.name == name {
			return x
		}
	}
	x := &index{name: name, by: by, of: of}
	s.indexed = append(s.indexed, x)
	return x
}

// nameOf names an index: by its column, or by its columns and the text between.
func (s *side) nameOf(by naming) string {
	switch {
	case by.program != nil:
		return strconv.Quote(by.text)
	case by.between == nil && len(by.cols) == 1:
		return s.cols[by.cols[0]]
	}
	name := strconv.Quote(strings.Join(by.between, "\x00"))
	for _, c := range by.cols {
		name += "," + s.cols[c]
	}
	return name
}

// columnRef is a kept value: of left (ref −1) or of a reference.
type columnRef struct{ ref, col int }

// ref is a compiled Reference.
type ref struct {
	name    string
	at      int // index in plan.refs
	side    int // index in plan.sides
	root    int // whose columns name its row: −1 left, or a reference
	on      naming
	by      *index // of root: who depends on it
	round   int    // when its row is looked up: 1, 2, …; with inForce the group one round before
	inForce *inForce
	agrees  []agreeing // that choose among several in force
	what    string     // group_by without _id: "resource"

	*lookingUp // of a mapping's rule; nil: of a join
}

// agreeing is a column of a reference that is to be equal to another value.
type agreeing struct {
	col  int
	with columnRef
}

type inForce struct {
	from, to, at int // −1: there is none; without at, no date decides
	group        naming
	members      *index // of the rows, by group
	keyed        bool   // the group stands in the key of the rows, before the last slash
	inclusive    bool   // to is the last day, not the one after it
}

type outField struct {
	kind     outKind
	from, by columnRef
}

type outKind uint8

const (
	outNull outKind = iota // the waiting field, or what nothing fills
	outCopy
	outProduct
)

type agree struct{ a, b columnRef }

// compiler gathers mistakes.
type compiler struct {
	p   *plan
	all avro.Catalogue
	bad []error
}

func (c *compiler) fail(path, format string, args ...any) *problem.Error {
	e := ErrConfig.New(format, args...).At("transforms.%s.%s", c.p.name, path)
	c.bad = append(c.bad, e)
	return e
}

func near(e *problem.Error, wrong string, names []string) {
	if n := config.Nearest(wrong, names); n != "" {
		e.WithRemedy("Did you mean %s?", n)
	}
}

func columnNames(t *change.Table) []string {
	out := make([]string, len(t.Columns))
	for i := range t.Columns {
		out[i] = t.Columns[i].Name
	}
	return out
}

// compile checks and compiles; errors are joined TW-JOIN-CONFIG problems.
func compile(name string, cfg Config, all avro.Catalogue) (*plan, error) {
	if all == nil {
		var err error
		if all, err = avro.Pack(); err != nil {
			return nil, err
		}
	}
	p := &plan{name: name, waiting: -1, refresh: avro.Refresh(name).Table}
	c := &compiler{p: p, all: all}
	p.left = c.side("left", cfg.Left)
	out := c.contract("output", cfg.Output)
	if p.left == nil || out == nil {
		return nil, errors.Join(c.bad...)
	}
	p.out = out.Table
	if len(cfg.References) == 0 {
		c.fail("references", "a join needs references")
	}
	for i := range cfg.References {
		c.reference(i, &cfg.References[i], cfg.Left)
	}
	c.fields(cfg)
	for i, a := range cfg.Agree {
		x, _ := c.value(fmt.Sprintf("agree[%d].field", i), a.Field)
		y, _ := c.value(fmt.Sprintf("agree[%d].with", i), a.With)
		p.agree = append(p.agree, agree{x, y})
	}
	if len(c.bad) > 0 {
		return nil, errors.Join(c.bad...)
	}
	p.choose()
	h := fnv.New64a()
	for _, s := range append([]*side{p.left}, p.sides...) {
		s.finish()
		var indexed []int // as versions of before had it
		for _, x := range s.indexed {
			indexed = append(indexed, x.by.cols[0])
		}
		fmt.Fprint(h, s.topic, s.cols, indexed, state.RowVersion, ";")
	}
	p.shape = fmt.Sprintf("%016x", h.Sum64())
	return p, nil
}

func (c *compiler) contract(path, topic string) *avro.Contract {
	k := c.all[topic]
	if k == nil {
		near(c.fail(path, "topic %q has no contract", topic), topic, c.all.Topics())
	}
	return k
}

func (c *compiler) side(path, topic string) *side {
	k := c.contract(path, topic)
	if k == nil {
		return nil
	}
	return &side{topic: topic, table: k.Table}
}

func (c *compiler) reference(i int, r *Reference, left string) {
	path := fmt.Sprintf("references[%d]", i)
	p := c.p
	if r.Name == "" || strings.ContainsAny(r.Name, ". *") {
		c.fail(path+".name", "a reference needs a name without dots and blanks, not %q", r.Name)
		return
	}
	if p.ref(r.Name) != nil {
		c.fail(path+".name", "two references have the name %q", r.Name)
		return
	}
	if r.Topic == left {
		c.fail(path+".topic", "a topic cannot be joined with itself")
		return
	}
	si := slices.IndexFunc(p.sides, func(s *side) bool { return s.topic == r.Topic })
	if si < 0 {
		s := c.side(path+".topic", r.Topic)
		if s == nil {
			return
		}
		si = len(p.sides)
		p.sides = append(p.sides, s)
	}
	on, ok := c.value(path+".on", r.On)
	if !ok {
		return
	}
	x := &ref{name: r.Name, at: len(p.refs), side: si, root: on.ref, on: naming{cols: []int{on.col}}, round: 1}
	if on.ref < 0 {
		x.by = p.left.index(x.on, nil)
	} else {
		x.round = p.refs[on.ref].round + 1
		x.by = p.sides[p.refs[on.ref].side].index(x.on, nil)
	}
	if f := r.InForce; f != nil {
		s := p.sides[si]
		x.inForce = &inForce{
			from: c.date(path+".in_force.from", s, f.From), to: c.date(path+".in_force.to", s, f.To),
			at: c.date(path+".in_force.at", p.left, f.At), keyed: true,
		}
		if group := c.column(path+".in_force.group_by", s, f.GroupBy); group >= 0 {
			x.inForce.group = naming{cols: []int{group}}
			x.inForce.members = s.index(x.inForce.group, nil)
		}
		x.what = strings.TrimSuffix(f.GroupBy, "_id")
		x.round++ // the group's members first, then their rows
	}
	p.rounds = max(p.rounds, x.round)
	p.refs = append(p.refs, x)
}

// choose notes by what references in force are chosen: by agreeing with left, and
// with references before them, so that no two wait for each other's choice. What
// one is to agree with is looked up no later than its own rows, since others may
// be found by the one that is chosen.
func (p *plan) choose() {
	for _, a := range p.agree {
		for _, at := range []struct{ of, with columnRef }{{a.a, a.b}, {a.b, a.a}} {
			if at.of.ref > at.with.ref && p.refs[at.of.ref].inForce != nil {
				r := p.refs[at.of.ref]
				r.agrees = append(r.agrees, agreeing{at.of.col, at.with})
			}
		}
	}
	for _, r := range p.refs {
		for _, a := range r.agrees {
			if a.with.ref >= 0 {
				r.round = max(r.round, p.refs[a.with.ref].round)
			}
		}
		if r.root >= 0 {
			after := 1
			if r.inForce != nil {
				after = 2
			}
			r.round = max(r.round, p.refs[r.root].round+after)
		}
		p.rounds = max(p.rounds, r.round)
	}
}

func (p *plan) ref(name string) *ref {
	for _, r := range p.refs {
		if r.name == name {
			return r
		}
	}
	return nil
}

// between: another reference is found by a field of this side's rows.
func (p *plan) between(side int) bool {
	for _, r := range p.refs {
		if r.root >= 0 && p.refs[r.root].side == side || r.side == side && r.climbs() {
			return true
		}
	}
	return false
}

// column finds a field of a side and has it kept.
func (c *compiler) column(path string, s *side, name string) int {
	if s.table.Column(name) < 0 {
		near(c.fail(path, "the contract of %s has no field %q", s.topic, name), name, columnNames(s.table))
		return -1
	}
	return s.col(name)
}

func (c *compiler) date(path string, s *side, name string) int {
	i := c.column(path, s, name)
	if i >= 0 && s.table.Columns[s.table.Column(name)].Kind != change.Date {
		c.fail(path, "field %s of %s is no date", name, s.topic)
	}
	return i
}

// value reads "field" or "reference.field".
func (c *compiler) value(path, text string) (columnRef, bool) {
	p := c.p
	name, field, dotted := strings.Cut(text, ".")
	if !dotted {
		i := c.column(path, p.left, text)
		return columnRef{-1, i}, i >= 0
	}
	r := p.ref(name)
	if r == nil {
		names := make([]string, len(p.refs))
		for i, r := range p.refs {
			names[i] = r.name
		}
		near(c.fail(path, "%q names no reference before this place", name), name, names)
		return columnRef{}, false
	}
	i := c.column(path, p.sides[r.side], field)
	return columnRef{r.at, i}, i >= 0
}

func (p *plan) column(a columnRef) *change.Column {
	s := p.left
	if a.ref >= 0 {
		s = p.sides[p.refs[a.ref].side]
	}
	return &s.table.Columns[s.table.Column(s.cols[a.col])]
}

func (c *compiler) fields(cfg Config) {
	p := c.p
	for name := range cfg.Fields {
		if p.out.Column(name) < 0 {
			near(c.fail("fields."+name, "the contract of %s has no field %q", cfg.Output, name), name, columnNames(p.out))
		}
	}
	if cfg.WaitingFor != "" {
		if p.waiting = p.out.Column(cfg.WaitingFor); p.waiting < 0 || p.out.Columns[p.waiting].Kind != change.String || !p.out.Columns[p.waiting].Nullable {
			near(c.fail("waiting_for", "%s has no text field %q that may be null", cfg.Output, cfg.WaitingFor), cfg.WaitingFor, columnNames(p.out))
		}
	}
	for i := range p.out.Columns {
		col := &p.out.Columns[i]
		path := "fields." + col.Name
		text, named := cfg.Fields[col.Name]
		if !named {
			text = col.Name
		}
		var f outField
		switch {
		case i == p.waiting && !named:
		case strings.Contains(text, "*"):
			f = c.product(path, text, col)
		default:
			v, ok := c.value(path, text)
			if !ok {
				break
			}
			f = outField{kind: outCopy, from: v}
			src := p.column(v)
			if src.Kind != col.Kind {
				c.fail(path, "%s is %s, field %s of %s is %s", text, src.Type, col.Name, cfg.Output, col.Type)
			}
			if !col.Nullable && (v.ref >= 0 || src.Nullable) {
				c.fail(path, "field %s of %s must never be null, %s may be", col.Name, cfg.Output, text)
			}
		}
		p.fields = append(p.fields, f)
	}
	if len(p.out.Key) != len(p.left.table.Key) {
		c.fail("output", "the key of %s is not that of %s", cfg.Output, cfg.Left)
		return
	}
	for i, k := range p.out.Key {
		want := p.left.col(p.left.table.Columns[p.left.table.Key[i]].Name)
		if f := p.fields[k]; f.kind != outCopy || f.from != (columnRef{-1, want}) {
			c.fail("output", "the key of %s is not that of %s", cfg.Output, cfg.Left)
		}
		p.outKey = append(p.outKey, want)
	}
}

func (c *compiler) product(path, text string, col *change.Column) outField {
	a, b, _ := strings.Cut(text, "*")
	x, ok1 := c.value(path, strings.TrimSpace(a))
	y, ok2 := c.value(path, strings.TrimSpace(b))
	if !ok1 || !ok2 {
		return outField{}
	}
	for _, v := range []columnRef{x, y} {
		if k := c.p.column(v).Kind; k != change.Decimal && k != change.Int {
			c.fail(path, "a product needs numbers, %s is none", c.p.column(v).Name)
		}
	}
	if col.Kind != change.Decimal || !col.Nullable {
		c.fail(path, "a product needs a decimal field that may be null")
	}
	return outField{kind: outProduct, from: x, by: y}
}
