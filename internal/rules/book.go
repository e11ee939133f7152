// Package rules gives the rules of a configuration's mappings by themselves, as
// run builds them: for who tests them, or compares what they make.
package rules

import (
	"errors"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// ErrTransform: there is no such transform, or it is not clear which is meant.
var ErrTransform = problem.Define("TW-MAP-TRANSFORM", problem.Halt,
	"The configuration has no such transform of type map, or several and none is named.",
	"Name one that it has.")

// Book gives the stages of a configuration's mappings, as run builds them.
type Book struct {
	Contracts avro.Catalogue

	cfg    *config.Config
	lists  codes.Lists
	stages map[string]*mapping.Stage
}

// Read reads the configuration without its secrets, with its contracts and
// code lists.
func Read(file string) (*Book, error) {
	cfg, err := config.Load(file, config.Options{Static: true})
	if err != nil {
		return nil, err
	}
	return Of(cfg)
}

// Of is Read, of a configuration that was read.
func Of(cfg *config.Config) (*Book, error) {
	contracts, err := avro.LoadCatalogue(cfg.ContractDirs()...)
	lists, err2 := codes.Load(cfg.CodeDirs()...)
	return &Book{cfg: cfg, Contracts: contracts, lists: lists, stages: map[string]*mapping.Stage{}}, errors.Join(err, err2)
}

// names are the transforms of type map.
func (r *Book) names() (names []string) {
	for _, c := range r.cfg.Transforms {
		if c.Type == "map" {
			names = append(names, c.Name)
		}
	}
	return names
}

// Stage is that of a transform; when name is "", of the only one, or of the only one
// that is meant.
func (r *Book) Stage(name string, meant func(*mapping.Stage) bool) (*mapping.Stage, error) {
	names := r.names()
	if name == "" && len(names) == 1 {
		name = names[0]
	}
	if name == "" {
		var found []*mapping.Stage
		for _, name := range names {
			s, err := r.Stage(name, meant)
			if err != nil {
				return nil, err
			}
			if meant(s) {
				found = append(found, s)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		return nil, ErrTransform.New("%s has %d transforms of type map", r.cfg.File, len(names)).WithRemedy("Name one: %s.", strings.Join(names, ", "))
	}
	if s := r.stages[name]; s != nil {
		return s, nil
	}
	c := r.component(name)
	if c == nil {
		e := ErrTransform.New("%s has no transform %q of type map", r.cfg.File, name)
		if near := config.Nearest(name, names); near != "" {
			e.Text += "; did you mean \"" + near + "\"?"
		}
		return nil, e.WithRemedy("Use one of: %s.", strings.Join(names, ", "))
	}
	rules := mapping.Defaults()
	if err := c.Decode(&rules); err != nil {
		return nil, err
	}
	s, err := mapping.New(name, rules, r.Contracts, r.lists)
	if err != nil {
		return nil, c.Place(err)
	}
	r.stages[name] = s
	return s, nil
}

func (r *Book) component(name string) *config.Component {
	for _, c := range r.cfg.Transforms {
		if c.Type == "map" && c.Name == name {
			return c
		}
	}
	return nil
}

// Place adds line and column of the configuration to a mistake of the rules.
func (r *Book) Place(err error) error {
	for _, c := range r.cfg.Transforms {
		err = c.Place(err)
	}
	return err
}
