// Lookups: a rule whose rows use those of others. Such a rule runs behind the
// groups of a lookup (transforms/join), over wide rows that hold what was found;
// in front of them, the rows of raw topics are kept under their keys, with the
// columns that are used (F8, decision 45).

package mapping

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
	"github.com/tallywire/tallywire/transforms/join"
)

// look is what a rule with lookups has beyond others.
type look struct {
	name    string // of its groups
	plan    *join.Plan
	waiting int // field that tells what a row waits for; −1: none, and a row that waits is not there
}

// rowsOf is what is kept of a raw topic's rows.
type rowsOf struct {
	names []string
	may   map[string]bool // need not be there
	asked []string        // the names, in order
	days  []string
}

// looks checks the lookups of a rule, whose fields were read already.
func (s *Stage) looks(e *entry, t Topic, path string, all avro.Catalogue, where *expr.Program, uses, may []string) []error {
	name := s.name + "." + t.To
	for _, other := range s.looked {
		if other.to == e.to {
			name += "." + t.From
			break
		}
	}
	if slices.ContainsFunc(s.looked, func(o *entry) bool { return o.look.name == name }) {
		return []error{ErrConfig.New("two rules with lookups make %s of %s", t.To, t.From).At("%s", path).
			WithRemedy("Make one rule of them, with conditions in its fields: c ? a : b.")}
	}
	own := ""
	if where != nil && !where.NamesItem && !where.NamesIndex && !slices.ContainsFunc(where.Vars, func(v string) bool { return !strings.HasPrefix(v, "row.") }) {
		own = t.Where
	}
	plan, bad := join.Compile(join.Rule{
		Name: name, Path: path, From: t.From, Lookups: t.Lookups, Placed: t.Claims, Where: own, Uses: uses, May: may,
		Rows: func(raw string) string { return avro.RowsTopic(s.name, raw) }, Contracts: all, Codes: s.codes,
	})
	if len(bad) > 0 {
		return bad
	}
	e.look = &look{name: name, plan: plan, waiting: -1}
	if t.WaitingFor != "" {
		i := e.to.Column(t.WaitingFor)
		if i < 0 || e.to.Columns[i].Kind != change.String || !e.to.Columns[i].Nullable {
			p := ErrConfig.New("%s has no text field %q that may be null", t.To, t.WaitingFor).At("%s.waiting_for", path)
			if near := config.Nearest(t.WaitingFor, fieldNames(e.to)); near != "" {
				p.WithRemedy("Did you mean %s?", near)
			}
			return []error{p}
		}
		if _, named := t.Fields[t.WaitingFor]; named {
			return []error{ErrConfig.New("fields names %s as well, which tells what a row waits for", t.WaitingFor).At("%s.fields.%s", path, t.WaitingFor).
				WithRemedy("Leave one of the two out.")}
		}
		e.look.waiting = i
	}
	// What the contracts say of types is known already.
	_, bad = s.fit(e, plan.Table(nil))
	if c := all[t.From]; c != nil && len(bad) == 0 {
		bad = append(bad, e.holdsKey(c.Table)...)
	}
	return append(bad, e.keepsToFew(plan, all)...)
}

// keepsToFew says which fields would show to many what a contract shows to few
// (invariant 13).
func (e *entry) keepsToFew(plan *join.Plan, all avro.Catalogue) (bad []error) {
	for i := range e.sources {
		if e.contract[i].Sensitivity == avro.Restricted {
			continue
		}
		src := &e.sources[i]
		names := slices.Clone(src.cols)
		if src.checked != nil {
			for _, v := range src.checked.Vars {
				names = append(names, expr.ColumnOf(v))
			}
		}
		for _, name := range names {
			if f, is := plan.Field(name, all); is && f.Sensitivity == avro.Restricted {
				bad = append(bad, ErrConfig.New("field %s of %s is %s, and %s, of which it is made, is restricted: its readers would see it", e.contract[i].Name, e.to.Topic, e.contract[i].Sensitivity, name).
					At("%s", src.path).WithRemedy("Make the field restricted in its contract, or leave it out."))
			}
		}
	}
	return bad
}

// uses are the columns that a rule's fields, key, list and condition read, and those
// of its row that need not be there.
func (e *entry) uses(programs []*expr.Program) (uses, may []string) {
	add := func(name string) {
		if !slices.Contains(uses, name) {
			uses = append(uses, name)
		}
	}
	optional := map[string]bool{}
	for i := range e.sources {
		src := &e.sources[i]
		if src.checked != nil {
			programs = append(programs, src.checked)
		}
		for _, c := range src.cols {
			add(c)
			if !src.named && e.optional(i) {
				optional[c] = true
			} else {
				optional[c] = optional[c] && false
			}
		}
	}
	for _, p := range programs {
		for _, v := range p.Vars {
			add(expr.ColumnOf(v))
			optional[expr.ColumnOf(v)] = false
		}
	}
	for _, c := range slices.Sorted(maps.Keys(optional)) {
		if optional[c] {
			may = append(may, c)
		}
	}
	return uses, may
}

// holdsKey says that a key does not hold that of the table which its rows are of.
func (e *entry) holdsKey(t *change.Table) []error {
	if e.claims {
		return nil
	}
	var missing []string
	for _, k := range t.Key {
		name := t.Columns[k].Name
		if !slices.ContainsFunc(e.to.Key, func(i int) bool {
			src := &e.sources[i]
			return slices.Contains(src.cols, name) || src.checked != nil && slices.Contains(src.checked.Vars, "row."+name)
		}) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return []error{ErrKey.New("the key of %s does not say %s, the primary key of %s: two rows could give the same key, one after the other, and a record would be lost", e.to.Topic, strings.Join(missing, ", "), t.Topic).
		At("%s", e.sources[e.to.Key[0]].path)}
}

// keepRows adds, of each raw topic that lookups use, the rule that keeps its rows.
func (s *Stage) keepRows() {
	by := map[string]*entry{}
	for _, e := range s.looked {
		for _, raw := range e.look.plan.Raws() {
			of := by[raw.Topic]
			if of == nil {
				c := avro.Rows(raw.Rows)
				of = &entry{from: raw.Topic, path: e.path, to: c.Table, contract: c.Fields, rows: &rowsOf{may: map[string]bool{}}}
				by[raw.Topic] = of
				s.order = append(s.order, of)
				s.byFrom[raw.Topic] = append(s.byFrom[raw.Topic], of)
			}
			for _, name := range raw.Names {
				if !slices.Contains(of.rows.names, name) {
					of.rows.names, of.rows.may[name] = append(of.rows.names, name), raw.May[name]
				}
				of.rows.may[name] = of.rows.may[name] && raw.May[name]
			}
			of.rows.days = append(of.rows.days, raw.Days...)
		}
	}
	for _, of := range by {
		of.rows.asked = append([]string{}, of.rows.names...)
		slices.Sort(of.rows.asked)
	}
}

// fitRows compiles the keeping of rows for a shape of their table, and holds the
// rules of these rows against it.
func (s *Stage) fitRows(e *entry, t *change.Table) (*plan, []error) {
	if len(t.Key) == 0 {
		return nil, []error{ErrKey.New("%s has no primary key: its rows cannot be kept to be looked up", t.Topic).At("%s", e.path).
			WithRemedy("Give %s a primary key.", t.SQLName())}
	}
	p := &plan{e: e, to: e.to, key: e.to.Key, keyCols: make([]bool, len(t.Columns)), inKey: true, waits: -1, table: t}
	for _, k := range t.Key {
		p.keyCols[k] = true
	}
	var bad []error
	keep := field{kind: packed}
	for _, name := range e.rows.names {
		c := t.Column(name)
		switch {
		case c < 0 && e.rows.may[name]:
		case c < 0:
			err := ErrColumn.New("%s has no column %q, which a rule with lookups uses", t.Topic, name).At("%s", e.path)
			if near := config.Nearest(name, fieldNames(t)); near != "" {
				err.WithRemedy("Did you mean %s?", near)
			}
			bad = append(bad, err)
		case !join.CanKeep(&t.Columns[c]) && e.rows.may[name]:
		case !join.CanKeep(&t.Columns[c]):
			bad = append(bad, ErrColumn.New("column %s of %s is %s, which rules with lookups cannot use", name, t.Topic, t.Columns[c].Type).At("%s", e.path))
		case slices.Contains(e.rows.days, name) && !join.IsDay(&t.Columns[c]):
			bad = append(bad, ErrColumn.New("column %s of %s is %s, and in_force wants a date", name, t.Topic, t.Columns[c].Type).At("%s", e.path))
		default:
			keep.cols = append(keep.cols, c)
		}
	}
	p.fields = []field{{kind: keyText, cols: t.Key}, keep}
	for _, rule := range s.looked {
		if rule.from != t.Topic {
			continue
		}
		_, no := s.fit(rule, rule.look.plan.Table(map[string]*change.Table{t.Topic: t}))
		bad = append(append(bad, no...), rule.holdsKey(t)...)
	}
	if len(bad) > 0 {
		return nil, bad
	}
	return p, nil
}

// waitsFor says whether a wide row lacks something that is looked up.
func (p *plan) waitsFor(row []change.Value) bool {
	return p.waits >= 0 && row != nil && !row[p.waits].IsNull() && !row[p.waits].IsUnchanged()
}

// make gives the canonical row of a source row; in is whether it is there. One that
// waits is there only where a field tells so, and where all that is never null has a
// value without what is missing.
func (p *plan) make(b *change.Batch, c *change.Change, sc *scratch) (row []change.Value, in bool, err error) {
	waits := p.waitsFor(c.New)
	if waits && p.e.look.waiting < 0 {
		return nil, false, nil
	}
	if in, err = p.holds(b, c, c.New, sc); in && err == nil {
		row, err = p.row(b, c, sc)
	}
	if waits && err != nil && pipeline.Classify(err) == problem.Reject && !problem.Has(err, ErrUnchanged) {
		return nil, false, nil
	}
	return row, in, err
}

// lookupSpecs are the groups of a rule: the one that keeps what is looked up, and the
// one that looks up and applies the rule.
func (s *Stage) lookupSpecs(e *entry, env *pipeline.Env, log *slog.Logger, around func(o *join.Options, name string, plan *join.Plan)) []pipeline.TransformSpec {
	name, plan := e.look.name, e.look.plan
	o := join.Options{Redis: env.Redis, Tables: env.Tables, Log: log}
	if env.Obs != nil {
		o.Component = env.Obs.Component("transform", name)
	}
	around(&o, name, plan)
	if o.Topics != nil {
		k := &keptRows{transform: s.name, raws: plan.Raws(), rdb: env.Redis, of: state.NewReader(s.name, state.ChangelogOf(s.name), o.Topics.Topic), read: s.progress, ends: s.ends}
		o.Kept = k.all
	}
	left, right := join.New(plan, o)
	rule := s.behind(e)
	given := rule.remember(env.Redis, log, name, plan.Left())
	queue := avro.RefreshTopic(name)
	last := pipeline.TransformSpec{
		Name: name, Topics: []string{plan.Left(), queue}, CoPartitioned: []string{plan.Left(), queue},
		Stages: []pipeline.Stage{left, rule}, State: given, Queues: []string{queue}, Trim: []string{queue}, KeyPrefixes: map[string][]string{},
	}
	if e.claims {
		last.Queues = append(last.Queues, avro.ClaimsTopic(s.name))
	} else {
		last.Outputs = []string{e.to.Topic}
		last.KeyPrefixes[e.to.Topic] = []string{e.keyPrefix()}
	}
	first := pipeline.TransformSpec{
		Name: name + join.RightSuffix, Topics: plan.Topics(), Stages: []pipeline.Stage{right}, Queues: []string{queue}, State: right.State(), Rest: right.Rest,
	}
	if e.restricted() {
		first.Restricted, last.Restricted = plan.Topics(), []string{plan.Left()}
	}
	return []pipeline.TransformSpec{first, last}
}

// behind is the stage that applies a rule to wide rows.
func (s *Stage) behind(e *entry) *Stage {
	return &Stage{name: s.name, env: s.env, codes: s.codes, inner: true, order: []*entry{e}, byFrom: map[string][]*entry{e.from: {e}}}
}

// Looks says whether a rule has lookups, and where it stands.
func (s *Stage) Looks() (path string, is bool) {
	if len(s.looked) == 0 {
		return "", false
	}
	return s.looked[0].path, true
}

// noLookups is the error of a switch, which rules with lookups do without.
func (s *Stage) noLookups() error {
	if path, is := s.Looks(); is {
		return ErrConfig.New("rules with lookups are not switched: they know what each row gave").At("%s.lookups", path).
			WithRemedy("Stop the process (or run it --without %s), then tallywire replay %s --yes, and start with the new rules: all rows are given anew, and what they gave under other keys is deleted. What a rule gave that is there no more stays: have the new one fill a topic of another name.", s.name, s.name)
	}
	return nil
}

// doctorLookups holds the rules against the tables that are there.
func (s *Stage) doctorLookups(ctx context.Context) []pipeline.Finding {
	var fs []pipeline.Finding
	for _, e := range s.looked {
		f := pipeline.Finding{What: fmt.Sprintf("%s fills %s", e.from, e.to.Topic)}
		tables := map[string]*change.Table{}
		for _, raw := range e.look.plan.Raws() {
			t, err := s.env.Tables(ctx, raw.Topic)
			if err != nil {
				fs = append(fs, pipeline.Finding{What: f.What, Err: err})
				continue
			}
			if t != nil {
				tables[raw.Topic] = t
			}
		}
		_, bad := s.fit(e, e.look.plan.Table(tables))
		for _, err := range bad {
			fs = append(fs, pipeline.Finding{What: f.What, Err: err})
		}
		if len(bad) == 0 {
			fs = append(fs, f)
		}
	}
	return fs
}
