// schemas.go: how the contracts stand to the registry, and the step over a change
// that old readers cannot take.

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/config"
)

// schemaCmds are the commands of contracts that ask the registry.
func (a *app) schemaCmds() []*cobra.Command {
	diff := &cobra.Command{
		Use:   "diff [TOPIC...]",
		Short: "Compare the contracts with the schemas in the registry",
		Long: `diff says of each contract how it differs from the last schema that the registry
has for its topic, and whether the registry would take it. It changes nothing.
One that is earlier equals a version before the last, as after a way back: the
registry has it, and takes it. Nothing is known of one that is unchecked: its
subject's level is NONE, as a register --breaking leaves it that was killed, and
what helps is said. The exit code is 3 if register would refuse one.`,
		Example: "  tallywire contracts diff\n  tallywire contracts diff ps.time_entry -o json",
		RunE: func(c *cobra.Command, topics []string) error {
			all, _, err := a.standings(c.Context(), topics)
			if err != nil {
				return err
			}
			if err := a.printStandings(all); err != nil {
				return err
			}
			if slices.ContainsFunc(all, standing.refused) {
				return exit(exitDiffer)
			}
			return nil
		},
	}
	var breaking bool
	register := &cobra.Command{
		Use:   "register [TOPIC...]",
		Short: "Register the contracts' schemas before they are used",
		Long: `register gives the registry the schemas of the contracts, as a transform does at
its start. If one would be refused, none is registered and the exit code is 5:
readers that still use the old schema could not read the new records. Once they
can, or there are none, --breaking registers it all the same; the subject's level
of compatibility is NONE meanwhile, and afterwards what it was. What that is, and
the command that sets it back, is said before, on standard error. A subject that
was left at NONE while the global level is another is refused too, and gets the
global level by --breaking.`,
		Example: "  tallywire contracts register                          # what diff shows\n  tallywire contracts register --breaking ps.time_entry",
		RunE: func(c *cobra.Command, topics []string) error {
			return a.registerContracts(c.Context(), topics, breaking)
		},
	}
	register.Flags().BoolVar(&breaking, "breaking", false, "register what is not compatible with the last schema, too")
	return []*cobra.Command{diff, register}
}

// standing is how one contract stands to the registry.
type standing struct {
	Topic    string   `json:"topic"`
	Standing string   `json:"standing"`          // new, same, earlier, compatible, breaking, unchecked
	Version  int      `json:"version,omitempty"` // the last
	Equals   int      `json:"equals,omitempty"`  // the one that it is the same as
	Changes  []string `json:"changes,omitempty"`
	Against  []string `json:"against,omitempty"`
	Level    string   `json:"level,omitempty"` // NONE, where that was left and the global one is another
	Remedy   string   `json:"remedy,omitempty"`

	lifted string // what is wrong with the level, in words
}

func (s standing) refused() bool { return s.Standing == "breaking" || s.Standing == "unchecked" }

// liftedLevel tells of a subject's level that was left at NONE, and what helps.
func liftedLevel(reg *avro.Registry, topic, global string) (what, remedy string) {
	return fmt.Sprintf("its level is NONE, the global one %s: the registry takes anything", global),
		fmt.Sprintf("tallywire contracts register --breaking %s registers the contract and sets the level back; %s sets it back alone", topic, reg.SetsBack(topic))
}

func (a *app) standings(ctx context.Context, topics []string) (out []standing, reg *avro.Registry, err error) {
	cfg, err := a.load()
	if err != nil {
		return nil, nil, err
	}
	if reg, err = schemaRegistry(cfg); err != nil {
		return nil, nil, err
	}
	all := reg.Contracts
	if len(topics) == 0 {
		topics = all.Topics()
	}
	for _, topic := range topics {
		if all[topic] == nil {
			return nil, nil, noContract(topic, all)
		}
		s, err := reg.Standing(ctx, all[topic])
		if err != nil {
			return nil, nil, err
		}
		is := standing{Topic: topic, Standing: "compatible", Version: s.Version, Equals: s.Equals, Changes: s.Changes, Against: s.Against}
		switch {
		case s.Version == 0:
			is.Standing = "new"
		case s.Equals == s.Version:
			is.Standing = "same"
		case s.Equals > 0:
			is.Standing = "earlier"
		case len(s.Against) > 0:
			is.Standing = "breaking"
		case s.Lifted != "":
			is.Standing = "unchecked"
		}
		if s.Lifted != "" {
			is.Level = "NONE"
			is.lifted, is.Remedy = liftedLevel(reg, topic, s.Lifted)
		}
		out = append(out, is)
	}
	return out, reg, nil
}

// noContract is the error of a topic that has none.
func noContract(topic string, all avro.Catalogue) error {
	e := avro.ErrContract.New("there is no contract of %q", topic)
	if near := config.Nearest(topic, all.Topics()); near != "" {
		e.Text += fmt.Sprintf("; did you mean %q?", near)
	}
	return e.WithRemedy("Use one of: %s.", strings.Join(all.Topics(), ", "))
}

func (a *app) printStandings(all []standing) error {
	return a.print(all, func(w io.Writer) {
		fmt.Fprint(w, "TOPIC\tSTANDING\tVERSION\tWHAT DIFFERS\n")
		for _, s := range all {
			version, more := "-", append(slices.Clone(s.Changes), s.Against...)
			if s.Version > 0 {
				version = fmt.Sprint(s.Version)
			}
			if s.Standing == "earlier" {
				version = fmt.Sprintf("%d; the last is %d", s.Equals, s.Version)
			}
			if s.lifted != "" {
				more = append(more, s.lifted, s.Remedy)
			}
			if len(more) == 0 {
				more = []string{""}
			}
			for i, line := range more {
				if i == 0 {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Topic, s.Standing, version, line)
				} else {
					fmt.Fprintf(w, "\t\t\t%s\n", line)
				}
			}
		}
	})
}

func (a *app) registerContracts(ctx context.Context, topics []string, breaking bool) error {
	all, reg, err := a.standings(ctx, topics)
	if err != nil {
		return err
	}
	if !breaking && slices.ContainsFunc(all, standing.refused) {
		if err := a.printStandings(all); err != nil {
			return err
		}
		fmt.Fprintln(a.err, "refused, nothing was registered: readers that use the old schema of what is breaking could not read the new records, and nobody looked at what is unchecked. Once they can: --breaking")
		return exit(exitRefused)
	}
	for _, s := range all {
		c := reg.Contracts[s.Topic]
		switch {
		case s.Standing == "breaking", breaking && s.Level != "":
			err = reg.Supersede(ctx, c, func(note string) { fmt.Fprintln(a.err, note) })
		case s.Standing == "same", s.Standing == "earlier":
			continue
		default:
			_, _, err = reg.RegisterContract(ctx, c)
		}
		if err != nil {
			return err
		}
	}
	after, _, err := a.standings(ctx, topics)
	if err != nil {
		return err
	}
	return a.printStandings(after)
}
