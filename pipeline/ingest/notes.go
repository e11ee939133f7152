// Notes: what a source knows beside its position, such as what each table was when
// it was loaded. They lie in a topic of their own with one partition
// (`_tallywire.tables.<source>`, compacted), a record per key, and change in the
// transaction of the position that knows of the change: who reads them after
// fencing finds what belongs to the last position, whatever died when (decision 46).

package ingest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
)

// ErrNotes says that notes are missing.
var ErrNotes = problem.Define("TW-SOURCE-NOTES", problem.Halt,
	"What a source noted of its tables is not there any more, and its position says that it was.",
	"Its topic was deleted, or somebody else wrote to it. What became of the tables while nobody looked cannot be told: start the source over (docs/recovery.md).")

// tablesTopicOf is the topic that keeps the notes of a source.
func tablesTopicOf(source string) string { return "_tallywire.tables." + source }

// The keys of the topic begin so: noteKey those of what the source notes, askKey
// those of what it is asked to do, which others write.
const (
	noteKey = "source/"
	askKey  = "ask/"
)

// note is a change of one, or the end of a request.
type note struct {
	key   string // of the record
	value []byte // nil: forgotten
}

// notes is what a session knows of them.
type notes struct {
	topic *change.Topic
	kept  map[string][]byte // of the last position; nil: it knows of none
	keys  map[string]bool   // as the next position will have them
	next  []note            // to go with the next job; under the session's mu

	asked map[string][]byte // requests that are not answered; under the session's mu

	hearing sync.Mutex
	heard   int64 // what the topic has before it was read for them; under hearing
}

// read takes what belongs to p, the last position. One that knows of none is of a
// version that keeps none, or there is none, since the source was started over: what
// the topic has is of before, and is forgotten with the next position. Call it after
// fencing only.
func (n *notes) read(ctx context.Context, cl *kgo.Client, cluster *kafka.Cluster, p *position) error {
	t := n.topic
	end, err := settledEnd(ctx, cluster, t)
	if err != nil {
		return err
	}
	kept := map[string][]byte{}
	n.asked, n.heard = map[string][]byte{}, end
	if err := kafka.Scan(ctx, cl, t, 0, 0, end, func(r *kgo.Record) error {
		n.hear(r)
		key, is := strings.CutPrefix(string(r.Key), noteKey)
		switch {
		case r.Attrs.IsControl() || !is:
		case r.Value == nil:
			delete(kept, key)
		default:
			kept[key] = bytes.Clone(r.Value)
		}
		return nil
	}); err != nil {
		return err
	}
	n.keys = map[string]bool{}
	if p == nil || p.Notes == 0 {
		for key := range kept {
			n.next = append(n.next, note{key: noteKey + key})
		}
		return nil
	}
	if len(kept) != p.Notes {
		return ErrNotes.New("source %q: topic %q has %d notes, and the position knows of %d", p.Source, t.Name, len(kept), p.Notes)
	}
	for key := range kept {
		n.keys[key] = true
	}
	n.kept = kept
	return nil
}

// Note implements SourceOutlet.
func (s *session) Note(key string, value []byte) {
	if !s.resumed {
		panic("BUG: Note before Resume")
	}
	if len(value) == 0 {
		value = nil
	}
	s.mu.Lock()
	s.notes.next = append(s.notes.next, note{noteKey + key, slices.Clone(value)})
	s.mu.Unlock()
}

// hear takes a request, or the end of one.
func (n *notes) hear(r *kgo.Record) {
	id, is := strings.CutPrefix(string(r.Key), askKey)
	switch {
	case r.Attrs.IsControl() || !is:
	case r.Value == nil:
		delete(n.asked, id)
	default:
		n.asked[id] = bytes.Clone(r.Value)
	}
}

// Asked implements SourceOutlet.
func (s *session) Asked(ctx context.Context) (map[string][]byte, error) {
	if err := s.hearAsks(ctx); err != nil {
		return nil, err
	}
	return s.asks(func(id string) bool { return !strings.HasPrefix(id, decisionAsk) }), nil
}

// asks gives the requests that are not answered, of those whose id fits.
func (s *session) asks(fits func(id string) bool) map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := maps.Clone(s.notes.asked)
	maps.DeleteFunc(asked, func(id string, _ []byte) bool { return !fits(id) })
	return asked
}

// hearAsks reads what was asked since.
func (s *session) hearAsks(ctx context.Context) error {
	n := &s.notes
	n.hearing.Lock()
	defer n.hearing.Unlock()
	ends, err := s.in.env.Kafka.Admin().ListCommittedOffsets(ctx, n.topic.Name)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return kafka.Wrap(err, "listing where topic %q is stable", n.topic.Name)
	}
	if end, ok := ends.Lookup(n.topic.Name, 0); ok && end.Offset > n.heard {
		if err := kafka.Scan(ctx, s.producers[0].client, n.topic, 0, n.heard, end.Offset, func(r *kgo.Record) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			n.hear(r)
			return nil
		}); err != nil {
			return err
		}
		n.heard = end.Offset
	}
	return nil
}

// Answer implements SourceOutlet.
func (s *session) Answer(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.notes.asked, id)
	s.notes.next = append(s.notes.next, note{key: askKey + id})
}

// Ask has a source that runs now, or when it runs next, do what value says, and
// gives what the request is known by. What it may say is the source's.
func Ask(ctx context.Context, cluster *kafka.Cluster, source string, value []byte) (id string, err error) {
	return ask(ctx, cluster, source, "", value)
}

func ask(ctx context.Context, cluster *kafka.Cluster, source, kind string, value []byte) (id string, err error) {
	topic, err := cluster.EnsureTopic(ctx, kafka.TopicSpec{Name: tablesTopicOf(source), Partitions: 1, Compact: true})
	if err != nil {
		return "", err
	}
	cl, err := cluster.Client()
	if err != nil {
		return "", err
	}
	defer cl.Close()
	id = kind + fmt.Sprintf("%s-%08x", time.Now().UTC().Format("20060102T150405Z"), rand.Uint32())
	err = cl.ProduceSync(ctx, &kgo.Record{Topic: topic.Name, Key: []byte(askKey + id), Value: value}).FirstErr()
	return id, kafka.Wrap(err, "asking source %q", source)
}

// Answered reports whether a source has taken up what it was asked.
func Answered(ctx context.Context, cluster *kafka.Cluster, source, id string) (bool, error) {
	cl, err := cluster.Client()
	if err != nil {
		return false, err
	}
	defer cl.Close()
	t, err := cluster.Topic(ctx, tablesTopicOf(source))
	if err != nil {
		return false, err
	}
	ends, err := cluster.Admin().ListCommittedOffsets(ctx, t.Name)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return false, kafka.Wrap(err, "listing where topic %q is stable", t.Name)
	}
	end, _ := ends.Lookup(t.Name, 0)
	n := notes{asked: map[string][]byte{}}
	err = kafka.Scan(ctx, cl, t, 0, 0, end.Offset, func(r *kgo.Record) error { n.hear(r); return nil })
	return n.asked[id] == nil, err
}

// Notes implements SourceOutlet.
func (s *session) Notes() map[string][]byte { return s.notes.kept }

func (s *session) takeNotes() []note {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.notes.next
	s.notes.next = nil
	return n
}

// written gives the records of changes, the last of each key, and has the next
// position know of them.
func (n *notes) written(changes []note) (out []*kgo.Record) {
	last := map[string]int{}
	for i, c := range changes {
		last[c.key] = i
	}
	for i, c := range changes {
		if last[c.key] != i {
			continue
		}
		if key, is := strings.CutPrefix(c.key, noteKey); is && c.value == nil {
			delete(n.keys, key)
		} else if is {
			n.keys[key] = true
		}
		out = append(out, &kgo.Record{Topic: n.topic.Name, Key: []byte(c.key), Value: c.value})
	}
	return out
}
