// doctor_topics.go: who fills the topics that are read, and with what.

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/pipeline"
)

// catalog asks a source which tables its changes would be of.
func (d *doctor) catalog(ctx context.Context, s pipeline.IngestSpec) {
	c, ok := s.Source.(pipeline.Catalog)
	if !ok {
		d.untold = append(d.untold, s.Name)
		return
	}
	tables, err := c.Tables(ctx)
	if err != nil { // why stands among the findings of the source
		d.untold = append(d.untold, s.Name)
		return
	}
	for _, t := range tables {
		d.filled[t.Topic] = t
	}
}

// tables is pipeline.Env.Tables.
func (d *doctor) tables(ctx context.Context, topic string) (*change.Table, error) {
	if t := d.filled[topic]; t != nil || d.schemas == nil {
		return t, nil
	}
	return d.schemas.Table(ctx, topic)
}

// fed looks whether somebody fills each topic that is read: a source, a
// transform, or whoever made it in Kafka.
func (d *doctor) fed(ctx context.Context, p *supervise.Pipeline) {
	filled := maps.Clone(d.filled)
	for _, t := range p.Transforms {
		for _, topic := range slices.Concat(t.Outputs, t.Queues) {
			filled[topic] = nil
		}
	}
	ask := func(part string, topics []string) {
		for _, topic := range topics {
			if _, ok := filled[topic]; !ok && !d.mayFill(topic) {
				d.unfed(ctx, part, topic, slices.Sorted(maps.Keys(filled)))
			}
		}
	}
	for _, t := range p.Transforms {
		ask("transforms."+t.Name, t.Inputs())
	}
	for _, s := range p.Sinks {
		ask("sinks."+s.Name, s.Topics)
	}
}

// mayFill: the topic is called as those of a source that could not tell.
func (d *doctor) mayFill(topic string) bool {
	return slices.ContainsFunc(d.untold, func(source string) bool { return strings.HasPrefix(topic, source+".") })
}

// unfed: nothing of the configuration fills the topic; it may be another's.
func (d *doctor) unfed(ctx context.Context, part, topic string, filled []string) {
	what := "topic " + topic + " is filled"
	if strings.HasPrefix(part, "sinks.") && d.contracts[topic] != nil { // a sink takes what there is
		d.found = append(d.found, finding{Part: part, What: what, OK: true, Advice: "no mapping here fills it: unless another process does, it stays empty"})
		return
	}
	if d.cluster != nil {
		_, err := d.cluster.Topic(ctx, topic)
		if err == nil {
			d.found = append(d.found, finding{Part: part, What: what, OK: true, Advice: "nothing that is configured here fills it; it exists, so somebody else may"})
			return
		}
		if !problem.Has(err, kafka.ErrNoTopic) {
			d.note(part, what, err)
			return
		}
	}
	err := kafka.ErrNoTopic.New("nothing fills topic %s, and it does not exist", topic).WithRemedy("Map a table to it, have the source capture it, or correct its name.")
	if near := config.Nearest(topic, filled); near != "" {
		err.WithRemedy("Did you mean %s?", near)
	}
	d.note(part, what, err)
}

// topicNames looks whether Kafka takes the names of all topics, beside each other
// and beside those that it has.
func (d *doctor) topicNames(ctx context.Context, p *supervise.Pipeline) {
	uses := topicUses(p)
	for topic, t := range d.filled {
		if t != nil {
			uses.add(topic, fmt.Sprintf("table %s.%s of source %s", t.Schema, t.Name, t.Source))
		}
	}
	var there []string
	if d.cluster != nil {
		var err error
		if there, err = d.cluster.TopicsOf(ctx, ""); err != nil {
			d.note("kafka", "the names of its topics", err)
			return
		}
	}
	wrong := uses.wrong(there)
	for _, err := range wrong {
		d.note("kafka", "it takes the names of all topics", err)
	}
	if len(wrong) == 0 {
		d.note("kafka", fmt.Sprintf("it takes the names of all %d topics", len(uses)), nil)
	}
}

// takes asks the registry whether it takes the contracts that are filled.
func (d *doctor) takes(ctx context.Context, p *supervise.Pipeline) {
	if d.schemas == nil {
		return
	}
	for _, t := range p.Transforms {
		for _, topic := range t.Outputs {
			c := d.contracts[topic]
			if c == nil {
				continue
			}
			s, err := d.schemas.Standing(ctx, c)
			if err == nil && len(s.Against) > 0 {
				err = avro.ErrIncompatible.New("subject %s: %s", avro.ValueSubject(topic), s.Against[0])
			}
			d.note("transforms."+t.Name, "the registry takes the contract of "+topic, err)
			if s.Lifted != "" {
				what, remedy := liftedLevel(d.schemas, topic, s.Lifted)
				d.found[len(d.found)-1].Advice = what + "; " + remedy
			}
		}
	}
}

// keeps looks for how long topics that are there keep what is needed of them: raw
// records for the windows of transforms, and deletes for readers that were away.
func (d *doctor) keeps(ctx context.Context, p *supervise.Pipeline) {
	if d.cluster == nil {
		return
	}
	for _, t := range p.Transforms {
		settings, err := d.cluster.Settings(ctx, slices.Concat(t.Topics, t.Outputs)...)
		if err != nil {
			d.note("transforms."+t.Name, "its topics keep records for long enough", err)
			continue
		}
		for _, topic := range t.Topics {
			if settings[topic] != nil && t.Window > 0 {
				d.note("transforms."+t.Name, "records of "+topic+" stay for its window", t.Kept(topic, settings[topic]))
			}
		}
		for _, topic := range slices.Compact(slices.Sorted(slices.Values(t.Restricted))) {
			ms, err := strconv.ParseInt(settings[topic]["retention.ms"], 10, 64)
			if err == nil && ms > 0 && settings[topic]["cleanup.policy"] == "delete" && len(d.cfg.Encryption.Keys) == 0 {
				d.found = append(d.found, finding{
					Part: "transforms." + t.Name, What: "what is parked of " + topic + " is kept", OK: true,
					Advice: fmt.Sprintf("it has restricted values, so without encryption.keys it is not copied, and can be retried for as long as the topic has it: %s", time.Duration(ms)*time.Millisecond),
				})
			}
		}
		for _, topic := range t.Outputs {
			ms, err := strconv.ParseInt(settings[topic]["delete.retention.ms"], 10, 64)
			if want := d.cfg.Kafka.DeleteRetention.Milliseconds(); err == nil && settings[topic]["cleanup.policy"] == "compact" && ms < want {
				d.found = append(d.found, finding{
					Part: "transforms." + t.Name, What: "deletes of " + topic + " are seen for kafka.delete_retention", OK: true,
					Advice: fmt.Sprintf("a reader that was away for more than %d minutes misses deletes; kafka-configs --alter --topic %s --add-config delete.retention.ms=%d", ms/60_000, topic, want),
				})
			}
		}
	}
}
