// The subtests of a Reconciler: a sink that learns of deletions by the keys
// that its topic still holds (F6).

package pipelinetest

import (
	"errors"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
)

// reconciler is a sink that owner "a" has written keys 1 to 3 into, at offsets 0
// to 2 of partition 0, and key 4 at offset 0 of partition 1.
func (c *SinkCase) reconciler(t *testing.T) (pipeline.Reconciler, *Feed, change.Coord) {
	k, f, at := c.keeper(t)
	claim(t, k, "a", at, -1)
	setOffset(t, k, "a", at, 0)
	if err := writeAt(t, k, "a", f.Batch(1, 1, 2, 1, 3, 1)); err != nil {
		t.Fatalf("WriteWithOffsets: %v", err)
	}
	other := FeedOf(f.Table)
	other.Mark, other.Fill, other.Part = f.Mark, f.Fill, 1
	beside := change.Coord{Topic: f.Topic, Partition: 1}
	other.Topic = f.Topic
	claim(t, k, "a", beside, -1)
	setOffset(t, k, "a", beside, 0)
	if err := writeAt(t, k, "a", other.Batch(4, 1)); err != nil {
		t.Fatalf("WriteWithOffsets: %v", err)
	}
	return k.(pipeline.Reconciler), f, at
}

// holding gives keys in two batches, as a topic that holds them.
func holding(f *Feed, keys ...int) func(func(*change.Batch) error) error {
	return func(take func(*change.Batch) error) error {
		b := change.Get()
		defer b.Release()
		for i, key := range keys {
			next := f.Next
			f.Delete(b, key) // a change of the key alone
			f.Next = next
			if i != 0 && i != len(keys)-1 {
				continue
			}
			if err := take(b); err != nil {
				return err
			}
			b.Reset()
		}
		return nil
	}
}

func span(f *Feed, from, to int64) change.Range {
	return change.Range{Topic: f.Topic, Partition: f.Part, From: from, To: to}
}

var anHourAgo = time.Now().Add(-time.Hour).Truncate(time.Microsecond)

func wantReadAt(t *testing.T, r pipeline.Reconciler, at change.Coord, want time.Time) {
	t.Helper()
	got, err := r.ReadAt(ctxOf(t), []change.Coord{at})
	if err != nil || len(got) != 1 || !got[0].Equal(want) {
		t.Fatalf("ReadAt: %v, %v, want %v", got, err, want)
	}
}

func (c *SinkCase) readAt(t *testing.T) {
	r, _, at := c.reconciler(t)
	if got, err := r.ReadAt(ctxOf(t), []change.Coord{at}); err != nil || len(got) != 1 || time.Since(got[0]) > time.Hour {
		t.Fatalf("a sink that was never away says %v, %v", got, err)
	}
	for _, when := range []time.Time{anHourAgo, {}} {
		if err := r.SetReadAt(ctxOf(t), "a", []change.Coord{at}, []time.Time{when}); err != nil {
			t.Fatalf("SetReadAt: %v", err)
		}
		wantReadAt(t, r, at, when)
		claim(t, r, "a", at, 3)
		wantReadAt(t, r, at, when) // a claim says nothing of it
	}
	claim(t, r, "b", at, 3)
	if err := r.SetReadAt(ctxOf(t), "a", []change.Coord{at}, []time.Time{anHourAgo}); !isFenced(err) {
		t.Fatalf("a process that lost the partition said how far it is read: %v, want ErrFenced", err)
	}
	wantReadAt(t, r, at, time.Time{})
}

func (c *SinkCase) reconcile(t *testing.T) {
	r, f, at := c.reconciler(t)
	if err := writeAt(t, r, "a", f.Batch(5, 1)); err != nil {
		t.Fatalf("WriteWithOffsets: %v", err)
	}
	for want := int64(1); want >= 0; want-- { // the second finds nothing
		deleted, before, err := r.Reconcile(ctxOf(t), "a", span(f, 0, 3), anHourAgo, holding(f, 1, 3, 7))
		if err != nil || deleted != want || before != 0 {
			t.Fatalf("Reconcile: %d deleted, %d before, %v, want %d deleted", deleted, before, err, want)
		}
		c.want(t, "key 2 is deleted, 4 is of another partition and 5 is newer", 1, 1, 3, 1, 4, 1, 5, 1)
		wantReadAt(t, r, at, anHourAgo)
	}
	if _, _, err := r.Reconcile(ctxOf(t), "a", span(f, 0, 4), anHourAgo, holding(f)); err != nil {
		t.Fatalf("Reconcile: %v", err)
	}
	c.want(t, "of a partition that holds nothing", 4, 1)
}

func (c *SinkCase) reconcileCutOff(t *testing.T) {
	r, f, at := c.reconciler(t)
	deleted, before, err := r.Reconcile(ctxOf(t), "a", span(f, 1, 3), anHourAgo, holding(f, 3))
	if err != nil || deleted != 0 || before != 1 {
		t.Fatalf("Reconcile: %d deleted, %d before, %v, want 1 before", deleted, before, err)
	}
	c.want(t, "rows of records that were cut off were deleted", 1, 1, 2, 1, 3, 1, 4, 1)
	if got, err := r.ReadAt(ctxOf(t), []change.Coord{at}); err != nil || got[0].Equal(anHourAgo) {
		t.Fatalf("it is said to be done: %v, %v", got, err)
	}
	deleted, before, err = r.Reconcile(ctxOf(t), "a", span(f, 1, 3), anHourAgo, holding(f, 1, 3))
	if err != nil || deleted != 1 || before != 0 {
		t.Fatalf("Reconcile: %d deleted, %d before, %v, want 1 deleted", deleted, before, err)
	}
	c.want(t, "all that is before the start is held", 1, 1, 3, 1, 4, 1)
}

func (c *SinkCase) reconcileFenced(t *testing.T) {
	r, f, _ := c.reconciler(t)
	_, _, err := r.Reconcile(ctxOf(t), "a", span(f, 0, 3), anHourAgo, func(take func(*change.Batch) error) error {
		if err := holding(f, 1)(take); err != nil {
			return err
		}
		// Another process takes over and reads on; this must not wait for us.
		claim(t, r, "b", change.Coord{Topic: f.Topic, Partition: f.Part}, 3)
		return writeAt(t, r, "b", f.Batch(2, 2))
	})
	if !isFenced(err) {
		t.Fatalf("a process that lost the partition reconciled: %v, want ErrFenced", err)
	}
	c.want(t, "a process that lost the partition deleted", 1, 1, 2, 2, 3, 1, 4, 1)
}

func (c *SinkCase) reconcileFails(t *testing.T) {
	r, f, at := c.reconciler(t)
	broke := errors.New("the topic cannot be read")
	_, _, err := r.Reconcile(ctxOf(t), "a", span(f, 0, 3), anHourAgo, func(take func(*change.Batch) error) error {
		if err := holding(f, 1)(take); err != nil {
			return err
		}
		return broke
	})
	if err != broke { //nolint:errorlint // as it is
		t.Fatalf("Reconcile: %v, want %v", err, broke)
	}
	c.want(t, "rows were deleted by half of the keys", 1, 1, 2, 1, 3, 1, 4, 1)
	if got, err := r.ReadAt(ctxOf(t), []change.Coord{at}); err != nil || got[0].Equal(anHourAgo) {
		t.Fatalf("it is said to be done: %v, %v", got, err)
	}
}
