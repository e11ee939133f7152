// Package join looks up rows of other topics for the rows of one, and looks again when
// those change: the lookups of a mapping's rule. rule.go is what a user writes; join.go
// is what both groups of it share.
//
// There are two consumer groups. The right one, <name>.right, keeps the latest row of
// each topic that is looked up in Redis, and for each change tells the left rows that
// depend on it, by records on a refresh topic that is partitioned like the left one.
// The left one, <name>, keeps the left rows and who depends on what, and is the only
// one that emits: one place per key, so that order holds (invariant 8). What it emits
// are wide rows: a row with what was found (joined.go), for the rule behind it.
//
// Why nothing is missed: each side writes its own state, and only then, after
// the answer, reads the other's. Of a left and a right row that meet, whoever
// reads second sees the other: either the left row is evaluated with the right
// one, or the right one finds it among its dependents and has it evaluated
// again. For a chain (a customer by way of the project) the middle row and its
// own index are written together by the right side, before it looks for
// dependents, so the same holds for each hop.
package join

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/obs"
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

// Options are what lookups need of their surroundings.
type Options struct {
	Redis *redis.Client
	Log   *slog.Logger
	// Topics are those of Kafka. nil: nothing is looked up, only checked.
	Topics Topics
	// Component shows how many left rows wait; may be nil.
	Component *obs.Component
	// Gate is asked before the first left row is looked at, until it gives
	// nil. It only spares work: rows that come before their references wait,
	// and are released. May be nil.
	Gate func(ctx context.Context) error
	// Kept is asked by both groups before the first row is looked at, until it gives nil:
	// whether the rows of sources are kept with all that is used of them. May be nil.
	Kept func(ctx context.Context) error
	// Flow is asked before each page of a large fan-out, so that it does not run ahead of
	// those who work on it: new left rows would wait behind all of it. May be nil.
	Flow func(ctx context.Context) (Flow, error)
	// Tables is pipeline.Env's, for Doctor.
	Tables func(ctx context.Context, topic string) (*change.Table, error)
}

// Topics is what lookups ask of Kafka: *kafka.Cluster.
type Topics interface {
	// Topic is one as it is in Kafka.
	Topic(ctx context.Context, name string) (*change.Topic, error)
	// StartOf is the first offset of a partition that is there.
	StartOf(ctx context.Context, t *change.Topic, partition int32) (int64, error)
	// EndOf is the offset behind the last record of a partition, committed or not.
	EndOf(ctx context.Context, t *change.Topic, partition int32) (int64, error)
}

// New makes the stages of both groups of a rule; what the left one sends are wide rows.
func New(compiled *Plan, o Options) (*Left, *Right) {
	p := compiled.p
	j := &join{plan: p, rdb: o.Redis, tables: o.Tables}
	if o.Kept != nil {
		j.allKept = once(o.Kept)
	}
	var find func(context.Context, string) (*change.Topic, error)
	if o.Topics != nil {
		find = o.Topics.Topic
	}
	keep := func(name string, s *side) (*state.Store, *state.Reader) {
		st, rd := state.NewStore(o.Redis, o.Log, name, s.topic), state.NewReader(name, s.topic, find)
		st.Shape, rd.Shape = p.shape, p.shape
		return st, rd
	}
	right := p.name + RightSuffix // one topic may be on both sides
	l, r := &Left{join: j, gate: o.Gate}, &Right{join: j, cols: make([]columns, len(p.sides))}
	r.most, r.patience, r.topics, r.flow = tellAtOnce, aheadAfter, o.Topics, o.Flow
	r.table = state.NewTable(o.Redis, o.Log, right)
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

// gateTimeout bounds how long left rows wait for the references that were
// there at the start.
const gateTimeout = 2 * time.Minute

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
