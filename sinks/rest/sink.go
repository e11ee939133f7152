// Sink: a batch is read into items, what is known of them is loaded, open
// intents are settled, and then the items go out, rank by rank, in chunks of
// different keys.

package rest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

// Sink delivers to one far side. Write may be called by several goroutines; it
// handles one batch at a time.
type Sink struct {
	cfg    Config
	client *client
	store  *store

	mu    sync.Mutex
	ready bool
	// window is how long after its intent a request may still be sent.
	window time.Duration
	// chunk is how many requests share the transactions of their intents and
	// of their results.
	chunk int
}

const (
	sendWindow = time.Minute
	maxChunk   = 100
	// maxTries of one item in one Write, the outcome read back in between.
	maxTries = 3
	maxLeft  = 10000
)

// New makes a sink. name is its name in the configuration and in the control
// database: under another name it knows nothing of what was delivered. owner is
// this process's stable instance id. Close it after the last Write.
func New(cfg Config, pool *pgxpool.Pool, name, owner string) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Sink{cfg: cfg, window: sendWindow}
	s.client = newClient(&s.cfg)
	s.store = &store{pool: pool, sink: name, owner: owner, settleAfter: cfg.SettleAfter}
	// A chunk must be sent well within its window.
	s.chunk = max(1, min(maxChunk, int(cfg.Rate*sendWindow.Seconds()/2)))
	return s, nil
}

// Close lets go of idle connections.
func (s *Sink) Close() error {
	s.client.close()
	return nil
}

// prepare makes the tables, and settles what this instance or a dead one left.
func (s *Sink) prepare(ctx context.Context) error {
	if s.ready {
		return nil
	}
	if err := s.store.migrate(ctx); err != nil {
		return err
	}
	open, err := s.store.left(ctx, maxLeft)
	if err != nil {
		return err
	}
	w := &write{s: s, done: map[ident]*delivered{}, open: open, taken: map[ident]string{}, held: map[ident]bool{}}
	// What may still arrive is left: it is looked at when its key comes.
	if w.readBack(ctx, keysOf(open)); w.err != nil {
		return w.err
	}
	s.ready = true
	return nil
}

func keysOf(m map[ident]*intent) []ident {
	ids := make([]ident, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	return ids
}

// item is one change on its way.
type item struct {
	index int
	id    ident
	e     *entity
	version
	versioned bool // the change came from Kafka
	gone      bool // a delete
	row       row
	refs      []ident
	want      *wanted
	tries     int
}

// write is one Write.
type write struct {
	s *Sink
	b *change.Batch

	done   map[ident]*delivered
	open   map[ident]*intent
	failed map[ident]pipeline.Failure // the first failure of a key in this batch
	fails  []pipeline.Failure
	err    error // what ends the Write: the worst so far
	// held are keys whose last request has an unknown outcome still: nothing
	// is done with them in this Write, which fails with late in the end.
	held map[ident]bool
	late error

	mu    sync.Mutex
	taken map[ident]string // entity and external id → key, of this Write
}

// Write delivers a batch (pipeline.Sink).
func (s *Sink) Write(ctx context.Context, b *change.Batch) ([]pipeline.Failure, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	w := &write{s: s, b: b, failed: map[ident]pipeline.Failure{}, taken: map[ident]string{}, held: map[ident]bool{}}
	items := w.read()
	var err error
	if w.done, w.open, err = s.store.load(ctx, idents(items)); err != nil {
		return nil, err
	}
	// Before anything else is done with a key: what became of the last
	// request for it? (invariants 11, 14)
	w.readBack(ctx, ofItems(w.open, items))
	for rank := range 3 {
		var queue []*item
		for _, it := range items {
			if it.e.rank == rank {
				queue = append(queue, it)
			}
		}
		if w.run(ctx, queue); w.err != nil {
			return nil, w.err
		}
	}
	if w.late != nil {
		return nil, w.late
	}
	slices.SortFunc(w.fails, func(a, b pipeline.Failure) int { return a.Index - b.Index })
	return w.fails, nil
}

// read makes items of the batch's changes.
func (w *write) read() []*item {
	items := make([]*item, 0, w.b.Len())
	last := map[ident]*item{} // of records with full state
	var key []byte
	for i := range w.b.Changes {
		c := &w.b.Changes[i]
		e := entities[c.Table.Topic]
		if e == nil {
			w.fails = append(w.fails, pipeline.Failure{Index: i, Err: ErrRecord.New("this sink does not deliver topic %q", c.Table.Topic)})
			continue
		}
		key = change.AppendKey(key[:0], w.b, c)
		it := &item{index: i, id: ident{e.topic, string(key)}, e: e, gone: c.Op == change.Delete || c.New == nil}
		if it.id.key == "" {
			w.fails = append(w.fails, pipeline.Failure{Index: i, Err: ErrRecord.New("a record of %s has no key", e.topic)})
			continue
		}
		if t := c.Coord.Topic; t != nil {
			it.versioned = true
			it.version = version{t.ID, c.Coord.Partition, c.Coord.Offset}
		}
		if !it.gone {
			it.row = row{b: w.b, t: c.Table, vals: c.New}
			it.refs = e.refs(&it.row)
		}
		if !e.final {
			if before := last[it.id]; before != nil {
				// The later one says it all: the earlier is not sent.
				*before = *it
				continue
			}
			last[it.id] = it
		}
		items = append(items, it)
	}
	return items
}

// idents lists the keys of items and of what they refer to, each once.
func idents(items []*item) []ident {
	seen := map[ident]bool{}
	var out []ident
	add := func(id ident) {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	for _, it := range items {
		add(it.id)
		for _, r := range it.refs {
			add(r)
		}
	}
	return out
}

// ofItems are the open intents of the items' own keys.
func ofItems(open map[ident]*intent, items []*item) []ident {
	var out []ident
	for _, it := range items {
		if open[it.id] != nil && !slices.Contains(out, it.id) {
			out = append(out, it.id)
		}
	}
	return out
}

// stop notes what ends the Write; what halts counts more than what is retried.
func (w *write) stop(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil || pipeline.Classify(err) > pipeline.Classify(w.err) {
		w.err = err
	}
}

// hold leaves a key alone for the rest of this Write, because of err.
func (w *write) hold(id ident, err *problem.Error) {
	w.held[id] = true
	if was := problem.Of(w.late); was == nil || was.After > err.After {
		w.late = err // the one that can be looked at first
	}
}

func (w *write) stopped() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil
}

// fail takes an item out of the flow, and what follows it with the same key.
func (w *write) fail(it *item, err error, waitsFor string) {
	f := pipeline.Failure{Index: it.index, Err: err, WaitsFor: waitsFor}
	w.fails = append(w.fails, f)
	if _, has := w.failed[it.id]; !has {
		w.failed[it.id] = f
	}
}

// run delivers items of one rank: chunk after chunk, each of different keys,
// so that the order per key is kept (invariant 4).
func (w *write) run(ctx context.Context, queue []*item) {
	for len(queue) > 0 && w.err == nil {
		if err := ctx.Err(); err != nil {
			w.stop(fmt.Errorf("delivering: %w", err))
			return
		}
		var calls []*call
		var outs []outcome
		var rest []*item
		busy := map[ident]bool{}
		for i, it := range queue {
			if len(calls) >= w.s.chunk {
				rest = append(rest, queue[i:]...)
				break
			}
			if busy[it.id] {
				rest = append(rest, it)
				continue
			}
			c, out := w.plan(it)
			switch {
			case c != nil:
				busy[it.id] = true
				calls = append(calls, c)
			case out != nil:
				outs = append(outs, *out)
				w.done[it.id] = out.deliver
			}
			if w.err != nil {
				return
			}
		}
		queue = append(w.perform(ctx, calls, outs), rest...)
	}
}
