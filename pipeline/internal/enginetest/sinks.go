package enginetest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
)

// Memory is a Sink: the last note per key, with the offset it came from.
type Memory struct {
	Mu     sync.Mutex
	Rows   map[string]string // topic/key → note
	From   map[string]int64  // topic/key → offset
	order  []string          // topic/key as written
	writes int
	// Judge says what is wrong with a change; nil error: nothing.
	Judge func(topic, key, note string) (err error, waitsFor string)
	// Down is what Write returns instead of writing.
	Down func() error
}

func NewMemory() *Memory {
	return &Memory{Rows: map[string]string{}, From: map[string]int64{}}
}

func (m *Memory) Write(ctx context.Context, b *change.Batch) ([]pipeline.Failure, error) {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	return m.write(ctx, b)
}

func (m *Memory) write(ctx context.Context, b *change.Batch) ([]pipeline.Failure, error) {
	if m.Down != nil {
		if err := m.Down(); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.writes++
	var fs []pipeline.Failure
	bad := map[string]bool{}
	for i := range b.Changes {
		c := &b.Changes[i]
		k := c.Table.Topic + "/" + string(change.AppendKey(nil, b, c))
		note := string(b.AppendText(nil, c.Row()[1]))
		if bad[k] {
			continue
		}
		if m.Judge != nil {
			if err, waits := m.Judge(c.Table.Topic, string(change.AppendKey(nil, b, c)), note); err != nil {
				bad[k] = true
				fs = append(fs, pipeline.Failure{Index: i, Err: err, WaitsFor: waits})
				continue
			}
		}
		if at, ok := m.From[k]; ok && at > c.Coord.Offset {
			continue // an older version does not win
		}
		m.Rows[k], m.From[k] = note, c.Coord.Offset
		m.order = append(m.order, k)
	}
	return fs, nil
}

func (m *Memory) Has(k string) string {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	return m.Rows[k]
}

func (m *Memory) Size() int {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	return len(m.Rows)
}

// Keeping is a memory with offsets in the transaction of its writes.
type Keeping struct {
	*Memory
	Offsets map[string]int64
	Owner   map[string]string
	Applied map[string]int // topic/partition/offset → how often it came with its offset
	// Outside are records at or above the stored offset that were written
	// without moving it: a crash now would write them again.
	Outside []string
	// Crash is called after the commit of a write, before it is confirmed.
	Crash func() error
}

func NewKeeping() *Keeping {
	return &Keeping{Memory: NewMemory(), Offsets: map[string]int64{}, Owner: map[string]string{}, Applied: map[string]int{}}
}

func coordKey(t *change.Topic, p int32) string { return fmt.Sprintf("%s/%d", t.Name, p) }

func (k *Keeping) Claim(_ context.Context, id string, parts []change.Coord) ([]int64, error) {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	out := make([]int64, len(parts))
	for i, p := range parts {
		c := coordKey(p.Topic, p.Partition)
		k.Owner[c] = id
		out[i] = -1
		if o, ok := k.Offsets[c]; ok {
			out[i] = o
		}
	}
	return out, nil
}

func (k *Keeping) SetOffsets(_ context.Context, id string, parts []change.Coord) error {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	for _, p := range parts {
		c := coordKey(p.Topic, p.Partition)
		if k.Owner[c] != id {
			return pipeline.ErrFenced.New("owner of %s is %s", c, k.Owner[c])
		}
		k.Offsets[c] = p.Offset
	}
	return nil
}

func (k *Keeping) Write(ctx context.Context, b *change.Batch) ([]pipeline.Failure, error) {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	for i := range b.Changes {
		c := b.Changes[i].Coord
		if at := coordKey(c.Topic, c.Partition); c.Offset >= k.Offsets[at] {
			k.Outside = append(k.Outside, fmt.Sprintf("%s/%d", at, c.Offset))
		}
	}
	return k.write(ctx, b)
}

func (k *Keeping) WriteWithOffsets(ctx context.Context, id string, b *change.Batch) ([]pipeline.Failure, error) {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	for _, r := range b.Ranges {
		c := coordKey(r.Topic, r.Partition)
		if k.Owner[c] != id || k.Offsets[c] != r.From {
			return nil, pipeline.ErrFenced.New("%s: owner %s, offset %d, the write is of %s from %d", c, k.Owner[c], k.Offsets[c], id, r.From)
		}
	}
	fs, err := k.write(ctx, b)
	if err != nil {
		return nil, err
	}
	for _, r := range b.Ranges {
		k.Offsets[coordKey(r.Topic, r.Partition)] = r.To
	}
	for i := range b.Changes {
		c := b.Changes[i].Coord
		k.Applied[fmt.Sprintf("%s/%d", coordKey(c.Topic, c.Partition), c.Offset)]++
	}
	if k.Crash != nil {
		if err := k.Crash(); err != nil {
			return nil, err
		}
	}
	return fs, nil
}

// Control opens a control database of its own.
func (b *TopicBed) Control() *control.ParkedStore {
	b.T.Helper()
	pool, err := control.Open(b.T.Context(), testkit.NewDatabase(b.T))
	if err != nil {
		b.T.Fatal(err)
	}
	b.T.Cleanup(pool.Close)
	b.Env.Control = pool
	return control.NewParked(pool)
}

func (b *TopicBed) DeliverSpec(s pipeline.Sink, topics ...string) pipeline.DeliverSpec {
	if len(topics) == 0 {
		topics = []string{b.In.Topic}
	}
	return pipeline.DeliverSpec{
		Name: b.Source, Topics: topics, Sink: s,
		DeliverLimits: pipeline.DeliverLimits{MaxRecords: 100, Gather: 10 * time.Millisecond, Tick: 50 * time.Millisecond},
	}
}

// Newest fails unless the sink has the last note of each key of the input.
func (b *TopicBed) Newest(m *Memory) {
	b.T.Helper()
	m.Mu.Lock()
	defer m.Mu.Unlock()
	for i := max(1, b.N-49); i <= b.N; i++ {
		k := fmt.Sprintf("%s/%d", b.In.Topic, (i-1)%50+1)
		if want := fmt.Sprintf("value %d", i); m.Rows[k] != want {
			b.T.Errorf("%s is %q, want %q", k, m.Rows[k], want)
		}
	}
}

var ErrSinkDown = problem.Define("TW-TEST-SINK-DOWN", problem.Retry, "The test's sink is down.", "Wait.")
