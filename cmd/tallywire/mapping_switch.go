// mapping_switch.go: from one set of rules to another, and back.

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/rules"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/transform"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// errPosts keeps a switch from posting twice.
var errPosts = problem.Define("TW-SWITCH-POSTS", problem.Halt,
	"The switch gives rows other keys, and a sink posts a document for each new key: what it posted for the former keys would be taken back, or stay, and be posted again.",
	"Keep the keys of these rules as they are; then switch. Where the far side shall have it anew, because it was emptied or has none of it, say so: --anew SINK.")

type switchFlags struct {
	from string
	yes  bool
	anew []string
}

func (a *app) mappingSwitchCmd() *cobra.Command {
	f := switchFlags{}
	c := &cobra.Command{
		Use:   "switch [TRANSFORM]",
		Short: "Have a transform go over to other rules, with all rows that Kafka has",
		Long: `switch goes from the rules of --from to those of the configuration. Every row
that the raw topics hold is read: for each key that the former rules may have
given and the new ones cannot, a delete is written, so that nothing of it stays
in the warehouse. Then the transform is set back to the start of its topics, and
run gives all rows anew. The way back is the same command with the files
exchanged.

Without --yes it reads the same, writes nothing, and tells how many deletes it
would write; preview --with tells what the new rules make of the rows. With --yes
the transform must be stopped: with members in its group it is refused (exit code
5); stop the process, or run it --without TRANSFORM meanwhile. Other components
go on.

It is refused too (exit code 5) when keys change that a sink posts by, such as an
ERP: for it a new key is a new document, and what is posted already would be
posted again. --anew SINK says that this is wanted, for each such sink.

Broken off, it is open: the transform does not start (TW-SWITCH-OPEN) until the
same command was run to its end. Rows whose keys change are missing downstream
until run has read them. What was made of rows that the raw topics do not hold
any more stays as it is; the first offsets of those that lack some are told.`,
		Example: `  tallywire mapping preview -c new.yml --with tallywire.yml --against 7d
  tallywire mapping switch -c new.yml --from tallywire.yml          # counts
  tallywire mapping switch -c new.yml --from tallywire.yml --yes
  tallywire mapping switch -c tallywire.yml --from new.yml --yes    # and back`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return none(c, args[1:])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mappingSwitch(cmd.Context(), strings.Join(args, ""), f)
		},
	}
	c.Flags().StringVar(&f.from, "from", "", "the configuration with the former rules")
	c.Flags().BoolVar(&f.yes, "yes", false, "do it")
	c.Flags().StringSliceVar(&f.anew, "anew", nil, "have this sink post rows anew whose keys change")
	return c
}

func (a *app) mappingSwitch(ctx context.Context, name string, f switchFlags) error {
	if f.from == "" {
		return usage{fmt.Errorf("--from names the configuration with the former rules")}
	}
	cfg, err := loadForReading(a.runningFile())
	if err != nil {
		return err
	}
	now, err := rules.Of(cfg)
	if err != nil {
		return err
	}
	stage, err := now.Stage(name, switched)
	if err != nil {
		return err
	}
	former, err := rules.Read(f.from)
	if err != nil {
		return err
	}
	was, err := former.Stage(stage.Name(), switched)
	if err != nil {
		return err
	}
	ends, err := mapping.NewEnds(stage, was, now.Contracts)
	if err != nil {
		return former.Place(err)
	}
	p, err := built(cfg.File)
	if err != nil {
		return err
	}
	if err := p.Shares(stage.Name(), ends.To()); err != nil {
		return err
	}
	for _, s := range f.anew {
		if !slices.ContainsFunc(p.Sinks, func(of pipeline.DeliverSpec) bool { return of.Name == s }) {
			return usage{fmt.Errorf("--anew: the configuration has no sink %q", s)}
		}
	}
	kc, err := cluster(ctx, cfg)
	if err != nil {
		return err
	}
	defer kc.Close()
	active := idle(ctx, kc.Admin(), pipeline.GroupOf(stage.Name()))
	if active != nil {
		if !problem.Has(active, errActive) {
			return active
		}
		if active = transform.ErrSwitchActive.New("%s", problem.Of(active).Text); f.yes {
			a.code(active)
			return exit(exitRefused)
		}
	}
	env := &pipeline.Env{Kafka: kc, Obs: quiet(), Instance: cfg.Instance, Partitions: cfg.Partitions}
	if env.Registry, err = schemaRegistry(cfg); err != nil {
		return err
	}
	env.Contracts = maps.Clone(former.Contracts) // of topics that are filled no more
	maps.Copy(env.Contracts, now.Contracts)
	env.Registry.Contracts = env.Contracts
	topics := append(stage.From(), was.From()...)
	slices.Sort(topics)
	switching := transform.Switching{
		Name: stage.Name(), Topics: slices.Compact(topics), Ends: ends, Outputs: slices.Sorted(maps.Keys(ends.To())), Dry: true,
		Progress: func(topic string, p int32, done, of int64) {
			fmt.Fprintf(a.err, "reading %s, partition %d: %d of %d\n", topic, p, done, of)
		},
	}
	res, err := transform.Switch(ctx, env, switching) // in any case: what it finds may forbid the switch
	if err != nil {
		return now.Place(err)
	}
	again := posts(p, res.Ended, f.anew)
	if f.yes {
		if again != nil {
			a.code(again)
			return exit(exitRefused)
		}
		switching.Dry = false
		if res, err = transform.Switch(ctx, env, switching); err != nil {
			return now.Place(err)
		}
	}
	out := map[string]any{"transform": stage.Name(), "from": f.from, "done": f.yes, "active": active != nil, "records": res.Records, "ended": res.Ended, "begins": res.Begins, "refused": again != nil}
	return a.print(out, func(w io.Writer) {
		printSwitched(w, stage.Name(), res, f.yes)
		for _, err := range []error{active, again} {
			if err != nil {
				fmt.Fprintf(w, "\n%s\n", problem.Format(err))
			}
		}
	})
}

// built is the pipeline of a configuration, for questions.
func built(file string) (*supervise.Pipeline, error) {
	cfg, err := config.Load(file, config.Options{Static: true})
	if err != nil {
		return nil, err
	}
	return supervise.Build(nil, cfg)
}

// switched are the rules that are previewed and switched: those without lookups.
func switched(s *mapping.Stage) bool {
	_, looks := s.Looks()
	return !looks
}

// posts says which sinks would post again what was ended; nil: none, or those
// that shall.
func posts(p *supervise.Pipeline, ended map[string]int64, anew []string) error {
	var says []string
	for _, topic := range slices.Sorted(maps.Keys(ended)) {
		if sinks := slices.DeleteFunc(p.Posts(topic), func(s string) bool { return slices.Contains(anew, s) }); len(sinks) > 0 {
			says = append(says, fmt.Sprintf("%s of %s, which go to %s", plural(int(ended[topic]), "key"), topic, strings.Join(sinks, ", ")))
		}
	}
	if says == nil {
		return nil
	}
	return errPosts.New("the new rules do not give %s", strings.Join(says, "; "))
}

func printSwitched(w io.Writer, name string, res *transform.Switched, done bool) {
	would := "would be "
	if done {
		would = ""
	}
	fmt.Fprintf(w, "%s of the raw topics read; they %sread again from their start\n", plural(int(res.Records), "record"), map[bool]string{true: "will be ", false: "would be "}[done])
	for _, topic := range slices.Sorted(maps.Keys(res.Ended)) {
		fmt.Fprintf(w, "%s: %s %swritten, of keys that the new rules do not give\n", topic, plural(int(res.Ended[topic]), "delete"), would)
	}
	if len(res.Ended) == 0 {
		fmt.Fprint(w, "the new rules give all keys that the former gave: nothing to delete\n")
	}
	for _, b := range res.Begins {
		fmt.Fprintf(w, "%s, partition %d begins at offset %d: what was made of rows before stays as it is\n", b.Topic, b.Partition, b.Offset)
	}
	if done {
		fmt.Fprintf(w, "\n%s is switched; start its process with the new rules\n", name)
	} else {
		fmt.Fprint(w, "\nnothing was changed; add --yes to do it\n")
	}
}
