// Package mapping turns rows of a source into canonical records: fields by
// their new names, ids as text, composed ids from templates, constants, and
// expressions. It keeps no state. config.go is what a user writes.
package mapping

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/dedupe"
	"github.com/tallywire/tallywire/transforms/join"
)

// What a mapping can meet.
var (
	ErrConfig = problem.Define("TW-MAP-CONFIG", problem.Halt,
		"A mapping does not fit the contract that it is to fill.",
		"Correct it where the message says; docs/config.md lists what a mapping holds.")
	ErrColumn = problem.Define("TW-MAP-COLUMN", problem.Halt,
		"A mapping names a column that the source table does not have, or has with a type that does not fit.",
		"Correct the mapping, or give the table that column again.")
	ErrUnmapped = problem.Define("TW-MAP-TABLE", problem.Halt,
		"A record of a topic that has no mapping.",
		"Add the topic to the mapping.")
	ErrUnchanged = problem.Define("TW-MAP-UNCHANGED", problem.Reject,
		"The source did not send a value that the canonical record needs.",
		"Run ALTER TABLE … REPLICA IDENTITY FULL on that table (not while columns of it are left out at the source: its updates would fail), then touch the row (any update): it takes the place of the parked one. A row that was deleted, or has another key now, cannot be touched: delete at the far side what was made of it, and discard this case.")
	ErrNull = problem.Define("TW-MAP-NULL", problem.Reject,
		"A field that is never null in its contract got a null.",
		"Fill the column at its source: the filled row takes the place of the parked one. Where nothing is a good value, have the rule say what to put there, such as 'coalesce(row.NAME, \"none\")', run tallywire check, start it again, and retry what is parked: tallywire parked retry TRANSFORM --all.")
	ErrValue = problem.Define("TW-MAP-VALUE", problem.Reject,
		"A value that is none of the closed list of its field: what nobody knows must not decide what is posted and what is counted.",
		"Correct the value at its source: the new record takes the place of the parked one.")
	ErrExpr = problem.Define("TW-MAP-EXPR", problem.Reject,
		"An expression of a mapping has no value for this row.",
		"Correct the value at its source: the new record takes the place of the parked one. Or correct the expression, or the code list that it names, run tallywire check, start it again, and retry what is parked: tallywire parked retry TRANSFORM --all.")
	ErrSameKey = problem.Define("TW-MAP-SAME-KEY", problem.Reject,
		"Two elements of one row's list have the same key: one record would take the other's place.",
		"Correct the row at its source: the new record takes the place of the parked one. Or have the rule's key name what tells its elements apart, index at least, run tallywire check, start it again, and retry what is parked: tallywire parked retry TRANSFORM --all.")
	ErrKey = problem.Define("TW-MAP-KEY", problem.Halt,
		"The key of a rule does not hold the primary key of its table.",
		"Make the key of the primary key, such as \"psa-{id}\", and give what else tells the rows apart a field of its own. Or say claims: true, where one row may have the key after another, or several at once: it then is the record of the newest.")
	ErrClaim = problem.Define("TW-MAP-CLAIM", problem.Reject,
		"A record of a claims topic that is no claim, or is one of another contract.",
		"Find out who writes to that topic, then discard this case. Where the contract's key has changed, give the rules a topic of another name.")
	ErrUnseen = problem.Define("TW-MAP-CLAIMS-UNSEEN", problem.Halt,
		"Rules began to claim keys in the midst of a topic: which keys the rows before have is not known.",
		"Have the transform read its topics from the start: tallywire replay TRANSFORM --yes, or go over to the rules by tallywire mapping switch.")
	ErrRowsUnseen = problem.Define("TW-MAP-ROWS-UNSEEN", problem.Halt,
		"Lookups began to use a table's rows, or another column of them, in the midst of its topic: what the rows before have is not kept.",
		"Have the transform read its topics from the start: tallywire replay TRANSFORM --yes. Nothing is looked up until then, and nothing is lost.")
	ErrSweep = problem.Define("TW-MAP-SWEEP", problem.Reject,
		"Rows of a table are gone that the stream did not tell of, and its rows claim keys: what each of them gave cannot be listed.",
		"The records of those rows stay. Delete at the far side what was made of them, or have the rules fill a topic with another name, which begins with what is there; then discard this case.")
	ErrTruncate = problem.Define("TW-MAP-TRUNCATE", problem.Reject,
		"A table was truncated whose rows claim keys: what each of them gave cannot be listed.",
		"Delete the rows one by one where they were truncated (DELETE FROM … in place of TRUNCATE). Where that is too late: have the rules fill a topic with another name, which begins with what the table has now; then discard this case.")
	ErrMessage = problem.Define("TW-MAP-MESSAGE", problem.Reject,
		"A logical message stands where rows are expected.",
		"Find out who writes messages to that topic, then discard this case.")
)

// Config is a transform of type map.
type Config struct {
	Topics []Topic `yaml:"topics" doc:"Which raw topic becomes which canonical topic."`
	Dedupe Dedupe  `yaml:"dedupe" doc:"How a sender's repetitions are recognised, before the mapping."`
}

// Topic is one rule: what becomes of the rows of one raw topic in one canonical
// topic.
type Topic struct {
	From       string                   `yaml:"from" doc:"The raw topic. Several rules may read one; what one of them rejects is parked for all of them." example:"psa.public.customer"`
	To         string                   `yaml:"to" doc:"The canonical topic; it needs a contract." example:"ps.customer"`
	Where      string                   `yaml:"where" doc:"An expression: rows for which it is false are not there, and a row that no longer fulfils it is deleted." example:"row.deleted_at == null"`
	Each       string                   `yaml:"each" doc:"An expression whose value is a list: each element gives a record. key, where and fields may then say item, the element, and index, its place from 0; the key must. Elements that an update takes out are deleted, for which the source has to send old rows (REPLICA IDENTITY FULL)." example:"json(row.payload).lines"`
	Key        config.Scalar            `yaml:"key" doc:"What the canonical key is made of, instead of naming its field under fields: a column, a template such as \"redmine-{id}\", or an expression. Of a contract whose key is one field." example:"\"redmine-{id}\""`
	Claims     bool                     `yaml:"claims" doc:"Rows may hand the key to each other, or share it: an e-mail address, a number that is given again. Each row's claim is kept, and the record is that of the newest; when its row is gone, that of the one before. It costs a second hop through Kafka, so leave it out where the key holds the table's primary key. All rules that fill a topic have it, or none."`
	Lookups    map[string]join.Lookup   `yaml:"lookups" doc:"Rows of other topics that the rule uses by a name of their own: project.number, beside the row's own columns. It costs two hops more through Kafka, and what is looked up lies in Redis."`
	WaitingFor string                   `yaml:"waiting_for" doc:"With lookups, the field that tells what a row waits for, null when it waits for nothing. Without it, a row that waits is not there."`
	Fields     map[string]config.Scalar `yaml:"fields" doc:"Field of the contract: a column; a text with columns in braces, such as \"{employee_id}/{id}\"; a constant: a number, true, false, null, or after an equals sign, such as \"=EUR\"; or an expression over row.COLUMN, such as 'round(decimal(row.hours), 6, \"half_even\")'. Fields that are not named take the column of their own name; those that may be null are null where the table has none."`
}

// Dedupe chooses how repetitions are recognised.
type Dedupe struct {
	Mode     string        `yaml:"mode" doc:"position: by the source's position, needs no state (for Postgres). identity: by columns, remembered in Redis (for webhooks and polling). off."`
	Identity []string      `yaml:"identity" doc:"identity: the columns that name a change; rows of one identity must share a partition."`
	Window   time.Duration `yaml:"window" doc:"identity: how long an identity is remembered."`
}

// Defaults of Config.
func Defaults() Config {
	return Config{Dedupe: Dedupe{Mode: "position", Window: 72 * time.Hour}}
}

func init() { pipeline.Transforms.Register("map", Make) }

// Make is the maker of type map: one group, dedupe and then mapping; where rules
// have claims, another behind it.
func Make(env *pipeline.Env, name string, decode pipeline.Decode) ([]pipeline.TransformSpec, error) {
	cfg := Defaults()
	if err := decode(&cfg); err != nil {
		return nil, err
	}
	m, err := New(name, cfg, env.Contracts, env.Codes)
	if err := errors.Join(err, cfg.Dedupe.check("transforms."+name+".dedupe")); err != nil {
		return nil, err
	}
	if env.Kafka != nil {
		m.progress, m.ends = progressOf(env.Kafka, name), env.Kafka.SettledEnds
	}
	return m.groups(env, cfg.Dedupe, func(o *join.Options, name string, plan *join.Plan) {
		if env.Kafka == nil {
			return
		}
		o.Topics, o.Gate = env.Kafka, join.Gate(env.Kafka, name, plan.Topics())
		o.Flow = join.FlowOf(env.Kafka, name, plan.Left(), avro.RefreshTopic(name))
	}), nil
}

// groups are the groups of the transform; around says what those that look up need of
// Kafka.
func (m *Stage) groups(env *pipeline.Env, how Dedupe, around func(o *join.Options, name string, plan *join.Plan)) []pipeline.TransformSpec {
	m.env = env
	name := m.name
	log := slog.New(slog.DiscardHandler) // of a static check, which has no surroundings
	if env.Obs != nil {
		log = env.Obs.Log
	}
	spec := pipeline.TransformSpec{Name: name, State: m.Remember(env.Redis, log), Topics: m.From(), KeyPrefixes: map[string][]string{}}
	for _, e := range m.order {
		if e.restricted() {
			spec.Restricted = append(spec.Restricted, e.from)
		}
		if e.claims {
			continue
		}
		if !slices.Contains(spec.Outputs, e.to.Topic) {
			spec.Outputs = append(spec.Outputs, e.to.Topic)
		}
		spec.KeyPrefixes[e.to.Topic] = append(spec.KeyPrefixes[e.to.Topic], e.keyPrefix())
	}
	switch how.Mode {
	case "position":
		spec.Stages = append(spec.Stages, dedupe.ByPosition(dedupe.ReadBack(env)))
	case "identity":
		spec.Window = how.Window
		spec.Stages = append(spec.Stages, dedupe.ByIdentity(env, name, m.From(), how.Identity, how.Window))
	}
	spec.Stages = append(spec.Stages, m)
	if env.Kafka != nil {
		m.given.starts = env.Kafka.StartOf
	}
	var specs []pipeline.TransformSpec
	for _, e := range m.looked {
		if e.restricted() {
			for _, raw := range e.look.plan.Raws() {
				spec.Restricted = append(spec.Restricted, raw.Topic)
			}
		}
		specs = append(specs, m.lookupSpecs(e, env, log, around)...)
	}
	if claims, is := m.claimsSpec(env, log); is {
		spec.Queues = append(spec.Queues, claims.Queues...)
		specs = append(specs, claims)
	}
	if len(spec.Topics) == 0 { // all rules are of canonical rows, and look up canonical rows
		return specs
	}
	return append([]pipeline.TransformSpec{spec}, specs...)
}

// check gives what is wrong with it, which stands at path.
func (d *Dedupe) check(path string) error {
	switch d.Mode {
	case "position", "off":
		if len(d.Identity) > 0 || d.Window != Defaults().Dedupe.Window {
			return ErrConfig.New("identity and window have no effect with mode %s", d.Mode).At("%s", path).
				WithRemedy("Write mode: identity, or remove them.")
		}
	case "identity":
		var errs []error
		if len(d.Identity) == 0 {
			errs = append(errs, ErrConfig.New("dedupe by identity needs the columns").At("%s.identity", path))
		}
		if d.Window <= 0 {
			errs = append(errs, ErrConfig.New("dedupe by identity needs a window, not %s", d.Window).At("%s.window", path))
		}
		return errors.Join(errs...)
	default:
		return ErrConfig.New("dedupe mode %q: want position, identity or off", d.Mode).At("%s.mode", path)
	}
	return nil
}

// New checks a configuration against contracts, nil: those of the pack; errors
// are joined TW-MAP-CONFIG problems that name the place and the nearest right name.
func New(name string, cfg Config, all avro.Catalogue, lists codes.Lists) (*Stage, error) {
	if all == nil {
		var err error
		if all, err = avro.Pack(); err != nil {
			return nil, err
		}
	}
	s := &Stage{name: name, codes: lists, byFrom: map[string][]*entry{}}
	var bad []error
	if len(cfg.Topics) == 0 {
		bad = append(bad, ErrConfig.New("no topic is mapped").At("transforms.%s.topics", name))
	}
	for i, t := range cfg.Topics {
		e, errs := s.rule(t, fmt.Sprintf("transforms.%s.topics[%d]", name, i), all)
		bad = append(bad, errs...)
		switch {
		case e == nil:
		case len(t.Lookups) > 0:
			s.looked = append(s.looked, e)
		default:
			s.byFrom[t.From] = append(s.byFrom[t.From], e)
			s.order = append(s.order, e)
		}
	}
	if len(bad) > 0 {
		return nil, errors.Join(bad...)
	}
	s.keepRows()
	return s, nil
}

// rule checks one of them; nil: it cannot be said what it is.
func (s *Stage) rule(t Topic, path string, all avro.Catalogue) (*entry, []error) {
	var bad []error
	c := all[t.To]
	if c == nil {
		e := ErrConfig.New("topic %q has no contract", t.To).At("%s.to", path)
		if near := config.Nearest(t.To, all.Topics()); near != "" {
			e.WithRemedy("Did you mean %s?", near)
		}
		bad = append(bad, e)
	}
	if t.From == "" {
		bad = append(bad, ErrConfig.New("the raw topic is missing").At("%s.from", path))
	}
	if len(bad) > 0 {
		return nil, bad
	}
	e := &entry{from: t.From, path: path, to: c.Table, contract: c.Fields, where: t.Where, each: t.Each, claims: t.Claims}
	byKey, no := t.keyField(c, path)
	bad = append(bad, no...)
	for f := range t.Fields {
		if c.Table.Column(f) < 0 {
			p := ErrConfig.New("the contract of %s has no field %q", t.To, f).At("%s.fields.%s", path, f)
			bad = append(bad, p)
			if near := config.Nearest(f, fieldNames(c.Table)); near != "" {
				p.WithRemedy("Did you mean %s?", near)
			}
		}
	}
	scope := expr.Scope{Codes: s.codes, Roots: slices.Sorted(maps.Keys(t.Lookups))}
	var programs []*expr.Program
	if t.Each != "" {
		l, mistakes := expr.List(t.Each, scope)
		bad = append(bad, told(ErrConfig, path+".each", mistakes)...)
		if scope.Each, scope.List = true, l; l != nil {
			programs = append(programs, l)
		}
	}
	var where *expr.Program
	if t.Where != "" {
		var mistakes []expr.Mistake
		where, mistakes = expr.Condition(t.Where, scope)
		bad = append(bad, told(ErrConfig, path+".where", mistakes)...)
		if where != nil {
			programs = append(programs, where)
		}
	}
	for j := range c.Table.Columns {
		name := c.Table.Columns[j].Name
		at := path + ".fields." + name
		written, named := t.Fields[name]
		switch {
		case j == byKey:
			written, named, at = t.Key, true, path+".key"
		case !named:
			written = config.Text(name)
		}
		src, errs := readSource(e, j, written, at, scope)
		src.path, src.named = at, named
		for _, err := range errs {
			if err.Where == "" {
				err.At("%s", at)
			}
			bad = append(bad, err)
		}
		e.sources = append(e.sources, src)
	}
	if t.Each != "" {
		bad = append(bad, e.tellsApart()...)
	}
	switch {
	case len(t.Lookups) > 0 && len(bad) == 0:
		uses, may := e.uses(programs)
		bad = append(bad, s.looks(e, t, path, all, where, uses, may)...)
	case t.WaitingFor != "" && len(t.Lookups) == 0:
		bad = append(bad, ErrConfig.New("waiting_for has no effect without lookups").At("%s.waiting_for", path).WithRemedy("Remove it."))
	}
	for _, other := range slices.Concat(s.order, s.looked) {
		if other.to == e.to && other.claims != e.claims {
			bad = append(bad, ErrConfig.New("%s is filled by claims here, and not by the rule of %s, or the other way round: neither would know of the other's keys", t.To, other.from).
				At("%s.claims", path).WithRemedy("Write claims: true with both, or with none."))
			break
		}
		if other.to == e.to && !e.claims && pipeline.KeysMayCollide(other.keyPrefix(), e.keyPrefix()) {
			bad = append(bad, ErrConfig.New("%s is filled from %s too: a key of one may be a key of the other, and its record would take the other's place", t.To, other.from).
				At("%s", e.sources[e.to.Key[0]].path).WithRemedy("%s", s.apart(e)))
		}
	}
	return e, bad
}

// apart is how the keys of a rule are told from those of the others that fill its
// topic.
func (s *Stage) apart(e *entry) string {
	parts := strings.Split(e.from, ".")
	prefix := strings.Join(parts, "-") + "-"
	if slices.ContainsFunc(slices.Concat(s.order, s.looked), func(o *entry) bool {
		return o.to == e.to && o.keyPrefix() != "" && pipeline.KeysMayCollide(o.keyPrefix(), prefix)
	}) {
		prefix = parts[len(parts)-1] + "-"
	}
	return fmt.Sprintf("Have the keys of each say where they are from, none of which begins as the other does: %s: \"%s{id}\", say.", e.to.Columns[e.to.Key[0]].Name, prefix)
}

// keyField is the field that `key` fills, -1: it is not written, or cannot be.
func (t *Topic) keyField(c *avro.Contract, path string) (int, []error) {
	if t.Key.Kind == config.NullScalar {
		return -1, nil
	}
	var names []string
	for _, k := range c.Table.Key {
		names = append(names, c.Table.Columns[k].Name)
	}
	wrong := func(format string, args ...any) *problem.Error {
		return ErrConfig.New(format, args...).At("%s.key", path)
	}
	if len(names) > 1 {
		return -1, []error{wrong("the key of %s has several fields: %s", t.To, strings.Join(names, ", ")).WithRemedy("Write each of them under fields, and no key.")}
	}
	var bad []error
	if _, too := t.Fields[names[0]]; too {
		bad = append(bad, wrong("fields names %s as well, which is the key of %s", names[0], t.To).WithRemedy("Leave one of the two out."))
	}
	if t.Key.Kind != config.TextScalar || strings.HasPrefix(t.Key.Text, "=") {
		bad = append(bad, wrong("a key that is a constant gives all rows one record").WithRemedy("Write a column, a template such as \"%s-{id}\", or an expression.", strings.ReplaceAll(t.From, ".", "-")))
	}
	return c.Table.Key[0], bad
}

// told are an expression's mistakes, which stands at path.
func told(code problem.Code, path string, mistakes []expr.Mistake) (bad []error) {
	for _, m := range mistakes {
		e := code.New("%s", m.Text).At("%s", config.Within(path, m.Line, m.Column))
		if m.Remedy != "" {
			e.WithRemedy("%s", m.Remedy)
		}
		bad = append(bad, e)
	}
	return bad
}
