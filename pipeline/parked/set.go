// Set: what of a transform or a source is parked in the partitions owned here. The
// truth is the parked topic (G1); the table in the control database is a
// projection of it, for people.

package parked

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
)

// Ref is what is kept in memory of a parked record.
type Ref struct {
	TopicID  [16]byte
	Offset   int64 // of the original
	Attempts int
	FirstAt  time.Time
	Waits    bool
}

// Set is used by one session, which loads it when partitions are assigned and
// tells it what each transaction committed. Not safe for concurrent use.
type Set struct {
	Topic  *change.Topic // the parked topic
	name   string
	inputs []string
	store  *control.ParkedStore // nil: no projection
	comp   *obs.Component

	byPart map[int32]map[string]Ref // parked key → ref
	stale  bool                     // the projection is behind
	tried  time.Time                // when projecting was last tried
}

// NewSet makes an empty set of the parked records of stage name. Its topic's
// partitions are those of inputs. Without a control database (nil) there is no
// projection.
func NewSet(db *pgxpool.Pool, name string, topic *change.Topic, inputs []string, comp *obs.Component) *Set {
	s := &Set{Topic: topic, name: name, inputs: inputs, comp: comp, byPart: map[int32]map[string]Ref{}}
	if db != nil {
		s.store = control.NewParked(db)
	}
	return s
}

// Store is the projection, nil when there is none.
func (s *Set) Store() *control.ParkedStore { return s.store }

// In gives what is parked in a partition, by AppendKey; not to be changed.
func (s *Set) In(partition int32) map[string]Ref { return s.byPart[partition] }

// Load reads the parked topic's partitions as they are committed now, and
// brings the projection to it. Call it when parts were just assigned.
func (s *Set) Load(ctx context.Context, cl *kgo.Client, cluster *kafka.Cluster, parts []int32) error {
	s.byPart = map[int32]map[string]Ref{}
	ends, err := cluster.Admin().ListEndOffsets(ctx, s.Topic.Name)
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q ends", s.Topic.Name)
	}
	starts, err := cluster.Admin().ListStartOffsets(ctx, s.Topic.Name)
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q starts", s.Topic.Name)
	}
	var all []control.Parked
	for _, part := range parts {
		end, ok1 := ends.Lookup(s.Topic.Name, part)
		start, ok2 := starts.Lookup(s.Topic.Name, part)
		if !ok1 || !ok2 || end.Err != nil || start.Err != nil {
			return kafka.ErrUnavailable.New("partition %d of topic %q has no known end", part, s.Topic.Name)
		}
		found := map[string]control.Parked{}
		err := kafka.Scan(ctx, cl, s.Topic, part, start.Offset, end.Offset, func(r *kgo.Record) error {
			if r.Attrs.IsControl() || len(r.Key) == 0 || r.Key[0] == separator {
				return nil // a command, or its end
			}
			if r.Value == nil {
				delete(found, string(r.Key))
				return nil
			}
			p, _, err := Parse(s.name, r.Value)
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
		refs := make(map[string]Ref, len(found))
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

func refOf(p *control.Parked) Ref {
	return Ref{p.TopicID, p.Offset, p.Attempts, p.FirstAt, p.WaitsFor != ""}
}

func (s *Set) partIDs(parts []int32) []control.PartID {
	var out []control.PartID
	for _, t := range s.inputs {
		for _, p := range parts {
			out = append(out, control.PartID{Topic: t, Partition: p})
		}
	}
	return out
}

// Release is a parked record that is to go.
type Release struct {
	control.Ref
	Partition int32
}

// Applied brings the set and the projection to what a transaction committed.
func (s *Set) Applied(ctx context.Context, parked []control.Parked, released []Release) {
	if len(parked) == 0 && len(released) == 0 {
		return
	}
	refs := make([]control.Ref, len(released))
	for i, r := range released {
		delete(s.byPart[r.Partition], string(AppendKey(nil, r.Topic, r.RecordKey)))
		refs[i] = r.Ref
	}
	for i := range parked {
		p := &parked[i]
		m := s.byPart[p.Partition]
		if m == nil {
			m = map[string]Ref{}
			s.byPart[p.Partition] = m
		}
		m[string(AppendKey(nil, p.Topic, p.RecordKey))] = refOf(p)
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
func (s *Set) project(ctx context.Context, write func(context.Context) error) {
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

// Due reports, now and then while the projection is behind, that it is to be
// brought up to date: Load does it.
func (s *Set) Due() bool {
	if !s.stale || time.Since(s.tried) < 5*time.Second {
		return false
	}
	s.stale = false
	return true
}

func (s *Set) count() {
	var parked, waiting int64
	for _, m := range s.byPart {
		for _, r := range m {
			if r.Waits {
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
