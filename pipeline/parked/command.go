// Commands about parked records: how people ask for one to be tried again or
// dropped (G1). They are records of the parked topic, in the partition of the
// record that they are about, and its owner takes them out in the transaction
// that does what they say.

package parked

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

const (
	headerCommand = "tw.command"
	headerOutcome = "tw.outcome" // of the end of a command; its one value:
	outcomeIdle   = "nothing to do"
)

// What a command may say.
const (
	CommandRetry   = "retry"
	CommandDiscard = "discard"
	// CommandAdopt brings a record that is in no parked topic: it is tried, and
	// parked when it fails.
	CommandAdopt = "adopt"
)

// Command is one that was heard.
type Command struct {
	Name string
	// About is the record it is about, its value omitted except for adopt.
	About control.Parked

	key       string // of its record
	partition int32  // of the parked topic
	offset    int64
	idle      bool // there was nothing to do
}

// Key is that of the record it is about, by AppendKey.
func (c *Command) Key() []byte { return AppendKey(nil, c.About.Topic, c.About.RecordKey) }

// commandKey is the key of a command about a parked record.
func commandKey(command string, parkedKey []byte) []byte {
	k := append([]byte{separator}, command...)
	k = append(k, separator)
	return append(k, parkedKey...)
}

// keyIs tells whether a key is that of a command about what c is about; an older
// version's has the schema's id.
func (c *Command) keyIs(key []byte) bool {
	name, about, is := bytes.Cut(key[1:], []byte{separator})
	return is && string(name) == c.Name && identity(about) == string(c.Key())
}

// Hear reads a record of the parked topic that may be a command: nil if it is
// none, or the end of one. Anybody may write a command; a bad one is nil too,
// visibly.
func (s *Set) Hear(r *kgo.Record) *Command {
	if r.Attrs.IsControl() || r.Value == nil || len(r.Key) == 0 || r.Key[0] != separator {
		return nil
	}
	c := &Command{key: string(r.Key), partition: r.Partition, offset: r.Offset}
	for _, h := range r.Headers {
		if h.Key == headerCommand {
			c.Name = string(h.Value)
		}
	}
	var err error
	c.About, err = Parse(s.name, r.Value)
	switch {
	case err == nil && !c.keyIs(r.Key):
		err = ErrForm.New("a command whose key is not of the record that it is about")
	case err == nil && c.Name != CommandRetry && c.Name != CommandDiscard && c.Name != CommandAdopt:
		err = ErrForm.New("a command %q", c.Name)
	}
	if err != nil {
		s.comp.Failed(problem.Reject.String(), outage.CodeOf(err))
		s.comp.Log.Warn("ignoring a command", "partition", r.Partition, "offset", r.Offset, "err", err)
		return nil
	}
	c.About.Kind = s.kind
	if c.Name == CommandAdopt {
		c.About.Value = bytes.Clone(c.About.Value)
	} else {
		c.About.Value, c.About.Omitted, c.About.Sealed = nil, true, "" // it lies in the parked topic; older versions had it here, too
	}
	return c
}

// heard notes a command, or its end.
func (s *Set) heard(r *kgo.Record) error {
	if r.Value == nil {
		delete(s.commands, string(r.Key))
	} else if c := s.Hear(r); c != nil {
		s.commands[c.key] = c
	}
	return nil
}

// About tells which parked record a command is about: a retry about whichever
// version is parked now, a discard about the very one that was shown. If it is
// not parked, the command is to be ended all the same.
func (s *Set) About(c *Command) (key string, ref Ref, is bool) {
	k := c.Key()
	ref, is = s.refs[string(k)]
	if is && c.Name == CommandDiscard {
		is = ref.Offset == c.About.Offset && ref.TopicID == c.About.TopicID && ref.Partition == c.About.Partition
		if ref.Head != nil { // of a source: it has no offset
			is = is && ref.FirstAt.Equal(c.About.FirstAt)
		}
	}
	c.idle = !is
	return string(k), ref, is
}

// end is the record that says that a command was done.
func (c *Command) end(topic string) *kgo.Record {
	r := &kgo.Record{Topic: topic, Partition: c.partition, Key: []byte(c.key), Timestamp: time.Now()}
	if c.idle {
		r.Headers = []kgo.RecordHeader{{Key: headerOutcome, Value: []byte(outcomeIdle)}}
	}
	return r
}

// End is the record of the parked topic that ends a command, for the
// transaction that does what it says; Ended forgets it once that is committed.
// A Txn does both.
func (s *Set) End(c *Command) *kgo.Record { return c.end(s.Topic.Name) }

// Ended forgets a command.
func (s *Set) Ended(c *Command) {
	if s.commands[c.key] == c {
		delete(s.commands, c.key)
	}
}

// Commands are those about records of this session's partitions, up to limit,
// in the order of their partition.
func (s *Set) Commands(limit int) []*Command {
	var out []*Command
	for _, c := range s.commands {
		if s.isMine(c.About.Topic, c.About.Partition) {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *Command) int { return int(a.offset - b.offset) })
	return out[:min(len(out), limit)]
}

// commandRecord is the record of a command about p.
func commandRecord(topic string, partitions int32, p *control.Parked, command string, limit int) *kgo.Record {
	about := *p
	if command != CommandAdopt {
		about.Value, about.Omitted, about.Headers = nil, true, nil
	}
	return &kgo.Record{
		Topic: topic, Partition: p.Partition % partitions, Timestamp: time.Now(),
		Key:     commandKey(command, AppendKey(nil, p.Topic, p.RecordKey)),
		Value:   Append(nil, &about, limit),
		Headers: []kgo.RecordHeader{{Key: headerCommand, Value: []byte(command)}},
	}
}

// Outcome is what became of records that a command was sent about, by number.
type Outcome struct {
	Asked   int `json:"records"`
	Changed int `json:"changed"` // not parked any more, or to be discarded and parked in a newer version
	Taken   int `json:"taken"`   // out of what is parked: delivered, or dropped
	Parked  int `json:"parked"`  // tried, and parked again
	Pending int `json:"pending"` // not done yet: their stage does not run, or is busy
}

// Retry asks for the parked records that match f to be tried again, and waits
// for what becomes of them, no longer than wait. Their stage hears of it within
// a second or so, or when it runs next. Without access to Kafka,
// ParkedStore.RequestRetry does the same: a running stage turns the request into
// the command.
func Retry(ctx context.Context, cluster *kafka.Cluster, db *pgxpool.Pool, f control.Filter, wait time.Duration) (Outcome, error) {
	return command(ctx, cluster, db, f, CommandRetry, wait)
}

// Discard asks for the parked records that match f to be dropped for good, and
// waits for it like Retry. The next version of a key is taken as if nothing had
// been.
func Discard(ctx context.Context, cluster *kafka.Cluster, db *pgxpool.Pool, f control.Filter, wait time.Duration) (Outcome, error) {
	return command(ctx, cluster, db, f, CommandDiscard, wait)
}

func command(ctx context.Context, cluster *kafka.Cluster, db *pgxpool.Pool, f control.Filter, command string, wait time.Duration) (Outcome, error) {
	if db == nil {
		return Outcome{}, control.ErrMissing.New("parked records are listed in the control database")
	}
	if f.Limit <= 0 {
		f.Limit = 100_000
	}
	rows, err := control.NewParked(db).List(ctx, f)
	if err != nil || len(rows) == 0 {
		return Outcome{}, err
	}
	sent, err := Send(ctx, cluster, rows, command)
	if err != nil {
		return Outcome{}, err
	}
	return await(ctx, cluster, sent, wait)
}

// await reads on from the commands sent until all are done.
func await(ctx context.Context, cluster *kafka.Cluster, sent []*kgo.Record, wait time.Duration) (Outcome, error) {
	type place struct {
		topic string
		part  int32
	}
	next := map[place]int64{}
	left := map[string]bool{} // topic and key of commands
	again, idle := map[string]bool{}, map[string]bool{}
	for _, r := range sent {
		p := place{r.Topic, r.Partition}
		if at, is := next[p]; !is || r.Offset < at {
			next[p] = r.Offset
		}
		left[r.Topic+string(r.Key)] = true
	}
	deadline := time.Now().Add(wait)
	for {
		for p, from := range next {
			topic, err := cluster.Topic(ctx, p.topic)
			if err != nil {
				return Outcome{}, err
			}
			ends, err := cluster.Admin().ListCommittedOffsets(ctx, p.topic)
			if err != nil {
				return Outcome{}, kafka.Wrap(err, "listing where topic %q is stable", p.topic)
			}
			end, ok := ends.Lookup(p.topic, p.part)
			if !ok || end.Err != nil {
				continue
			}
			err = kafka.Scan(ctx, cluster.Shared(), topic, p.part, from, end.Offset, func(r *kgo.Record) error {
				switch {
				case r.Attrs.IsControl() || len(r.Key) == 0:
				case r.Key[0] != separator:
					again[p.topic+identity(r.Key)] = r.Value != nil
				case r.Value == nil && left[p.topic+string(r.Key)]:
					delete(left, p.topic+string(r.Key))
					idle[p.topic+string(r.Key)] = slices.ContainsFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == headerOutcome })
				}
				return nil
			})
			if err != nil {
				return Outcome{}, err
			}
			next[p] = max(from, end.Offset)
		}
		if len(left) == 0 || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return Outcome{}, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	out := Outcome{Asked: len(sent)}
	for _, r := range sent {
		_, about, _ := bytes.Cut(r.Key[1:], []byte{separator})
		switch {
		case left[r.Topic+string(r.Key)]:
			out.Pending++
		case idle[r.Topic+string(r.Key)]:
			out.Changed++
		case again[r.Topic+identity(about)]:
			out.Parked++
		default:
			out.Taken++
		}
	}
	return out, nil
}

// Send writes a command about each of ps, and gives their records.
func Send(ctx context.Context, cluster *kafka.Cluster, ps []control.Parked, command string) ([]*kgo.Record, error) {
	cl, err := cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	type known struct {
		partitions int32
		limit      int
	}
	topics := map[string]known{}
	recs := make([]*kgo.Record, len(ps))
	for i := range ps {
		name := TopicOf(ps[i].Stage)
		of, is := topics[name]
		if !is {
			t, err := cluster.Topic(ctx, name)
			if err != nil {
				return nil, err
			}
			of.partitions = t.Partitions
			if of.limit, err = cluster.MaxRecordBytes(ctx, name); err != nil {
				return nil, err
			}
			topics[name] = of
		}
		recs[i] = commandRecord(name, of.partitions, &ps[i], command, of.limit)
	}
	if err := cl.ProduceSync(ctx, recs...).FirstErr(); err != nil {
		return nil, kafka.Wrap(err, "sending %d commands", len(ps))
	}
	return recs, nil
}
