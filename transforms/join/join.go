// The transform's maker: what both groups share, and how the engine gets them.

package join

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

// join is what the two stages share.
type join struct {
	plan        *plan
	rdb         *redis.Client
	tables      func(ctx context.Context, topic string) (*change.Table, error) // for Doctor
	allKept     func(context.Context) error                                    // Options.Kept; nil: yes
	leftReader  *state.Reader
	sideReaders []*state.Reader // parallel to plan.sides
}

// Options are what a join needs of its surroundings.
type Options struct {
	Redis     *redis.Client
	Log       *slog.Logger
	Contracts avro.Catalogue // nil: the built-in pack
	// Find gives a topic as it is in Kafka.
	Find func(ctx context.Context, topic string) (*change.Topic, error)
	// End gives where a partition ends. nil: who depends on a reference is told
	// of each of its changes.
	End func(ctx context.Context, t *change.Topic, partition int32) (int64, error)
	// Component shows how many left rows wait; may be nil.
	Component *obs.Component
	// Gate is asked before the first left row is looked at, until it gives
	// nil. It only spares work: rows that come before their references wait,
	// and are released. May be nil.
	Gate func(ctx context.Context) error
	// Kept is asked by both groups before the first row is looked at, until it gives nil:
	// whether the rows of sources are kept with all that is used of them. May be nil.
	Kept func(ctx context.Context) error
	// Tables is pipeline.Env's, for Doctor.
	Tables func(ctx context.Context, topic string) (*change.Table, error)
}

// New checks a configuration (TW-JOIN-CONFIG problems, joined) and makes the
// stages of both groups.
func New(name string, cfg Config, o Options) (*Left, *Right, error) {
	p, err := compile(name, cfg, o.Contracts)
	if err != nil {
		return nil, nil, err
	}
	l, r := newStages(p, o)
	return l, r, nil
}

// NewLookups makes the stages of both groups of a rule; what the left one sends are
// wide rows.
func NewLookups(p *Plan, o Options) (*Left, *Right) { return newStages(p.p, o) }

func newStages(p *plan, o Options) (*Left, *Right) {
	j := &join{plan: p, rdb: o.Redis, tables: o.Tables}
	if o.Kept != nil {
		j.allKept = once(o.Kept)
	}
	keep := func(name string, s *side) (*state.Store, *state.Reader) {
		st, rd := state.NewStore(o.Redis, o.Log, name, s.topic), state.NewReader(name, s.topic, o.Find)
		st.Shape, rd.Shape = p.shape, p.shape
		return st, rd
	}
	right := p.name
	if p.joined != nil { // one topic may be on both sides
		right += RightSuffix
	}
	l, r := &Left{join: j, gate: o.Gate}, &Right{join: j, cols: make([]columns, len(p.sides))}
	r.most, r.end = tellAtOnce, o.End
	r.table = state.NewTable(o.Redis, o.Log, p.name+RightSuffix)
	l.state, j.leftReader = keep(p.name, p.left)
	l.notes.comp = o.Component
	l.state.Idle = l.idle
	for _, s := range p.sides {
		st, rd := keep(right, s)
		r.states = append(r.states, st)
		j.sideReaders = append(j.sideReaders, rd)
	}
	return l, r
}

// RightSuffix makes the name of the right group.
const RightSuffix = ".right"

func init() { pipeline.Transforms.Register("join", Make) }

// gateTimeout bounds how long left rows wait for the references that were
// there at the start.
const gateTimeout = 2 * time.Minute

// Make is the maker of type join: the groups <name>.right and <name>.
func Make(env *pipeline.Env, name string, decode pipeline.Decode) ([]pipeline.TransformSpec, error) {
	cfg := Defaults()
	if err := decode(&cfg); err != nil {
		return nil, err
	}
	o := Options{Contracts: env.Contracts}
	// A static check of the configuration has no surroundings.
	if env.Obs != nil {
		o.Log, o.Component = env.Obs.Log, env.Obs.Component("transform", name)
	} else {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Redis, o.Tables = env.Redis, env.Tables
	var topics []string
	for _, r := range cfg.References {
		if !slices.Contains(topics, r.Topic) {
			topics = append(topics, r.Topic)
		}
	}
	if env.Kafka != nil {
		o.Gate = Gate(env.Kafka, name, topics)
		o.Find, o.End = env.Kafka.Topic, func(ctx context.Context, t *change.Topic, p int32) (int64, error) {
			return kafka.EndOf(ctx, env.Kafka.Admin(), t, p)
		}
	}
	left, right, err := New(name, cfg, o)
	if err != nil {
		return nil, err
	}
	queue := avro.RefreshTopic(name)
	return []pipeline.TransformSpec{
		{Name: name + RightSuffix, Topics: topics, Stages: []pipeline.Stage{right}, Queues: []string{queue}, State: right.table, Rest: right.Rest},
		{
			Name: name, Topics: []string{cfg.Left, queue}, CoPartitioned: []string{cfg.Left, queue},
			Stages: []pipeline.Stage{left}, Outputs: []string{cfg.Output}, Queues: []string{queue}, Trim: []string{queue},
		},
	}, nil
}

// once asks until the answer is nil, and then no more. Safe for concurrent use.
func once(ask func(context.Context) error) func(context.Context) error {
	var mu sync.Mutex
	open := false
	return func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if open {
			return nil
		}
		err := ask(ctx)
		open = err == nil
		return err
	}
}
