package mapping

import (
	"context"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/join"
)

// NamedRow is the row of a claim: the values of the first rule's columns.
func NamedRow(b *change.Batch, s *Stage, values ...string) []byte {
	row := b.Row(len(values))
	for i, v := range values {
		row[i] = b.SpanString(change.String, v)
	}
	return appendNamed(nil, b, s.order[0].to, row, nil)
}

// StartsAt has all partitions start there.
func StartsAt(s *Stage, offset int64) {
	s.given.starts = func(context.Context, *change.Topic, int32) (int64, error) { return offset, nil }
}

// Groups are the groups of a transform, outside of a pipeline.
func Groups(env *pipeline.Env, name string, cfg Config, all avro.Catalogue, around func(o *join.Options, name string, plan *join.Plan), done func(topic string) []int64, ends func() []int64) ([]pipeline.TransformSpec, error) {
	m, err := New(name, cfg, all, nil)
	if err != nil {
		return nil, err
	}
	m.progress = func(_ context.Context, topic string) (out []progress, _ error) {
		for _, at := range done(topic) {
			out = append(out, progress{done: at})
		}
		return out, nil
	}
	m.ends = func(context.Context, *change.Topic) ([]int64, error) { return ends(), nil }
	specs := m.groups(env, cfg.Dedupe, around)
	StartsAt(m, 0)
	return specs, nil
}
