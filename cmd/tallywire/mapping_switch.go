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

type switchFlags struct {
	from string
	yes  bool
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

Broken off, it is open: the transform does not start (TW-SWITCH-OPEN) until the
same command was run to its end. Rows whose keys change are missing downstream
until run has read them; an API sink sees them deleted, and made anew. What was
made of rows that the raw topics do not hold any more stays as it is; the first
offsets of those that lack some are told.`,
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
	stage, err := now.Stage(name)
	if err != nil {
		return err
	}
	former, err := rules.Read(f.from)
	if err != nil {
		return err
	}
	was, err := former.Stage(stage.Name())
	if err != nil {
		return err
	}
	ends, err := mapping.NewEnds(stage, was, now.Contracts)
	if err != nil {
		return former.Place(err)
	}
	if err := shared(cfg.File, stage.Name(), ends.To()); err != nil {
		return err
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
	res, err := transform.Switch(ctx, env, transform.Switching{
		Name: stage.Name(), Topics: slices.Compact(topics), Ends: ends, Outputs: slices.Sorted(maps.Keys(ends.To())), Dry: !f.yes,
		Progress: func(topic string, p int32, done, of int64) {
			fmt.Fprintf(a.err, "reading %s, partition %d: %d of %d\n", topic, p, done, of)
		},
	})
	if err != nil {
		return now.Place(err)
	}
	return a.print(map[string]any{"transform": stage.Name(), "from": f.from, "done": f.yes, "active": active != nil, "records": res.Records, "ended": res.Ended, "begins": res.Begins}, func(w io.Writer) {
		printSwitched(w, stage.Name(), res, f.yes)
		if active != nil {
			fmt.Fprintf(w, "\n%s\n", problem.Format(active))
		}
	})
}

// shared says whether other transforms give what is to be ended.
func shared(file, name string, keys map[string][]string) error {
	cfg, err := config.Load(file, config.Options{Static: true})
	if err != nil {
		return err
	}
	p, err := supervise.Build(nil, cfg)
	if err != nil {
		return err
	}
	return p.Shares(name, keys)
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
