// Set: what of one stage is parked now, as one session of it knows it. The
// truth is the parked topic (G1).

package parked

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/seal"
)

// ErrGone says that the original of a parked record is not to be had any more.
var ErrGone = problem.Define("TW-PARKED-GONE", problem.Reject,
	"A parked record cannot be tried again: it was too large to be kept as it was parked, and is gone from its topic.",
	"Change the row at its source again: the new record replaces this one. Or drop it with `tallywire parked discard`.")

// NotRead says of p that its stage does not read the topic it came from any
// more: with [ErrGone], and what helps.
func NotRead(p *control.Parked) *problem.Error {
	return ErrGone.New("topic %q is not read any more", p.Topic).
		WithRemedy("Have it read again by %s, or drop the record with `tallywire parked discard`.", p.Stage)
}

// Lost is a parked record that cannot be tried again, and why: its original was
// not kept and is gone from its topic, or does not open.
type Lost struct {
	control.Parked
	Err *problem.Error
}

func goneOf(p *control.Parked) Lost {
	return Lost{*p, ErrGone.New("record %d of partition %d of topic %q: %s", p.Offset, p.Partition, p.Topic, p.Reason)}
}

// Ref is what is kept in memory of a parked record: not its payload.
type Ref struct {
	TopicID   [16]byte
	Partition int32 // of the original
	Offset    int64 // of the original
	At        int64 // where in the parked topic it lies
	Attempts  int
	FirstAt   time.Time
	TriedAt   time.Time
	WaitsFor  string
	Size      int // of its record in the parked topic and of its parts, in octets, about
	// Head is the whole parked record, but for what is kept in parts. Only
	// with KeepHeads; not to be changed.
	Head *control.Parked

	partsAt int64  // no part of it lies before
	parts   int    // that it has in all
	in      string // its key in the topic
	also    []also // under which older ones of it are left there
	mine    bool
}

// also is a key in the topic of a record that another key's has replaced: a
// version that told rows apart by the id of their key's schema left it.
type also struct {
	in    string
	parts int
}

// Set is used by one session, which loads it when partitions are assigned and
// tells it what each transaction committed. Not safe for concurrent use.
type Set struct {
	Topic *change.Topic // the parked topic
	// Following: Follow is called now and then.
	Following bool
	// KeepHeads: Ref.Head is there.
	KeepHeads bool
	// Keep says how originals are kept.
	Keep Keeping

	name string
	kind string
	comp *obs.Component
	owns func(topic string, partition int32) bool

	next     map[int32]int64 // read up to, by partition of the parked topic
	refs     map[string]Ref  // by AppendKey
	released map[string]Ref  // by ourselves, and not read yet; At: the release
	waiters  map[string]map[string]bool
	commands map[string]*Command // not done yet, by their record's key
	seen     map[string]bool     // waits of ours that others see since the last Seen
	partsAt  map[string]int64    // of part 0, by AppendKey

	parked, waiting int64 // of those that are ours
}

// NewSet makes an empty set of the parked records of a stage of a kind of
// package control.
func NewSet(name, kind string, topic *change.Topic, comp *obs.Component) *Set {
	s := &Set{Topic: topic, name: name, kind: kind, comp: comp}
	s.reset()
	return s
}

func (s *Set) reset() {
	s.next, s.refs, s.released = map[int32]int64{}, map[string]Ref{}, map[string]Ref{}
	s.waiters, s.commands = map[string]map[string]bool{}, map[string]*Command{}
	s.partsAt, s.seen = map[string]int64{}, map[string]bool{}
	s.parked, s.waiting = 0, 0
}

// PartitionOf is the partition of the parked topic for records of partition p
// of an input.
func (s *Set) PartitionOf(p int32) int32 { return p % s.Topic.Partitions }

// Len is how many records are parked or wait, in the partitions that are read.
func (s *Set) Len() int { return len(s.refs) }

// Get gives a parked record, by AppendKey.
func (s *Set) Get(key []byte) (Ref, bool) {
	r, is := s.refs[string(key)]
	return r, is
}

// KeyOf is the key in the topic of what is parked, or will be, under a key of
// AppendKey: that, or the one that an older version gave it.
func (s *Set) KeyOf(key []byte) []byte {
	if r, is := s.refs[string(key)]; is {
		return []byte(r.in)
	}
	return key
}

// Leftovers are the ends of what else is parked of a record, and replaced: they
// go with the record's own end, or its next version.
func (s *Set) Leftovers(key []byte) (out []*kgo.Record) {
	r := s.refs[string(key)]
	for _, a := range r.also {
		out = append(out, dropParts(s.Topic.Name, []byte(a.in), 0, a.parts)...)
		out = append(out, &kgo.Record{Topic: s.Topic.Name, Key: []byte(a.in), Timestamp: time.Now()})
	}
	for _, o := range out {
		o.Partition = s.PartitionOf(r.Partition)
	}
	return out
}

// Keys lists what is parked, by AppendKey.
func (s *Set) Keys() iter.Seq[string] { return maps.Keys(s.refs) }

// Waits reports whether any record waits for another.
func (s *Set) Waits() bool { return len(s.waiters) > 0 }

// Load reads partitions of the parked topic as they are now, to the end, open
// transactions awaited. owns says of which records' partitions this session is
// the owner, nil: of all that are read. They are counted, and commands about them
// are given by Commands. Call it when partitions were just assigned.
func (s *Set) Load(ctx context.Context, cl *kgo.Client, cluster *kafka.Cluster, parts []int32, owns func(string, int32) bool) error {
	s.reset()
	s.owns = owns
	starts, err := cluster.Admin().ListStartOffsets(ctx, s.Topic.Name)
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q starts", s.Topic.Name)
	}
	ends, err := cluster.Admin().ListEndOffsets(ctx, s.Topic.Name)
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q ends", s.Topic.Name)
	}
	for _, part := range parts {
		start, ok1 := starts.Lookup(s.Topic.Name, part)
		end, ok2 := ends.Lookup(s.Topic.Name, part)
		if !ok1 || !ok2 || end.Err != nil || start.Err != nil {
			return kafka.ErrUnavailable.New("partition %d of topic %q has no known end", part, s.Topic.Name)
		}
		if err := s.read(ctx, cl, part, start.Offset, end.Offset); err != nil {
			return err
		}
	}
	s.show()
	return nil
}

// Follow reads what was committed since: commands, and what other owners did.
func (s *Set) Follow(ctx context.Context, cl *kgo.Client, cluster *kafka.Cluster) error {
	ends, err := cluster.Admin().ListCommittedOffsets(ctx, s.Topic.Name)
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q is stable", s.Topic.Name)
	}
	for part, next := range s.next {
		end, ok := ends.Lookup(s.Topic.Name, part)
		if !ok || end.Err != nil || end.Offset <= next {
			continue
		}
		if err := s.read(ctx, cl, part, next, end.Offset); err != nil {
			return err
		}
	}
	for k, r := range s.released {
		if r.At < s.next[s.PartitionOf(r.Partition)] {
			delete(s.released, k)
		}
	}
	s.show()
	return nil
}

func (s *Set) read(ctx context.Context, cl *kgo.Client, part int32, from, to int64) error {
	bad := map[string]error{} // what cannot be read, and nothing of its key comes after it
	err := kafka.Scan(ctx, cl, s.Topic, part, from, to, func(r *kgo.Record) error {
		delete(bad, string(r.Key))
		switch {
		case r.Attrs.IsControl() || len(r.Key) == 0:
			return nil
		case r.Key[0] == separator:
			if n, of, is := partOf(r.Key); !is {
				return s.heard(r)
			} else if n == 0 && r.Value != nil && s.KeepHeads {
				s.partsAt[identity(of)] = r.Offset
			}
			return nil
		}
		key := identity(r.Key)
		if old, is := s.refs[key]; is && s.PartitionOf(old.Partition) == part && old.At >= r.Offset {
			if old.At == r.Offset && old.mine && old.WaitsFor != "" {
				s.seen[key] = true
			}
			return nil // we know what comes later
		}
		if old, is := s.released[key]; is && s.PartitionOf(old.Partition) == part && old.At >= r.Offset {
			return nil
		}
		if old, is := s.refs[key]; is && r.Value == nil && old.in != string(r.Key) {
			old.also = slices.DeleteFunc(slices.Clone(old.also), func(a also) bool { return a.in == string(r.Key) })
			s.refs[key] = old
			return nil
		}
		if r.Value == nil {
			s.drop(key)
			delete(s.partsAt, key)
			return nil
		}
		p, err := parse(s.name, r.Value, false)
		if err != nil {
			bad[string(r.Key)] = ErrForm.New("offset %d of partition %d of topic %q, whose key is %q: %s", r.Offset, part, s.Topic.Name, ReadableKey(r.Key), ReasonText(err))
			return nil
		}
		ref := s.refOf(&p, r)
		if old, is := s.refs[key]; is {
			ref.also = slices.DeleteFunc(append(slices.Clone(old.also), also{old.in, old.parts}), func(a also) bool { return a.in == ref.in })
		}
		s.put(key, ref)
		return nil
	})
	for _, key := range slices.Sorted(maps.Keys(bad)) {
		err = errors.Join(err, bad[key])
	}
	if err != nil {
		return err
	}
	s.next[part] = to
	return nil
}

func (s *Set) refOf(p *control.Parked, rec *kgo.Record) Ref {
	size := len(rec.Value)
	switch {
	case len(p.Held) > 0:
		size += held(p) * PartSize
	case p.Omitted && p.Size > 0:
		size += p.Size
	case p.Omitted:
		size += 1 << 20 // at least
	}
	r := Ref{
		TopicID: p.TopicID, Partition: p.Partition, Offset: p.Offset, At: rec.Offset,
		Attempts: p.Attempts, FirstAt: p.FirstAt, TriedAt: p.LastAt, WaitsFor: p.WaitsFor, Size: size, parts: held(p), in: string(rec.Key),
	}
	if s.KeepHeads {
		head := *p
		head.Value = nil
		r.Head = &head
	}
	return r
}

func (s *Set) put(key string, r Ref) {
	s.drop(key)
	delete(s.released, key)
	topic, _ := splitKey(key)
	r.mine = s.isMine(topic, r.Partition)
	r.partsAt = s.partsAt[key]
	s.refs[key] = r
	if r.WaitsFor != "" {
		of := s.waiters[r.WaitsFor]
		if of == nil {
			of = map[string]bool{}
			s.waiters[r.WaitsFor] = of
		}
		of[key] = true
	}
	s.counted(r, 1)
}

func (s *Set) isMine(topic string, partition int32) bool {
	return s.owns == nil || s.owns(topic, partition)
}

func (s *Set) drop(key string) {
	r, is := s.refs[key]
	if !is {
		return
	}
	delete(s.refs, key)
	delete(s.seen, key)
	if of := s.waiters[r.WaitsFor]; of != nil {
		delete(of, key)
		if len(of) == 0 {
			delete(s.waiters, r.WaitsFor)
		}
	}
	s.counted(r, -1)
}

func (s *Set) counted(r Ref, n int64) {
	switch {
	case !r.mine:
	case r.WaitsFor != "":
		s.waiting += n
	default:
		s.parked += n
	}
}

// show sets the component's gauges.
func (s *Set) show() {
	s.comp.Parked(s.parked)
	s.comp.Waiting(s.waiting)
}

// splitKey takes AppendKey apart.
func splitKey(key string) (topic string, recordKey []byte) {
	i := bytes.IndexByte([]byte(key), separator)
	return key[:max(i, 0)], []byte(key[i+1:])
}

// Committed notes that rec, of the parked topic, was committed behind its
// parts: of p, or of a release when p is nil.
func (s *Set) Committed(p *control.Parked, rec *kgo.Record, parts ...*kgo.Record) {
	for _, r := range parts {
		if n, of, _ := partOf(r.Key); n == 0 && r.Value != nil {
			s.partsAt[identity(of)] = r.Offset
		}
	}
	key := identity(rec.Key)
	if p != nil {
		s.put(key, s.refOf(p, rec))
	} else {
		s.drop(key)
		delete(s.partsAt, key)
		if s.Following {
			s.released[key] = Ref{Partition: rec.Partition, At: rec.Offset}
		}
	}
	s.show()
}

// Overdue gives records of ours that wait and were last tried before t: their
// release may have come between the try and the parking.
func (s *Set) Overdue(t time.Time, limit int) []string {
	if s.waiting == 0 {
		return nil
	}
	var out []string
	for _, of := range s.waiters {
		for k := range of {
			if r := s.refs[k]; r.mine && r.TriedAt.Before(t) && len(out) < limit {
				out = append(out, k)
			}
		}
	}
	slices.SortFunc(out, func(a, b string) int { return int(s.refs[a].Offset - s.refs[b].Offset) })
	return out
}

// Seen gives records that this session parked because they wait, once each,
// when they can be read: what delivers the other one from then on finds them.
// What delivered it before did not, so they are to be tried once more.
func (s *Set) Seen(limit int) []string {
	var out []string
	for k := range s.seen {
		if len(out) < limit {
			out = append(out, k)
			delete(s.seen, k)
		}
	}
	slices.SortFunc(out, func(a, b string) int { return int(s.refs[a].Offset - s.refs[b].Offset) })
	return out
}

// NotTried gives what Seen gave back to it.
func (s *Set) NotTried(key string) {
	if r, is := s.refs[key]; is && r.WaitsFor != "" {
		s.seen[key] = true
	}
}

// Tried notes that a record was tried again and waits as before: nothing that
// anybody else has to know.
func (s *Set) Tried(key string, at time.Time) {
	if r, is := s.refs[key]; is {
		r.TriedAt = at
		s.refs[key] = r
	}
}

// Read gives the parked records of keys whole, in no order, and those that
// cannot be had whole.
func (s *Set) Read(ctx context.Context, cl *kgo.Client, cluster *kafka.Cluster, keys []string) (whole []control.Parked, lost []Lost, err error) {
	type place struct {
		part int32
		at   int64
	}
	want := make(map[place]bool, len(keys))
	var places []place
	for _, k := range keys {
		if r, is := s.refs[k]; is {
			p := place{s.PartitionOf(r.Partition), r.At}
			want[p] = true
			places = append(places, p)
		}
	}
	slices.SortFunc(places, func(a, b place) int {
		if a.part != b.part {
			return int(a.part - b.part)
		}
		return int(a.at - b.at)
	})
	const near = 256 // records read for nothing cost less than another request
	for len(places) > 0 {
		n := 1
		for n < len(places) && places[n].part == places[0].part && places[n].at-places[n-1].at <= near {
			n++
		}
		first, last := places[0], places[n-1]
		places = places[n:]
		err := kafka.Scan(ctx, cl, s.Topic, first.part, first.at, last.at+1, func(r *kgo.Record) error {
			if r.Attrs.IsControl() || r.Value == nil || !want[place{first.part, r.Offset}] {
				return nil
			}
			p, err := Parse(s.name, r.Value)
			if err != nil {
				return err
			}
			p.Kind = s.kind
			p.Value = bytes.Clone(p.Value)
			no, err := s.Whole(ctx, cl, cluster, &p)
			switch {
			case err != nil:
				return err
			case no != nil:
				lost = append(lost, *no)
			default:
				whole = append(whole, p)
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return whole, lost, nil
}

// Whole gives p its original, where it is not in it or sealed; not nil: it
// cannot be had.
func (s *Set) Whole(ctx context.Context, cl *kgo.Client, cluster *kafka.Cluster, p *control.Parked) (*Lost, error) {
	switch {
	case p.Omitted:
		is, err := s.original(ctx, cl, cluster, p)
		if err != nil || is {
			return nil, err
		}
		gone := goneOf(p)
		return &gone, nil
	case p.Sealed != "":
		if err := s.Keep.unseal(p); err != nil {
			if e := problem.Of(err); problem.Has(err, seal.ErrSealed) {
				return &Lost{*p, e}, nil
			}
			return nil, err
		}
	}
	return nil, nil
}

// original fills in the value of p, which was omitted, from where it came from,
// if it is still there.
func (s *Set) original(ctx context.Context, cl *kgo.Client, cluster *kafka.Cluster, p *control.Parked) (is bool, err error) {
	topic, err := cluster.Topic(ctx, p.Topic)
	if problem.Has(err, kafka.ErrNoTopic) || err == nil && topic.ID != p.TopicID {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = kafka.Scan(ctx, cl, topic, p.Partition, p.Offset, p.Offset+1, func(r *kgo.Record) error {
		p.Value, p.Omitted, is = bytes.Clone(r.Value), false, true
		p.Headers = headersOf(r)
		return nil
	})
	if problem.Has(err, kafka.ErrOffsetRange) {
		return false, nil
	}
	return is, err
}
