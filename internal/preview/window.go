// Package preview tells what changed rules would change, before they are put in
// place. window.go reads a window of raw topics, runs it through rules, and reads
// the canonical topics beside it.
package preview

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/rules"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// Preview compares what rules make of a window of raw records with what was made
// of it before: with the canonical topics, or with other rules.
type Preview struct {
	Now      *Side
	Before   *Side // nil: the canonical topics
	Kafka    *kafka.Cluster
	Registry *avro.Registry
	Memory   int       // octets that the records compared may take
	Progress io.Writer // how far it is

	dec  *avro.Decoder
	told time.Time

	used    int
	sampled uint64                       // one of so many keys is kept
	keys    map[string]map[string]*sides // by canonical topic
	missing map[string]bool              // canonical topics that do not exist
}

// Side is one set of rules.
type Side struct {
	rules    *rules.Book
	stage    *mapping.Stage
	trial    *mapping.Trial
	rejected *rejections
}

// NewSide is the side of one stage of a book.
func NewSide(r *rules.Book, s *mapping.Stage) (*Side, error) {
	t, err := mapping.NewTrial(s, r.Contracts)
	return &Side{r, s, t, newRejections()}, err
}

// rawMeta is where a raw record came from.
type rawMeta struct {
	topic     string
	partition int32
	offset    int64
	millis    int64
	row       uint64 // hash of topic and key
	keyed     bool
}

// offsets are a run of offsets of a partition.
type offsets struct{ from, to int64 }

// Run previews the rules over the raw records since then. It writes nothing.
func (p *Preview) Run(ctx context.Context, since time.Time) (*Result, error) {
	p.dec, p.sampled, p.told = avro.NewDecoder(p.Registry), 1, time.Now()
	p.keys = map[string]map[string]*sides{}
	for _, t := range p.Now.stage.To() {
		p.keys[t] = map[string]*sides{}
	}
	res := &Result{Transform: p.Now.stage.Name(), Since: since, Topics: []Topic{}}
	raw, err := p.Kafka.Topics(ctx, p.Now.stage.From()...)
	if err != nil {
		return nil, err
	}
	canonical, err := p.Kafka.Topics(ctx, slices.Collect(maps.Keys(p.keys))...)
	if err != nil {
		return nil, err
	}
	p.missing = map[string]bool{}
	for t := range p.keys {
		p.missing[t] = canonical[t] == nil
	}
	window, unread, ends, err := p.window(ctx, since, slices.Collect(maps.Keys(raw)), slices.Collect(maps.Keys(canonical)))
	if err != nil {
		return nil, err
	}
	for _, name := range p.Now.stage.From() {
		r := Raw{Topic: name, Missing: raw[name] == nil, Unread: unread[name]}
		for _, part := range slices.Sorted(maps.Keys(window[name])) {
			n, err := p.readRaw(ctx, raw[name], part, window[name][part])
			if err != nil {
				return nil, err
			}
			r.Records += n
		}
		res.Raw = append(res.Raw, r)
	}
	if p.Before == nil {
		for name, t := range canonical {
			if len(p.keys[name]) == 0 {
				continue
			}
			for _, part := range slices.Sorted(maps.Keys(ends[name])) {
				if err := p.readCanonical(ctx, t, part, ends[name][part]); err != nil {
					return nil, err
				}
			}
		}
	}
	p.compare(res)
	return res, nil
}

// window gives the offsets to read: of raw topics from since up to what the
// running transform has read, or to the end where none has; of canonical topics
// all, up to an end that holds what the transform made of that.
func (p *Preview) window(ctx context.Context, since time.Time, raw, canonical []string) (window map[string]map[int32]offsets, unread map[string]int64, all map[string]map[int32]offsets, err error) {
	adm := p.Kafka.Admin()
	window, unread, all = map[string]map[int32]offsets{}, map[string]int64{}, map[string]map[int32]offsets{}
	if len(raw) == 0 {
		return window, unread, all, nil
	}
	starts, err := adm.ListOffsetsAfterMilli(ctx, since.UnixMilli(), raw...)
	if err != nil {
		return nil, nil, nil, kafka.Wrap(err, "reading the offsets of %s", since.Format(time.RFC3339))
	}
	read, err := p.committed(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	// The group's offsets and its records are of one transaction: where the offsets
	// stood still around the look at the ends, the ends hold what belongs to them.
	var ends kadm.ListedOffsets
	for range 10 {
		if ends, err = adm.ListCommittedOffsets(ctx, append(slices.Clone(raw), canonical...)...); err != nil {
			return nil, nil, nil, kafka.Wrap(err, "reading the end offsets")
		}
		again, err := p.committed(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		if p.Before != nil || maps.EqualFunc(read, again, maps.Equal[map[int32]int64, map[int32]int64]) {
			break
		}
		read = again
	}
	for _, name := range raw {
		window[name] = map[int32]offsets{}
		for part, e := range ends[name] {
			s, ok := starts.Lookup(name, part)
			if err := errors.Join(e.Err, s.Err); err != nil {
				return nil, nil, nil, kafka.Wrap(err, "reading the offsets of %s, partition %d", name, part)
			}
			if !ok { // made a moment ago: nothing was written before the window began
				continue
			}
			to := e.Offset
			if at, ok := read[name][part]; ok && at < to && p.Before == nil {
				unread[name] += max(0, to-max(at, s.Offset))
				to = at
			}
			if s.Offset < to {
				window[name][part] = offsets{s.Offset, to}
			}
		}
	}
	begins, err := adm.ListStartOffsets(ctx, canonical...)
	if err != nil {
		return nil, nil, nil, kafka.Wrap(err, "reading the start offsets")
	}
	for _, name := range canonical {
		all[name] = map[int32]offsets{}
		for part, e := range ends[name] {
			b, _ := begins.Lookup(name, part)
			if err := errors.Join(e.Err, b.Err); err != nil {
				return nil, nil, nil, kafka.Wrap(err, "reading the offsets of %s, partition %d", name, part)
			}
			all[name][part] = offsets{b.Offset, e.Offset}
		}
	}
	return window, unread, all, nil
}

// committed are the offsets of the transform's group; none when there is none.
func (p *Preview) committed(ctx context.Context) (map[string]map[int32]int64, error) {
	group := pipeline.GroupOf(p.Now.stage.Name())
	got, err := p.Kafka.Admin().FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, kafka.Wrap(err, "reading the offsets of %s", group)
	}
	out := map[string]map[int32]int64{}
	got.Each(func(o kadm.OffsetResponse) {
		if o.Err == nil && o.At >= 0 {
			if out[o.Topic] == nil {
				out[o.Topic] = map[int32]int64{}
			}
			out[o.Topic][o.Partition] = o.At
		}
	})
	return out, nil
}

// How many rows, and octets, go through the rules at once.
const (
	maxRows   = 1024
	maxOctets = 4 << 20
)

// readRaw runs the rows of a partition through the rules.
func (p *Preview) readRaw(ctx context.Context, t *change.Topic, part int32, o offsets) (n int64, err error) {
	in := change.Get()
	defer func() { in.Release() }()
	var metas []rawMeta
	flush := func() error {
		if in.Len() == 0 {
			return nil
		}
		if p.Before != nil {
			twin := change.Get()
			for i := range in.Changes {
				twin.AppendFrom(in, &in.Changes[i])
			}
			if err := p.apply(ctx, p.Before, twin, metas, true); err != nil {
				return err
			}
		}
		full := in
		in = change.Get()
		err := p.apply(ctx, p.Now, full, metas, false)
		metas = metas[:0]
		p.thin()
		return err
	}
	err = kafka.Scan(ctx, p.Kafka.Shared(), t, part, o.from, o.to, func(r *kgo.Record) error {
		if r.Attrs.IsControl() {
			return nil
		}
		n++
		p.progress(t.Name, part, r.Offset, o)
		m := rawMeta{topic: t.Name, partition: part, offset: r.Offset, millis: r.Timestamp.UnixMilli(), row: hashOf(t.Name, r.Key), keyed: r.Key != nil}
		before := in.Len()
		err := p.dec.Append(ctx, in, change.Coord{Topic: t, Partition: part, Offset: r.Offset}, r.Key, r.Value, kafka.Headers(r), m.millis)
		if e := problem.Of(err); err != nil && (e == nil || e.Class != problem.Reject) {
			return err
		}
		if err != nil {
			p.Now.rejected.add(&m, err)
			if p.Before != nil {
				p.Before.rejected.add(&m, err)
			}
			return nil
		}
		if in.Len() > before {
			if c := &in.Changes[before]; c.Row() != nil { // the key's octets name a schema, which may get another id
				m.row = hashOf(t.Name, change.AppendKey(nil, in, c))
			}
			metas = append(metas, m)
		}
		if in.Len() >= maxRows || in.Size() >= maxOctets {
			return flush()
		}
		return nil
	})
	if err != nil {
		return n, err
	}
	return n, flush()
}

func hashOf(topic string, key []byte) uint64 {
	d := xxhash.New()
	_, _ = d.WriteString(topic)
	_, _ = d.Write([]byte{0})
	_, _ = d.Write(key)
	return d.Sum64()
}

// apply keeps what the rules of a side make of rows.
func (p *Preview) apply(ctx context.Context, side *Side, in *change.Batch, metas []rawMeta, old bool) error {
	out, rejected, err := side.trial.Apply(ctx, in)
	if err != nil {
		return side.rules.Place(err)
	}
	defer out.Release()
	// A row may come several times in one batch: what its last version does counts.
	last := make([]error, len(metas))
	for _, r := range rejected {
		last[r.Row] = r.Err
	}
	for i := range metas {
		if last[i] != nil {
			side.rejected.add(&metas[i], last[i])
		} else {
			delete(side.rejected.rows, metas[i].row)
		}
	}
	for i := range out.Changes {
		c := &out.Changes[i]
		m := &metas[c.Coord.Offset]
		if c.Op == change.Truncate {
			p.truncate(c.Table.Topic, m, old)
			continue
		}
		r := madeRecord{made: true, row: m.row, raw: m.topic, millis: m.millis, partition: m.partition}
		if c.New != nil {
			to := c.Table
			if contract := p.Now.rules.Contracts[to.Topic]; contract != nil {
				to = contract.Table
			}
			r.fields = appendFields(out, to, c)
		}
		p.keep(c.Table.Topic, string(change.AppendKey(nil, out, c)), r, old)
	}
	return nil
}

// readCanonical takes the records of the keys that the window touches.
func (p *Preview) readCanonical(ctx context.Context, t *change.Topic, part int32, o offsets) error {
	to := p.Now.rules.Contracts[t.Name].Table
	b := change.Get()
	defer b.Release()
	return kafka.Scan(ctx, p.Kafka.Shared(), t, part, o.from, o.to, func(r *kgo.Record) error {
		if r.Attrs.IsControl() {
			return nil
		}
		p.progress(t.Name, part, r.Offset, o)
		b.Reset()
		err := p.dec.Append(ctx, b, change.Coord{Topic: t, Partition: part, Offset: r.Offset}, r.Key, r.Value, kafka.Headers(r), r.Timestamp.UnixMilli())
		if err != nil || b.Len() == 0 {
			return err
		}
		c := &b.Changes[0]
		key := string(change.AppendKey(nil, b, c))
		if p.keys[t.Name][key] == nil {
			return nil
		}
		made := madeRecord{made: true, partition: part}
		if c.New != nil {
			made.fields = appendFields(b, to, c)
		}
		p.keep(t.Name, key, made, true)
		p.thin()
		return nil
	})
}

// progress tells on standard error, every few seconds, how far it is.
func (p *Preview) progress(topic string, part int32, at int64, o offsets) {
	if time.Since(p.told) < 3*time.Second {
		return
	}
	p.told = time.Now()
	keys := 0
	for _, k := range p.keys {
		keys += len(k)
	}
	fmt.Fprintf(p.Progress, "reading %s, partition %d: %d of %d, %d keys\n", topic, part, at-o.from, o.to-o.from, keys)
}
