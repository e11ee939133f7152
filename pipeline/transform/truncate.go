// A truncate empties what its partition gave to the outputs, and a sweep what it gave
// before a position and not since: every output record says which input partition it
// was made of (kafka.HeaderFrom), so that its owner can name them, and nobody else's
// (F7).
//
// A key that depends on the source's key alone is given by one input partition
// only, and that is what makes the search safe: whoever owns that partition is
// the one who gives the key again. Stages ask for it only where that holds.

package transform

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/parked"
)

// What a truncate can meet.
var (
	ErrOrigin = problem.Define("TW-TRUNCATE-ORIGIN", problem.Reject,
		"A table was truncated at the source, and there are records in a topic made from it that do not say which row they were made of: a version before this one wrote them. The others are deleted.",
		"Read the raw topics again, which writes all records anew and meets the truncate again: tallywire replay TRANSFORM --yes. Where it is parked once more, rows of another partition were written anew behind it: do it a second time. Where the raw topics do not have the rows any more, delete at the far side what was made of them, then discard this case.")
	ErrTruncateRetried = problem.Define("TW-TRUNCATE-RETRY", problem.Reject,
		"A truncate cannot be tried again by itself: rows may have come after it.",
		"Read the raw topics again, which meets the truncate in its place: tallywire replay TRANSFORM --yes. Or delete at the far side what was made of the rows, and discard this case.")
)

// ErrSweep says that what is gone cannot be told from what is parked.
var ErrSweep = problem.Define("TW-SWEEP-PARKED", problem.Reject,
	"Rows that are not in a table any more are to be deleted, and rows of it are parked: which records were made of those cannot be told, so nothing was deleted.",
	"Mend the parked rows of the table or discard them, then have it read once more: tallywire reload SOURCE TABLE --sweep --yes. This case goes with it.")

// emptied is an output that a truncate or a sweep empties.
type emptied struct {
	topic  string
	at     change.Coord // of the truncate or sweep
	before change.Pos   // what was made of rows of there and later stays
	pos    change.Pos   // its own
	time   int64
	sweep  bool
}

// clearing is how far the search for what truncates end has come: a page of ends
// is one Kafka transaction, and the offsets pass the truncates with the last. It
// is lost with its session, and begins again then: an end that is there twice
// says nothing new.
type clearing struct {
	of        []change.Coord
	topics    []string        // left to search; the first in part
	partition int32           // of the first: the one that is searched
	next      int64           // where that is read on
	nameless  map[string]bool // keys there, up to next, of records that do not say where they are from
	unknown   int             // such records in partitions that are done
}

func (c *clearing) clone() *clearing {
	d := *c
	d.nameless = maps.Clone(c.nameless)
	return &d
}

// narrow makes a transaction of truncates alone when partitions begin with
// some. What stands behind them, and in other partitions, comes again.
func (tx *txn) narrow(ctx context.Context) error {
	first := map[*consume.Run]int{}
	for _, r := range tx.polled.Runs {
		if r.Owned.Topic.Name == tx.parked.Topic.Name {
			continue
		}
		i := slices.IndexFunc(r.Records, func(rec *kgo.Record) bool { return !rec.Attrs.IsControl() })
		if i < 0 || r.Records[i].Key != nil || r.Records[i].Value == nil {
			continue
		}
		is, at, err := tx.truncates(ctx, r, i)
		if err != nil {
			return err
		}
		if is && (tx.session.clearing == nil || slices.Contains(tx.session.clearing.of, at)) {
			first[r] = i
		}
	}
	if len(first) == 0 {
		return nil
	}
	tx.alone = true
	for _, r := range tx.polled.Runs {
		if i, is := first[r]; is {
			r.Cut(i + 1)
		} else {
			r.Cut(0)
		}
	}
	return nil
}

// truncates reports whether record i of a run is a truncate or a sweep. What cannot be
// decoded is told when its turn comes.
func (tx *txn) truncates(ctx context.Context, r *consume.Run, i int) (bool, change.Coord, error) {
	b := change.Get()
	defer b.Release()
	err := consume.Decode(ctx, tx.decoder, b, r.Owned, r.Records[i])
	if err != nil && pipeline.Classify(err) != problem.Reject {
		return false, change.Coord{}, err
	}
	return err == nil && b.Len() == 1 && b.Changes[0].Empties(), r.Owned.Coord(r.Records[i].Offset), nil
}

// takeTruncates takes the truncates and sweeps of outputs out of a batch.
func (tx *txn) takeTruncates(b *change.Batch) {
	is := func(c *change.Change) bool { return c.Empties() && c.Table.Source == "" }
	i := 0
	for i < b.Len() && !is(&b.Changes[i]) {
		i++
	}
	if i == b.Len() {
		return
	}
	b.Keep(func(c *change.Change) bool {
		if !is(c) {
			return true
		}
		e := emptied{topic: c.Table.Topic, at: c.Coord, before: c.Pos, pos: c.Pos, time: c.Time, sweep: c.Op == change.Sweep}
		switch n := tx.parkedBefore(c.Coord); {
		case e.sweep && (!tx.alone || n > 0):
			tx.reject(c, ErrSweep.New("of partition %d of topic %s %d records are parked", c.Coord.Partition, c.Coord.Topic.Name, n))
		case !tx.alone:
			tx.reject(c, ErrTruncateRetried.New("the truncate of topic %s", c.Coord.Topic.Name))
		default:
			if e.sweep {
				e.before = *c.Before
			}
			tx.emptied = append(tx.emptied, e)
		}
		return false
	})
}

// origin is an input partition, as records name it.
type origin [20]byte

func originOf(c change.Coord) (o origin) {
	copy(o[:], kafka.AppendFrom(nil, c))
	return o
}

// errPage ends a search for now.
var errPage = errors.New("a page is full")

// clear gives the ends of what was made of rows before the truncates of this
// transaction, or as many of them as it may hold; then the truncates come again.
func (tx *txn) clear(ctx context.Context) ([]*kgo.Record, error) {
	if len(tx.emptied) == 0 {
		return nil, nil
	}
	c := &clearing{}
	if tx.session.clearing != nil {
		c = tx.session.clearing.clone()
	}
	begun := len(c.of) > 0
	c.of = nil // of those that the poll has not brought again the search begins anew
	for _, e := range tx.emptied {
		if !slices.Contains(c.of, e.at) {
			c.of = append(c.of, e.at)
		}
		if !begun && !slices.Contains(c.topics, e.topic) {
			c.topics = append(c.topics, e.topic)
		}
	}
	var ends []*kgo.Record
	for ; len(c.topics) > 0; c.topics, c.partition = c.topics[1:], 0 {
		topic, err := tx.env.Kafka.Topic(ctx, c.topics[0])
		if err != nil {
			return nil, err
		}
		high, err := tx.env.Kafka.Admin().ListEndOffsets(ctx, topic.Name)
		if err != nil {
			return nil, kafka.Wrap(err, "listing where topic %q ends", topic.Name)
		}
		for ; c.partition < topic.Partitions; c.partition++ {
			end, is := high.Lookup(topic.Name, c.partition)
			if !is || end.Err != nil {
				return nil, kafka.ErrUnavailable.New("partition %d of topic %q has no known end", c.partition, topic.Name)
			}
			tx.comp.Is(obs.Running, "deleting what was made of a truncated table")
			found, err := tx.search(ctx, c, topic, end.Offset)
			ends = append(ends, found...)
			if errors.Is(err, errPage) {
				tx.clearing = c
				for _, r := range tx.polled.Runs {
					r.Cut(0)
				}
				return ends, nil
			}
			if err != nil {
				return nil, err
			}
			c.unknown += len(c.nameless)
			c.next, c.nameless = 0, nil
		}
	}
	tx.dropParked()
	if c.unknown > 0 {
		tx.refuseTruncates(c.unknown)
	}
	return ends, nil
}

// search goes on in a partition of an output, up to end.
func (tx *txn) search(ctx context.Context, c *clearing, topic *change.Topic, end int64) (ends []*kgo.Record, err error) {
	before := map[origin]*emptied{}
	for i := range tx.emptied {
		if e := &tx.emptied[i]; e.topic == topic.Name {
			before[originOf(e.at)] = e
		}
	}
	if c.nameless == nil {
		c.nameless = map[string]bool{}
	}
	live := map[string]*emptied{}
	start, err := tx.env.Kafka.StartOf(ctx, topic, c.partition)
	if err != nil {
		return nil, err
	}
	c.next = max(c.next, start)
	err = kafka.Scan(ctx, tx.side, topic, c.partition, c.next, end, func(r *kgo.Record) error {
		if tx.endsTake > pageOf*tx.spec.BatchBytes {
			return errPage
		}
		c.next = r.Offset + 1
		if r.Attrs.IsControl() || r.Key == nil || !tx.gives(topic.Name, r.Key) {
			return nil
		}
		key := string(r.Key)
		if live[key] != nil {
			delete(live, key)
			tx.endsTake -= len(key) + endOctets
		}
		delete(c.nameless, key)
		from, pos, named := madeOf(r)
		switch e := before[from]; {
		case r.Value == nil:
		case !named:
			if len(c.nameless) < mostNameless {
				c.nameless[key] = true
			}
		case e != nil && pos.Compare(e.before) < 0:
			live[key] = e
			tx.endsTake += len(key) + endOctets
		}
		return nil
	})
	if err != nil && !errors.Is(err, errPage) {
		return nil, err
	}
	for key, e := range live {
		ends = append(ends, e.end(topic.Name, c.partition, []byte(key)))
	}
	slices.SortFunc(ends, func(a, b *kgo.Record) int { return bytes.Compare(a.Key, b.Key) })
	return ends, err
}

const (
	pageOf       = 4       // a page takes so many times a batch's octets: polling what is left again takes a second
	endOctets    = 128     // what an end takes in memory beside its key, about
	mostNameless = 100_000 // so many are told apart, in one partition
)

// gives says whether the transform may have given a key of an output; another
// may fill it too, from the same input even.
func (tx *txn) gives(topic string, key []byte) bool {
	prefixes := tx.spec.KeyPrefixes[topic]
	if len(prefixes) == 0 || len(key) < schemaID {
		return true
	}
	n, size := binary.Varint(key[schemaID:]) // canonical keys are Avro strings
	text := key[schemaID+max(size, 0):]
	return n != int64(len(text)) || slices.ContainsFunc(prefixes, func(p string) bool { return bytes.HasPrefix(text, []byte(p)) })
}

// schemaID is the length of what Confluent's wire format puts before a key.
const schemaID = 5

// end is the end of a key that a truncate deletes.
func (e *emptied) end(topic string, partition int32, key []byte) *kgo.Record {
	r := &kgo.Record{Topic: topic, Partition: partition, Key: key, Headers: []kgo.RecordHeader{{Key: kafka.HeaderFrom, Value: kafka.AppendFrom(nil, e.at)}}}
	if !e.pos.IsZero() {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: kafka.HeaderPos, Value: change.AppendPos(nil, e.pos)})
	}
	if e.time != 0 {
		r.Timestamp = time.UnixMicro(e.time).Truncate(time.Millisecond)
	}
	return r
}

// madeOf says which input partition a record was made of, and from which
// position at the source, zero if it does not say.
func madeOf(r *kgo.Record) (o origin, pos change.Pos, named bool) {
	for _, h := range r.Headers {
		switch h.Key {
		case kafka.HeaderFrom:
			named = copy(o[:], h.Value) == len(o)
		case kafka.HeaderPos:
			pos, _ = change.ParsePos(h.Value)
		}
	}
	return o, pos, named
}

// parkedBefore is how many rows are parked of what stands before a record in its
// partition: truncates and sweeps are none.
func (tx *txn) parkedBefore(at change.Coord) (n int) {
	for key := range tx.parked.Keys() {
		ref, _ := tx.parked.Get([]byte(key))
		if ref.TopicID == at.Topic.ID && ref.Partition == at.Partition && ref.Offset < at.Offset &&
			key != string(parked.AppendKey(nil, at.Topic.Name, control.KeylessKey(ref.Partition, ref.Offset))) {
			n++
		}
	}
	return n
}

// dropParked takes out what is parked of rows that are not there any more.
func (tx *txn) dropParked() {
	for key := range tx.parked.Keys() {
		ref, _ := tx.parked.Get([]byte(key))
		for _, e := range tx.emptied {
			if ref.TopicID == e.at.Topic.ID && ref.Partition == e.at.Partition && ref.Offset < e.at.Offset {
				tx.parking.Drop(key, ref.Partition)
				break
			}
		}
	}
}

// refuseTruncates parks them: not all that was made of their rows could be found.
func (tx *txn) refuseTruncates(n int) {
	for _, r := range tx.polled.Runs {
		for _, rec := range r.Records {
			if slices.ContainsFunc(tx.emptied, func(e emptied) bool {
				return e.at.Topic.Name == rec.Topic && e.at.Partition == rec.Partition && e.at.Offset == rec.Offset
			}) {
				tx.rejectRecord(rec, ErrOrigin.New("topic %s was truncated, and %d records made from such topics do not say what they were made of", rec.Topic, n))
			}
		}
	}
}
