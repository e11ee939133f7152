// Package mapping turns rows of a source into canonical records: fields by
// their new names, ids as text, composed ids from templates, constants. It
// keeps no state. config.go is what a user writes.
package mapping

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/dedupe"
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
		"Run ALTER TABLE … REPLICA IDENTITY FULL on that table, then touch the row (any update): it takes the place of the parked one. A row that was deleted, or has another key now, cannot be touched: delete at the far side what was made of it, and discard this case.")
	ErrNull = problem.Define("TW-MAP-NULL", problem.Reject,
		"A field that is never null in its contract got a null.",
		"Fill the column at its source: the filled row takes the place of the parked one.")
	ErrValue = problem.Define("TW-MAP-VALUE", problem.Reject,
		"A value that is none of the closed list of its field: what nobody knows must not decide what is posted and what is counted.",
		"Correct the value at its source: the new record takes the place of the parked one.")
	ErrTruncate = problem.Define("TW-MAP-TRUNCATE", problem.Reject,
		"A table was truncated at the source; canonical topics know deletes of keys only, so its canonical records remain.",
		"Rows that come again under their keys replace theirs. Delete at the far side what was made of the others, then discard this case (one for each partition).")
	ErrMessage = problem.Define("TW-MAP-MESSAGE", problem.Reject,
		"A logical message stands where rows are expected.",
		"Find out who writes messages to that topic, then discard this case.")
)

// Config is a transform of type map.
type Config struct {
	Topics []Topic `yaml:"topics" doc:"Which raw topic becomes which canonical topic."`
	Dedupe Dedupe  `yaml:"dedupe" doc:"How a sender's repetitions are recognised, before the mapping."`
}

// Topic maps one raw topic to one canonical topic.
type Topic struct {
	From   string            `yaml:"from" doc:"The raw topic." example:"psa.public.customer"`
	To     string            `yaml:"to" doc:"The canonical topic; it needs a contract." example:"ps.customer"`
	Fields map[string]string `yaml:"fields" doc:"Field of the contract: a column; a text with columns in braces, such as \"{employee_id}/{id}\"; or a constant after an equals sign, such as \"=EUR\". Fields that are not named take the column of their own name; those that may be null are null where the table has none."`
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

// Make is the maker of type map: one group, dedupe and then mapping.
func Make(env *pipeline.Env, name string, decode pipeline.Decode) ([]pipeline.TransformSpec, error) {
	cfg := Defaults()
	if err := decode(&cfg); err != nil {
		return nil, err
	}
	m, err := New(name, cfg, env.Contracts)
	if err := errors.Join(err, cfg.Dedupe.check("transforms."+name+".dedupe")); err != nil {
		return nil, err
	}
	m.env = env
	spec := pipeline.TransformSpec{Name: name, Topics: m.From(), Outputs: m.To(), KeyPrefixes: map[string][]string{}}
	for _, e := range m.order {
		spec.KeyPrefixes[e.to.Topic] = append(spec.KeyPrefixes[e.to.Topic], e.keyPrefix())
	}
	switch cfg.Dedupe.Mode {
	case "position":
		spec.Stages = append(spec.Stages, dedupe.ByPosition(dedupe.ReadBack(env)))
	case "identity":
		spec.Stages = append(spec.Stages, dedupe.ByIdentity(env, name, m.From(), cfg.Dedupe.Identity, cfg.Dedupe.Window))
	}
	spec.Stages = append(spec.Stages, m)
	return []pipeline.TransformSpec{spec}, nil
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

// source is where the value of one field comes from.
type source struct {
	text    string // as written
	path    string // where it is written
	named   bool   // it is written; else it is the column of the field's name
	cols    []string
	between []string // literal text: before the first column, between, after the last
	value   *string  // a constant
}

// parseSource reads "column", "{a}/{b}" or "=constant".
func parseSource(s string) (source, error) {
	src := source{text: s}
	if v, ok := strings.CutPrefix(s, "="); ok {
		src.value = &v
		return src, nil
	}
	if !strings.ContainsAny(s, "{}") {
		if s == "" {
			return src, fmt.Errorf("a column, a template or a constant is missing")
		}
		src.cols = []string{s}
		return src, nil
	}
	rest := s
	for {
		lit, more, ok := strings.Cut(rest, "{")
		if strings.Contains(lit, "}") {
			return src, fmt.Errorf("%q has a } without {", s)
		}
		src.between = append(src.between, lit)
		if !ok {
			return src, nil
		}
		col, more, ok := strings.Cut(more, "}")
		if !ok || col == "" || strings.Contains(col, "{") {
			return src, fmt.Errorf("%q has a { without a column and }", s)
		}
		src.cols = append(src.cols, col)
		rest = more
	}
}

// New checks a configuration against contracts, nil: those of the pack; errors
// are joined TW-MAP-CONFIG problems that name the place and the nearest right name.
func New(name string, cfg Config, all avro.Catalogue) (*Stage, error) {
	if all == nil {
		var err error
		if all, err = avro.Pack(); err != nil {
			return nil, err
		}
	}
	s := &Stage{name: name, byFrom: map[string]*entry{}}
	var bad []error
	fail := func(path, format string, args ...any) {
		bad = append(bad, ErrConfig.New(format, args...).At("%s", path))
	}
	if len(cfg.Topics) == 0 {
		fail("transforms."+name+".topics", "no topic is mapped")
	}
	for i, t := range cfg.Topics {
		path := fmt.Sprintf("transforms.%s.topics[%d]", name, i)
		c := all[t.To]
		if c == nil {
			e := ErrConfig.New("topic %q has no contract", t.To).At("%s.to", path)
			bad = append(bad, e)
			if near := config.Nearest(t.To, all.Topics()); near != "" {
				e.WithRemedy("Did you mean %s?", near)
			}
			continue
		}
		if t.From == "" {
			fail(path+".from", "the raw topic is missing")
			continue
		}
		if s.byFrom[t.From] != nil {
			fail(path+".from", "topic %q is mapped twice", t.From)
			continue
		}
		e := &entry{from: t.From, path: path, to: c.Table, contract: c.Fields}
		for f := range t.Fields {
			if c.Table.Column(f) < 0 {
				p := ErrConfig.New("the contract of %s has no field %q", t.To, f).At("%s.fields.%s", path, f)
				bad = append(bad, p)
				if near := config.Nearest(f, fieldNames(c.Table)); near != "" {
					p.WithRemedy("Did you mean %s?", near)
				}
			}
		}
		for j := range c.Table.Columns {
			col := &c.Table.Columns[j]
			text, named := t.Fields[col.Name]
			if !named {
				text = col.Name
			}
			src, err := parseSource(text)
			src.path, src.named = path+".fields."+col.Name, named
			switch {
			case err != nil:
				fail(src.path, "%s", err)
			case (len(src.between) > 0 || src.value != nil) && col.Kind != change.String:
				fail(src.path, "a template or a constant makes text, field %s of %s is %s", col.Name, t.To, col.Type)
			case src.value != nil:
				if p := e.closed(j, *src.value); p != nil {
					fail(src.path, "%s", p.Text)
				}
			}
			e.sources = append(e.sources, src)
		}
		for _, other := range s.order {
			if other.to == e.to && pipeline.KeysMayCollide(other.keyPrefix(), e.keyPrefix()) {
				id := e.to.Columns[e.to.Key[0]].Name
				bad = append(bad, ErrConfig.New("%s is filled from %s too: a key of one may be a key of the other, and its record would take the other's place", t.To, other.from).
					At("%s.fields.%s", path, id).WithRemedy("Have the keys of each say where they are from: %s: \"%s-{id}\", say.", id, strings.ReplaceAll(t.From, ".", "-")))
			}
		}
		s.byFrom[t.From] = e
		s.order = append(s.order, e)
	}
	if len(bad) > 0 {
		return nil, errors.Join(bad...)
	}
	return s, nil
}
