// remove.go: the end of a source: what it has made at its database, in Kafka and in
// the registry is taken away, each thing by itself and again as often as need be.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/removal"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/ingest"
	"github.com/tallywire/tallywire/pipeline/records"
)

var (
	errNoSource = problem.Define("TW-REMOVE-SOURCE", problem.Halt,
		"There is no such source in the configuration.",
		"Use the name of a source in the configuration. One that was taken out of it is put back for this: its slot and its database are found by it.")
	errRuns = problem.Define("TW-REMOVE-RUNNING", problem.Halt,
		"The source runs: what it keeps cannot be taken away under it.",
		"Stop the process that runs it, or start it --without NAME, and remove it then. Where that process embeds the broker, it is --without NAME.")
)

// removable is a source that keeps something at its own database.
type removable interface {
	// Remains lists that in the order in which it is to go. inUse says who uses it,
	// so that nothing can be removed. others are the other sources: what they use
	// stays.
	Remains(ctx context.Context, others []pipeline.Source) (things []removal.Thing, inUse, err error)
	// RemainsSQL is what removes it by hand. It does not connect.
	RemainsSQL() []string
}

type removeFlags struct {
	topics, kafkaOnly, yes bool
}

func (a *app) removeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "remove",
		Short: "Take away what a source has made, when it is given up",
		Args:  none,
	}
	f := removeFlags{}
	source := &cobra.Command{
		Use:   "source NAME",
		Short: "Take away a source's slot and publication, and what it keeps in Kafka",
		Long: `remove source ends a source for good. Without --yes it lists what would go, and
how much each holds, and changes nothing. It goes in this order:

  at its database   the replication slot, for which the server keeps its log; then
                    the publication, if it belongs to the role of the source. Of
                    another's it prints the statement for its owner
  in Kafka          with --topics the raw topics of its tables, and their subjects in
                    the schema registry; then what it has parked, what it has noted of
                    its tables, and, last, its position

The source must not run, and must still be in the configuration: stop tallywire, or
start it --without NAME; remove the source; then take it out of the configuration. If
tallywire is started with it once more, the source begins anew.

What was removed on the way stays removed if the command ends early; run it again,
and it goes on. Where the database cannot be reached any more, --kafka-only removes
the rest and prints what is to be run there: until the slot is dropped, that server
keeps its log, and its disk fills.

Canonical topics, the warehouse and the ERP keep what came from the source.`,
		Example: `  tallywire remove source psa                     # shows what would go
  tallywire remove source psa --yes
  tallywire remove source psa --topics --yes      # its raw topics, too
  tallywire remove source psa --kafka-only --yes  # its database is gone`,
		Args: exactly(1, "one NAME of a source"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.removeSource(cmd.Context(), args[0], f) },
	}
	source.Flags().BoolVar(&f.topics, "topics", false, "the raw topics of its tables and their schema subjects, too")
	source.Flags().BoolVar(&f.kafkaOnly, "kafka-only", false, "leave its database alone, and print what is to be run there")
	source.Flags().BoolVar(&f.yes, "yes", false, "do it")
	c.AddCommand(source)
	return c
}

// removed is what is said of one thing.
type removed struct {
	What  string `json:"what"`
	Holds string `json:"holds,omitempty"`
	State string `json:"state"` // goes, removed, gone, stays
	Why   string `json:"why,omitempty"`
	Run   string `json:"run,omitempty"`
}

// reader is a transform or a sink that reads raw topics of the source.
type reader struct {
	Name   string   `json:"name"`
	Topics []string `json:"topics"`
}

func (a *app) removeSource(ctx context.Context, name string, f removeFlags) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	env := supervise.Bare(cfg)
	p, err := supervise.Build(env, cfg)
	if err != nil {
		return err
	}
	source, others, err := sourceOf(cfg, p, name)
	if err != nil {
		return err
	}
	var things []removal.Thing
	var sql []string
	upstream, _ := source.(removable)
	runs := runsAt(ctx, cfg, name)
	switch {
	case upstream == nil:
	case f.kafkaOnly:
		sql = upstream.RemainsSQL()
	default:
		var inUse error
		if things, inUse, err = upstream.Remains(ctx, others); err != nil {
			return unreached(err, name)
		}
		if runs == nil {
			runs = inUse
		}
	}
	kc, err := cluster(ctx, cfg)
	if err != nil {
		return err
	}
	defer kc.Close()
	k := &kafkaRemains{cfg: cfg, kc: kc, adm: kc.Admin(), name: name, raw: rawTopics(name, p, env)}
	ids, open, err := k.transactions(ctx)
	if err != nil {
		return err
	}
	if runs == nil {
		runs = open
	}
	if f.yes && runs != nil {
		a.code(runs)
		return exit(exitRefused)
	}
	inKafka, err := k.list(ctx, f.topics)
	if err != nil {
		return err
	}
	things = append(append(things, inKafka...), ids)

	said, failed := make([]removed, len(things)), error(nil)
	for i := range things {
		t := &things[i]
		said[i] = removed{What: t.What, Holds: t.Holds, State: "goes", Why: t.Stays, Run: t.Run}
		switch {
		case t.Stays != "":
			said[i].State = "stays"
		case t.Gone:
			said[i].State = "gone"
		case f.yes && failed == nil:
			switch err := t.Remove(ctx); {
			case err == nil:
				said[i].State = "removed"
			case t.Minor && ctx.Err() == nil:
				said[i].State, said[i].Why = "stays", fmt.Sprintf("nothing depends on it (%v)", err)
			default:
				failed = err
			}
		}
		if t.Run != "" {
			sql = append(sql, t.Run)
		}
	}
	readers := readersOf(p, k.raw)
	out := map[string]any{"done": f.yes && failed == nil, "things": said, "readers": readers, "run_at_database": sql}
	if runs != nil {
		out["runs"] = problem.Reports(runs)[0]
	}
	return errors.Join(failed, a.print(out, func(w io.Writer) {
		printRemoved(w, said)
		for _, r := range readers {
			fmt.Fprintf(w, "\n%s still reads %s", r.Name, strings.Join(r.Topics, ", "))
			if f.topics {
				fmt.Fprint(w, ", which it will not find: take it out of the configuration, or have it read others")
			} else {
				fmt.Fprint(w, ", where nothing comes any more")
			}
		}
		if len(readers) > 0 {
			fmt.Fprintln(w)
		}
		if len(sql) > 0 {
			fmt.Fprintf(w, "\nat its database somebody who may is to run:\n%s\n", strings.Join(sql, "\n"))
			if f.kafkaOnly {
				fmt.Fprintln(w, "until the slot is dropped, the server keeps its log for it")
			}
		}
		switch {
		case failed != nil:
			fmt.Fprintf(w, "\n%s is removed in part; run this again, and it goes on\n", name)
		case f.yes:
			fmt.Fprintf(w, "\n%s is removed. Now take sources.%s out of %s: if tallywire is started with it, the source begins anew\n", name, name, cfg.File)
		case runs != nil:
			fmt.Fprintf(w, "\nnothing was changed, and cannot be now. %s", problem.Format(runs))
		default:
			fmt.Fprintf(w, "\nnothing was changed; --yes removes it\n")
		}
	}))
}

func printRemoved(w io.Writer, said []removed) {
	fmt.Fprintln(w, "WHAT\tHOLDS\tSTATE")
	for _, r := range said {
		holds, state := r.Holds, r.State
		if holds == "" {
			holds = "-"
		}
		if r.Why != "" {
			state += ": " + r.Why
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.What, holds, state)
	}
}

// sourceOf finds the source, and the others.
func sourceOf(cfg *config.Config, p *supervise.Pipeline, name string) (source pipeline.Source, others []pipeline.Source, err error) {
	var names []string
	for _, s := range p.Sources {
		if names = append(names, s.Name); s.Name == name {
			source = s.Source
		} else {
			others = append(others, s.Source)
		}
	}
	if source != nil {
		return source, others, nil
	}
	e := errNoSource.New("%s has no source %q", cfg.File, name)
	if near := config.Nearest(name, names); near != "" {
		e.Text += fmt.Sprintf("; did you mean %q?", near)
	}
	return nil, nil, e
}

// unreached says what can be done without the database.
func unreached(err error, name string) error {
	e := problem.Of(err)
	if e == nil {
		return err
	}
	c, remedy := *e, e.WhatToDo()
	if c.Class == problem.Retry {
		remedy = "Run this again when the database answers: nothing was changed."
	}
	return c.WithRemedy("%s\nOr, where it never will: tallywire remove source %s --kafka-only removes what is in Kafka, and prints what is to be run at the database.", remedy, name)
}

// runsAt says that the process that the configuration is of runs the source. One that
// does not answer is not there, or is another's; then the slot and Kafka tell.
func runsAt(ctx context.Context, cfg *config.Config, name string) error {
	url := "http://" + cfg.HTTP.Listen
	st, err := fetchStatus(ctx, url)
	if err != nil {
		return nil //nolint:nilerr // nothing runs there
	}
	for _, c := range st.Components {
		if c.Kind == "source" && c.Name == name && !c.State.Down() && c.State != obs.Stopped {
			return errRuns.New("source %q is %s in the process at %s", name, c.State, url)
		}
	}
	return nil
}

// rawTopics tells which topics, by name, are of the source's tables: <source>.<schema>.
// <table> and those that its configuration names, and none that a transform fills, that
// has a contract, or that is of a source whose name begins as this one's.
func rawTopics(name string, p *supervise.Pipeline, env *pipeline.Env) func(topic string) bool {
	named := map[string]bool{}
	for _, s := range p.Sources {
		if n, ok := s.Source.(topicNamer); ok && s.Name == name {
			for _, topic := range n.NamedTopics() {
				named[topic] = true
			}
		}
	}
	return func(topic string) bool {
		table, is := strings.CutPrefix(topic, name+".")
		if !is || !named[topic] && !strings.Contains(table, ".") || env.Contracts[topic] != nil {
			return false
		}
		for _, t := range p.Transforms {
			if slices.Contains(t.Outputs, topic) {
				return false
			}
		}
		for _, s := range p.Sources {
			if strings.HasPrefix(s.Name, name+".") && strings.HasPrefix(topic, s.Name+".") {
				return false
			}
		}
		return true
	}
}

// readersOf are the transforms and sinks that read raw topics.
func readersOf(p *supervise.Pipeline, raw func(string) bool) (out []reader) {
	add := func(name string, topics []string) {
		if topics = slices.DeleteFunc(topics, func(t string) bool { return !raw(t) }); len(topics) > 0 {
			out = append(out, reader{name, topics})
		}
	}
	for _, t := range p.Transforms {
		add("transform "+t.Name, t.Inputs())
	}
	for _, s := range p.Sinks {
		add("sink "+s.Name, s.Inputs())
	}
	return out
}

// kafkaRemains is what a source keeps in Kafka.
type kafkaRemains struct {
	cfg  *config.Config
	kc   *kafka.Cluster
	adm  *kadm.Client
	name string
	raw  func(topic string) bool
}

// transactions says what becomes of the source's transactional ids, and that one has a
// transaction open: then something writes.
func (k *kafkaRemains) transactions(ctx context.Context) (ids removal.Thing, open, err error) {
	all := ingest.TransactionalIDs(k.name)
	ids.What = fmt.Sprintf("transactional ids %s and %d more", all[0], len(all)-1)
	ids.Stays = "Kafka forgets them by itself (transactional.id.expiration.ms, a week by default)"
	ts, err := k.adm.DescribeTransactions(ctx, all...)
	switch {
	case errors.Is(err, kerr.UnsupportedVersion), errors.Is(err, kerr.TransactionalIDAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return ids, nil, nil // a broker that does not tell, or not us
	case err != nil:
		return ids, nil, kafka.Wrap(err, "asking for the transactions of source %s", k.name)
	}
	known := 0
	for _, t := range ts.Sorted() {
		if t.Err != nil {
			continue // it is not known, or hidden from us
		}
		known++
		if t.State == "Ongoing" && open == nil {
			open = errRuns.New("source %q has a transaction open, since %s (transactional id %q)", k.name, time.UnixMilli(t.StartTimestamp).UTC().Format(time.DateTime+"Z"), t.TxnID).
				WithRemedy("Stop the process that runs it. That of a process that was killed is ended by Kafka, within %s; remove it then.", time.Duration(t.TimeoutMillis)*time.Millisecond)
		}
	}
	if known == 0 {
		ids.Stays, ids.Gone = "", true
	}
	return ids, open, nil
}

// list gives all in the order in which it goes: the position is last, so that a source
// that is started in between halts for what is missing, and does not begin anew.
func (k *kafkaRemains) list(ctx context.Context, topics bool) (things []removal.Thing, err error) {
	raw, err := k.kc.TopicsOf(ctx, k.name+".")
	if err != nil {
		return nil, err
	}
	raw = slices.DeleteFunc(raw, func(t string) bool { return !k.raw(t) })
	aside, err := k.kc.TopicsOf(ctx, records.Aside(k.name)+".")
	if err != nil {
		return nil, err
	}
	aside = slices.DeleteFunc(aside, func(t string) bool { return !k.raw(strings.TrimPrefix(t, records.Aside(""))) })
	own := ingest.OwnTopics(k.name)
	own = slices.Insert(own, 1, aside...)
	there, err := k.kc.Topics(ctx, append(slices.Clone(raw), own...)...)
	if err != nil {
		return nil, err
	}
	holds, err := k.holds(ctx, slices.Sorted(maps.Keys(there)))
	if err != nil {
		return nil, err
	}
	topic := func(name string) removal.Thing {
		t := removal.Thing{What: "topic " + name, Holds: holds[name].String(), Gone: there[name] == nil}
		if !t.Gone {
			t.Remove = func(ctx context.Context) error { return k.drop(ctx, name) }
		} else {
			t.Holds = ""
		}
		return t
	}
	if topics {
		things = append(things, k.subjects(ctx)...)
		for _, name := range raw {
			things = append(things, topic(name))
		}
	} else if len(raw) > 0 {
		var all held
		for _, name := range raw {
			all.add(holds[name])
		}
		things = append(things, removal.Thing{
			What: fmt.Sprintf("%d raw topics, %s.*", len(raw), k.name), Holds: all.String(),
			Stays: "--topics takes them away, too",
		})
	}
	for _, name := range own {
		things = append(things, topic(name))
		if name == own[0] {
			things = append(things, k.shown())
		}
	}
	return things, nil
}

// held is how much topics hold.
type held struct {
	records int64 // at most: markers and what is compacted away count
	bytes   int64 // of one replica; 0: not known
}

func (h *held) add(o held) { h.records, h.bytes = h.records+o.records, h.bytes+o.bytes }

func (h held) String() string {
	s := fmt.Sprintf("%d records at most", h.records)
	if h.bytes > 0 {
		s += ", " + octets(uint64(h.bytes))
	}
	return s
}

func (k *kafkaRemains) holds(ctx context.Context, topics []string) (map[string]held, error) {
	out := map[string]held{}
	if len(topics) == 0 {
		return out, nil
	}
	starts, err := k.adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, kafka.Wrap(err, "listing where topics start")
	}
	ends, err := k.adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, kafka.Wrap(err, "listing where topics end")
	}
	set := kadm.TopicsSet{}
	ends.Each(func(e kadm.ListedOffset) {
		set.Add(e.Topic, e.Partition)
		if s, is := starts.Lookup(e.Topic, e.Partition); is && s.Err == nil && e.Err == nil {
			out[e.Topic] = held{records: out[e.Topic].records + e.Offset - s.Offset}
		}
	})
	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	dirs, err := k.adm.DescribeAllLogDirs(within, set)
	if err != nil {
		return out, ctx.Err() // to remove a topic does not take the right to know its size
	}
	largest := map[string]map[int32]int64{} // of the replicas
	dirs.Each(func(d kadm.DescribedLogDir) {
		d.Topics.Each(func(p kadm.DescribedLogDirPartition) {
			if largest[p.Topic] == nil {
				largest[p.Topic] = map[int32]int64{}
			}
			largest[p.Topic][p.Partition] = max(largest[p.Topic][p.Partition], p.Size)
		})
	})
	for topic, parts := range largest {
		for _, n := range parts {
			out[topic] = held{out[topic].records, out[topic].bytes + n}
		}
	}
	return out, nil
}

func (k *kafkaRemains) drop(ctx context.Context, topic string) error {
	res, err := k.adm.DeleteTopics(ctx, topic)
	if err == nil {
		err = res.Error()
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil
	}
	return kafka.Wrap(err, "deleting topic %q", topic)
}

// subjects are those of the raw topics, whether or not these are there still.
func (k *kafkaRemains) subjects(ctx context.Context) (things []removal.Thing) {
	left := func(err error) []removal.Thing {
		return []removal.Thing{{What: "schema subjects of the raw topics", Stays: fmt.Sprintf("they cannot be listed (%v); run this again, with --topics, when they can", err)}}
	}
	reg, err := schemaRegistry(k.cfg)
	if err != nil {
		return left(err)
	}
	all, err := reg.Subjects(ctx, k.name+".")
	if err != nil {
		return left(err)
	}
	for _, s := range all {
		topic, is := strings.CutSuffix(s, "-value")
		if !is {
			topic, is = strings.CutSuffix(s, "-key")
		}
		if is && k.raw(topic) {
			things = append(things, removal.Thing{What: "schema subject " + s, Remove: func(ctx context.Context) error { return reg.Forget(ctx, s) }})
		}
	}
	return things
}

// shown is what the control database shows of what is parked. Where it does not answer,
// such as one that is embedded in a process that was stopped, nothing is lost by that.
func (k *kafkaRemains) shown() removal.Thing {
	return removal.Thing{What: "what parked list shows of it", Minor: true, Remove: func(ctx context.Context) error {
		within, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		pool, err := controlPool(within, k.cfg)
		if err != nil {
			return err
		}
		defer pool.Close()
		return control.NewParked(pool).Prune(within, k.name, [16]byte{}, []int64{0}, nil)
	}}
}
