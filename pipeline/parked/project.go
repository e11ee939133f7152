// The projector: brings the table of parked records in the control database to
// what the parked topic says, and what people ask for there to the topic. No
// flow waits for it; a database that is away catches up when it is back.

package parked

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

const (
	lookEvery   = 500 * time.Millisecond
	eventsAtOne = 500
	bytesAtOne  = 4 << 20
	// Releases are kept in the topic for kafka.delete_retention, a day at least
	// unless somebody set it lower. After that long the projector begins anew.
	beginAnew    = time.Hour
	foreignEvery = 30 * time.Second
)

type projector struct {
	cluster *kafka.Cluster
	store   *control.ParkedStore
	name    string
	kind    string
	comp    *obs.Component

	topic     *change.Topic
	next      []int64                // by partition, applied to the table
	live      map[string]control.Ref // parked, as far as read; nil when the table was pruned by it
	appliedAt time.Time
	foreignAt time.Time
	failing   bool
}

// Project runs the projector of a stage of a kind of package control until stop
// is called, which waits for it. Without a control database (nil) there is none.
// Several processes may run it at once.
func Project(ctx context.Context, cluster *kafka.Cluster, db *pgxpool.Pool, name, kind string, comp *obs.Component) (stop func()) {
	if db == nil {
		return func() {}
	}
	p := &projector{cluster: cluster, store: control.NewParked(db), name: name, kind: kind, comp: comp}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.run(ctx) })
	return func() { cancel(); wg.Wait() }
}

func (p *projector) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for pause := 0; ; {
		err := outage.Guard(func() error { return p.look(ctx) })
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if p.failing {
				p.comp.Log.Info("the control database shows what is parked again")
			}
			p.failing, pause = false, 0
		default:
			p.comp.Failed(problem.Retry.String(), outage.CodeOf(err))
			if !p.failing {
				p.comp.Log.Warn("the control database does not show what is parked; trying again", "err", err)
			}
			p.failing, pause = true, min(2*pause+1, 10)
		}
		for range pause + 1 {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// look does what is to be done now.
func (p *projector) look(ctx context.Context) error {
	if err := p.open(ctx); err != nil || p.topic == nil {
		return err
	}
	if err := p.catchUp(ctx); err != nil {
		return err
	}
	p.appliedAt = time.Now()
	if p.live != nil {
		live := make([]control.Ref, 0, len(p.live))
		for _, r := range p.live {
			live = append(live, r)
		}
		if err := p.store.Prune(ctx, p.name, p.topic.ID, p.next, live); err != nil {
			return err
		}
		p.live = nil
	}
	if err := p.forward(ctx); err != nil {
		return err
	}
	if p.kind != control.KindSink || time.Since(p.foreignAt) < foreignEvery {
		return nil
	}
	p.foreignAt = time.Now()
	return p.adopt(ctx)
}

// open begins at the start of the topic, if there is one yet.
func (p *projector) open(ctx context.Context) error {
	topic, err := p.cluster.Topic(ctx, TopicOf(p.name))
	switch {
	case problem.Has(err, kafka.ErrNoTopic):
		p.topic = nil
		return nil
	case err != nil:
		return err
	case p.topic != nil && topic.ID == p.topic.ID && topic.Partitions == p.topic.Partitions && time.Since(p.appliedAt) < beginAnew:
		return nil
	}
	if err := p.store.Scrub(ctx, p.name); err != nil {
		return err
	}
	starts, err := p.cluster.Admin().ListStartOffsets(ctx, topic.Name)
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q starts", topic.Name)
	}
	next := make([]int64, topic.Partitions)
	for part := range next {
		start, ok := starts.Lookup(topic.Name, int32(part))
		if !ok || start.Err != nil {
			return kafka.ErrUnavailable.New("partition %d of topic %q has no known start", part, topic.Name)
		}
		next[part] = start.Offset
	}
	p.topic, p.next, p.live, p.appliedAt = topic, next, map[string]control.Ref{}, time.Now()
	return nil
}

func (p *projector) catchUp(ctx context.Context) error {
	ends, err := p.cluster.Admin().ListCommittedOffsets(ctx, p.topic.Name)
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q is stable", p.topic.Name)
	}
	for part := range p.next {
		end, ok := ends.Lookup(p.topic.Name, int32(part))
		if !ok || end.Err != nil || end.Offset <= p.next[part] {
			continue
		}
		if err := p.read(ctx, int32(part), end.Offset); err != nil {
			return err
		}
	}
	return nil
}

// read applies the records of a partition up to a stable end.
func (p *projector) read(ctx context.Context, part int32, end int64) error {
	var events []control.Event
	size := 0
	flush := func(next int64) error {
		if err := p.store.Apply(ctx, p.name, events); err != nil {
			return err
		}
		for _, e := range events {
			switch {
			case p.live == nil:
			case e.Parked != nil:
				p.live[string(AppendKey(nil, e.Ref.Topic, e.RecordKey))] = e.Ref
			default:
				delete(p.live, string(AppendKey(nil, e.Ref.Topic, e.RecordKey)))
			}
		}
		p.next[part], events, size = next, nil, 0
		return nil
	}
	err := kafka.Scan(ctx, p.cluster.Shared(), p.topic, part, p.next[part], end, func(r *kgo.Record) error {
		if r.Attrs.IsControl() || len(r.Key) == 0 || r.Key[0] == separator {
			return nil
		}
		topic, recordKey := splitKey(string(r.Key))
		e := control.Event{Ref: control.Ref{Topic: topic, RecordKey: recordKey}, Topic: p.topic.ID, Offset: r.Offset}
		if r.Value != nil {
			parked, err := Parse(p.name, r.Value)
			if err != nil { // its stage halts for it
				p.comp.Log.Warn("a parked record is not listed", "partition", part, "offset", r.Offset, "err", err)
				return nil
			}
			parked.Kind, parked.Value, parked.Headers = p.kind, nil, nil // the topic has them
			e.Parked = &parked
		}
		events = append(events, e)
		if size += len(r.Value); len(events) >= eventsAtOne || size >= bytesAtOne {
			return flush(r.Offset + 1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush(end)
}

// forward turns what was asked for in the control database into commands, so
// that either way of asking works.
func (p *projector) forward(ctx context.Context) error {
	rows, err := p.store.Requested(ctx, p.name, 1000)
	if err != nil || len(rows) == 0 {
		return err
	}
	if _, err := Send(ctx, p.cluster, rows, CommandRetry); err != nil {
		return err
	}
	refs := make([]control.Ref, len(rows))
	for i := range rows {
		refs[i] = control.Ref{Topic: rows[i].Topic, RecordKey: rows[i].RecordKey}
	}
	return p.store.ClearRetry(ctx, p.name, refs)
}

// adopt brings what a sink of an older version keeps in the table alone.
func (p *projector) adopt(ctx context.Context) error {
	for {
		rows, err := p.store.Foreign(ctx, p.name, 100)
		if err != nil || len(rows) == 0 {
			return err
		}
		p.comp.Log.Info("parked records of an older version are tried again", "records", len(rows))
		sent, err := Send(ctx, p.cluster, rows, CommandAdopt)
		if err != nil {
			return err
		}
		for i := range rows {
			topic, in := splitKey(string(AppendKey(nil, rows[i].Topic, rows[i].RecordKey)))
			if err := p.store.Adopted(ctx, p.name, &rows[i], control.Ref{Topic: topic, RecordKey: in}, p.topic.ID, sent[i].Offset); err != nil {
				return err
			}
		}
	}
}
