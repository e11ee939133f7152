// replay.go: a group back to an offset, as Kafka's own reset tool does it.

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/join"
)

var (
	errGroup = problem.Define("TW-REPLAY-GROUP", problem.Halt,
		"There is no such transform or sink, or it reads no such topic.",
		"Use the name of a transform or a sink in the configuration, and a topic that it reads.")
	errActive = problem.Define("TW-REPLAY-ACTIVE", problem.Halt,
		"The group has members: its offsets cannot be changed under them.",
		"Stop the process that runs it, run replay, then start it again. Where that process embeds the broker, start it --without NAME meanwhile.")
)

type replayFlags struct {
	to        string
	topic     string
	partition int32
	yes       bool
}

// move is one partition's offset, before and after.
type move struct {
	Group     string `json:"group"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	From      int64  `json:"from"` // -1: nothing committed
	To        int64  `json:"to"`
	Again     int64  `json:"records_again"` // upper bound: control records count
}

func (a *app) replayCmd() *cobra.Command {
	f := replayFlags{}
	c := &cobra.Command{
		Use:   "replay NAME",
		Short: "Set a transform or a sink back to the beginning or to an offset",
		Long: `replay commits offsets for the consumer group of a transform or a sink, as
kafka-consumer-groups --reset-offsets does. Without --yes it only shows what it
would do. With --yes the group must be stopped: with members it is refused
(exit code 5); stop the process, or run it --without NAME meanwhile.

The groups of a transform's rules with lookups, NAME.TOPIC, are set back with
it where they read topics that are not written by NAME. Those that keep what is
looked up, NAME.TOPIC.right, are set back by their own names.

After a replay the warehouse has the same content, and the ERP gets nothing
twice: both know what they have.`,
		Example: `  tallywire replay warehouse --to beginning            # shows what would happen
  tallywire replay warehouse --to beginning --yes
  tallywire replay canonical --topic psa.public.time_entry --partition 0 --to 1200 --yes`,
		Args: exactly(1, "one NAME of a transform or sink"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.replay(cmd.Context(), args[0], f) },
	}
	c.Flags().StringVar(&f.to, "to", "beginning", "beginning, end, or an offset")
	c.Flags().StringVar(&f.topic, "topic", "", "only this topic (default: all that it reads)")
	c.Flags().Int32Var(&f.partition, "partition", -1, "only this partition (-1: all)")
	c.Flags().BoolVar(&f.yes, "yes", false, "do it")
	return c
}

func (a *app) replay(ctx context.Context, name string, f replayFlags) error {
	at := int64(-1)
	if f.to != "beginning" && f.to != "end" {
		n, err := strconv.ParseInt(f.to, 10, 64)
		if err != nil || n < 0 {
			return usage{fmt.Errorf("--to is beginning, end or an offset, not %q", f.to)}
		}
		at = n
	}
	cfg, err := a.load()
	if err != nil {
		return err
	}
	p, err := supervise.Build(nil, cfg)
	if err != nil {
		return err
	}
	groups, err := groupsOf(p, name, f.topic)
	if err != nil {
		return err
	}
	kc, err := cluster(ctx, cfg)
	if err != nil {
		return err
	}
	defer kc.Close()
	adm := kc.Admin()
	var active error
	var moves []move
	offsets := map[string]kadm.Offsets{}
	for _, g := range groups {
		group := pipeline.GroupOf(g.name)
		if err := idle(ctx, adm, group); err != nil {
			if !problem.Has(err, errActive) {
				return err
			}
			active = err
		}
		ms, offs, err := plan(ctx, adm, group, g.topics, f, at)
		if err != nil {
			return err
		}
		moves, offsets[group] = append(moves, ms...), offs
	}
	if active != nil && f.yes {
		a.code(active)
		return exit(exitRefused)
	}
	if f.yes {
		for _, g := range groups {
			group := pipeline.GroupOf(g.name)
			res, err := adm.CommitOffsets(ctx, group, offsets[group])
			if err == nil {
				err = res.Error()
			}
			if err != nil {
				return kafka.Wrap(err, "setting the offsets of %s", group)
			}
		}
	}
	return a.print(map[string]any{"done": f.yes, "active": active != nil, "moves": moves}, func(w io.Writer) {
		fmt.Fprintln(w, "GROUP\tTOPIC\tPARTITION\tFROM\tTO\tRECORDS AGAIN")
		for _, m := range moves {
			from := "-"
			if m.From >= 0 {
				from = strconv.FormatInt(m.From, 10)
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%d\t%d\n", m.Group, m.Topic, m.Partition, from, m.To, m.Again)
		}
		switch {
		case f.yes:
			fmt.Fprintf(w, "\n%s is set back; start its process again\n", name)
		case active != nil:
			fmt.Fprintf(w, "\nnothing was changed. %s\n", problem.Format(active))
		default:
			fmt.Fprintf(w, "\nnothing was changed; add --yes to do it\n")
		}
	})
}

// replayed is a group and those of its topics that are set back.
type replayed struct {
	name   string
	topics []string
}

// groupsOf are the groups that a name stands for. Topics that the pipeline's own groups
// write for each other are read on: their records come again when those read again.
func groupsOf(p *supervise.Pipeline, name, only string) (out []replayed, err error) {
	found := false
	add := func(group string, topics []string) {
		found = true
		if only != "" {
			topics = slices.DeleteFunc(slices.Clone(topics), func(t string) bool { return t != only })
		}
		if len(topics) > 0 {
			out = append(out, replayed{group, topics})
		}
	}
	var written []string // by its own groups
	for _, t := range p.Transforms {
		if t.Name == name || strings.HasPrefix(t.Name, name+".") {
			written = append(written, t.Outputs...)
		}
	}
	for _, t := range p.Transforms {
		topics := slices.Concat(t.Topics, t.CoPartitioned)
		slices.Sort(topics)
		topics = slices.Compact(topics)
		switch {
		case t.Name == name:
			add(name, topics)
		case strings.HasPrefix(t.Name, name+".") && !strings.HasSuffix(t.Name, join.RightSuffix):
			add(t.Name, slices.DeleteFunc(topics, func(t string) bool {
				return strings.HasPrefix(t, "_tallywire.") || slices.Contains(written, t)
			}))
		}
	}
	for _, s := range p.Sinks {
		if s.Name == name {
			add(name, s.Topics)
		}
	}
	switch {
	case !found:
		return nil, errGroup.New("%q is neither a transform nor a sink of the configuration", name)
	case len(out) == 0:
		return nil, errGroup.New("%q does not read %s", name, only)
	}
	return out, nil
}

// idle refuses a group that has members, and names one.
func idle(ctx context.Context, adm *kadm.Client, group string) error {
	gs, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		return kafka.Wrap(err, "looking at group %s", group)
	}
	g, ok := gs[group]
	if !ok || len(g.Members) == 0 {
		return nil
	}
	m := g.Members[0]
	return errActive.New("group %s is %s with %d members; one is %s at %s", group, g.State, len(g.Members), m.ClientID, m.ClientHost)
}

func plan(ctx context.Context, adm *kadm.Client, group string, topics []string, f replayFlags, at int64) ([]move, kadm.Offsets, error) {
	now, err := adm.FetchOffsets(ctx, group)
	if err != nil {
		return nil, nil, kafka.Wrap(err, "reading the offsets of %s", group)
	}
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, nil, kafka.Wrap(err, "reading start offsets")
	}
	ends, err := adm.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return nil, nil, kafka.Wrap(err, "reading end offsets")
	}
	var moves []move
	offs := kadm.Offsets{}
	for _, t := range topics {
		for p, e := range ends[t] {
			if e.Err != nil {
				return nil, nil, errTopic.New("%s: %w", t, e.Err)
			}
			if f.partition >= 0 && p != f.partition {
				continue
			}
			s, _ := starts.Lookup(t, p)
			m := move{Group: group, Topic: t, Partition: p, From: -1, To: s.Offset}
			switch {
			case f.to == "end":
				m.To = e.Offset
			case at >= 0:
				m.To = min(max(at, s.Offset), e.Offset)
			}
			if o, ok := now.Lookup(t, p); ok {
				m.From = o.At
			}
			m.Again = max(0, m.From-m.To)
			moves = append(moves, m)
			// Without metadata: that is how our sinks know a reset from their own commits.
			offs.AddOffset(t, p, m.To, -1)
		}
	}
	sort.Slice(moves, func(i, j int) bool {
		if moves[i].Topic != moves[j].Topic {
			return moves[i].Topic < moves[j].Topic
		}
		return moves[i].Partition < moves[j].Partition
	})
	return moves, offs, nil
}
