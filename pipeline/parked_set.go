// parkedSet: what of a transform is parked in the partitions owned here. The
// truth is the parked topic (G1); the table in the control database is a
// projection of it, for people.

package pipeline

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
)

// parkedRef is what is kept in memory of a parked record.
type parkedRef struct {
	topicID  [16]byte
	offset   int64 // of the original
	attempts int
	firstAt  time.Time
	waits    bool
}

type parkedSet struct {
	name   string
	topic  *change.Topic
	inputs []string
	store  *control.ParkedStore // nil: no projection
	comp   *obs.Component

	byPart map[int32]map[string]parkedRef // parked key → ref
	stale  bool                           // the projection is behind
	tried  time.Time                      // when projecting was last tried
}

func newParkedSet(env *Env, name string, topic *change.Topic, inputs []string, comp *obs.Component) *parkedSet {
	s := &parkedSet{name: name, topic: topic, inputs: inputs, comp: comp, byPart: map[int32]map[string]parkedRef{}}
	if env.Control != nil {
		s.store = control.NewParked(env.Control)
	}
	return s
}

// load reads the parked topic's partitions as they are committed now, and
// brings the projection to it. Call it when parts were just assigned.
func (s *parkedSet) load(ctx context.Context, cl *kgo.Client, cluster *kafka.Cluster, parts []int32) error {
	s.byPart = map[int32]map[string]parkedRef{}
	ends, err := cluster.Admin().ListEndOffsets(ctx, s.topic.Name)
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q ends", s.topic.Name)
	}
	starts, err := cluster.Admin().ListStartOffsets(ctx, s.topic.Name)
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q starts", s.topic.Name)
	}
	var all []control.Parked
	for _, part := range parts {
		end, ok1 := ends.Lookup(s.topic.Name, part)
		start, ok2 := starts.Lookup(s.topic.Name, part)
		if !ok1 || !ok2 || end.Err != nil || start.Err != nil {
			return kafka.ErrUnavailable.New("partition %d of topic %q has no known end", part, s.topic.Name)
		}
		found := map[string]control.Parked{}
		err := kafka.Scan(ctx, cl, s.topic, part, start.Offset, end.Offset, func(r *kgo.Record) error {
			if r.Attrs.IsControl() || len(r.Key) == 0 || r.Key[0] == unitSeparator {
				return nil // a command, or its end
			}
			if r.Value == nil {
				delete(found, string(r.Key))
				return nil
			}
			p, _, err := parseParked(s.name, r.Value)
			if err != nil {
				return err
			}
			p.Value = append([]byte(nil), p.Value...)
			found[string(r.Key)] = p
			return nil
		})
		if err != nil {
			return err
		}
		refs := make(map[string]parkedRef, len(found))
		for k, p := range found {
			refs[k] = refOf(&p)
			all = append(all, p)
		}
		s.byPart[part] = refs
	}
	s.count()
	s.project(ctx, func(ctx context.Context) error { return s.store.Replace(ctx, s.name, s.partIDs(parts), all) })
	return nil
}

func refOf(p *control.Parked) parkedRef {
	return parkedRef{p.TopicID, p.Offset, p.Attempts, p.FirstAt, p.WaitsFor != ""}
}

func (s *parkedSet) partIDs(parts []int32) []control.PartID {
	var out []control.PartID
	for _, t := range s.inputs {
		for _, p := range parts {
			out = append(out, control.PartID{Topic: t, Partition: p})
		}
	}
	return out
}

// release is a parked record that is to go.
type release struct {
	control.Ref
	partition int32
}

// applied brings the set and the projection to what a transaction committed.
func (s *parkedSet) applied(ctx context.Context, parked []control.Parked, released []release) {
	if len(parked) == 0 && len(released) == 0 {
		return
	}
	refs := make([]control.Ref, len(released))
	for i, r := range released {
		delete(s.byPart[r.partition], string(appendParkedKey(nil, r.Topic, r.RecordKey)))
		refs[i] = r.Ref
	}
	for i := range parked {
		p := &parked[i]
		m := s.byPart[p.Partition]
		if m == nil {
			m = map[string]parkedRef{}
			s.byPart[p.Partition] = m
		}
		m[string(appendParkedKey(nil, p.Topic, p.RecordKey))] = refOf(p)
	}
	s.count()
	s.project(ctx, func(ctx context.Context) error {
		if err := s.store.Delete(ctx, s.name, refs); err != nil {
			return err
		}
		return s.store.Put(ctx, parked)
	})
}

// project writes to the control database. It is a view for people: when it
// cannot be written the flow goes on, and all of it is written anew later.
func (s *parkedSet) project(ctx context.Context, write func(context.Context) error) {
	if s.store == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	s.tried = time.Now()
	if err := write(ctx); err != nil {
		s.stale = true
		s.comp.Failed("retry", outage.CodeOf(err))
		s.comp.Log.Warn("the control database does not show what is parked; trying again", "err", err)
		return
	}
}

// due reports whether a failed projection is to be tried again.
func (s *parkedSet) due() bool { return s.stale && time.Since(s.tried) > 5*time.Second }

func (s *parkedSet) count() {
	var parked, waiting int64
	for _, m := range s.byPart {
		for _, r := range m {
			if r.waits {
				waiting++
			} else {
				parked++
			}
		}
	}
	s.comp.Parked(parked)
	if waiting > 0 {
		s.comp.Waiting(waiting)
	}
}
