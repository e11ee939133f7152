// Notes: what a source knows beside its position, such as what each table was when
// it was loaded. They lie in a topic of their own with one partition
// (`_tallywire.tables.<source>`, compacted), a record per key, and change in the
// transaction of the position that knows of the change: who reads them after
// fencing finds what belongs to the last position, whatever died when (decision 46).

package ingest

import (
	"bytes"
	"context"
	"slices"
	"strings"

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

// noteKey begins the keys of what the source notes: others of the topic are ours.
const noteKey = "source/"

// note is a change of one.
type note struct {
	key   string
	value []byte // nil: forgotten
}

// notes is what a session knows of them.
type notes struct {
	topic *change.Topic
	kept  map[string][]byte // of the last position; nil: it knows of none
	keys  map[string]bool   // as the next position will have them
	next  []note            // to go with the next job; under the session's mu
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
	if err := kafka.Scan(ctx, cl, t, 0, 0, end, func(r *kgo.Record) error {
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
			n.next = append(n.next, note{key: key})
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
	s.notes.next = append(s.notes.next, note{key, slices.Clone(value)})
	s.mu.Unlock()
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
		if c.value == nil {
			delete(n.keys, c.key)
		} else {
			n.keys[c.key] = true
		}
		out = append(out, &kgo.Record{Topic: n.topic.Name, Key: []byte(noteKey + c.key), Value: c.value})
	}
	return out
}
