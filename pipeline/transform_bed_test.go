// What the transform loop is tested with, on the bed of ingest: a raw topic
// that the test writes, a stage that copies it to another, and a reader that
// counts every record.

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

var errNotTaken = problem.Define("TW-TEST-NOT-TAKEN", problem.Reject, "The test's stage does not take this.", "Mend it.")

// copier is a Stage that sends what it gets to another topic, and refuses what
// refuse says.
type copier struct {
	topic  string
	refuse func(note string) bool
	before func() // ahead of each Apply
	sent   atomic.Int64

	mu     sync.Mutex
	tables map[*change.Table]*change.Table
}

func (c *copier) Apply(ctx context.Context, in *change.Batch, out Outlet) error {
	if c.before != nil {
		c.before()
	}
	c.mu.Lock()
	in.Keep(func(ch *change.Change) bool {
		if row := ch.Row(); row != nil && c.refuse != nil && c.refuse(in.String(row[1])) {
			out.Reject(ch, errNotTaken.New("a note that the test refuses"))
			return false
		}
		t := c.tables[ch.Table]
		if t == nil {
			cp := *ch.Table
			cp.Topic = c.topic
			t = cp.Index()
			if c.tables == nil {
				c.tables = map[*change.Table]*change.Table{}
			}
			c.tables[ch.Table] = t
		}
		ch.Table = t
		return true
	})
	c.mu.Unlock()
	c.sent.Add(int64(in.Len()))
	return out.Send(ctx, in)
}

// tbed is a bed with a raw input topic.
type tbed struct {
	*bed
	in   *change.Table
	outs *records.Outputs
	cl   *kgo.Client
	n    int // records written so far; the LSN of each
}

func newTransformBed(b *bed) *tbed {
	t := b.t
	t.Helper()
	tb := &tbed{bed: b, in: b.table()}
	env := *b.env
	env.Kafka = b.direct
	tb.outs = records.NewOutputs(env.Kafka, env.Registry, func(tt *change.Table) kafka.TopicSpec {
		return kafka.TopicSpec{Name: tt.Topic, Partitions: env.Partitions}
	}, 0, nil)
	if _, err := tb.outs.Ensure(t.Context(), tb.in); err != nil {
		t.Fatal(err)
	}
	var err error
	if tb.cl, err = b.direct.Client(kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tb.cl.Close)
	return tb
}

func (b *tbed) output() string { return b.source + ".out" }

// put writes one record per row.
func (b *tbed) put(rows ...row) {
	b.t.Helper()
	batch := change.Get()
	for _, r := range rows {
		b.n++
		appendRow(batch, b.in, r, b.n, 0)
	}
	rs := new(records.Buffer)
	if err := b.outs.Encode(rs, batch, 0, batch.Len()); err != nil {
		b.t.Fatal(err)
	}
	batch.Release()
	out := make([]*kgo.Record, len(rs.Records))
	for i := range rs.Records {
		out[i] = &rs.Records[i]
	}
	if err := b.cl.ProduceSync(b.t.Context(), out...).FirstErr(); err != nil {
		b.t.Fatal(err)
	}
}

// many writes n updates of 50 keys.
func (b *tbed) many(n int) {
	b.t.Helper()
	rows := make([]row, n)
	for i := range rows {
		rows[i] = row{op: change.Update, id: int64(i%50 + 1), val: fmt.Sprintf("value %d", b.n+i+1)}
	}
	b.put(rows...)
}

func (b *tbed) spec(st Stage) TransformSpec {
	return TransformSpec{
		// A queue, since a compacted topic does not keep every version. (Kafka
		// rolls a segment when a marker of today follows a record of last year.)
		Name: b.source, Topics: []string{b.in.Topic}, Stages: []Stage{st}, Queues: []string{b.output()},
		TransformLimits: TransformLimits{PollRecords: 200, BatchRecords: 64, TxnTimeout: 10 * time.Second},
	}
}

// running runs a loop until the test ends, or stop is called; both give what
// the loop returned.
func (b *tbed) running(loop func(context.Context) error) (stop func() error, ended <-chan error) {
	ctx, cancel := context.WithCancel(b.t.Context())
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
	b.t.Cleanup(func() { _ = stop() })
	return stop, result
}

// transforming runs a transform until the test ends, or stop is called.
func transforming(b *tbed, env *Env, spec TransformSpec) (stop func() error, ended <-chan error) {
	return b.running(func(ctx context.Context) error { return RunTransform(ctx, env, spec) })
}

// member is an Env of another process of the same configuration.
func (b *tbed) member(instance string) *Env {
	env := *b.env
	env.Instance = instance
	env.Obs = obs.New(b.env.Obs.Log)
	return &env
}

// read gives what a read-committed reader sees of a topic now.
func (b *tbed) read(name string) []*kgo.Record {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), testkit.Patience)
	defer cancel()
	topic, err := b.direct.Topic(ctx, name)
	if err != nil {
		b.t.Fatal(err)
	}
	ends, err := b.direct.Admin().ListEndOffsets(ctx, name)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []*kgo.Record
	for p := range topic.Partitions {
		end, _ := ends.Lookup(name, p)
		err := kafka.Scan(ctx, b.cl, topic, p, 0, end.Offset, func(r *kgo.Record) error {
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
			b.t.Fatal(err)
		}
	}
	return out
}

// eventually looks again and again until ok says so; what it saw last is told
// when it never does.
func (b *tbed) eventually(what string, ok func() (bool, string)) {
	b.t.Helper()
	deadline := time.Now().Add(testkit.Patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		good, saw := ok()
		if good {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("waited for %s in vain: %s", what, saw)
		}
		select {
		case <-tick.C:
		case <-b.t.Context().Done():
			b.t.Fatal(b.t.Context().Err())
		}
	}
}

// shows waits until a component is shown as ok says: the view follows what is
// in Kafka and in the control database, a moment later.
func (b *tbed) shows(env *Env, kind, what string, ok func(obs.View) bool) {
	b.t.Helper()
	b.eventually(what+" to be shown", func() (bool, string) {
		v := b.view(env, kind)
		return ok(v), fmt.Sprintf("state %s %s, lag %v, %d parked, %d waiting", v.State, v.Reason, v.Lag, v.Parked, v.Waiting)
	})
}

// drained waits until the group has committed the end of the input.
func (b *tbed) drained() {
	b.t.Helper()
	b.eventually("the group to commit the end of its input", func() (bool, string) {
		lags, err := b.direct.Admin().Lag(b.t.Context(), GroupOf(b.source))
		if err != nil {
			return false, err.Error()
		}
		l := lags[GroupOf(b.source)]
		if l.FetchErr != nil || l.DescribeErr != nil {
			return false, errors.Join(l.FetchErr, l.DescribeErr).Error()
		}
		var left int64
		for _, part := range l.Lag[b.in.Topic] {
			if part.Err != nil || part.Commit.At < 0 && part.End.Offset > 0 {
				return false, fmt.Sprintf("partition %d has no offset", part.Partition)
			}
			left += part.Lag
		}
		return len(l.Lag[b.in.Topic]) > 0 && left == 0, fmt.Sprintf("%d records left", left)
	})
}

// lsns reads the output: per LSN how often it is there; and order per key.
func (b *tbed) lsns() map[uint64]int {
	b.t.Helper()
	seen := map[uint64]int{}
	last := map[string]uint64{}
	for _, r := range b.read(b.output()) {
		if r.Value == nil {
			continue
		}
		for _, h := range r.Headers {
			if h.Key != kafka.HeaderPos {
				continue
			}
			pos, err := change.ParsePos(h.Value)
			if err != nil {
				b.t.Fatal(err)
			}
			seen[pos.LSN]++
			if pos.LSN < last[string(r.Key)] {
				b.t.Errorf("key %x: %d comes after %d", r.Key, pos.LSN, last[string(r.Key)])
			}
			last[string(r.Key)] = pos.LSN
		}
	}
	return seen
}

// once fails unless every record written so far is in the output once, save
// those whose number is in but.
func (b *tbed) once(but ...uint64) {
	b.t.Helper()
	seen := b.lsns()
	missing, twice := 0, 0
	for n := uint64(1); n <= uint64(b.n); n++ {
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
		b.t.Errorf("of %d records %d are missing in the output and %d are there too often", b.n, missing, twice)
	}
}

func (b *tbed) view(env *Env, kind string) obs.View {
	return env.Obs.Component(kind, b.source).View()
}

// parkedNow reads the parked topic: parked key → the record's text key.
func (b *tbed) parkedNow() map[string]string {
	b.t.Helper()
	out := map[string]string{}
	for _, r := range b.read(parked.TopicOf(b.source)) {
		if len(r.Key) > 0 && r.Key[0] == 0x1F {
			continue
		}
		if r.Value == nil {
			delete(out, string(r.Key))
			continue
		}
		p, _, err := parked.Parse(b.source, r.Value)
		if err != nil {
			b.t.Fatal(err)
		}
		out[string(r.Key)] = p.Key + " " + p.Code
	}
	return out
}

// failing fails when err says so.
type failing struct {
	*copier
	err func() error
}

func (f *failing) Apply(ctx context.Context, in *change.Batch, out Outlet) error {
	if err := f.err(); err != nil {
		in.Release()
		return err
	}
	return f.copier.Apply(ctx, in, out)
}
