// The raw topics that a source has written to, as its position knows them: one
// that was deleted or made again does not hold what the source will not send
// again (A10). A few stand in each position. Many would make it larger than a
// record may be, and each commit dear: they lie in records of their own in the
// positions topic, written ahead of the position of a transaction in which they
// changed, and later positions say where (form 2).

package ingest

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/pipeline/records"
)

const (
	// topicsRecord is the size of a record that names them, in octets, about.
	topicsRecord = 256 << 10
	// staleFor is how long a broker may answer from what it knew before: one
	// that comes up, or is behind the controller.
	staleFor = 5 * time.Second
)

// positionTopic freezes what a raw topic was when it was written: with another
// number of partitions its keys would lie elsewhere.
type positionTopic struct {
	ID         string `json:"id"`
	Partitions int32  `json:"partitions"`
	Large      bool   `json:"large,omitempty"` // see records.LargeTopics
}

func (p positionTopic) size(name string) int { return len(name) + len(p.ID) + 32 }

func topicID(t *change.Topic) string { return hex.EncodeToString(t.ID[:]) }

// topicBook is what a session knows of its raw topics.
type topicBook struct {
	all     map[string]positionTopic
	gone    map[string]bool // of the last position, and not in Kafka any more
	octets  int
	inline  int    // octets that a position may repeat (IngestLimits.TopicsBytes)
	changed bool   // since records that name them were written
	in      int    // how many those are
	at      *int64 // offset of the first; nil: not known yet
	larges  int    // how many LargeTopics it knew
}

// bookOf is what the last position knows; nil: there is none.
func bookOf(last *position, gone map[string]bool, inline int) topicBook {
	b := topicBook{all: map[string]positionTopic{}, inline: inline, changed: true}
	if last == nil {
		return b
	}
	for name, t := range last.Topics {
		b.set(name, t)
	}
	b.gone, b.changed, b.in, b.at = gone, last.TopicsIn == 0, last.TopicsIn, last.TopicsAt
	return b
}

func (b *topicBook) set(name string, t positionTopic) {
	was, is := b.all[name]
	if is && was == t {
		return
	}
	if !is {
		b.octets += t.size(name)
	}
	b.all[name], b.changed = t, true
}

func (b *topicBook) forget(name string) {
	b.octets -= b.all[name].size(name)
	delete(b.all, name)
	b.changed = true
}

// namedForm is the newest form of a record that names topics.
const namedForm = 2

// namedTopics is the value of a record that names topics, as JSON.
type namedTopics struct {
	Form   int                      `json:"v"`
	Source string                   `json:"source"`
	Topics map[string]positionTopic `json:"topics"`
}

const namingKey = "\x1ftopics\x1f"

func namesTopics(r *kgo.Record) bool { return bytes.Contains(r.Key, []byte(namingKey)) }

// into makes p know the topics, and gives the records that go before it.
func (b *topicBook) into(p *position, topic string) (naming []*kgo.Record) {
	p.Topics, p.TopicsIn, p.TopicsAt = nil, 0, nil
	switch {
	case b.octets <= b.inline:
		p.Topics, b.changed = b.all, true // should they become many
		return nil
	case b.changed:
		naming = b.records(p.Source, topic)
		b.changed, b.in, b.at = false, len(naming), nil
	}
	p.TopicsIn, p.TopicsAt = b.in, b.at
	return naming
}

func (b *topicBook) records(source, topic string) (out []*kgo.Record) {
	part, size := map[string]positionTopic{}, 0
	add := func() {
		out = append(out, &kgo.Record{
			Topic: topic, Key: fmt.Appendf(nil, "%s%s%d", source, namingKey, len(out)),
			Value: encodeJSON(namedTopics{namedForm, source, part}),
		})
		part, size = map[string]positionTopic{}, 0
	}
	for _, name := range slices.Sorted(maps.Keys(b.all)) {
		if size += b.all[name].size(name); size > topicsRecord && len(part) > 0 {
			add()
			size = b.all[name].size(name)
		}
		part[name] = b.all[name]
	}
	add()
	return out
}

// readTopics reads the records that name the topics of p, which lies at an
// offset. Between them may be markers, of other transactions.
func (p *position) readTopics(ctx context.Context, cl *kgo.Client, t *change.Topic, at int64) error {
	for room := int64(64); ; room *= 16 {
		from, to := at-int64(p.TopicsIn)-room, at
		if p.TopicsAt != nil {
			from, to = *p.TopicsAt, min(*p.TopicsAt+int64(p.TopicsIn)+room, at)
		}
		from = max(from, 0)
		var found []*kgo.Record
		if err := kafka.Scan(ctx, cl, t, 0, from, to, func(r *kgo.Record) error {
			if !r.Attrs.IsControl() && namesTopics(r) {
				found = append(found, &kgo.Record{Offset: r.Offset, Value: bytes.Clone(r.Value)})
			}
			return nil
		}); err != nil {
			return err
		}
		switch n := len(found) - p.TopicsIn; {
		case n >= 0 && p.TopicsAt != nil:
			return p.takeTopics(t, found[:p.TopicsIn])
		case n >= 0:
			return p.takeTopics(t, found[n:])
		case p.TopicsAt == nil && from == 0 || p.TopicsAt != nil && to == at:
			return ErrPositionForm.New("offset %d of topic %q: of %d records that name its topics %d are there", at, t.Name, p.TopicsIn, len(found))
		}
	}
}

func (p *position) takeTopics(t *change.Topic, found []*kgo.Record) error {
	p.Topics, p.TopicsAt = map[string]positionTopic{}, &found[0].Offset
	for _, r := range found {
		var named namedTopics
		if err := json.Unmarshal(r.Value, &named); err != nil {
			return ErrPositionForm.New("offset %d of topic %q names no topics: %w", r.Offset, t.Name, err)
		}
		if named.Form > namedForm || named.Source != p.Source {
			return ErrPositionForm.New("offset %d of topic %q names topics of source %q in form %d", r.Offset, t.Name, named.Source, named.Form)
		}
		maps.Copy(p.Topics, named.Topics)
	}
	return nil
}

// checkTopics compares topics with what is there now, and gives those that are
// gone. It believes what it finds wrong when that has not changed for staleFor.
func checkTopics(ctx context.Context, cluster *kafka.Cluster, source string, topics map[string]positionTopic) (gone map[string]bool, err error) {
	names := slices.Sorted(maps.Keys(topics))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		there, err := cluster.Topics(ctx, names...)
		if err != nil {
			return nil, err
		}
		gone := map[string]bool{}
		var wrong error
		for _, name := range names {
			if t := there[name]; t == nil {
				gone[name] = true
			} else if err := topics[name].check(source, t); err != nil && wrong == nil {
				wrong = err
			}
		}
		if len(gone) == 0 && wrong == nil || time.Since(began) > staleFor {
			return gone, wrong
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// check holds a topic against what was written.
func (p positionTopic) check(source string, t *change.Topic) error {
	switch {
	case p.Partitions != t.Partitions:
		return ErrPositionTopics.New("source %q: topic %q has %d partitions and was filled with %d", source, t.Name, t.Partitions, p.Partitions)
	case p.ID != topicID(t):
		return ErrPositionTopics.New("source %q: topic %q was deleted and made again (id %s, was %s)", source, t.Name, topicID(t), p.ID)
	}
	return nil
}

// freeze notes a topic that is about to be written. One that is not what it was
// ends the session: the next one looks longer (checkTopics).
func (s *session) freeze(t *change.Topic) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if was, is := s.topics.all[t.Name]; is {
		if err := was.check(s.in.spec.Name, t); err != nil {
			return kafka.ErrUnavailable.New("it seems that %w", err)
		}
	}
	s.topics.set(t.Name, positionTopic{ID: topicID(t), Partitions: t.Partitions, Large: s.in.large.Has(t.Name)})
	return nil
}

// missed fails if a topic is needed that is gone.
func (s *session) missed(topic string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.topics.gone[topic] {
		return ErrPositionTopics.New("source %q: topic %q is gone", s.in.spec.Name, topic)
	}
	return nil
}

// captured is told all tables that the source captures: topics of others may be
// gone, and are forgotten then.
func (s *session) captured(tables []*change.Table) error {
	for _, t := range tables {
		if err := s.missed(t.Topic); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.topics.gone {
		s.in.comp.Log.Info("a topic is gone whose table is not captured any more: it is forgotten", "topic", name)
		s.topics.forget(name)
	}
	s.topics.gone = nil
	return nil
}

// tell makes large know what the book knows, and note the other way round.
func (b *topicBook) tell(large *records.LargeTopics) {
	for name, t := range b.all {
		if t.Large {
			large.Add(name)
		}
	}
}

func (b *topicBook) note(large *records.LargeTopics) {
	n := large.Len()
	if n == b.larges {
		return
	}
	b.larges = n
	for name, t := range b.all {
		t.Large = t.Large || large.Has(name)
		b.set(name, t)
	}
}
