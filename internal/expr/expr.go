// Package expr is the language in which a firm writes what it computes: CEL
// (cel.dev) over one row, with exact decimals, dates, moments with zones,
// intervals and code lists. docs/model.md has the functions.
package expr

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/config"
)

// Scope is what an expression may name.
type Scope struct {
	Row *change.Table // whose columns are row.NAME; nil: they are not known yet, and may be anything
	// Roots are other names beside row: column NAME of ROOT is the column
	// "ROOT.NAME" of Row. One of the kind Null has a type that is not known.
	Roots []string
	Codes codes.Lists
	Each  bool     // there are item and index: an element of a list, and its place from 0
	List  *Program // makes that list; nil: its elements may be anything
}

// Mistake is what is wrong with an expression.
type Mistake struct {
	Line, Column int // in the expression, from 1
	Text, Remedy string
}

// Program is a compiled expression. Safe for concurrent use.
type Program struct {
	Text    string
	Columns []int       // of Scope.Row that it reads; nil without one
	List    *codes.List // its value is a value of this list, or null; nil: of any
	Vars    []string    // the columns that it reads, as it names them: "row.NAME", in order
	Prefix  string      // what its value begins with, if it is a text

	NamesRow, NamesItem, NamesIndex bool // which of them it reads

	run   cel.Program
	texts *texts         // the condition that it is; nil: it is to be run
	slots map[string]int // column of a variable
	elem  *types.Type    // of a list: what its elements are
}

// costLimit bounds what loops over lists; nothing else can take long.
const costLimit = 100_000

var base = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewCustomEnv(append([]cel.EnvOption{cel.EnableIdentifierEscapeSyntax()}, library()...)...)
})

// Compile makes a program whose value fits a column, or tells all mistakes.
func Compile(text string, s Scope, want *change.Column) (*Program, []Mistake) {
	return newCompiler(s).compile(text, func(out *types.Type) string {
		kind, ok := kindOf(out)
		switch {
		case out.Kind() == types.DynKind, ok && fits(kind, want.Kind):
			return ""
		}
		return fmt.Sprintf("the expression is a %s, %s is %s", typeName(out), want.Name, want.Type)
	})
}

// Condition makes a program whose value is true or false.
func Condition(text string, s Scope) (*Program, []Mistake) {
	return newCompiler(s).compile(text, func(out *types.Type) string {
		if out.Kind() == types.DynKind || out.Kind() == types.BoolKind {
			return ""
		}
		return fmt.Sprintf("a condition is true or false, this is a %s", typeName(out))
	})
}

type compiler struct {
	scope Scope
	info  *ast.SourceInfo
	vars  map[string]*types.Type // by variable: "row.NAME"
	free  map[string]bool        // names that no loop of its own binds
	bound map[string]int         // by how many loops around a place
	bad   []Mistake
	told  string // a root of which it is told already that it is used wrongly
	loops bool
}

func newCompiler(s Scope) *compiler {
	return &compiler{scope: s, vars: map[string]*types.Type{}, free: map[string]bool{}, bound: map[string]int{}}
}

func (c *compiler) fail(id int64, remedy, format string, args ...any) {
	at := c.info.GetStartLocation(id)
	c.bad = append(c.bad, Mistake{Line: at.Line(), Column: at.Column() + 1, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func didYouMean(name string, names []string) string {
	if near := config.Nearest(name, names); near != "" {
		return fmt.Sprintf("Did you mean %s?", near)
	}
	return ""
}

func (c *compiler) compile(text string, check func(*types.Type) string) (*Program, []Mistake) {
	env, err := base()
	if err != nil {
		panic("BUG: the library of expressions: " + err.Error())
	}
	parsed, issues := env.Parse(text)
	if issues.Err() != nil {
		return nil, c.issues(issues)
	}
	c.info = parsed.NativeRep().SourceInfo()
	root := parsed.NativeRep().Expr()
	c.visit(root)
	if env, err = env.Extend(c.options()...); err != nil {
		panic("BUG: the columns of an expression: " + err.Error())
	}
	checked, issues := env.Check(parsed)
	if issues.Err() != nil {
		c.bad = append(c.bad, c.issues(issues)...)
	}
	if len(c.bad) > 0 {
		slices.SortStableFunc(c.bad, func(a, b Mistake) int { return (a.Line-b.Line)*1000 + a.Column - b.Column })
		return nil, c.bad
	}
	if wrong := check(checked.OutputType()); wrong != "" {
		return nil, []Mistake{{Line: 1, Column: 1, Text: wrong}}
	}
	opts := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if c.loops {
		opts = append(opts, cel.CostLimit(costLimit))
	}
	run, err := env.Program(checked, opts...)
	if err != nil { // a part of constants has no value
		return nil, []Mistake{{Line: 1, Column: 1, Text: err.Error()}}
	}
	p := &Program{Text: text, run: run, slots: map[string]int{}, Prefix: prefix(root), NamesRow: len(c.vars) > 0, NamesItem: c.free["item"], NamesIndex: c.free["index"]}
	p.Vars = slices.Sorted(maps.Keys(c.vars))
	if t := c.scope.Row; t != nil {
		for _, name := range p.Vars {
			i := t.Column(ColumnOf(name))
			p.slots[name] = i
			p.Columns = append(p.Columns, i)
		}
		p.texts = c.texts(root, p.slots)
	}
	if root.Kind() == ast.CallKind && root.AsCall().FunctionName() == "code" {
		p.List = c.list(root.AsCall().Args())
	}
	return p, nil
}

// options declare the columns that are used, and the code lists.
func (c *compiler) options() []cel.EnvOption {
	lookup := func(args ...ref.Val) ref.Val {
		name, ok := args[0].(types.String)
		l := c.scope.Codes[string(name)]
		if !ok || l == nil {
			return wrong("code", args...)
		}
		if v, ok := l.Value(text(args[1])); ok {
			return types.String(v)
		}
		return fail(args[1], "code list %s (%s) does not have it", l.Name, l.File)
	}
	opts := []cel.EnvOption{function("code", strict(lookup), to(stringN, types.StringType, stringN), to(stringN, types.StringType, intN))}
	for _, name := range slices.Sorted(maps.Keys(c.vars)) {
		opts = append(opts, cel.Variable(name, c.vars[name]))
	}
	if c.scope.Each {
		item := types.DynType
		if l := c.scope.List; l != nil {
			item = l.elem
		}
		opts = append(opts, cel.Variable("item", item), cel.Variable("index", types.IntType))
	}
	return opts
}

// prefix is the text that an expression begins with.
func prefix(e ast.Expr) string {
	for e.Kind() == ast.CallKind && e.AsCall().FunctionName() == operators.Add {
		e = e.AsCall().Args()[0]
	}
	s, _ := literal(e).(types.String)
	return string(s)
}

// visit finds the columns that are used, and checks what CEL's checker cannot.
func (c *compiler) visit(e ast.Expr) {
	switch e.Kind() {
	case ast.IdentKind:
		if name := e.AsIdent(); c.root(name) {
			c.fail(e.ID(), fmt.Sprintf("Write %s.NAME, or %s.`NAME` for a name that is no plain word.", name, name), "%s is used by its columns", name)
			c.told = name // the checker need not tell it too
		}
		if c.bound[e.AsIdent()] == 0 {
			c.free[e.AsIdent()] = true
		}
	case ast.SelectKind:
		s := e.AsSelect()
		if o := s.Operand(); o.Kind() == ast.IdentKind && c.root(o.AsIdent()) {
			c.column(e, o.AsIdent(), s)
			return
		}
		c.visit(s.Operand())
	case ast.CallKind:
		call := e.AsCall()
		if call.IsMemberFunction() {
			c.visit(call.Target())
		}
		for _, a := range call.Args() {
			c.visit(a)
		}
		c.arguments(call.FunctionName(), call.Args())
		if own := equality[call.FunctionName()]; own != "" {
			e.SetKindCase(ast.NewExprFactory().NewCall(e.ID(), own, call.Args()...))
		}
	case ast.ListKind:
		for _, x := range e.AsList().Elements() {
			c.visit(x)
		}
	case ast.MapKind:
		for _, x := range e.AsMap().Entries() {
			c.visit(x.AsMapEntry().Key())
			c.visit(x.AsMapEntry().Value())
		}
	case ast.ComprehensionKind:
		l := e.AsComprehension()
		c.loops = true
		c.visit(l.IterRange())
		c.visit(l.AccuInit())
		names := []string{l.IterVar(), l.IterVar2(), l.AccuVar()}
		for _, n := range names {
			c.bound[n]++
		}
		for _, x := range []ast.Expr{l.LoopCondition(), l.LoopStep(), l.Result()} {
			c.visit(x)
		}
		for _, n := range names {
			c.bound[n]--
		}
	}
}

// root says whether a name is one whose columns are used.
func (c *compiler) root(name string) bool {
	return (name == "row" || slices.Contains(c.scope.Roots, name)) && c.bound[name] == 0
}

// ColumnOf is the column of Scope.Row that a variable is: "NAME" of "row.NAME",
// of others their whole name.
func ColumnOf(variable string) string { return strings.TrimPrefix(variable, "row.") }

func (c *compiler) column(e ast.Expr, root string, s ast.SelectExpr) {
	name := root + "." + s.FieldName()
	if s.IsTestOnly() {
		c.fail(e.ID(), "", "a column is always there: write %s != null", name)
		c.told = root
	}
	c.vars[name] = types.DynType
	t := c.scope.Row
	if t == nil {
		return
	}
	i := t.Column(ColumnOf(name))
	if i < 0 {
		var names []string
		for i := range t.Columns {
			if of, is := columnName(root, t.Columns[i].Name); is {
				names = append(names, of)
			}
		}
		c.fail(e.ID(), didYouMean(s.FieldName(), names), "%s has no column %q", c.holder(root), s.FieldName())
		return
	}
	if c.vars[name] = typeOf(&t.Columns[i]); c.vars[name] == nil {
		c.vars[name] = types.DynType
		c.fail(e.ID(), "", "column %s is %s, which an expression cannot read", s.FieldName(), t.Columns[i].Type)
	}
}

// holder is whose columns those of a root are.
func (c *compiler) holder(root string) string {
	if root == "row" {
		return c.scope.Row.Topic
	}
	return root
}

// columnName is the name that a column of Scope.Row has below a root.
func columnName(root, column string) (string, bool) {
	if root == "row" {
		return column, !strings.Contains(column, ".")
	}
	return strings.CutPrefix(column, root+".")
}

// list is the code list that a call names; nil: it names none.
func (c *compiler) list(args []ast.Expr) *codes.List {
	name, ok := literal(args[0]).(types.String)
	if !ok {
		return nil
	}
	return c.scope.Codes[string(name)]
}

func literal(e ast.Expr) ref.Val {
	if e.Kind() != ast.LiteralKind {
		return nil
	}
	return e.AsLiteral()
}

// arguments checks those that decide what is meant: the list, the zone, the
// rounding. They are written out.
func (c *compiler) arguments(name string, args []ast.Expr) {
	zoned := map[string]int{"moment": 2, "datetime": 2, "day": 2}
	rounded := map[string]int{"round": 3, "div": 4, "hours": 3}
	switch n := len(args); {
	case name == "code" && n == 2:
		s, ok := literal(args[0]).(types.String)
		switch {
		case !ok:
			c.fail(args[0].ID(), "", "a code list is named by a text in quotes")
		case c.scope.Codes[string(s)] == nil:
			remedy := didYouMean(string(s), c.scope.Codes.Names())
			if remedy == "" {
				remedy = fmt.Sprintf("Write it as %s.csv, with the columns code and value, into a directory that the configuration names: codes: [codes].", s)
			}
			c.fail(args[0].ID(), remedy, "there is no code list %q", string(s))
		}
	case zoned[name] > 0 && n == zoned[name]:
		if s, ok := literal(args[1]).(types.String); ok {
			if _, err := zone(string(s)); err != nil {
				c.fail(args[1].ID(), "", "%q is %s", string(s), err)
			}
		}
	case rounded[name] > 0 && n == rounded[name]:
		if s, ok := literal(args[n-2]).(types.Int); !ok {
			c.fail(args[n-2].ID(), "", "the digits after the point are a whole number that stands here")
		} else if err := checkScale(int64(s)); err != nil {
			c.fail(args[n-2].ID(), "", "%s", err)
		}
		if s, ok := literal(args[n-1]).(types.String); !ok {
			c.fail(args[n-1].ID(), "", "the mode of rounding is a text in quotes that stands here")
		} else if err := checkMode(string(s)); err != nil {
			c.fail(args[n-1].ID(), "", "%s", err)
		}
	}
}

var (
	undeclared = regexp.MustCompile(`^undeclared reference to '([^']*)'`)
	overload   = regexp.MustCompile(`^found no matching overload for '([^']*)' applied to '(.*)'$`)
	wrapped    = regexp.MustCompile(`wrapper\((\w+)\)`)
	operator   = regexp.MustCompile(`^_?(\W+?)_?$`)
)

// issues are mistakes that CEL found, in the words of this language.
func (c *compiler) issues(issues *cel.Issues) (out []Mistake) {
	for _, e := range issues.Errors() {
		m := Mistake{Line: max(e.Location.Line(), 1), Column: e.Location.Column() + 1, Text: e.Message}
		if f := undeclared.FindStringSubmatch(e.Message); f != nil {
			if f[1] == c.told {
				continue // told
			}
			m.Text, m.Remedy = fmt.Sprintf("there is no %s here", f[1]), c.meant(f[1])
		} else if f := overload.FindStringSubmatch(e.Message); f != nil {
			args := wrapped.ReplaceAllString(f[2], "$1")
			m.Text, m.Remedy = fmt.Sprintf("%s does not go with %s", spoken(f[1]), args), instead(f[1], args)
		}
		m.Text = strings.TrimPrefix(m.Text, "Syntax error: ")
		out = append(out, m)
	}
	return out
}

// spoken is an operator as it is written.
func spoken(name string) string {
	for written, own := range equality {
		if name == own {
			name = written
		}
	}
	switch f := operator.FindStringSubmatch(name); {
	case name == operators.Conditional:
		return "? :"
	case f != nil:
		return f[1]
	}
	return strings.TrimPrefix(name, "@")
}

// instead says what to write where an operator does not do.
func instead(name, args string) string {
	switch {
	case name == "_/_":
		return `Write div(a, b, 6, "half_even"), which is exact and says how it rounds.`
	case strings.Contains(args, "decimal") && strings.Contains(args, "double"):
		return `An exact number with a point is decimal("1.5"); decimal(row.NAME) makes one of a float.`
	}
	return takes(name)
}

// takes is what a function takes, where that fits on a line; "": an operator.
func takes(name string) string {
	env, err := base()
	if err != nil || name == "" || !unicode.IsLetter(rune(name[0])) || env.Functions()[name] == nil {
		return ""
	}
	var ways []string
	for _, o := range env.Functions()[name].OverloadDecls() {
		var args []string
		for _, t := range o.ArgTypes() {
			args = append(args, typeName(t))
		}
		ways = append(ways, name+"("+strings.Join(args, ", ")+")")
	}
	if len(ways) > 4 {
		return ""
	}
	return "It is " + strings.Join(ways, ", or ") + "."
}

// meant is the remedy for a name that is not there.
func (c *compiler) meant(name string) string {
	if t := c.scope.Row; t != nil && t.Column(name) >= 0 {
		return fmt.Sprintf("The column is row.%s.", name)
	}
	if name == "item" || name == "index" {
		return "item and index are those of a rule's each: its key, where and fields may name them."
	}
	if r := didYouMean(name, append(append(Functions(), "row"), c.scope.Roots...)); r != "" {
		return r
	}
	if slices.Equal(c.scope.Roots, []string{"ref"}) {
		return "Columns are ref.NAME, texts stand in quotes."
	}
	return "Columns are row.NAME, texts stand in quotes."
}

// Functions are the names of all functions, in order.
func Functions() []string {
	env, err := base()
	if err != nil {
		panic("BUG: the library of expressions: " + err.Error())
	}
	names := []string{"code"}
	for f := range env.Functions() {
		if !strings.ContainsAny(f, "_@!-") {
			names = append(names, f)
		}
	}
	slices.Sort(names)
	return names
}

func typeName(t *types.Type) string { return wrapped.ReplaceAllString(t.String(), "$1") }

// Row is what programs run on, one after the other: a row of a batch. It is for
// one goroutine, and may be used again.
type Row struct {
	Batch *change.Batch
	Of    []change.Value

	p     *Program
	items []ref.Val
	index int
}

// ResolveName implements cel.Activation.
func (r *Row) ResolveName(name string) (any, bool) {
	i, ok := r.p.slots[name]
	switch {
	case ok:
	case name == "item" && len(r.items) > 0:
		return r.items[r.index], true
	case name == "index" && len(r.items) > 0:
		return types.Int(r.index), true
	default:
		return nil, false
	}
	return load(r.Batch, r.Of[i], name), true
}

// Parent implements cel.Activation.
func (r *Row) Parent() cel.Activation { return nil }

func (p *Program) eval(r *Row) (ref.Val, error) {
	r.p = p
	v, _, err := p.run.Eval(r)
	if err == nil {
		return v, nil
	}
	f := &Failure{}
	if !errors.As(err, &f) {
		f = &Failure{What: err.Error()}
		if strings.Contains(f.What, "no such overload") {
			f.What = "a value is null, or of another type, where it cannot be: coalesce(value, other) gives one that is not null"
		}
	}
	return nil, f
}

// Value computes a value of the row's batch for a column. An error is a *Failure.
func (p *Program) Value(r *Row, want *change.Column) (change.Value, error) {
	b := r.Batch
	v, err := p.eval(r)
	if err != nil {
		return change.Value{}, err
	}
	x, ok := store(b, v)
	if !ok || !fits(x.Kind(), want.Kind) {
		return change.Value{}, &Failure{What: fmt.Sprintf("the value is a %s, %s is %s", typeName(v.Type().(*types.Type)), want.Name, want.Type)}
	}
	if want.Kind == change.String && x.Kind() != change.String && !x.IsNull() {
		return b.Span(change.String, b.AppendText(nil, x)), nil
	}
	return x, nil
}

// Holds says whether a condition holds for a row. An error is a *Failure.
func (p *Program) Holds(r *Row) (bool, error) {
	if p.texts != nil {
		if is, ok := p.texts.holds(r); ok {
			return is, nil
		}
	}
	v, err := p.eval(r)
	if err != nil {
		return false, err
	}
	is, ok := v.(types.Bool)
	if !ok {
		return false, &Failure{What: "the condition is neither true nor false, but " + typeName(v.Type().(*types.Type))}
	}
	return bool(is), nil
}
