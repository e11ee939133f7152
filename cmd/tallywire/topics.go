// topics.go: which table has which topic, and whether Kafka takes their names.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/pipeline"
)

// uses is who writes or reads topics, by their names.
type uses map[string][]string

func (u uses) add(topic, who string) {
	if !slices.Contains(u[topic], who) {
		u[topic] = append(u[topic], who)
	}
}

// topicNamer is a source that knows topics of its tables without asking anybody, by
// schema.table.
type topicNamer interface{ NamedTopics() map[string]string }

// topicUses is what the configuration tells by itself: of tables, those that it
// names without *.
func topicUses(p *supervise.Pipeline) uses {
	u := uses{}
	for _, s := range p.Sources {
		if n, ok := s.Source.(topicNamer); ok {
			for table, topic := range n.NamedTopics() {
				u.add(topic, fmt.Sprintf("table %s of source %s", table, s.Name))
			}
		}
	}
	for _, t := range p.Transforms {
		for _, topic := range slices.Concat(t.Inputs(), t.Outputs, t.Queues) {
			u.add(topic, "transform "+t.Name)
		}
	}
	for _, s := range p.Sinks {
		for _, topic := range s.Topics {
			u.add(topic, "sink "+s.Name)
		}
	}
	return u
}

// wrong says which names Kafka does not take, also beside topics that are there.
func (u uses) wrong(there []string) (errs []error) {
	folded := map[string]string{}
	is := map[string]bool{}
	for _, topic := range there {
		folded[change.TopicFold(topic)], is[topic] = topic, true
	}
	of := func(topic string) string {
		if len(u[topic]) == 0 {
			return fmt.Sprintf("%q (in Kafka)", topic)
		}
		return fmt.Sprintf("%q (%s)", topic, strings.Join(slices.Sorted(slices.Values(u[topic])), ", "))
	}
	for _, topic := range slices.Sorted(maps.Keys(u)) {
		if is[topic] {
			continue
		}
		if why := change.TopicLegal(topic); why != "" {
			err := kafka.ErrTopicName.New("a topic of %s: %s", strings.Join(u[topic], ", "), why)
			if parts := strings.Split(topic, "."); len(parts) == 3 && len(topic) <= change.TopicNameOctets {
				err.WithRemedy("The topic of table %s.%s is called %s.", parts[1], parts[2], change.TopicName(parts[0], parts[1], parts[2]))
			}
			errs = append(errs, err)
			continue
		}
		if other, taken := folded[change.TopicFold(topic)]; taken {
			errs = append(errs, kafka.ErrTopicName.New("topics %s and %s: names that differ in '.' and '_' alone are the same to Kafka", of(other), of(topic)))
			continue
		}
		folded[change.TopicFold(topic)] = topic
	}
	return errs
}

func (a *app) topicsCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "topics", Short: "List the topics of tables", Example: "  tallywire topics list psa", Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use:   "list [SOURCE]",
		Short: "List the topics of sources: of which table, whether they exist, how large",
		Long: `list asks the sources which tables they capture, and Kafka for their topics. A
character that Kafka does not take in a topic's name is written as _xHHHH_ in it,
its UTF-16 code (docs/postgres.md, "Names of topics"). Topics that are called
as those of a source and are of no table that it captures are listed, too.

RECORDS is how many there are at most: those that compaction took away, and
marks of transactions, are counted. Sizes need the right to describe the
cluster. Exit code 1 when a source cannot tell its tables.`,
		Example: "  tallywire topics list\n  tallywire topics list psa --output json | jq '.[] | select(.exists | not) | .table'",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage{fmt.Errorf("want one SOURCE or none\nsee: tallywire topics list --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.topicsList(cmd.Context(), args) },
	})
	return c
}

// tableTopic is a topic of a source.
type tableTopic struct {
	Source     string `json:"source"`
	Table      string `json:"table,omitempty"` // schema.table; "": its name tells none
	Topic      string `json:"topic"`
	Captured   bool   `json:"captured"`
	Exists     bool   `json:"exists"`
	Partitions int32  `json:"partitions,omitempty"`
	Records    int64  `json:"records"`         // at most
	Bytes      *int64 `json:"bytes,omitempty"` // of one replica; nil: not known
}

func (a *app) topicsList(ctx context.Context, only []string) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	p, err := supervise.Build(nil, cfg)
	if err != nil {
		return err
	}
	var names []string
	for _, s := range p.Sources {
		names = append(names, s.Name)
	}
	if len(only) > 0 && !slices.Contains(names, only[0]) {
		return usage{fmt.Errorf("no source is called %q; there are: %s", only[0], strings.Join(names, ", "))}
	}
	kc, err := cluster(ctx, cfg)
	if err != nil {
		return err
	}
	defer kc.Close()
	list := []*tableTopic{}
	var untold []error
	for _, s := range p.Sources {
		if len(only) > 0 && s.Name != only[0] {
			continue
		}
		of, err := topicsOf(ctx, kc, s)
		if err != nil {
			untold = append(untold, fmt.Errorf("sources.%s: %w", s.Name, err))
		}
		list = append(list, of...)
	}
	if err := measure(ctx, kc, list); err != nil {
		return err
	}
	err = a.print(list, func(w io.Writer) {
		fmt.Fprintln(w, "TABLE\tTOPIC\tPARTITIONS\tRECORDS\tBYTES")
		for _, t := range list {
			table, parts, records, size := t.Table, "-", "-", "-"
			if t.Exists {
				parts, records = strconv.Itoa(int(t.Partitions)), strconv.FormatInt(t.Records, 10)
			}
			if t.Bytes != nil {
				size = strconv.FormatInt(*t.Bytes, 10)
			}
			switch {
			case !t.Captured:
				table = strings.TrimSpace(table + " (not captured)")
			case !t.Exists:
				table += " (no topic yet)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", table, t.Topic, parts, records, size)
		}
	})
	return errors.Join(append(untold, err)...)
}

// topicsOf lists the topics of a source: those of its tables, in their order, and
// those that Kafka has besides. An error says that the tables are not known.
func topicsOf(ctx context.Context, kc *kafka.Cluster, s pipeline.IngestSpec) (list []*tableTopic, untold error) {
	there, err := kc.TopicsOf(ctx, s.Name+".")
	if err != nil {
		return nil, err
	}
	captured := map[string]bool{}
	if c, ok := s.Source.(pipeline.Catalog); ok {
		var tables []*change.Table
		tables, untold = c.Tables(ctx)
		for _, t := range tables {
			captured[t.Topic] = true
			list = append(list, &tableTopic{Source: s.Name, Table: t.Schema + "." + t.Name, Topic: t.Topic, Captured: true})
		}
	}
	for _, topic := range there {
		if captured[topic] {
			continue
		}
		t := &tableTopic{Source: s.Name, Topic: topic}
		if _, schema, table, ok := change.ParseTopicName(topic); ok {
			t.Table = schema + "." + table
		}
		list = append(list, t)
	}
	return list, untold
}

// measure asks Kafka for those that are there.
func measure(ctx context.Context, kc *kafka.Cluster, list []*tableTopic) error {
	var names []string
	for _, t := range list {
		if change.TopicLegal(t.Topic) == "" || !t.Captured {
			names = append(names, t.Topic)
		}
	}
	there, err := kc.Topics(ctx, slices.Compact(slices.Sorted(slices.Values(names)))...)
	if err != nil || len(there) == 0 {
		return err
	}
	names = slices.Sorted(maps.Keys(there))
	starts, err := kc.Admin().ListStartOffsets(ctx, names...)
	if err != nil {
		return kafka.Wrap(err, "asking where topics begin")
	}
	ends, err := kc.Admin().ListEndOffsets(ctx, names...)
	if err != nil {
		return kafka.Wrap(err, "asking where topics end")
	}
	sizes := sizesOf(ctx, kc, names)
	for _, t := range list {
		is := there[t.Topic]
		if is == nil {
			continue
		}
		t.Exists, t.Partitions = true, is.Partitions
		for part := range is.Partitions {
			start, _ := starts.Lookup(t.Topic, part)
			end, _ := ends.Lookup(t.Topic, part)
			if start.Err == nil && end.Err == nil {
				t.Records += end.Offset - start.Offset
			}
		}
		if n, ok := sizes[t.Topic]; ok {
			t.Bytes = &n
		}
	}
	return nil
}

// sizesOf gives the octets of topics, as far as we may know them: of each partition
// those of its largest replica.
func sizesOf(ctx context.Context, kc *kafka.Cluster, names []string) map[string]int64 {
	all, err := kc.Admin().DescribeAllLogDirs(ctx, nil)
	if err != nil {
		return nil
	}
	type partition struct {
		topic string
		n     int32
	}
	most := map[partition]int64{}
	all.Each(func(d kadm.DescribedLogDir) {
		d.Topics.Each(func(p kadm.DescribedLogDirPartition) {
			at := partition{p.Topic, p.Partition}
			most[at] = max(most[at], p.Size)
		})
	})
	sizes := map[string]int64{}
	for p, n := range most {
		if _, ok := slices.BinarySearch(names, p.topic); ok {
			sizes[p.topic] += n
		}
	}
	return sizes
}
