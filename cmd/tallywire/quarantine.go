// quarantine.go: tables whose schema the registry refuses, and what is to become of
// their changes.

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/pipeline/ingest"
)

var errNoQuarantine = problem.Define("TW-SCHEMA-NONE", problem.Reject,
	"There is no such source, or nothing of that table is in quarantine.",
	"`tallywire schema list` shows what there is.")

// schemaDecisions are the commands that decide, in order.
var schemaDecisions = []struct{ do, short, long, will string }{
	{
		ingest.DecideAccept, "Have the registry take a table's schema all the same",
		`accept registers the schema under the subjects of the table's topic, whose level of
compatibility is NONE meanwhile and afterwards what it was. What is kept follows into
the topic, in its order, then what comes. Readers get both schemas: it says which
transforms of the configuration cannot read the new one; see that others can. With a transitive level, later changes are held against the old
schema, too: then new-subject is the better way.`,
		"the registry takes the schema, and what is kept follows into the topic",
	},
	{
		ingest.DecideNewSubject, "Let the subjects begin anew with a table's schema",
		`new-subject is accept, but that the former schemas are taken out of the subjects
first (a soft delete: their ids are still read). Later changes are held against the
new schema alone.`,
		"the subjects begin anew with the schema, and what is kept follows into the topic",
	},
	{
		ingest.DecideSkip, "Leave out what is kept of a table",
		`skip drops what is kept, for good. It is for a change that was undone: the table goes
on with what comes, and where that has the refused schema still, into quarantine anew.
Rows that were changed meanwhile are in the topic as they were before, until the table
is read anew: tallywire reload SOURCE TABLE --sweep; status says so until
"tallywire schema close".`,
		"what is kept is dropped; rows that were changed meanwhile stay in the topic as they were before",
	},
	{
		ingest.DecideClose, "Say that changes that were left out were made good",
		`close ends what status says of changes that were left out by skip.`,
		"status does not name what was left out any more",
	},
}

func (a *app) schemaCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "schema", Short: "Decide what becomes of tables whose schema the registry refuses", Args: none,
		Long: `When a table changes so that readers of its topic could not read it (int to text,
another key, another scale), the registry refuses its new schema. Its changes then go
to a topic of their own, in quarantine, and all other tables go on. list shows what is
kept and why; accept, new-subject and skip decide.`,
		Example: "  tallywire schema list\n  tallywire schema accept psa public.invoice          # shows what would happen\n  tallywire schema accept psa public.invoice --yes",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use: "list [SOURCE]", Short: "List what is in quarantine, and why",
		Long: `list shows of each source whose changes are in quarantine, since when, how many
records at most, what differs, and why the registry refused it.`,
		Example: "  tallywire schema list\n  tallywire schema list psa -o json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage{fmt.Errorf("want one SOURCE or none\nsee: tallywire schema list --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.schemaList(cmd.Context(), args) },
	})
	for _, d := range schemaDecisions {
		var yes bool
		var wait time.Duration
		x := &cobra.Command{
			Use: d.do + " SOURCE TABLE", Short: d.short,
			Long:    d.long + "\n\nTABLE is schema.table, or the topic. Without --yes it only shows what is kept. The\nsource decides nothing by itself, and needs no restart.",
			Example: fmt.Sprintf("  tallywire schema %[1]s psa public.invoice\n  tallywire schema %[1]s psa public.invoice --yes", d.do),
			Args: func(_ *cobra.Command, args []string) error {
				if len(args) != 2 {
					return usage{fmt.Errorf("want a SOURCE and a TABLE\nsee: tallywire schema %s --help", d.do)}
				}
				return nil
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.schemaDecide(cmd.Context(), args[0], args[1], d.do, d.will, yes, wait)
			},
		}
		x.Flags().BoolVar(&yes, "yes", false, "do it")
		x.Flags().DurationVar(&wait, "wait", 10*time.Second, "for how long to wait for the source to take it up; 0: not at all")
		c.AddCommand(x)
	}
	return c
}

// kept is what is in quarantine of a source.
type kept struct {
	Source string `json:"source"`
	ingest.Quarantine
	Differs []string `json:"differs"`
}

// keptOf lists what is in quarantine of sources, with what differs.
func (a *app) keptOf(ctx context.Context, kc *kafka.Cluster, reg *avro.Registry, sources []string) (list []kept, err error) {
	list = []kept{}
	for _, source := range sources {
		of, err := ingest.Quarantines(ctx, kc, source)
		if problem.Has(err, kafka.ErrNoTopic) { // it never ran
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, q := range of {
			x := kept{Source: source, Quarantine: q}
			if q.Aside != "" {
				was, err := reg.Table(ctx, q.Topic)
				if err != nil {
					return nil, err
				}
				is, err := reg.Table(ctx, q.Aside)
				if err != nil {
					return nil, err
				}
				x.Differs = differs(was, is)
			}
			list = append(list, x)
		}
	}
	return list, nil
}

// differs says in which columns two shapes of a table differ, and in their keys.
func differs(was, is *change.Table) (out []string) {
	if was == nil || is == nil {
		return nil
	}
	names := func(t *change.Table) (keys []string) {
		for _, k := range t.Key {
			keys = append(keys, t.Columns[k].Name)
		}
		return keys
	}
	for i := range is.Columns {
		now := &is.Columns[i]
		switch at := was.Column(now.Name); {
		case at < 0:
			out = append(out, fmt.Sprintf("+ %s: %s", now.Name, shape(now)))
		case shape(now) != shape(&was.Columns[at]):
			out = append(out, fmt.Sprintf("~ %s: %s was %s", now.Name, shape(now), shape(&was.Columns[at])))
		}
	}
	for i := range was.Columns {
		if name := was.Columns[i].Name; is.Column(name) < 0 {
			out = append(out, "- "+name)
		}
	}
	if a, b := names(was), names(is); !slices.Equal(a, b) {
		out = append(out, fmt.Sprintf("~ key: (%s) was (%s)", strings.Join(b, ", "), strings.Join(a, ", ")))
	}
	return out
}

// shape is what a reader sees of a column's type.
func shape(c *change.Column) string {
	s := c.Kind.String()
	switch {
	case c.Kind == change.Decimal && c.Precision >= 0:
		s = fmt.Sprintf("%s(%d,%d)", s, c.Precision, c.Scale)
	case c.Kind == change.Int && c.Width > 0:
		s = fmt.Sprintf("%s of %d octets", s, c.Width)
	}
	return s
}

func (a *app) schemaList(ctx context.Context, only []string) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	p, err := supervise.Build(nil, cfg)
	if err != nil {
		return err
	}
	var sources []string
	for _, s := range p.Sources {
		if len(only) == 0 || s.Name == only[0] {
			sources = append(sources, s.Name)
		}
	}
	if len(only) > 0 && len(sources) == 0 {
		return errNoQuarantine.New("no source is called %q", only[0])
	}
	kc, err := cluster(ctx, cfg)
	if err != nil {
		return err
	}
	defer kc.Close()
	reg, err := schemaRegistry(cfg)
	if err != nil {
		return err
	}
	list, err := a.keptOf(ctx, kc, reg, sources)
	if err != nil {
		return err
	}
	return a.print(list, func(w io.Writer) { printKept(w, list) })
}

func printKept(w io.Writer, list []kept) {
	if len(list) == 0 {
		fmt.Fprintln(w, "nothing is in quarantine")
		return
	}
	for i, x := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if x.Aside != "" {
			fmt.Fprintf(w, "%s: changes of %s are kept since %s, %d records at most, in %s\n", x.Source, x.Topic, x.Since.Local().Format(time.DateTime), x.Records, x.Aside)
			for _, d := range x.Differs {
				fmt.Fprintf(w, "  %s\n", d)
			}
			fmt.Fprintf(w, "  %s\n", x.Why)
			if x.Decided != "" {
				fmt.Fprintf(w, "  decided: %s; it comes out\n", x.Decided)
			}
		}
		if !x.Left.IsZero() {
			fmt.Fprintf(w, "%s: changes of %s from %s to %s were left out\n", x.Source, x.Topic, x.Left.Local().Format(time.DateTime), x.LeftTo.Local().Format(time.DateTime))
		}
	}
}

func (a *app) schemaDecide(ctx context.Context, source, table, do, will string, yes bool, wait time.Duration) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	p, err := supervise.Build(nil, cfg)
	if err != nil {
		return err
	}
	named := map[string]string{}
	found := false
	for _, s := range p.Sources {
		if found = found || s.Name == source; s.Name != source {
			continue
		}
		if n, ok := s.Source.(topicNamer); ok {
			named = n.NamedTopics()
		}
	}
	if !found {
		return errNoQuarantine.New("no source is called %q", source)
	}
	kc, err := cluster(ctx, cfg)
	if err != nil {
		return err
	}
	defer kc.Close()
	reg, err := schemaRegistry(cfg)
	if err != nil {
		return err
	}
	list, err := a.keptOf(ctx, kc, reg, []string{source})
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(x kept) bool {
		_, schema, name, _ := change.ParseTopicName(x.Topic)
		fits := x.Aside != ""
		if do == ingest.DecideClose {
			fits = !x.Left.IsZero()
		}
		return !fits || x.Topic != table && x.Topic != named[table] && schema+"."+name != table
	})
	if len(list) == 0 {
		return errNoQuarantine.New("nothing of %s of source %q is there for %s", table, source, do)
	}
	x, id, taken := list[0], "", false
	var unfit []finding
	if do == ingest.DecideAccept || do == ingest.DecideNewSubject {
		if unfit, err = unfitWith(ctx, cfg, kc, reg, x.Quarantine); err != nil {
			return err
		}
	}
	if yes {
		if id, err = ingest.Decide(ctx, kc, source, x.Quarantine, do); err != nil {
			return err
		}
		if taken, err = answered(ctx, kc, source, id, wait); err != nil {
			return err
		}
	}
	return a.print(map[string]any{"done": yes, "request": id, "taken_up": taken, "kept": x, "unfit": unfit}, func(w io.Writer) {
		printKept(w, list[:1])
		if len(unfit) > 0 {
			fmt.Fprint(w, "\nwith the new shape these do not work any more; correct them, or they halt:\n")
			(&doctor{found: unfit}).text(w)
		}
		switch {
		case !yes:
			fmt.Fprintf(w, "\nnothing was done; with --yes %s\n", will)
		case taken:
			fmt.Fprintf(w, "\n%s: %s; tallywire schema list shows what is left\n", source, will)
		default:
			fmt.Fprintf(w, "\n%s was told, and has not taken it up yet: it does when it runs\n", source)
		}
	})
}

// unfitWith says which stages that work with the shape that a topic has would not with
// that of what is kept.
func unfitWith(ctx context.Context, cfg *config.Config, kc *kafka.Cluster, reg *avro.Registry, q ingest.Quarantine) (unfit []finding, err error) {
	var was []finding
	for _, topic := range []string{q.Topic, q.Aside} {
		t, err := reg.Table(ctx, topic)
		if err != nil || t == nil {
			return nil, err
		}
		shape := *t
		shape.Topic = q.Topic
		d := &doctor{cfg: cfg, cluster: kc, schemas: reg, filled: map[string]*change.Table{q.Topic: &shape}}
		env := supervise.Bare(cfg)
		env.Kafka, env.Registry, env.Tables = kc, reg, d.tables
		p, err := supervise.Build(env, cfg)
		if err != nil {
			return nil, err
		}
		for _, t := range p.Transforms {
			if slices.Contains(t.Inputs(), q.Topic) {
				for _, stage := range t.Stages {
					d.component(ctx, "transforms."+t.Name, stage)
				}
			}
		}
		was, unfit = unfit, slices.DeleteFunc(d.found, func(f finding) bool { return f.OK })
	}
	return slices.DeleteFunc(unfit, func(f finding) bool {
		return slices.ContainsFunc(was, func(o finding) bool {
			return o.Part == f.Part && o.Problem.Code == f.Problem.Code && o.Problem.What == f.Problem.What
		})
	}), nil
}

// answered waits until a source has taken up what it was asked, for so long.
func answered(ctx context.Context, kc *kafka.Cluster, source, id string, wait time.Duration) (taken bool, err error) {
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !taken && within.Err() == nil {
		if taken, err = ingest.Answered(within, kc, source, id); err != nil && within.Err() == nil {
			return false, err
		}
		select {
		case <-within.Done():
		case <-tick.C:
		}
	}
	return taken, ctx.Err()
}
