// Quarantine: what the registry does not take of one table does not stop the others
// (G3). The subjects of its topic refuse a schema: from that change on all of the
// topic's records go to a topic of its own (records.Aside), in the transaction of the
// position, which says so. Somebody decides; then what is there follows into the
// topic in its order, while what comes live joins its end. The switch back is one
// transaction: it begins when all before it is committed, holds the rest, and whatever
// comes behind that (decision 52).

package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

// Problems of quarantine.
var (
	ErrQuarantine = problem.Define("TW-QUARANTINE", problem.Reject,
		"The registry does not take the schema of a table: its changes are kept in a topic of their own, and all others go on.",
		"Decide: `tallywire schema list` shows what is kept and why; `tallywire schema accept SOURCE TOPIC` has the registry take the schema all the same, `new-subject` lets the subject begin anew with it, `skip` leaves the changes out.")
	ErrLeftOut = problem.Define("TW-QUARANTINE-SKIPPED", problem.Reject,
		"Changes of a table were left out, as somebody decided: rows of its topic may be those of before.",
		"Read the table anew: tallywire reload SOURCE TABLE --sweep. Then `tallywire schema close SOURCE TOPIC`.")
	ErrDecision = problem.Define("TW-SCHEMA-DECISION", problem.Reject,
		"What is to become of a quarantine cannot be done.",
		"See `tallywire schema list` for what there is.")
)

// drainBytes is how much of it is taken out at once: live records wait for no more.
var drainBytes = 4 << 20

const (
	// drainEvery is how often what is in quarantine is taken out.
	drainEvery = 50 * time.Millisecond
	// headerCleared marks, there, a record that empties its topic.
	headerCleared = "tw.cleared"
	// decisionAsk begins the id of a request that is a decision.
	decisionAsk = "schema-"
)

// What somebody may decide.
const (
	DecideAccept     = "accept"
	DecideNewSubject = "new-subject"
	DecideSkip       = "skip"
	DecideClose      = "close"
)

// decision is a request, as JSON.
type decision struct {
	Form  int    `json:"v"`
	Topic string `json:"topic"`
	Do    string `json:"do"`
	// Of is Since of the quarantine, or Left of what was left out, that it is about: it
	// does not hold for another.
	Of time.Time `json:"of"`
}

// decisionForm is the newest form that is read.
const decisionForm = 1

// quarantined is what is in quarantine of a raw topic, as positions have it.
type quarantined struct {
	Open  bool      `json:"open,omitempty"` // its records go there
	At    []int64   `json:"at,omitempty"`   // by partition, up to which offset they are taken out again
	Since time.Time `json:"since"`
	Why   string    `json:"why,omitempty"`
	Do    string    `json:"do,omitempty"`  // what was decided; "": nothing yet
	For   []int32   `json:"for,omitempty"` // ids of the schemas for which it was

	// Left and LeftTo are when changes were left out, until somebody closes it.
	Left   time.Time `json:"left,omitzero"`
	LeftTo time.Time `json:"left_to,omitzero"`

	topic *change.Topic
	fits  func(*kgo.Record) error // into the raw topic
}

// quarantined reports whether records of a topic go aside.
func (s *session) quarantined(topic string) bool {
	if len(s.quarantine) == 0 {
		return false
	}
	q := s.quarantine[topic]
	return q != nil && q.Open
}

// takeQuarantine takes what the last position says.
func (s *session) takeQuarantine(last *position, gone map[string]bool) error {
	for topic := range last.Quarantine {
		if gone[records.Aside(topic)] && last.Quarantine[topic].Open {
			return ErrPositionTopics.New("source %q: topic %q is gone, which had what is in quarantine of %q", s.in.spec.Name, records.Aside(topic), topic)
		}
	}
	if last.Quarantine != nil {
		s.quarantine = last.Quarantine
	}
	return nil
}

// aside makes what a Table needs whose schemas are refused. Where that cannot be, it
// stays with the refusal.
func (s *session) aside(ctx context.Context, t *change.Table, refusal error) (*records.Output, error) {
	s.asideMu.Lock()
	defer s.asideMu.Unlock()
	if _, err := s.asideTopic(ctx, t.Topic); err != nil {
		if problem.Has(err, kafka.ErrTopicName) {
			return nil, refusal
		}
		return nil, err
	}
	out, err := s.outs.EnsureAside(ctx, t)
	if problem.Has(err, avro.ErrIncompatible) || problem.Has(err, avro.ErrRegistryDenied) {
		return nil, refusal
	}
	if err != nil {
		return nil, err
	}
	s.asides[t.Topic], s.refusals[t.Topic] = true, problem.Of(refusal).Text
	return out, nil
}

// asideTopic makes the topic for what is in quarantine of another. Call it with asideMu.
func (s *session) asideTopic(ctx context.Context, topic string) (*change.Topic, error) {
	t, err := s.in.env.Kafka.Topic(ctx, topic)
	if err != nil {
		return nil, kafka.Wrap(err, "looking up topic %q", topic)
	}
	limit, err := s.in.env.Kafka.MaxRecordBytes(ctx, topic)
	if err != nil {
		return nil, err
	}
	q, err := s.in.env.Kafka.EnsureTopic(ctx, kafka.TopicSpec{
		Name: records.Aside(topic), Partitions: t.Partitions, Config: map[string]string{"max.message.bytes": fmt.Sprint(limit + 4096)},
	})
	if err != nil {
		return nil, err
	}
	return q, s.freeze(q)
}

// enter opens the quarantine of topics whose subjects do not take a Table of which
// there are records. A decision does not hold for a schema that came after it.
func (s *session) enter(of []records.OfAside) error {
	for _, a := range of {
		if (a.Key == 0 || s.taken[a.Key]) && s.taken[a.Value] {
			continue
		}
		q := s.quarantine[a.Topic]
		switch {
		case q != nil && q.Open && q.Do != "" && (a.Key == 0 || slices.Contains(q.For, a.Key)) && slices.Contains(q.For, a.Value):
			continue
		case q != nil && q.Open && q.Do != "":
			q.Do, q.For = "", nil
			s.in.comp.Log.Warn("a table in quarantine was altered again: what was decided does not hold for that", "topic", a.Topic)
		case q != nil && q.Open:
			continue
		default:
			var err error
			if q, err = s.openQuarantine(a.Topic, q); err != nil {
				return err
			}
			s.quarantine[a.Topic] = q
			s.in.comp.Failed(problem.Reject.String(), ErrQuarantine.ID)
			s.in.comp.Log.Warn("changes of a table go to quarantine", "topic", a.Topic, "code", ErrQuarantine.ID, "reason", q.Why)
		}
		s.tellQuarantine()
	}
	return nil
}

func (s *session) openQuarantine(topic string, was *quarantined) (*quarantined, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.in.limits.TxnTimeout/6)
	defer cancel()
	s.asideMu.Lock()
	defer s.asideMu.Unlock()
	t, err := s.asideTopic(ctx, topic) // one that was cleaned away meanwhile is made anew
	if err != nil {
		return nil, err
	}
	ends, err := s.ends(ctx, t, false)
	if err != nil {
		return nil, err
	}
	q := &quarantined{Open: true, At: ends, Since: time.Now().UTC(), Why: s.refusals[topic], topic: t}
	if s.asides[topic] = true; was != nil {
		q.Left, q.LeftTo = was.Left, was.LeftTo
	}
	return q, nil
}

// ends gives where the partitions of a topic end, of which what is committed.
func (s *session) ends(ctx context.Context, t *change.Topic, committed bool) ([]int64, error) {
	adm := s.in.env.Kafka.Admin()
	list := adm.ListEndOffsets
	if committed {
		list = adm.ListCommittedOffsets
	}
	listed, err := list(ctx, t.Name)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, kafka.Wrap(err, "listing where topic %q ends", t.Name)
	}
	ends := make([]int64, t.Partitions)
	for p := range ends {
		end, ok := listed.Lookup(t.Name, int32(p))
		if !ok {
			return nil, kafka.ErrUnavailable.New("partition %d of topic %q has no end", p, t.Name)
		}
		ends[p] = end.Offset
	}
	return ends, nil
}

// boundaryNow is the position that a transaction may end with now; nil: none yet, or
// none at this place.
func (s *session) boundaryNow() pipeline.Resume {
	if s.txn != nil {
		return s.txn.boundary
	}
	return s.position.resume()
}

// decide does what somebody decided, now and then.
func (s *session) decide() error {
	if len(s.quarantine) == 0 || time.Since(s.decided) < listenEvery {
		return nil
	}
	at := s.boundaryNow()
	if at == nil {
		return nil
	}
	s.decided = time.Now()
	ctx, cancel := context.WithTimeout(s.ctx, listenWithin)
	defer cancel()
	if err := s.hearAsks(ctx); err != nil {
		return s.later(err, "listening for decisions about schemas")
	}
	asked := s.asks(func(id string) bool { return strings.HasPrefix(id, decisionAsk) })
	for _, id := range slices.Sorted(maps.Keys(asked)) {
		var d decision
		err := json.Unmarshal(asked[id], &d)
		if err != nil || d.Form > decisionForm {
			err = ErrDecision.New("a decision of form %d cannot be read (%v)", d.Form, err)
		} else {
			err = s.takes(ctx, d)
		}
		if err != nil && pipeline.Classify(err) == problem.Retry {
			return s.later(err, "doing what was decided of a schema")
		}
		if err != nil {
			s.in.comp.Log.Warn("what was decided of a schema is not done", "topic", d.Topic, "decision", d.Do, "err", err)
		} else {
			s.in.comp.Log.Info("it was decided what becomes of a quarantine", "topic", d.Topic, "decision", d.Do)
		}
		if err := s.begin(); err != nil {
			return err
		}
		s.txn.boundary = at
		s.txn.notes = append(s.txn.notes, note{key: askKey + id})
		s.mu.Lock()
		delete(s.notes.asked, id)
		s.mu.Unlock()
		s.tellQuarantine()
	}
	return nil
}

// takes takes a decision.
func (s *session) takes(ctx context.Context, d decision) error {
	q := s.quarantine[d.Topic]
	switch {
	case d.Do == DecideClose && q != nil && !q.Left.IsZero() && q.Left.Equal(d.Of):
		if q.Left, q.LeftTo = (time.Time{}), (time.Time{}); !q.Open {
			delete(s.quarantine, d.Topic)
		}
		return nil
	case q == nil || !q.Open || !q.Since.Equal(d.Of):
		return ErrDecision.New("topic %q is not in quarantine since %s", d.Topic, d.Of.Format(time.RFC3339))
	case d.Do == DecideSkip:
		all, err := s.in.env.Registry.Schemas(ctx, records.Aside(d.Topic))
		if err != nil {
			return err
		}
		q.For = nil
		for _, x := range all {
			q.For = append(q.For, x.ID)
		}
		if q.Left.IsZero() { // said from the first record on that is dropped
			q.Left = q.Since
		}
		q.LeftTo = time.Now().UTC().Truncate(time.Second)
	case d.Do == DecideAccept || d.Do == DecideNewSubject:
		ids, err := s.in.env.Registry.Adopt(ctx, records.Aside(d.Topic), d.Topic, d.Do == DecideNewSubject, func(note string) { s.in.comp.Log.Info(note) })
		if err != nil {
			return err
		}
		q.For = ids
		for _, id := range ids {
			s.taken[id] = true
		}
	default:
		return ErrDecision.New("%q is not known", d.Do)
	}
	q.Do = d.Do
	return nil
}

// drain takes some of what is in quarantine out, where that was decided, and reports
// whether there is more.
func (s *session) drain() (more bool, err error) {
	if len(s.quarantine) == 0 {
		return false, nil
	}
	for _, topic := range slices.Sorted(maps.Keys(s.quarantine)) {
		q := s.quarantine[topic]
		if !q.Open || q.Do == "" {
			continue
		}
		if more = true; time.Since(s.drained) < drainEvery {
			return true, nil
		}
		if err := s.drainTopic(topic, q); err != nil {
			return true, s.later(err, "taking what is in quarantine out")
		}
	}
	if more {
		s.drained = time.Now()
	}
	return more, nil
}

func (s *session) drainTopic(topic string, q *quarantined) error {
	if s.boundaryNow() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, listenWithin)
	defer cancel()
	if q.topic == nil {
		t, err := s.in.env.Kafka.Topic(ctx, records.Aside(topic))
		if err != nil {
			return kafka.Wrap(err, "looking up topic %q", records.Aside(topic))
		}
		q.topic = t
	}
	if q.fits == nil {
		fits, err := s.outs.Limit(ctx, topic)
		if err != nil {
			return err
		}
		q.fits = fits
	}
	ends, err := s.ends(ctx, q.topic, true)
	if err != nil {
		return err
	}
	all, err := s.takeOut(ctx, topic, q, ends)
	if err != nil || !all {
		return err
	}
	// All that is committed is out. What this session has in its transactions follows
	// in one that begins when they have ended, and with which the quarantine does.
	if s.txn != nil {
		if err := s.commit(); err != nil {
			return err
		}
	}
	if err := s.awaitEnd(); err != nil {
		return err
	}
	if ends, err = s.ends(ctx, q.topic, false); err != nil {
		return err
	}
	if all, err = s.takeOut(ctx, topic, q, ends); err != nil || !all {
		return err
	}
	return s.rejoin(topic, q)
}

// takeOut sends on what is in quarantine before ends, and reports whether that is all:
// it is bounded.
func (s *session) takeOut(ctx context.Context, topic string, q *quarantined, ends []int64) (all bool, err error) {
	room, full := drainBytes, errors.New("enough")
	for p, end := range ends {
		if q.At[p] >= end {
			continue
		}
		if err := s.beginAt(s.boundaryNow()); err != nil {
			return false, err
		}
		err := kafka.Scan(ctx, s.producers[0].client, q.topic, int32(p), q.At[p], end, func(r *kgo.Record) error {
			if room <= 0 {
				return full
			}
			if !r.Attrs.IsControl() {
				room -= len(r.Key) + len(r.Value) + 100
				if q.Do != DecideSkip {
					if err := s.sendOn(r, topic, q); err != nil {
						return err
					}
				}
			}
			q.At[p] = r.Offset + 1
			return nil
		})
		switch {
		case errors.Is(err, full):
			return false, nil
		case err != nil:
			return false, err
		}
		q.At[p] = end
	}
	return true, nil
}

// beginAt opens a transaction that ends at a boundary, unless one is open.
func (s *session) beginAt(at pipeline.Resume) error {
	if s.txn != nil {
		return nil
	}
	if err := s.begin(); err != nil {
		return err
	}
	s.txn.boundary = at
	return nil
}

// sendOn sends a record that was in quarantine to its topic.
func (s *session) sendOn(r *kgo.Record, topic string, q *quarantined) error {
	out := &kgo.Record{Topic: topic, Partition: r.Partition, Key: slices.Clone(r.Key), Value: slices.Clone(r.Value), Timestamp: r.Timestamp}
	if now := time.Now(); s.in.env.Retention > 0 && now.Sub(r.Timestamp) > s.in.env.Retention/2 {
		out.Timestamp = now // or the topic would drop it before it was read
	}
	cleared := false
	for _, h := range r.Headers {
		if h.Key == headerCleared {
			cleared = true
			continue
		}
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: h.Key, Value: slices.Clone(h.Value)})
	}
	if err := q.fits(out); err != nil {
		return err
	}
	if cleared {
		s.releaseAll(topic)
	}
	if s.mayRelease() && !s.beforeParked(out) && !s.pass(out) {
		return nil
	}
	tt := s.txn.topic(topic)
	tt.records++
	tt.bytes += len(out.Key) + len(out.Value)
	tt.last = out.Timestamp
	s.txn.bytes += int64(len(out.Key) + len(out.Value))
	s.produceOne(s.txn, out)
	return nil
}

// rejoin ends the quarantine of a topic with the open transaction, in which the rest
// of it is.
func (s *session) rejoin(topic string, q *quarantined) error {
	if err := s.beginAt(s.boundaryNow()); err != nil {
		return err
	}
	if q.Do == DecideSkip {
		q.LeftTo = time.Now().UTC().Truncate(time.Second)
	}
	q.Open, q.Do, q.For, q.Why, q.At = false, "", nil, "", nil
	if q.Left.IsZero() {
		delete(s.quarantine, topic)
	}
	s.txn.over = append(s.txn.over, topic)
	s.asideMu.Lock()
	delete(s.asides, topic)
	s.asideMu.Unlock()
	s.outs.ForgetAside(topic)
	s.mu.Lock()
	s.topics.forget(records.Aside(topic))
	s.mu.Unlock()
	s.in.comp.Log.Info("a table is out of quarantine", "topic", topic)
	s.tellQuarantine()
	return nil
}

// clean takes away what was made for a quarantine that is over. What stays, if that
// cannot be, is in nobody's way: another begins at the end of the topic.
func (s *session) clean(topic string) {
	s.asideMu.Lock()
	defer s.asideMu.Unlock()
	if s.asides[topic] || s.quarantined(topic) {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, listenWithin)
	defer cancel()
	aside := records.Aside(topic)
	_, err := s.in.env.Kafka.Admin().DeleteTopics(ctx, aside)
	for _, subject := range []string{avro.KeySubject(aside), avro.ValueSubject(aside)} {
		if err == nil {
			err = s.in.env.Registry.Forget(ctx, subject)
		}
	}
	if err != nil {
		s.in.comp.Log.Warn("the topic of a quarantine that is over stays", "topic", aside, "err", err)
	}
}

// beforeParked reports whether a row that is parked came after r: r does not end it.
func (s *session) beforeParked(r *kgo.Record) bool {
	if r.Key == nil {
		return false
	}
	p := s.parkedNow(parked.AppendKey(nil, r.Topic, r.Key))
	if p == nil {
		return false
	}
	at, err := change.ParsePos([]byte(header(r, kafka.HeaderPos)))
	for _, h := range p.Headers {
		if h.Key != kafka.HeaderPos || err != nil {
			continue
		}
		if of, err := change.ParsePos(h.Value); err == nil {
			return at.Compare(of) < 0
		}
	}
	return false
}

// tellQuarantine says what waits for somebody.
func (s *session) tellQuarantine() {
	var ns []obs.Notice
	for _, topic := range slices.Sorted(maps.Keys(s.quarantine)) {
		q, source := s.quarantine[topic], s.in.spec.Name
		if q.Open {
			n := obs.Notice{
				Code: ErrQuarantine.ID, Subjects: []string{topic}, Since: q.Since, Text: fmt.Sprintf("%s: its changes are kept in quarantine: %s", topic, q.Why),
				Remedy: fmt.Sprintf("tallywire schema list shows what is kept. Then tallywire schema accept %[1]s %[2]s, new-subject or skip.", source, topic),
			}
			if q.Do != "" {
				n.Text, n.Remedy = fmt.Sprintf("%s: what was kept in quarantine is taken out (%s)", topic, q.Do), "Nothing to do."
			}
			ns = append(ns, n)
		}
		if !q.Left.IsZero() {
			ns = append(ns, obs.Notice{
				Code: ErrLeftOut.ID, Subjects: []string{topic}, Since: q.Left, Text: fmt.Sprintf("%s: changes from %s to %s were left out", topic, q.Left.Format(time.RFC3339), q.LeftTo.Format(time.RFC3339)),
				Remedy: fmt.Sprintf("Read its table anew: tallywire reload %[1]s TABLE --sweep. Then tallywire schema close %[1]s %[2]s.", source, topic),
			})
		}
	}
	s.in.comp.NoticesOf("quarantine", ns...)
}

// Quarantine is what is kept of a topic, for people.
type Quarantine struct {
	Topic   string    `json:"topic"`
	Aside   string    `json:"kept_in,omitempty"` // "": nothing is kept any more
	Since   time.Time `json:"since"`
	Why     string    `json:"why,omitempty"`
	Decided string    `json:"decided,omitempty"`
	Records int64     `json:"records"` // at most; those that were taken out again do not count
	Left    time.Time `json:"left_out_from,omitzero"`
	LeftTo  time.Time `json:"left_out_to,omitzero"`
}

// Quarantines lists what is kept of a source, by what its last committed position says.
func Quarantines(ctx context.Context, cluster *kafka.Cluster, source string) (list []Quarantine, err error) {
	t, err := cluster.Topic(ctx, positionsTopicOf(source))
	if err != nil {
		return nil, kafka.Wrap(err, "looking for the position of source %q", source)
	}
	cl, err := cluster.Client()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	s := &session{in: &ingest{env: &pipeline.Env{Kafka: cluster}}}
	ends, err := s.ends(ctx, t, true)
	if err != nil {
		return nil, err
	}
	var p *position
	for bite, from := int64(64), ends[0]; p == nil && from > 0; bite *= 16 {
		from = max(0, ends[0]-bite)
		if p, _, err = lastPosition(ctx, cl, t, from, ends[0]); err != nil {
			return nil, err
		}
	}
	if p == nil {
		return nil, nil
	}
	for _, topic := range slices.Sorted(maps.Keys(p.Quarantine)) {
		q := p.Quarantine[topic]
		x := Quarantine{Topic: topic, Since: q.Since, Why: q.Why, Decided: q.Do, Left: q.Left, LeftTo: q.LeftTo}
		if q.Open {
			x.Aside = records.Aside(topic)
			at, err := cluster.Topic(ctx, x.Aside)
			if err != nil {
				return nil, kafka.Wrap(err, "looking for topic %q", x.Aside)
			}
			ends, err := s.ends(ctx, at, true)
			if err != nil {
				return nil, err
			}
			for part, end := range ends {
				if part < len(q.At) {
					x.Records += max(0, end-q.At[part])
				}
			}
		}
		list = append(list, x)
	}
	return list, nil
}

// Decide tells a source what is to become of what is kept, and gives what the request
// is known by (Answered).
func Decide(ctx context.Context, cluster *kafka.Cluster, source string, q Quarantine, do string) (id string, err error) {
	d := decision{decisionForm, q.Topic, do, q.Since}
	if do == DecideClose {
		d.Of = q.Left
	}
	return ask(ctx, cluster, source, decisionAsk, encodeJSON(d))
}
