package enginetest

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

var ErrNotTaken = problem.Define("TW-TEST-NOT-TAKEN", problem.Reject, "The test's stage does not take this.", "Mend it.")

// Copier is a Stage that sends what it gets to another topic, and refuses what
// refuse says.
type Copier struct {
	Topic  string
	Refuse func(note string) bool
	Before func() // ahead of each Apply
	sent   atomic.Int64

	mu     sync.Mutex
	tables map[*change.Table]*change.Table
}

func (c *Copier) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	if c.Before != nil {
		c.Before()
	}
	c.mu.Lock()
	in.Keep(func(ch *change.Change) bool {
		if row := ch.Row(); row != nil && c.Refuse != nil && c.Refuse(in.String(row[1])) {
			out.Reject(ch, ErrNotTaken.New("a note that the test refuses"))
			return false
		}
		t := c.tables[ch.Table]
		if t == nil {
			cp := *ch.Table
			cp.Topic = c.Topic
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

// Sent is how many changes were sent on so far.
func (c *Copier) Sent() int { return int(c.sent.Load()) }

// Failing fails when err says so.
type Failing struct {
	*Copier
	Err func() error
}

func (f *Failing) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	if err := f.Err(); err != nil {
		in.Release()
		return err
	}
	return f.Copier.Apply(ctx, in, out)
}
