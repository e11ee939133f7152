// What a source parks: a record that is too large for its topic. It is kept
// whole in the parked topic, in the transaction that it would have been in, and
// sent again beside the stream when somebody asks for it (decision 35).

package ingest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

// ErrMoved says that a row changed its key while it was parked.
var ErrMoved = problem.Define("TW-PARKED-MOVED", problem.Reject,
	"A parked row changed its key, and the change did not repeat a large value: nobody but the source knows it.",
	"Write the value again at its source, such as SET note = note || '': the new record replaces this one. "+
		"`tallywire parked retry STAGE --all` sends the row without it.")

// ErrSweep says that what is gone cannot be told from what is parked.
var ErrSweep = problem.Define("TW-SWEEP-SOURCE", problem.Reject,
	"Rows that are not in a table any more are to be deleted in what was made of it, and rows of it are parked: those did not come, though they are there, and would be deleted too. Nothing was deleted.",
	"Mend the parked rows of the table or discard them, then have it read once more: tallywire reload SOURCE TABLE --sweep --yes. This case goes with it.")

const (
	// listenEvery is how often the parked topic is looked at for commands.
	listenEvery = time.Second
	// listenWithin bounds that, and obeyWithin what is read for commands: it is
	// done between two records, and a transaction may be open.
	listenWithin = 2 * time.Second
	obeyWithin   = 10 * time.Second // at most a third of the transaction's timeout
)

// parkedChange is what a transaction does to a parked key.
type parkedChange struct {
	parked *control.Parked // nil: released
	rec    *kgo.Record
	parts  []*kgo.Record
}

// parkedNow gives what is parked under a key as the open transaction leaves it,
// or nil. It is not to be changed.
func (s *session) parkedNow(key []byte) *control.Parked {
	if s.txn != nil {
		if c, is := s.txn.touched[string(key)]; is {
			return c.parked
		}
	}
	if s.ending != nil { // what it did comes to the set with its end
		if c, is := s.ending.touched[string(key)]; is {
			return c.parked
		}
	}
	if r, is := s.parked.Get(key); is {
		return r.Head
	}
	return nil
}

// mayRelease reports whether anything is parked at all.
func (s *session) mayRelease() bool {
	return s.parked.Len() > 0 || len(s.txn.touched) > 0 || s.ending != nil && len(s.ending.touched) > 0
}

// touch writes p, behind its parts, or a release when it is nil, to the parked
// topic, in the open transaction.
func (s *session) touch(key []byte, p *control.Parked, parts []*kgo.Record) {
	r := &kgo.Record{Topic: s.parked.Topic.Name, Key: s.parked.KeyOf(key)}
	if p != nil {
		r.Value = parked.Append(nil, p, 0)
	}
	for _, part := range append(s.parked.Leftovers(key), parts...) {
		s.produceOne(s.txn, part)
	}
	s.txn.touched[string(key)] = parkedChange{p, r, append(s.txn.touched[string(key)].parts, parts...)}
	s.produceOne(s.txn, r)
}

// park writes a refused change to the parked topic, in the transaction that its
// record would have been in.
func (s *session) park(r *records.Refused) {
	p := &control.Parked{
		Stage: s.in.spec.Name, Kind: control.KindTransform, Topic: r.Topic, Offset: -1, Key: r.Key, RecordKey: r.RecordKey,
		Headers: []control.Header{{Key: kafka.HeaderPos, Value: change.AppendPos(nil, r.Pos)}},
		Millis:  r.Time / 1000, Omitted: true,
	}
	because(p, r.Err)
	p.FirstAt, p.Attempts = p.LastAt, 1
	if r.Record == nil {
		s.note(p)
		s.touch(parked.AppendKey(nil, p.Topic, p.RecordKey), p, nil)
		return
	}
	if p.Keyless = r.Record.Key == nil; p.Keyless { // no other row is it, and no later record of it comes
		p.RecordKey = fmt.Appendf(nil, "@%s", r.Pos)
	}
	s.hold(p, r.Record)
}

// hold parks p with a record, the newest of its key.
func (s *session) hold(p *control.Parked, r *kgo.Record) {
	key := parked.AppendKey(nil, p.Topic, p.RecordKey)
	if was := s.parkedNow(key); was != nil {
		p.Held = was.Held
	}
	s.note(p)
	s.touch(key, p, s.holding(key, p, r))
}

// holding makes p keep a record, and gives its parts.
func (s *session) holding(key []byte, p *control.Parked, r *kgo.Record) []*kgo.Record {
	return parked.Hold(s.parked.Topic.Name, s.parked.KeyOf(key), p, r, header(r, kafka.HeaderUnchanged), s.partSize)
}

func (s *session) note(p *control.Parked) {
	s.in.comp.Failed(problem.Reject.String(), p.Code)
	s.in.comp.Log.Warn("parked", "topic", p.Topic, "key", p.Key, "code", p.Code, "reason", p.Reason)
}

// because says why p is parked.
func because(p *control.Parked, err error) {
	p.Code, p.Reason, p.Remedy = outage.CodeOf(err), parked.ReasonText(err), outage.RemedyOf(err)
	p.LastAt = time.Now().UTC().Truncate(time.Microsecond)
}

func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// pass tells whether a record may go to its topic. One that tells all of its
// row, or its end, ends what is parked of the key. One that does not tell a
// large value, which is in the parked one alone, is kept behind it: what went out
// now would come before what is older (G4).
func (s *session) pass(r *kgo.Record) bool {
	if header(r, kafka.HeaderBefore) != "" {
		return s.mayEnd(r)
	}
	if r.Key == nil {
		return true
	}
	key := parked.AppendKey(nil, r.Topic, r.Key)
	p, unchanged := s.parkedNow(key), header(r, kafka.HeaderUnchanged)
	moved := s.moved
	s.moved = ""
	switch {
	case r.Value == nil && p == nil: // the end of a row that has moved
		s.moved = moved
	case p == nil && unchanged != "" && moved != "" && moved == string(parked.AppendKey(nil, r.Topic, []byte(header(r, records.HeaderOldKey)))):
		s.movedTo(r)
		return false
	case p == nil:
	case unchanged == "":
		s.release(key)
		s.moved = string(key) // perhaps: the next record tells
	case len(p.Held) > 0:
		behind := *p
		behind.LastAt = time.Now().UTC().Truncate(time.Microsecond)
		s.touch(key, &behind, s.holding(key, &behind, r))
		return false
	}
	return true
}

// mayEnd tells whether a sweep may go out: not while rows of its topic are parked,
// which did not come though they are there.
func (s *session) mayEnd(r *kgo.Record) bool {
	key := parked.AppendKey(nil, r.Topic, []byte(sweepKey))
	for k := range s.allParked(r.Topic) {
		if k != string(key) {
			if s.txn.touched[string(key)].parked != nil { // said of another partition
				return false
			}
			p := &control.Parked{Stage: s.in.spec.Name, Kind: control.KindTransform, Topic: r.Topic, Offset: -1, RecordKey: []byte(sweepKey), Millis: r.Timestamp.UnixMilli(), Omitted: true}
			because(p, ErrSweep.New("of topic %q", r.Topic))
			p.FirstAt, p.Attempts = p.LastAt, 1
			s.note(p)
			s.touch(key, p, nil)
			return false
		}
	}
	if s.parkedNow(key) != nil {
		s.release(key)
	}
	return true
}

// sweepKey is the RecordKey of a sweep that is parked.
const sweepKey = "@sweep"

// movedTo parks a row whose large value is known under its former key alone,
// which is gone.
func (s *session) movedTo(r *kgo.Record) {
	p := &control.Parked{
		Stage: s.in.spec.Name, Kind: control.KindTransform, Topic: r.Topic, Offset: -1, RecordKey: slices.Clone(r.Key),
		Millis: r.Timestamp.UnixMilli(), Omitted: true,
	}
	p.Key = s.keyOf(r)
	because(p, ErrMoved.New("a row of topic %q that was parked has the key %s now, and its change does not tell %s", r.Topic, p.Key, header(r, kafka.HeaderUnchanged)))
	p.FirstAt, p.Attempts = p.LastAt, 1
	s.hold(p, r)
}

// keyOf is the key of a record for people. A registry that does not answer is
// asked once in a transaction (A5).
func (s *session) keyOf(r *kgo.Record) string {
	if s.txn.unreadable {
		return parked.ReadableKey(r.Key)
	}
	ctx, cancel := context.WithTimeout(s.ctx, min(listenWithin, s.in.limits.TxnTimeout/6))
	defer cancel()
	b := change.Get()
	defer b.Release()
	if err := records.Decode(ctx, s.in.env.Registry, b, r); err != nil || b.Len() == 0 {
		s.txn.unreadable = true
		return parked.ReadableKey(r.Key)
	}
	return parked.KeyText(b, &b.Changes[0])
}

// release takes a key out of the parked topic.
func (s *session) release(key []byte) {
	p := s.parkedNow(key)
	s.touch(key, nil, parked.Unhold(s.parked.Topic.Name, s.parked.KeyOf(key), p))
}

// releaseAll takes all keys of a topic out, whose table was emptied.
func (s *session) releaseAll(topic string) {
	for k := range s.allParked(topic) {
		s.release([]byte(k))
	}
}

// allParked gives the keys of a topic that are parked.
func (s *session) allParked(topic string) map[string]bool {
	prefix := string(parked.AppendKey(nil, topic, nil))
	keys := map[string]bool{}
	for k := range s.parked.Keys() {
		keys[k] = true
	}
	for _, t := range []*txn{s.ending, s.txn} {
		if t == nil {
			continue
		}
		for k := range t.touched {
			keys[k] = true
		}
	}
	maps.DeleteFunc(keys, func(k string, _ bool) bool { return !strings.HasPrefix(k, prefix) || s.parkedNow([]byte(k)) == nil })
	return keys
}

// listen looks now and then for commands about what is parked, and does them
// where the source stands at a boundary.
func (s *session) listen() error {
	if time.Since(s.heard) < listenEvery {
		return nil
	}
	s.heard = time.Now()
	ctx, cancel := context.WithTimeout(s.ctx, listenWithin)
	defer cancel()
	if err := s.parked.Follow(ctx, s.producers[0].client, s.in.env.Kafka); err != nil {
		return s.later(err, "listening for commands about parked records")
	}
	cs := s.parked.Commands(commandsAtOnce)
	if len(cs) == 0 || s.txn != nil && s.txn.boundary == nil {
		return nil
	}
	ctx, cancel = context.WithTimeout(s.ctx, min(obeyWithin, s.in.limits.TxnTimeout/3))
	defer cancel()
	return s.obey(ctx, cs)
}

// later is for an outage of what listens: records wait for nobody who asks for
// something, and it is tried again.
func (s *session) later(err error, doing string) error {
	if s.ctx.Err() != nil || pipeline.Classify(err) != problem.Retry || problem.Has(err, records.ErrBatchTooSmall) {
		return err
	}
	s.in.comp.Failed(problem.Retry.String(), outage.CodeOf(err))
	s.in.comp.Log.Warn("trying again", "while", doing, "err", err)
	return nil
}

// commandsAtOnce bounds a transaction of commands.
const commandsAtOnce = 1000

// obey does what commands say, in the open transaction or one of its own. What
// it cannot do at this position of the source it leaves for later.
func (s *session) obey(ctx context.Context, commands []*parked.Command) error {
	if err := s.awaitEnd(); err != nil { // the set then knows all but the open transaction
		return err
	}
	var (
		ready []*parked.Command
		keys  []string
		bytes int64
	)
	for _, c := range commands {
		key, ref, is := s.parked.About(c)
		if s.quarantined(c.About.Topic) { // behind what is there
			continue
		}
		if s.txn != nil {
			if _, now := s.txn.touched[key]; now {
				continue
			}
		}
		ready = append(ready, c)
		if is && c.Name == parked.CommandRetry && !slices.Contains(keys, key) {
			keys = append(keys, key)
			if bytes += int64(ref.Size); bytes >= s.in.limits.TxnBytes/2 {
				s.heard = time.Time{} // the others at once
				break
			}
		}
	}
	whole, err := s.parked.Records(ctx, s.producers[0].client, keys)
	if err != nil {
		return s.later(err, "reading what is parked")
	}
	unfit, err := s.unfit(ctx, whole)
	if err != nil {
		return s.later(err, "asking how large a record may be")
	}
	at, n := s.position.resume(), s.position.Beside
	if s.txn != nil {
		at = s.txn.boundary
	}
	if at == nil { // a transaction ends with a position
		if !s.told {
			s.told = true
			s.in.comp.Log.Info("commands about parked records wait for the first position of the source")
		}
		return nil
	}
	places := map[*kgo.Record]change.Pos{}
	beside, can := s.in.spec.Source.(pipeline.Besider)
	for _, key := range keys {
		if !can && len(whole[key]) > 0 && unfit[key] == nil {
			unfit[key] = parked.ErrGone.New("source %q cannot send a record beside its stream", s.in.spec.Name)
		}
		for _, r := range whole[key] {
			if unfit[key] != nil {
				break
			}
			pos, is := beside.Beside(at, n+1)
			if !is {
				return nil // a later position
			}
			n++
			places[r] = pos
		}
	}
	if err := s.begin(); err != nil {
		return err
	}
	t := s.txn
	t.boundary = at
	for _, c := range ready {
		key, _, is := s.parked.About(c)
		_, done := t.touched[key] // by another command
		switch {
		case !is || done:
		case c.Name == parked.CommandDiscard:
			s.release([]byte(key))
		case c.Name == parked.CommandRetry && (unfit[key] != nil || len(whole[key]) == 0):
			p := *s.parkedNow([]byte(key))
			err := unfit[key]
			if err == nil {
				err = parked.ErrGone.New("the row with the key %s of topic %q: %s", p.Key, p.Topic, p.Reason)
			}
			because(&p, err)
			p.Attempts++
			s.note(&p)
			s.touch([]byte(key), &p, nil)
		case c.Name == parked.CommandRetry:
			s.release([]byte(key))
			for _, r := range whole[key] {
				s.sendBeside(r, places[r])
			}
		}
		t.obeyed = append(t.obeyed, c)
		s.produceOne(t, s.parked.End(c))
	}
	s.mu.Lock()
	s.position.Beside = n
	s.mu.Unlock()
	return s.failure()
}

// unfit tells which keys have a record that its topic does not take.
func (s *session) unfit(ctx context.Context, whole map[string][]*kgo.Record) (map[string]error, error) {
	fits := map[string]func(*kgo.Record) error{} // by topic
	out := map[string]error{}
	for key, rs := range whole {
		for _, r := range rs {
			if fits[r.Topic] == nil {
				var err error
				if fits[r.Topic], err = s.outs.Limit(ctx, r.Topic); err != nil {
					return nil, err
				}
			}
			if err := fits[r.Topic](r); problem.Has(err, records.ErrTooLarge) {
				out[key] = err
			} else if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// sendBeside sends a record that was kept, with a Pos of its own: with its
// former one whoever has seen a later change would take it for an old one.
func (s *session) sendBeside(r *kgo.Record, pos change.Pos) {
	placed(r, change.AppendPos(nil, pos))
	tt := s.txn.topic(r.Topic)
	tt.records++
	tt.bytes += len(r.Key) + len(r.Value)
	s.txn.bytes += int64(len(r.Key) + len(r.Value))
	s.produceOne(s.txn, r)
}

// placed makes a record say where it stands.
func placed(r *kgo.Record, pos []byte) {
	mark := kgo.RecordHeader{Key: kafka.HeaderPos, Value: pos}
	if i := slices.IndexFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == kafka.HeaderPos }); i >= 0 {
		r.Headers[i] = mark
	} else {
		r.Headers = append(r.Headers, mark)
	}
}

// place gives the records of a job that lies beside the stream places of their own,
// behind those of all that went out so (C6).
func (s *session) place(p *encodeJob) error {
	rs, n := p.recs, s.position.Beside
	beside, can := s.in.spec.Source.(pipeline.Besider)
	if !can {
		panic(fmt.Sprintf("BUG: source %q sends records beside its stream, and cannot place them", s.in.spec.Name))
	}
	pos, is := beside.Beside(p.resume, n+1)
	if !is {
		panic(fmt.Sprintf("BUG: source %q sends records beside its stream where they have no place: %s", s.in.spec.Name, p.resume))
	}
	marks := make([]byte, 0, change.PosSize*len(rs.Records))
	for i := range rs.Records {
		from := len(marks)
		marks = change.AppendPos(marks, pos)
		placed(&rs.Records[i], marks[from:len(marks):len(marks)])
		pos.Ordinal++
	}
	s.mu.Lock()
	s.position.Beside = n + uint64(len(rs.Records))
	s.mu.Unlock()
	return nil
}
