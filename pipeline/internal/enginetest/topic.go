package enginetest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

// TopicBed is a bed with a raw input topic.
type TopicBed struct {
	*Bed
	In     *change.Table
	Outs   *records.Outputs
	Client *kgo.Client
	N      int // records written so far; the LSN of each
}

// NewTopicBed makes the topic of b's table.
func NewTopicBed(b *Bed) *TopicBed {
	t := b.T
	t.Helper()
	tb := &TopicBed{Bed: b, In: b.Table()}
	env := *b.Env
	env.Kafka = b.Direct
	tb.Outs = records.NewOutputs(env.Kafka, env.Registry, func(tt *change.Table) kafka.TopicSpec {
		return kafka.TopicSpec{Name: tt.Topic, Partitions: env.Partitions}
	}, 0, nil)
	if _, err := tb.Outs.Ensure(t.Context(), tb.In); err != nil {
		t.Fatal(err)
	}
	var err error
	if tb.Client, err = b.Direct.Client(kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tb.Client.Close)
	return tb
}

func (b *TopicBed) Output() string { return b.Source + ".out" }

// Put writes one record per row.
func (b *TopicBed) Put(rows ...Row) {
	b.T.Helper()
	batch := change.Get()
	for _, r := range rows {
		b.N++
		AppendRow(batch, b.In, r, b.N, 0)
	}
	rs := new(records.Buffer)
	if err := b.Outs.Encode(rs, batch, 0, batch.Len()); err != nil {
		b.T.Fatal(err)
	}
	batch.Release()
	out := make([]*kgo.Record, len(rs.Records))
	for i := range rs.Records {
		out[i] = &rs.Records[i]
	}
	if err := b.Client.ProduceSync(b.T.Context(), out...).FirstErr(); err != nil {
		b.T.Fatal(err)
	}
}

// Many writes n updates of 50 keys.
func (b *TopicBed) Many(n int) {
	b.T.Helper()
	rows := make([]Row, n)
	for i := range rows {
		rows[i] = Row{Op: change.Update, ID: int64(i%50 + 1), Val: fmt.Sprintf("value %d", b.N+i+1)}
	}
	b.Put(rows...)
}

func (b *TopicBed) TransformSpec(st pipeline.Stage) pipeline.TransformSpec {
	return pipeline.TransformSpec{
		// A queue, since a compacted topic does not keep every version. (Kafka
		// rolls a segment when a marker of today follows a record of last year.)
		Name: b.Source, Topics: []string{b.In.Topic}, Stages: []pipeline.Stage{st}, Queues: []string{b.Output()},
		TransformLimits: pipeline.TransformLimits{PollRecords: 200, BatchRecords: 64, TxnTimeout: 10 * time.Second},
	}
}

// Running runs a loop until the test ends, or stop is called; both give what
// the loop returned.
func (b *TopicBed) Running(loop func(context.Context) error) (stop func() error, ended <-chan error) {
	ctx, cancel := context.WithCancel(b.T.Context())
	done := make(chan error, 1)
	result := make(chan error, 1)
	go func() {
		err := loop(ctx)
		done <- err
		result <- err
	}()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			cancel()
			err = <-done
		})
		return err
	}
	b.T.Cleanup(func() { _ = stop() })
	return stop, result
}

// Member is an Env of another process of the same configuration.
func (b *TopicBed) Member(instance string) *pipeline.Env {
	env := *b.Env
	env.Instance = instance
	env.Obs = obs.New(b.Env.Obs.Log)
	return &env
}

// Read gives what a read-committed reader sees of a topic now.
func (b *TopicBed) Read(name string) []*kgo.Record {
	b.T.Helper()
	ctx, cancel := context.WithTimeout(b.T.Context(), testkit.Patience)
	defer cancel()
	topic, err := b.Direct.Topic(ctx, name)
	if err != nil {
		b.T.Fatal(err)
	}
	ends, err := b.Direct.Admin().ListEndOffsets(ctx, name)
	if err != nil {
		b.T.Fatal(err)
	}
	var out []*kgo.Record
	for p := range topic.Partitions {
		end, _ := ends.Lookup(name, p)
		err := kafka.Scan(ctx, b.Client, topic, p, 0, end.Offset, func(r *kgo.Record) error {
			if !r.Attrs.IsControl() {
				c := *r
				c.Key, c.Value = append([]byte(nil), r.Key...), append([]byte(nil), r.Value...)
				if r.Value == nil {
					c.Value = nil
				}
				out = append(out, &c)
			}
			return nil
		})
		if err != nil {
			b.T.Fatal(err)
		}
	}
	return out
}

// Eventually looks again and again until ok says so; what it saw last is told
// when it never does, or when a component stays halted.
func (b *TopicBed) Eventually(what string, ok func() (bool, string)) {
	b.T.Helper()
	deadline := time.Now().Add(testkit.Patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for halted := 0; ; halted++ {
		good, saw := ok()
		if good {
			return
		}
		why := b.Env.Obs.Halted()
		if why == "" {
			halted = 0 // or it was started again
		}
		if halted == 100 || time.Now().After(deadline) {
			b.T.Fatalf("waited for %s in vain: %s\n%s", what, saw, why)
		}
		select {
		case <-tick.C:
		case <-b.T.Context().Done():
			b.T.Fatal(b.T.Context().Err())
		}
	}
}

// Shows waits until a component is shown as ok says: the view follows what is
// in Kafka and in the control database, a moment later.
func (b *TopicBed) Shows(env *pipeline.Env, kind, what string, ok func(obs.View) bool) {
	b.T.Helper()
	b.Eventually(what+" to be shown", func() (bool, string) {
		v := b.View(env, kind)
		return ok(v), fmt.Sprintf("state %s %s, lag %v, %d parked, %d waiting", v.State, v.Reason, v.Lag, v.Parked, v.Waiting)
	})
}

// Drained waits until the group has committed the end of the input.
func (b *TopicBed) Drained() {
	b.T.Helper()
	b.Eventually("the group to commit the end of its input", func() (bool, string) {
		lags, err := b.Direct.Admin().Lag(b.T.Context(), pipeline.GroupOf(b.Source))
		if err != nil {
			return false, err.Error()
		}
		l := lags[pipeline.GroupOf(b.Source)]
		if l.FetchErr != nil || l.DescribeErr != nil {
			return false, errors.Join(l.FetchErr, l.DescribeErr).Error()
		}
		var left int64
		for _, part := range l.Lag[b.In.Topic] {
			if part.Err != nil || part.Commit.At < 0 && part.End.Offset > 0 {
				return false, fmt.Sprintf("partition %d has no offset", part.Partition)
			}
			left += part.Lag
		}
		return len(l.Lag[b.In.Topic]) > 0 && left == 0, fmt.Sprintf("%d records left", left)
	})
}

// lsns reads the output: per LSN how often it is there; and order per key.
func (b *TopicBed) lsns() map[uint64]int {
	b.T.Helper()
	seen := map[uint64]int{}
	last := map[string]uint64{}
	for _, r := range b.Read(b.Output()) {
		if r.Value == nil {
			continue
		}
		for _, h := range r.Headers {
			if h.Key != kafka.HeaderPos {
				continue
			}
			pos, err := change.ParsePos(h.Value)
			if err != nil {
				b.T.Fatal(err)
			}
			seen[pos.LSN]++
			if pos.LSN < last[string(r.Key)] {
				b.T.Errorf("key %x: %d comes after %d", r.Key, pos.LSN, last[string(r.Key)])
			}
			last[string(r.Key)] = pos.LSN
		}
	}
	return seen
}

// Once fails unless every record written so far is in the output once, save
// those whose number is in but.
func (b *TopicBed) Once(but ...uint64) {
	b.T.Helper()
	seen := b.lsns()
	missing, twice := 0, 0
	for n := uint64(1); n <= uint64(b.N); n++ {
		want := 1
		for _, x := range but {
			if x == n {
				want = 0
			}
		}
		switch {
		case seen[n] < want:
			missing++
		case seen[n] > want:
			twice++
		}
	}
	if missing > 0 || twice > 0 {
		b.T.Errorf("of %d records %d are missing in the output and %d are there too often", b.N, missing, twice)
	}
}

func (b *TopicBed) View(env *pipeline.Env, kind string) obs.View {
	return env.Obs.Component(kind, b.Source).View()
}

// ParkedNow reads the parked topic: parked key → the record's text key.
func (b *TopicBed) ParkedNow() map[string]string {
	b.T.Helper()
	out := map[string]string{}
	for _, r := range b.Read(parked.TopicOf(b.Source)) {
		if len(r.Key) > 0 && r.Key[0] == 0x1F {
			continue
		}
		if r.Value == nil {
			delete(out, string(r.Key))
			continue
		}
		p, err := parked.Parse(b.Source, r.Value)
		if err != nil {
			b.T.Fatal(err)
		}
		out[string(r.Key)] = p.Key + " " + p.Code
	}
	return out
}

// AskedFor reads the commands of the parked topic, done or not: the keys of
// their records.
func (b *TopicBed) AskedFor() map[string]bool {
	b.T.Helper()
	out := map[string]bool{}
	for _, r := range b.Read(parked.TopicOf(b.Source)) {
		if len(r.Key) > 0 && r.Key[0] == 0x1F {
			out[string(r.Key)] = true
		}
	}
	return out
}

// HasRead commits offsets for the bed's group, as if it had read that far.
// token is what our commits carry, of a topic.
func (b *TopicBed) HasRead(next map[int32]int64, token func(*change.Topic) string) {
	b.T.Helper()
	topic, err := b.Direct.Topic(b.T.Context(), b.In.Topic)
	if err != nil {
		b.T.Fatal(err)
	}
	offsets := kadm.Offsets{}
	for p, at := range next {
		offsets.Add(kadm.Offset{Topic: topic.Name, Partition: p, At: at, LeaderEpoch: -1, Metadata: token(topic)})
	}
	rs, err := b.Direct.Admin().CommitOffsets(b.T.Context(), pipeline.GroupOf(b.Source), offsets)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		b.T.Fatal(err)
	}
}

// Beside is an Env of the same instance that does not go through the proxy: of
// the process that is started after one was killed, or beside it.
func (b *TopicBed) Beside() *pipeline.Env {
	env := b.Member(b.Env.Instance)
	env.Kafka = b.Direct
	return env
}

// Group is the bed's consumer group as Kafka describes it.
func (b *TopicBed) Group() kadm.DescribedGroup {
	b.T.Helper()
	gs, err := b.Direct.Admin().DescribeGroups(b.T.Context(), pipeline.GroupOf(b.Source))
	if err != nil {
		b.T.Fatal(err)
	}
	return gs[pipeline.GroupOf(b.Source)]
}

// CheckNotShown fails when a text, which is not short, is in the bed's parked topic, or in the
// control database.
func CheckNotShown(b *TopicBed, text string) {
	b.T.Helper()
	shown := func(p []byte) bool {
		if bytes.Contains(p, []byte(text)) {
			return true
		}
		for skip := range 3 { // in base64 it begins in one of three ways
			in := base64.StdEncoding.EncodeToString(append(make([]byte, skip), text...))
			if bytes.Contains(p, []byte(in[4:len(in)-4])) {
				return true
			}
		}
		return false
	}
	for _, r := range b.Read(parked.TopicOf(b.Source)) {
		if shown(r.Value) {
			b.T.Errorf("the parked topic shows it: %q", r.Value)
		}
	}
	rows, err := b.Env.Control.Query(b.T.Context(), "select p::text, encode(record_value, 'escape') from tallywire.parked p")
	if err != nil {
		b.T.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var row string
		var value *string
		if err := rows.Scan(&row, &value); err != nil {
			b.T.Fatal(err)
		}
		if n++; shown([]byte(row)) || value != nil && shown([]byte(*value)) {
			b.T.Errorf("the control database shows it: %s", row)
		}
	}
	if err := rows.Err(); err != nil || n == 0 {
		b.T.Errorf("%d rows, %v", n, err)
	}
}
