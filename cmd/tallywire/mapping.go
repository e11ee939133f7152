// mapping.go: the rules of a transform by themselves, tested by cases and held
// against what runs.

package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/transforms/mapping"
)

var errMapping = problem.Define("TW-MAP-TRANSFORM", problem.Halt,
	"The configuration has no such transform of type map, or several and none is named.",
	"Name one that it has.")

func (a *app) mappingCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "mapping",
		Short: "Test the rules of a mapping, see what a change of them changes",
	}
	c.AddCommand(a.mappingTestCmd(), a.mappingPreviewCmd())
	return c
}

// ruleBook gives the stages of a configuration's mappings, as run builds them.
type ruleBook struct {
	cfg       *config.Config
	contracts avro.Catalogue
	lists     codes.Lists
	stages    map[string]*mapping.Stage
}

// readRules reads the configuration without its secrets, with its contracts and
// code lists.
func readRules(file string) (*ruleBook, error) {
	cfg, err := config.Load(file, config.Options{Static: true})
	if err != nil {
		return nil, err
	}
	return rulesOf(cfg)
}

func rulesOf(cfg *config.Config) (*ruleBook, error) {
	contracts, err := avro.LoadCatalogue(cfg.ContractDirs()...)
	lists, err2 := codes.Load(cfg.CodeDirs()...)
	return &ruleBook{cfg: cfg, contracts: contracts, lists: lists, stages: map[string]*mapping.Stage{}}, errors.Join(err, err2)
}

// names are the transforms of type map.
func (r *ruleBook) names() (names []string) {
	for _, c := range r.cfg.Transforms {
		if c.Type == "map" {
			names = append(names, c.Name)
		}
	}
	return names
}

// stage is that of a transform, or of the only one when name is "".
func (r *ruleBook) stage(name string) (*mapping.Stage, error) {
	names := r.names()
	if name == "" {
		if len(names) != 1 {
			return nil, errMapping.New("%s has %d transforms of type map", r.cfg.File, len(names)).WithRemedy("Name one: %s.", strings.Join(names, ", "))
		}
		name = names[0]
	}
	if s := r.stages[name]; s != nil {
		return s, nil
	}
	c := r.component(name)
	if c == nil {
		e := errMapping.New("%s has no transform %q of type map", r.cfg.File, name)
		if near := config.Nearest(name, names); near != "" {
			e.Text += "; did you mean \"" + near + "\"?"
		}
		return nil, e.WithRemedy("Use one of: %s.", strings.Join(names, ", "))
	}
	rules := mapping.Defaults()
	if err := c.Decode(&rules); err != nil {
		return nil, err
	}
	s, err := mapping.New(name, rules, r.contracts, r.lists)
	if err != nil {
		return nil, c.Place(err)
	}
	r.stages[name] = s
	return s, nil
}

func (r *ruleBook) component(name string) *config.Component {
	for _, c := range r.cfg.Transforms {
		if c.Type == "map" && c.Name == name {
			return c
		}
	}
	return nil
}

// place adds line and column of the configuration to a mistake of the rules.
func (r *ruleBook) place(err error) error {
	for _, c := range r.cfg.Transforms {
		err = c.Place(err)
	}
	return err
}
