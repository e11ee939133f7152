// What the deliver loop is tested with: a sink in memory that fails as a test
// says, with or without offsets of its own.

package pipeline

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/testkit"
)

// memory is a Sink: the last note per key, with the offset it came from.
type memory struct {
	mu     sync.Mutex
	rows   map[string]string // topic/key → note
	from   map[string]int64  // topic/key → offset
	order  []string          // topic/key as written
	writes int
	// judge says what is wrong with a change; nil error: nothing.
	judge func(topic, key, note string) (err error, waitsFor string)
	// down is what Write returns instead of writing.
	down func() error
}

func newMemory() *memory {
	return &memory{rows: map[string]string{}, from: map[string]int64{}}
}

func (m *memory) Write(ctx context.Context, b *change.Batch) ([]Failure, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.write(ctx, b)
}

func (m *memory) write(ctx context.Context, b *change.Batch) ([]Failure, error) {
	if m.down != nil {
		if err := m.down(); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.writes++
	var fs []Failure
	bad := map[string]bool{}
	for i := range b.Changes {
		c := &b.Changes[i]
		k := c.Table.Topic + "/" + string(change.AppendKey(nil, b, c))
		note := string(b.AppendText(nil, c.Row()[1]))
		if bad[k] {
			continue
		}
		if m.judge != nil {
			if err, waits := m.judge(c.Table.Topic, string(change.AppendKey(nil, b, c)), note); err != nil {
				bad[k] = true
				fs = append(fs, Failure{Index: i, Err: err, WaitsFor: waits})
				continue
			}
		}
		if at, ok := m.from[k]; ok && at > c.Coord.Offset {
			continue // an older version does not win
		}
		m.rows[k], m.from[k] = note, c.Coord.Offset
		m.order = append(m.order, k)
	}
	return fs, nil
}

func (m *memory) has(k string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rows[k]
}

func (m *memory) size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.rows)
}

// keeping is a memory with offsets in the transaction of its writes.
type keeping struct {
	*memory
	offsets map[string]int64
	owner   map[string]string
	applied map[string]int // topic/partition/offset → how often it came with its offset
	// outside are records at or above the stored offset that were written
	// without moving it: a crash now would write them again.
	outside []string
	// crash is called after the commit of a write, before it is confirmed.
	crash func() error
}

func newKeeping() *keeping {
	return &keeping{memory: newMemory(), offsets: map[string]int64{}, owner: map[string]string{}, applied: map[string]int{}}
}

func coordKey(t *change.Topic, p int32) string { return fmt.Sprintf("%s/%d", t.Name, p) }

func (k *keeping) Claim(_ context.Context, id string, parts []change.Coord) ([]int64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]int64, len(parts))
	for i, p := range parts {
		c := coordKey(p.Topic, p.Partition)
		k.owner[c] = id
		out[i] = -1
		if o, ok := k.offsets[c]; ok {
			out[i] = o
		}
	}
	return out, nil
}

func (k *keeping) SetOffsets(_ context.Context, id string, parts []change.Coord) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range parts {
		c := coordKey(p.Topic, p.Partition)
		if k.owner[c] != id {
			return ErrFenced.New("owner of %s is %s", c, k.owner[c])
		}
		k.offsets[c] = p.Offset
	}
	return nil
}

func (k *keeping) Write(ctx context.Context, b *change.Batch) ([]Failure, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range b.Changes {
		c := b.Changes[i].Coord
		if at := coordKey(c.Topic, c.Partition); c.Offset >= k.offsets[at] {
			k.outside = append(k.outside, fmt.Sprintf("%s/%d", at, c.Offset))
		}
	}
	return k.write(ctx, b)
}

func (k *keeping) WriteWithOffsets(ctx context.Context, id string, b *change.Batch) ([]Failure, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range b.Ranges {
		c := coordKey(r.Topic, r.Partition)
		if k.owner[c] != id || k.offsets[c] != r.From {
			return nil, ErrFenced.New("%s: owner %s, offset %d, the write is of %s from %d", c, k.owner[c], k.offsets[c], id, r.From)
		}
	}
	fs, err := k.write(ctx, b)
	if err != nil {
		return nil, err
	}
	for _, r := range b.Ranges {
		k.offsets[coordKey(r.Topic, r.Partition)] = r.To
	}
	for i := range b.Changes {
		c := b.Changes[i].Coord
		k.applied[fmt.Sprintf("%s/%d", coordKey(c.Topic, c.Partition), c.Offset)]++
	}
	if k.crash != nil {
		if err := k.crash(); err != nil {
			return nil, err
		}
	}
	return fs, nil
}

// control opens a control database of its own.
func (b *tbed) control() *control.ParkedStore {
	b.t.Helper()
	pool, err := control.Open(b.t.Context(), testkit.NewDatabase(b.t))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(pool.Close)
	b.env.Control = pool
	return control.NewParked(pool)
}

func (b *tbed) dspec(s Sink, topics ...string) DeliverSpec {
	if len(topics) == 0 {
		topics = []string{b.in.Topic}
	}
	return DeliverSpec{
		Name: b.source, Topics: topics, Sink: s,
		DeliverLimits: DeliverLimits{MaxRecords: 100, Gather: 10 * time.Millisecond, Tick: 50 * time.Millisecond},
	}
}

// delivering runs a sink until the test ends, or stop is called.
func delivering(b *tbed, env *Env, spec DeliverSpec) (stop func() error, ended <-chan error) {
	return b.running(func(ctx context.Context) error { return RunDeliver(ctx, env, spec) })
}

// newest fails unless the sink has the last note of each key of the input.
func (b *tbed) newest(m *memory) {
	b.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := max(1, b.n-49); i <= b.n; i++ {
		k := fmt.Sprintf("%s/%d", b.in.Topic, (i-1)%50+1)
		if want := fmt.Sprintf("value %d", i); m.rows[k] != want {
			b.t.Errorf("%s is %q, want %q", k, m.rows[k], want)
		}
	}
}
