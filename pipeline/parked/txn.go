// Txn: what one Kafka transaction changes of what is parked.

package parked

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/control"
)

// Txn gathers what is parked and released, per key the last of it; its Records
// go into the Kafka transaction of the input's offsets (G1, G5), and Committed
// brings the set to it. Not safe for concurrent use.
type Txn struct {
	// Quiet: what is parked again for the reason that it was parked for is not
	// written anew, and its attempt not counted.
	Quiet bool

	set   *Set
	order []string
	outs  map[string]*outcome
	done  []*Command
	again []*Command
	asked map[string]bool
	recs  []*kgo.Record
}

type outcome struct {
	parked *control.Parked // nil: released
	part   int32           // of the input
	rec    *kgo.Record
}

// Begin makes an empty Txn.
func (s *Set) Begin() *Txn {
	return &Txn{set: s, outs: map[string]*outcome{}, asked: map[string]bool{}}
}

// Empty reports that there is nothing to commit.
func (t *Txn) Empty() bool {
	return len(t.outs) == 0 && len(t.done) == 0 && len(t.again) == 0 && len(t.asked) == 0
}

// Park parks p, in place of an older record of its key, and counts the attempt
// when it is the one that is parked. While a newer one is parked, it does
// nothing.
func (t *Txn) Park(p *control.Parked) {
	key := string(AppendKey(nil, p.Topic, p.RecordKey))
	if old, is := t.set.refs[key]; is && old.TopicID == p.TopicID {
		switch {
		case old.Offset > p.Offset:
			return
		case old.Offset == p.Offset && t.Quiet && p.WaitsFor != "" && old.WaitsFor == p.WaitsFor:
			return
		case old.Offset == p.Offset:
			p.Attempts, p.FirstAt = old.Attempts+1, old.FirstAt
		}
	}
	t.note(key, &outcome{parked: p, part: p.Partition})
}

// Release takes out what is parked of a key, because the record at offset of
// partition was taken, unless a newer one is parked.
func (t *Txn) Release(topicID [16]byte, key []byte, partition int32, offset int64) {
	old, is := t.set.refs[string(key)]
	if is && old.TopicID == topicID && old.Offset > offset {
		return
	}
	if _, now := t.outs[string(key)]; is || now {
		t.note(string(key), &outcome{part: partition})
	}
}

// Drop takes out what is parked of a key, or may be shown as parked; partition
// is that of the input. What is parked later stays.
func (t *Txn) Drop(key string, partition int32) { t.note(key, &outcome{part: partition}) }

func (t *Txn) note(key string, o *outcome) {
	if _, is := t.outs[key]; !is {
		t.order = append(t.order, key)
	}
	t.outs[key] = o
}

// Done ends a command.
func (t *Txn) Done(c *Command) { t.done = append(t.done, c) }

// Again puts a command behind all others.
func (t *Txn) Again(c *Command) { t.again = append(t.again, c) }

// Delivered has what waits for one of names tried again, by commands: whoever
// owns it does, and a crash does not forget it.
func (t *Txn) Delivered(names []string) {
	for _, n := range names {
		for k := range t.set.waiters[n] {
			t.asked[k] = true
		}
		for k, o := range t.outs {
			if o.parked != nil && o.parked.WaitsFor == n {
				t.asked[k] = true
			}
		}
	}
}

// Asks reports that something is to be tried again.
func (t *Txn) Asks() bool { return len(t.asked)+len(t.again) > 0 }

// Records are what the transaction has to hold of it. limit is what a record of
// the parked topic may have, in octets; 0: anything.
func (t *Txn) Records(limit int) []*kgo.Record {
	topic, now := t.set.Topic.Name, time.Now()
	add := func(r *kgo.Record) *kgo.Record {
		t.recs = append(t.recs, r)
		return r
	}
	for _, key := range t.order {
		o := t.outs[key]
		part, in := t.set.PartitionOf(o.part), t.set.KeyOf([]byte(key))
		if old, is := t.set.refs[key]; is && t.set.PartitionOf(old.Partition) != part { // its topic was made anew
			add(&kgo.Record{Topic: topic, Partition: t.set.PartitionOf(old.Partition), Key: in, Timestamp: now})
		}
		t.recs = append(t.recs, t.set.Leftovers([]byte(key))...)
		o.rec = add(&kgo.Record{Topic: topic, Partition: part, Key: in, Timestamp: now})
		if o.parked != nil {
			o.rec.Value = t.set.Keep.append(nil, o.parked, limit)
		}
	}
	for key := range t.asked {
		ref, is := t.set.refs[key]
		topicOf, recordKey := splitKey(key)
		p := control.Parked{Topic: topicOf, TopicID: ref.TopicID, Partition: ref.Partition, Offset: ref.Offset, RecordKey: recordKey}
		if o := t.outs[key]; o != nil {
			if o.parked == nil {
				continue
			}
			p = *o.parked
		} else if !is {
			continue
		}
		add(commandRecord(topic, t.set.Topic.Partitions, &p, CommandRetry, limit))
	}
	for _, c := range t.again {
		add(commandRecord(topic, t.set.Topic.Partitions, &c.About, c.Name, limit))
	}
	for _, c := range t.done {
		add(c.end(topic))
	}
	return t.recs
}

// Committed brings the set to what the transaction did, once its records are
// committed.
func (t *Txn) Committed() {
	for _, key := range t.order {
		t.set.Committed(t.outs[key].parked, t.outs[key].rec)
	}
	for _, c := range t.done {
		t.set.Ended(c)
	}
}
