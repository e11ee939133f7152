// Rule: the lookups of a mapping's rule, as a user writes them, checked and
// compiled into a plan.

package join

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline/state"
)

// Lookup is a row of another topic, or of the same, that a rule uses by a name.
type Lookup struct {
	Topic    string         `yaml:"topic" doc:"Whose rows: a raw topic, or a canonical one." example:"psa.public.issues"`
	On       string         `yaml:"on" doc:"What names the row, in the order of its key: columns of the row, or of one other lookup, after commas; a template such as \"redmine-{user_id}\"; or an expression over the columns of one. Null names nothing, and so does an expression that has no value. Equal numbers are equal however they are written." example:"row.issue_id"`
	By       string         `yaml:"by" doc:"Its columns, after commas, that on names instead of its key: of the rows that have it, that with the highest key, or the one in force." example:"user_id"`
	Where    string         `yaml:"where" doc:"A condition on its columns, ref.NAME: rows for which it is false are not there." example:"ref.deleted_at == null"`
	Climb    string         `yaml:"climb" doc:"Its column that names the row above it: from the row that is named, one goes up." example:"parent_id"`
	Until    string         `yaml:"until" doc:"With climb, a condition on its columns, ref.NAME: the first row that fulfils it. Without one: the topmost row." example:"ref.status == 1"`
	InForce  *Dated         `yaml:"in_force" doc:"Of the rows that by gives, the one in force on a day: the latest of them."`
	Agree    string         `yaml:"agree" doc:"A condition on ref, row and other lookups that the row has to fulfil, or one waits. Of several in force one that does is taken." example:"ref.currency == project.currency"`
	Optional bool           `yaml:"optional" doc:"What names the row may be null; its columns are null then. A row that is named and is not there is waited for."`
	Missing  *config.Scalar `yaml:"missing" doc:"null: a row that is named and is not there is not waited for either."`
}

// Dated chooses among the rows of a group by date.
type Dated struct {
	From      string `yaml:"from" doc:"Its column with the first day; null: since ever." example:"valid_from"`
	To        string `yaml:"to" doc:"Its column with the day after the last; null, or without one: open." example:"valid_to"`
	Inclusive bool   `yaml:"inclusive" doc:"to is the last day itself."`
	At        string `yaml:"at" doc:"The column of the row with the day." example:"row.spent_on"`
}

// Rule is what a mapping's rule tells of its lookups.
type Rule struct {
	Name      string // of the group that looks up; another, .right, keeps what is looked up
	Path      string // where the rule is written
	From      string // the topic of its rows
	Lookups   map[string]Lookup
	Placed    bool                    // of each row, what becomes of it says where its source has the row's change
	Where     string                  // a condition that names row alone: rows for which it is false look nothing up; "": none
	Uses      []string                // columns that it reads: "NAME" of its row, "LOOKUP.NAME"
	May       []string                // those of its row that need not be there
	Rows      func(raw string) string // the topic of a raw topic's rows
	Contracts avro.Catalogue
	Codes     codes.Lists
}

// Plan is a Rule compiled.
type Plan struct {
	p    *plan
	from string
}

// Raw is what a rule uses of a raw topic's rows.
type Raw struct {
	Topic string   // of the source
	Rows  string   // where its rows are kept
	Names []string // columns
	May   map[string]bool
	Days  []string // columns that say since when, or until when, or on which day
}

// Raws are the raw topics whose rows it uses, each once.
func (p *Plan) Raws() []Raw {
	var out []Raw
	for _, s := range append([]*side{p.p.left}, p.p.sides...) {
		if s.raw == "" {
			continue
		}
		i := slices.IndexFunc(out, func(r Raw) bool { return r.Topic == s.raw })
		if i < 0 {
			i, out = len(out), append(out, Raw{Topic: s.raw, Rows: s.topic, May: map[string]bool{}})
		}
		r := &out[i]
		for _, name := range s.cols {
			if !slices.Contains(r.Names, name) {
				r.Names, r.May[name] = append(r.Names, name), s.may[name]
			}
			r.May[name] = r.May[name] && s.may[name]
		}
		r.Days = append(r.Days, s.days...)
	}
	return out
}

// Field is that of a contract which a rule reads as "NAME" of its row or
// "LOOKUP.NAME"; false: it is a source's.
func (p *Plan) Field(name string, all avro.Catalogue) (avro.Field, bool) {
	s, col := p.p.left, name
	if root, rest, dotted := strings.Cut(name, "."); dotted {
		r := p.p.ref(root)
		if r == nil {
			return avro.Field{}, false
		}
		s, col = p.p.sides[r.side], rest
	}
	if s.raw != "" {
		return avro.Field{}, false
	}
	return all[s.topic].Field(col)
}

// Topics are those that the lookups read, each once.
func (p *Plan) Topics() []string {
	var out []string
	for _, s := range p.p.sides {
		out = append(out, s.topic)
	}
	return out
}

// Left is the topic of the rule's own rows.
func (p *Plan) Left() string { return p.p.left.topic }

// Roots are the names of the lookups.
func (p *Plan) Roots() []string {
	var out []string
	for _, r := range p.p.refs {
		out = append(out, r.name)
	}
	return out
}

// Table is the shape of what the rule is given when the columns of raw topics are
// those of tables: nil of one whose table is not known.
func (p *Plan) Table(tables map[string]*change.Table) *change.Table {
	shapeOf := func(s *side) *shape {
		t := tables[s.raw]
		if t == nil {
			return nil
		}
		out := &shape{cols: make([]change.Column, len(s.cols))}
		for i, name := range s.cols {
			out.cols[i].Name = name
			if c := t.Column(name); c >= 0 {
				out.cols[i] = t.Columns[c]
			}
		}
		return out
	}
	of := make([]*shape, len(p.p.refs))
	for i, r := range p.p.refs {
		if of[i] = shapeOf(p.p.sides[r.side]); of[i] == nil {
			of[i] = p.p.joined.known[r.side+1]
		}
	}
	left := shapeOf(p.p.left)
	if left == nil {
		left = p.p.joined.known[0]
	}
	return p.p.joined.table(p.p, left, of)
}

// ruleCompiler compiles a rule.
type ruleCompiler struct {
	p     *plan
	all   avro.Catalogue
	r     *Rule
	order []string
	bad   []error
}

func (c *ruleCompiler) fail(path, format string, args ...any) *problem.Error {
	e := ErrLookups.New(format, args...).At("%s.%s", c.r.Path, path)
	c.bad = append(c.bad, e)
	return e
}

// Compile checks and compiles a rule's lookups; errors are TW-LOOKUP-CONFIG problems.
func Compile(r Rule) (*Plan, []error) {
	p := &plan{name: r.Name, refresh: avro.Refresh(r.Name).Table}
	c := &ruleCompiler{p: p, all: r.Contracts, r: &r}
	p.left = c.sideOf(r.From)
	p.left.placed = r.Placed
	p.left.may = map[string]bool{}
	for _, name := range r.May {
		p.left.may[name] = true
	}
	if c.sort(); len(c.bad) > 0 {
		return nil, c.bad
	}
	for _, name := range c.order {
		l := r.Lookups[name]
		c.lookup(name, &l)
	}
	if len(c.bad) > 0 {
		return nil, c.bad
	}
	for _, use := range r.Uses {
		c.use(use)
	}
	if len(c.bad) > 0 {
		return nil, c.bad
	}
	for _, ref := range p.refs {
		l := r.Lookups[ref.name]
		c.conditions(ref, &l)
	}
	if len(c.bad) > 0 {
		return nil, c.bad
	}
	c.joined()
	for _, ref := range p.refs {
		l := r.Lookups[ref.name]
		c.bind(ref, &l)
	}
	if r.Where != "" { // its mistakes are told where the rule is checked
		p.joined.where, _ = expr.Condition(r.Where, expr.Scope{Row: p.joined.gone, Codes: r.Codes, Roots: c.names()})
	}
	p.follow()
	c.endsOnly()
	h := fnv.New64a()
	for _, s := range append([]*side{p.left}, p.sides...) {
		s.finish()
		fmt.Fprint(h, s.topic, s.cols, s.placed, state.RowVersion, ";")
		for _, x := range s.indexed {
			fmt.Fprint(h, x.name, ",")
		}
	}
	p.shape = fmt.Sprintf("%016x", h.Sum64())
	return &Plan{p, r.From}, c.bad
}

// sideOf is the side of a topic: with a contract, or rows of a source.
func (c *ruleCompiler) sideOf(topic string) *side {
	if k := c.all[topic]; k != nil {
		return &side{topic: topic, table: k.Table}
	}
	return &side{topic: c.r.Rows(topic), raw: topic}
}

// roots are the names before the dots of what a text names, that are lookups.
func (c *ruleCompiler) roots(paths []string) (out []string) {
	for _, p := range paths {
		root, _, dotted := strings.Cut(p, ".")
		if _, is := c.r.Lookups[root]; dotted && is && !slices.Contains(out, root) {
			out = append(out, root)
		}
	}
	return out
}

// names are the lookups that may be named.
func (c *ruleCompiler) names() []string {
	return append(slices.Sorted(maps.Keys(c.r.Lookups)), "row", "ref")
}

// needs are the lookups that have to be found before this one.
func (c *ruleCompiler) needs(name string, l *Lookup) []string {
	paths, _ := parts(l.On)
	out := c.roots(paths)
	if p, _, _ := c.computed(l.On, paths); p != nil {
		out = c.roots(p.Vars)
	}
	if p, _ := expr.Condition(l.Agree, expr.Scope{Codes: c.r.Codes, Roots: c.names()}); l.Agree != "" && p != nil {
		for _, root := range c.roots(p.Vars) {
			if root != name && !slices.Contains(out, root) {
				out = append(out, root)
			}
		}
	}
	return out
}

// sort puts each lookup behind those that it needs, otherwise by name.
func (c *ruleCompiler) sort() {
	const begun, done = 1, 2
	at := map[string]int{}
	var visit func(name string, from []string) bool
	visit = func(name string, from []string) bool {
		switch at[name] {
		case done:
			return true
		case begun:
			c.fail("lookups."+name, "%s need each other", strings.Join(append(from[slices.Index(from, name):], name), ", "))
			return false
		}
		at[name] = begun
		l := c.r.Lookups[name]
		for _, other := range c.needs(name, &l) {
			if !visit(other, append(from, name)) {
				return false
			}
		}
		at[name] = done
		c.order = append(c.order, name)
		return true
	}
	for _, name := range slices.Sorted(maps.Keys(c.r.Lookups)) {
		if !expr.Plain(name) || name == "row" || name == "ref" || name == "item" || name == "index" || name == "" {
			c.fail("lookups", "a lookup cannot have the name %q: letters, digits and underscores, and neither row, ref, item nor index", name)
			return
		}
		if !visit(name, nil) {
			return
		}
	}
}

// parts takes what names a row apart: its columns, and the text between, nil
// where they stand after commas.
func parts(text string) (paths, between []string) {
	if strings.Contains(text, "{") {
		for rest := text; ; {
			lit, more, found := strings.Cut(rest, "{")
			between = append(between, lit)
			if !found {
				return paths, between
			}
			name, after, _ := strings.Cut(more, "}")
			paths, rest = append(paths, strings.TrimSpace(name)), after
		}
	}
	for _, p := range strings.Split(text, ",") {
		paths = append(paths, strings.TrimSpace(p))
	}
	return paths, nil
}

// computed is the expression that a text is which is neither columns nor a template.
// nil: it has mistakes; is: it is one.
func (c *ruleCompiler) computed(text string, paths []string) (p *expr.Program, mistakes []expr.Mistake, is bool) {
	plain := func(p string) bool {
		root, name, dotted := strings.Cut(p, ".")
		return expr.Plain(root) && root != "" && (!dotted || expr.Plain(name) && name != "")
	}
	if !slices.ContainsFunc(paths, func(p string) bool { return !plain(p) }) {
		return nil, nil, false
	}
	p, mistakes = expr.Compile(text, expr.Scope{Codes: c.r.Codes, Roots: c.names()}, &nameColumn)
	return p, mistakes, true
}

// naming reads what names a row: whose columns do, and which.
func (c *ruleCompiler) naming(path, text string) (root int, n naming, ok bool) {
	paths, between := parts(text)
	switch p, mistakes, is := c.computed(text, paths); {
	case p != nil:
		return c.namingBy(path, text, p)
	case is:
		c.tell(path, mistakes)
		return 0, n, false
	}
	n.between, root, ok = between, -2, true
	for _, p := range paths {
		of, col := -1, p
		if name, rest, dotted := strings.Cut(p, "."); dotted {
			col = rest
			if name != "row" {
				r := c.p.ref(name)
				if _, told := c.r.Lookups[name]; r == nil && told {
					return 0, n, false // it has a mistake itself
				}
				if r == nil {
					near(c.fail(path, "%q is neither row nor a lookup before this one", name), name, c.names())
					return 0, n, false
				}
				of = r.at
			}
		}
		if root != -2 && root != of {
			c.fail(path, "%q names columns of more than one row", text).WithRemedy("What names a row stands in one other: look up what has both first.")
			return 0, n, false
		}
		root = of
		s := c.p.left
		if of >= 0 {
			s = c.p.sides[c.p.refs[of].side]
		}
		i := c.col(path, s, col)
		ok = ok && i >= 0
		n.cols = append(n.cols, i)
	}
	return root, n, ok
}

// namingBy reads an expression that names a row.
func (c *ruleCompiler) namingBy(path, text string, found *expr.Program) (root int, n naming, ok bool) {
	root, ok = -2, true
	for _, v := range found.Vars {
		name, col, _ := strings.Cut(v, ".")
		of, s := -1, c.p.left
		if name != "row" {
			r := c.p.ref(name)
			if _, told := c.r.Lookups[name]; r == nil && told {
				return 0, n, false // it has a mistake itself
			}
			if r == nil {
				near(c.fail(path, "%q is neither row nor a lookup before this one", name), name, c.names())
				return 0, n, false
			}
			of, s = r.at, c.p.sides[r.side]
		}
		if root != -2 && root != of {
			c.fail(path, "%q names columns of more than one row", text).WithRemedy("What names a row stands in one other: look up what has both first.")
			return 0, n, false
		}
		root = of
		i := c.col(path, s, col)
		ok = ok && i >= 0
		n.cols = append(n.cols, i)
	}
	if root == -2 {
		c.fail(path, "%q names no column", text)
		return 0, n, false
	}
	// Its columns, in their order, are the table that it is compiled for.
	t := &change.Table{Topic: c.r.From}
	for _, v := range found.Vars {
		t.Columns = append(t.Columns, change.Column{Name: expr.ColumnOf(v), Nullable: true})
	}
	var mistakes []expr.Mistake
	n.program, mistakes = expr.Compile(text, expr.Scope{Row: t.Index(), Codes: c.r.Codes, Roots: c.names()}, &nameColumn)
	n.text = text
	c.tell(path, mistakes)
	return root, n, ok && n.program != nil
}

// col finds a column of a side and has it kept; −1: there is none.
func (c *ruleCompiler) col(path string, s *side, name string) int {
	switch {
	case name == "":
		c.fail(path, "a column is missing")
		return -1
	case s.raw == "" && s.table.Column(name) < 0:
		near(c.fail(path, "the contract of %s has no field %q", s.topic, name), name, columnNames(s.table))
		return -1
	}
	delete(s.may, name)
	return s.col(name)
}

// own finds columns of a lookup's own rows, as "NAME" or "ref.NAME".
func (c *ruleCompiler) own(path string, s *side, text string) (naming, bool) {
	var n naming
	paths, between := parts(text)
	if between != nil {
		c.fail(path, "columns are wanted here, not %q", text)
		return n, false
	}
	for _, p := range paths {
		if strings.ContainsAny(p, `()[]"'+*/%<>=!&|?:`) {
			c.fail(path, "columns are wanted here, not %q", text)
			return n, false
		}
		i := c.col(path, s, strings.TrimPrefix(p, "ref."))
		if i < 0 {
			return n, false
		}
		n.cols = append(n.cols, i)
	}
	return n, true
}

func (c *ruleCompiler) lookup(name string, l *Lookup) {
	path := "lookups." + name
	p := c.p
	if l.Topic == "" {
		c.fail(path+".topic", "the topic is missing")
		return
	}
	if l.On == "" {
		c.fail(path+".on", "what names the row is missing").WithRemedy("Write the column that has its key, such as row.project_id.")
		return
	}
	s := c.sideOf(l.Topic)
	si := slices.IndexFunc(p.sides, func(o *side) bool { return o.topic == s.topic })
	if si < 0 {
		si, p.sides = len(p.sides), append(p.sides, s)
	}
	s = p.sides[si]
	root, on, ok := c.naming(path+".on", l.On)
	if !ok {
		return
	}
	x := &ref{name: name, at: len(p.refs), side: si, root: root, on: on, round: 1, what: name, optional: l.Optional, path: c.r.Path + "." + path}
	if l.Missing != nil {
		if x.absent = l.Missing.Kind == config.NullScalar; !x.absent {
			c.fail(path+".missing", "%q is nothing that can be said of a row that is not there", l.Missing.Text).WithRemedy("Write null, or leave it out.")
		}
	}
	var of *naming
	if root >= 0 {
		r := p.refs[root]
		x.round = r.round + 1
		if r.inForce != nil {
			of = &r.inForce.group
		}
		x.by = p.sides[r.side].index(on, of)
	}
	if l.Climb != "" {
		if l.By != "" || l.InForce != nil {
			c.fail(path+".climb", "one of several rows has none above it").WithRemedy("Leave one of climb and by out.")
			return
		}
		over, ok := c.own(path+".climb", s, l.Climb)
		if !ok {
			return
		}
		x.over = s.index(over, nil)
	} else if l.Until != "" {
		c.fail(path+".until", "until says where a climb ends, and there is none").WithRemedy("Write climb: with the column that names the row above, or where: for a condition.")
	}
	switch {
	case l.By != "":
		x.round++ // the group's members first, then their rows
		c.grouped(path, x, s, l)
	case l.InForce != nil:
		c.fail(path+".by", "in_force chooses among several rows, and by says which").
			WithRemedy("Write by: with the column of %s that on names, such as employee_id.", l.Topic)
	}
	switch {
	case root >= 0:
	case x.inForce != nil && x.inForce.at >= 0:
		x.by = p.left.dated(on, x.inForce.at)
	default:
		x.by = p.left.index(on, nil)
	}
	p.rounds = max(p.rounds, x.round)
	p.refs = append(p.refs, x)
}

// grouped reads what chooses among the rows of a group.
func (c *ruleCompiler) grouped(path string, x *ref, s *side, l *Lookup) {
	x.inForce = &inForce{from: -1, to: -1, at: -1}
	if group, ok := c.own(path+".by", s, l.By); ok {
		x.inForce.group = group
		if x.inForce.members = s.index(group, nil); !slices.Contains(s.groups, x.inForce.members) {
			s.groups = append(s.groups, x.inForce.members)
		}
		x.what = strings.TrimSuffix(s.cols[group.cols[0]], "_id")
	}
	f := l.InForce
	if f == nil {
		return
	}
	x.inForce.inclusive = f.Inclusive
	day := func(key string, s *side, text string) int {
		if text == "" && key == "to" {
			return -1
		}
		i := c.col(path+".in_force."+key, s, text)
		switch {
		case i < 0:
		case s.raw == "":
			c.day(path+".in_force."+key, s, i)
		default:
			s.days = append(s.days, s.cols[i])
		}
		return i
	}
	x.inForce.from, x.inForce.to = day("from", s, strings.TrimPrefix(f.From, "ref.")), day("to", s, strings.TrimPrefix(f.To, "ref."))
	x.inForce.at = day("at", c.p.left, strings.TrimPrefix(f.At, "row."))
}

// day checks that a field of a contract is a day.
func (c *ruleCompiler) day(path string, s *side, i int) {
	if k := s.table.Columns[s.table.Column(s.cols[i])].Kind; k != change.Date && k != change.Timestamp {
		c.fail(path, "field %s of %s is no date", s.cols[i], s.topic)
	}
}

// IsDay says whether a column may say since when a row is in force.
func IsDay(c *change.Column) bool {
	return c.Kind == change.Date || c.Kind == change.Timestamp
}

// use has a column be kept that the rule reads.
func (c *ruleCompiler) use(name string) {
	root, col, dotted := strings.Cut(name, ".")
	if !dotted {
		if c.p.left.raw == "" && c.p.left.table.Column(name) < 0 {
			return // told where it is read
		}
		c.p.left.col(name)
		return
	}
	if r := c.p.ref(root); r != nil {
		c.col("lookups."+root, c.p.sides[r.side], col)
	}
}

// conditions has the columns be kept that a lookup's conditions read.
func (c *ruleCompiler) conditions(x *ref, l *Lookup) {
	read := func(key, text string, all bool) {
		if text == "" {
			return
		}
		roots := []string{"ref"}
		if all {
			roots = c.names()
		}
		p, mistakes := expr.Condition(text, expr.Scope{Codes: c.r.Codes, Roots: roots})
		c.tell("lookups."+x.name+"."+key, mistakes)
		if p == nil {
			return
		}
		if !all && p.NamesRow && slices.ContainsFunc(p.Vars, func(v string) bool { return !strings.HasPrefix(v, "ref.") }) {
			c.fail("lookups."+x.name+"."+key, "it names columns of others than ref").WithRemedy("agree: is a condition on several rows.")
			return
		}
		for _, v := range p.Vars {
			root, col, _ := strings.Cut(v, ".")
			s := c.p.left
			switch r := c.p.ref(root); {
			case root == "ref":
				s = c.p.sides[x.side]
			case r != nil:
				s = c.p.sides[r.side]
			}
			c.col("lookups."+x.name+"."+key, s, col)
		}
	}
	read("where", l.Where, false)
	read("until", l.Until, false)
	read("agree", l.Agree, true)
}

// tell tells an expression's mistakes, which stands at path.
func (c *ruleCompiler) tell(path string, mistakes []expr.Mistake) {
	for _, m := range mistakes {
		e := c.fail(config.Within(path, m.Line, m.Column), "%s", m.Text)
		if m.Remedy != "" {
			e.WithRemedy("%s", m.Remedy)
		}
	}
}

// joined lays out what the rule is given, when all columns are known.
func (c *ruleCompiler) joined() {
	p, j := c.p, &c.p.joined
	j.topic = c.r.From
	j.known = make([]*shape, len(p.sides)+1)
	for i, s := range append([]*side{p.left}, p.sides...) {
		if s.raw != "" {
			continue
		}
		j.known[i] = &shape{}
		for _, name := range s.cols {
			j.known[i].cols = append(j.known[i].cols, s.table.Columns[s.table.Column(name)])
		}
	}
	j.at = make([]int, len(p.refs))
	n := 2 + len(p.left.cols)
	for i, r := range p.refs {
		j.at[i] = n
		n += len(p.sides[r.side].cols)
	}
	j.n = n
	j.gone = j.table(p, j.known[0], make([]*shape, len(p.refs)))
}

// bind compiles the conditions of a lookup over what is joined, and ref behind it.
func (c *ruleCompiler) bind(x *ref, l *Lookup) {
	p := c.p
	t := *p.joined.gone
	if k := p.joined.known[x.side+1]; k != nil {
		t.Columns = slices.Clone(t.Columns)
	}
	for i, name := range p.sides[x.side].cols {
		col := change.Column{Nullable: true}
		if k := p.joined.known[x.side+1]; k != nil {
			col = k.cols[i]
		}
		col.Name = "ref." + name
		t.Columns = append(slices.Clip(t.Columns), col)
	}
	t.Index()
	compile := func(key, text string) *expr.Program {
		if text == "" {
			return nil
		}
		program, mistakes := expr.Condition(text, expr.Scope{Row: &t, Codes: c.r.Codes, Roots: c.names()})
		c.tell("lookups."+x.name+"."+key, mistakes)
		return program
	}
	x.where, x.until, x.agree = compile("where", l.Where), compile("until", l.Until), compile("agree", l.Agree)
	if x.agree == nil {
		return
	}
	for _, v := range x.agree.Vars {
		root, _, _ := strings.Cut(v, ".")
		if r := p.ref(root); r != nil && r != x {
			x.round = max(x.round, r.round)
			x.agreeRefs = append(x.agreeRefs, r)
		}
	}
}
