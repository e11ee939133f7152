// A switch of rules: what the former ones gave and those in force do not is
// ended, then the transform begins at the start of its topics (F7, decision 42).

package transform

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/records"
)

// What a switch can meet.
var (
	ErrSwitchOpen = problem.Define("TW-SWITCH-OPEN", problem.Halt,
		"A switch of this transform's rules was begun and is not done: some of what the former rules gave is ended, the rest is not.",
		"Run the same command again, it begins anew: tallywire mapping switch TRANSFORM -c NEW --from OLD --yes. Then start again. Where the former rules are lost, tallywire replay TRANSFORM --yes gives everything anew, and leaves what only they gave.")
	ErrSwitchActive = problem.Define("TW-SWITCH-ACTIVE", problem.Halt,
		"Somebody runs the transform whose rules are switched, or switches them too.",
		"Stop its process, run the switch again, then start it. Where that process embeds the broker, start it --without TRANSFORM meanwhile.")
)

// Switching is a switch of rules to be done.
type Switching struct {
	Name   string   // of the transform
	Topics []string // that it read, or reads now
	// Ends sends the deletes of what the former rules gave for a record and those
	// in force do not.
	Ends    pipeline.Stage
	Outputs []string // that get them, if they exist
	// Dry: it is only counted.
	Dry bool
	// Progress, if set, hears of it every few seconds.
	Progress func(topic string, partition int32, done, of int64)
}

// Switched is what it did, or would do.
type Switched struct {
	Records int64            // read
	Ended   map[string]int64 // ends by output; of a key that comes often, more than one perhaps
	Begins  []Begin
}

// Begin is where a partition begins when records before that are gone: what was
// made of those stays as it is.
type Begin struct {
	Topic     string
	Partition int32
	Offset    int64
}

const (
	switchTimeout = 30 * time.Second // of a transaction
	switchBytes   = 4 << 20          // of ends in one
	switchRecords = 1024             // read at once
	switchSeen    = 64 << 20         // octets of keys that are not ended twice
	tellEvery     = 3 * time.Second
)

// Switch does s. The transform must not run, and its group has no members. On an
// error, and when ctx ends, the switch stays open unless nothing was begun; it
// begins anew when it is done again.
func Switch(ctx context.Context, env *pipeline.Env, s Switching) (*Switched, error) {
	w := &switcher{Switching: s, env: env, res: &Switched{Ended: map[string]int64{}}, seen: map[string]bool{}, told: time.Now(), mark: rand.Text()}
	w.decoder = avro.NewDecoder(env.Registry)
	topics, err := env.Kafka.Topics(ctx, s.Topics...)
	if err != nil {
		return nil, err
	}
	if w.filled, err = env.Kafka.Topics(ctx, s.Outputs...); err != nil {
		return nil, err
	}
	w.starts, w.ends, err = w.bounds(ctx, topics)
	if err != nil {
		return nil, err
	}
	if !s.Dry {
		if err := w.begin(ctx, topics); err != nil {
			return nil, err
		}
		defer w.producer.Close()
	}
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		for p := range topics[name].Partitions {
			if err := w.read(ctx, topics[name], p); err != nil {
				return nil, err
			}
		}
	}
	if s.Dry {
		return w.res, nil
	}
	if err := w.flush(ctx); err != nil {
		return nil, err
	}
	// From the start as it is now: records may have gone meanwhile.
	if w.starts, _, err = w.bounds(ctx, topics); err != nil {
		return nil, err
	}
	if err := w.mine(ctx); err != nil {
		return nil, err
	}
	return w.res, w.set(ctx, topics, func(*change.Topic) string { return "" })
}

type switcher struct {
	Switching
	env      *pipeline.Env
	res      *Switched
	decoder  *avro.Decoder
	filled   map[string]*change.Topic // those of Outputs that exist
	starts   kadm.ListedOffsets
	ends     kadm.ListedOffsets
	outputs  *records.Outputs
	producer *kgo.Client
	buffers  []*records.Buffer // ends that are not written
	bytes    int               // of those
	seen     map[string]bool   // topic and key of ends
	seenTake int
	told     time.Time
	mark     string // names this switch in the group's offsets
}

// bounds are where the partitions start, and up to where they are committed.
func (w *switcher) bounds(ctx context.Context, topics map[string]*change.Topic) (starts, ends kadm.ListedOffsets, err error) {
	if len(topics) == 0 {
		return nil, nil, nil
	}
	names := slices.Sorted(maps.Keys(topics))
	if starts, err = w.env.Kafka.Admin().ListStartOffsets(ctx, names...); err == nil {
		err = starts.Error()
	}
	if err == nil {
		if ends, err = w.env.Kafka.Admin().ListCommittedOffsets(ctx, names...); err == nil {
			err = ends.Error()
		}
	}
	return starts, ends, kafka.Wrap(err, "listing where the topics start and end")
}

// begin fences switches before this one, and marks the group's offsets.
func (w *switcher) begin(ctx context.Context, topics map[string]*change.Topic) (err error) {
	w.outputs = records.NewOutputs(w.env.Kafka, w.env.Registry, func(t *change.Table) kafka.TopicSpec {
		return kafka.TopicSpec{Name: t.Topic, Partitions: w.env.Partitions, Compact: true}
	}, 0, nil)
	// One id for all instances: only the last switch that was begun writes.
	ours := kafka.Transactional{
		ID: "tallywire." + w.Name + ".switch", Timeout: switchTimeout,
		Topics: func(context.Context) ([]string, error) { return slices.Sorted(maps.Keys(w.filled)), nil },
	}
	if err := w.env.Kafka.TakeOver(ctx, ours); err != nil {
		return err
	}
	w.producer, err = w.env.Kafka.Client(append(ours.Opts(w.env.Kafka), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		return err
	}
	// The id is taken now, not with the first end: whoever takes it later wins.
	if _, _, err = w.producer.ProducerID(ctx); err != nil {
		err = w.failed(err, time.Now())
	} else {
		err = w.set(ctx, topics, func(t *change.Topic) string { return consume.SwitchToken(t, w.mark) })
	}
	if err != nil {
		w.producer.Close()
	}
	return err
}

// set has the group begin at the start of its topics.
func (w *switcher) set(ctx context.Context, topics map[string]*change.Topic, metadata func(*change.Topic) string) error {
	offsets := kadm.Offsets{}
	w.starts.Each(func(o kadm.ListedOffset) {
		offsets.Add(kadm.Offset{Topic: o.Topic, Partition: o.Partition, At: o.Offset, LeaderEpoch: -1, Metadata: metadata(topics[o.Topic])})
	})
	if len(offsets) == 0 {
		return nil
	}
	group := pipeline.GroupOf(w.Name)
	done, err := w.env.Kafka.Admin().CommitOffsets(ctx, group, offsets)
	if err == nil {
		err = done.Error()
	}
	if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.RebalanceInProgress) || errors.Is(err, kerr.IllegalGeneration) {
		return ErrSwitchActive.New("group %s has members: %w", group, err)
	}
	return kafka.Wrap(err, "setting the offsets of %s", group)
}

// mine says whether the marks are this switch's still.
func (w *switcher) mine(ctx context.Context) error {
	group := pipeline.GroupOf(w.Name)
	are, err := w.env.Kafka.Admin().FetchOffsets(ctx, group)
	if err != nil {
		return kafka.Wrap(err, "reading the offsets of %s", group)
	}
	w.starts.Each(func(o kadm.ListedOffset) {
		if at, is := are.Lookup(o.Topic, o.Partition); !is || consume.Switching(at.Metadata) != w.mark {
			err = ErrSwitchActive.New("somebody else set the offsets of group %s", group)
		}
	})
	return err
}

// read goes through a partition.
func (w *switcher) read(ctx context.Context, t *change.Topic, p int32) error {
	start, _ := w.starts.Lookup(t.Name, p)
	end, _ := w.ends.Lookup(t.Name, p)
	from, to := start.Offset, end.Offset
	if from > 0 {
		w.res.Begins = append(w.res.Begins, Begin{t.Name, p, from})
	}
	b, size := change.Get(), 0
	defer func() { b.Release() }()
	apply := func() error {
		full := b
		b, size = change.Get(), 0
		return w.Ends.Apply(ctx, full, w)
	}
	err := kafka.Scan(ctx, w.env.Kafka.Shared(), t, p, from, to, func(r *kgo.Record) error {
		if r.Attrs.IsControl() {
			return nil
		}
		w.res.Records++
		if w.Progress != nil && time.Since(w.told) > tellEvery {
			w.told = time.Now()
			w.Progress(t.Name, p, r.Offset-from, to-from)
		}
		at := change.Coord{Topic: t, Partition: p, Offset: r.Offset}
		if err := w.decoder.Append(ctx, b, at, r.Key, r.Value, kafka.Headers(r), r.Timestamp.UnixMilli()); err != nil {
			if pipeline.Classify(err) == problem.Reject {
				return nil // it was parked, and gave nothing
			}
			return err
		}
		if size += len(r.Key) + len(r.Value); b.Len() >= switchRecords || size > switchBytes {
			return apply()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return apply()
}

// Send implements pipeline.Outlet: it takes ends.
func (w *switcher) Send(ctx context.Context, b *change.Batch) error {
	defer b.Release()
	var key []byte
	b.Keep(func(c *change.Change) bool {
		if w.filled[c.Table.Topic] == nil {
			return false
		}
		key = change.AppendKey(append(append(key[:0], c.Table.Topic...), 0), b, c)
		if w.seen[string(key)] {
			return false
		}
		if w.seenTake += len(key) + endOctets; w.seenTake > switchSeen {
			clear(w.seen)
			w.seenTake = 0
		}
		w.seen[string(key)] = true
		w.res.Ended[c.Table.Topic]++
		return true
	})
	if w.Dry || b.Len() == 0 {
		return nil
	}
	if err := w.outputs.EnsureAll(ctx, b); err != nil {
		return err
	}
	rs := new(records.Buffer)
	if err := w.outputs.Encode(rs, b, 0, b.Len()); err != nil {
		return err
	}
	if len(rs.Refused) > 0 {
		return rs.Refused[0].Err
	}
	w.buffers = append(w.buffers, rs)
	if w.bytes += rs.Bytes + endOctets*len(rs.Records); w.bytes > switchBytes {
		return w.flush(ctx)
	}
	return nil
}

// Reject implements pipeline.Outlet. What rules reject they gave nothing for.
func (w *switcher) Reject(*change.Change, error) {}

// flush writes what was found, in one transaction.
func (w *switcher) flush(ctx context.Context) error {
	if w.bytes == 0 {
		return nil
	}
	began := time.Now()
	// What was begun is ended, also when the command is broken off: readers would
	// wait for its timeout (A5).
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), switchTimeout)
	defer cancel()
	if err := w.producer.BeginTransaction(); err != nil {
		return w.failed(err, began)
	}
	var batch []*kgo.Record
	for _, rs := range w.buffers {
		for i := range rs.Records {
			batch = append(batch, &rs.Records[i])
		}
	}
	if err := w.producer.ProduceSync(ctx, batch...).FirstErr(); err != nil {
		return w.failed(err, began)
	}
	if err := kafka.Commit(ctx, w.producer); err != nil {
		return w.failed(err, began)
	}
	w.buffers, w.bytes = nil, 0
	return nil
}

func (w *switcher) failed(err error, began time.Time) error {
	return consume.ProducerError(err, began, switchTimeout, "ending what the former rules of transform %q gave", w.Name)
}

// switched says of a partition's offsets whether a switch is open.
func switched(_ context.Context, all []*consume.Owned) error {
	for _, p := range all {
		if consume.Switching(p.Metadata) != "" {
			return ErrSwitchOpen.New("its offset in partition %d of topic %q is marked", p.Partition, p.Topic.Name)
		}
	}
	return nil
}
