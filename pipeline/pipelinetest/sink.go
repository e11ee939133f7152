package pipelinetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

// SinkCase describes a sink to SinkSuite.
type SinkCase struct {
	// Topic is a canonical topic that the sink takes.
	Topic string
	// Mark is a column of kind String that the target keeps as it is: by it
	// the suite tells versions.
	Mark string
	// New gives the sink on an empty target. Called once per subtest.
	New func(tb testing.TB) pipeline.Sink
	// Read gives key → Mark as the target has it now.
	Read func(tb testing.TB) map[string]string
	// Fill may set columns of a record; nil if the feed's values will do.
	Fill func(b *change.Batch, row []change.Value, key, version int)
	// Spoil makes a change that the target must refuse; nil if there is none.
	Spoil func(b *change.Batch, c *change.Change)
	// KeepsDeleted: a tombstone does not delete at the target.
	KeepsDeleted bool
}

// SinkSuite runs every duty of a Sink, and of an OffsetKeeper and a Reconciler
// when it is one.
func SinkSuite(t *testing.T, c SinkCase) {
	t.Run("WritesWhatItGets", c.writes)
	t.Run("SameBatchTwiceShowsOnce", c.twice)
	t.Run("OlderVersionAfterNewerDoesNotWin", c.older)
	t.Run("LastVersionOfAKeyInABatchWins", c.versions)
	t.Run("TombstoneDeletes", c.tombstone)
	t.Run("FailureIsReportedByIndexAndTheOthersAreWritten", c.failure)
	t.Run("KeepsNothingOfTheBatch", c.poison)
	t.Run("CancelledWriteCanBeDoneAgain", c.cancel)
	t.Run("EmptyBatch", c.empty)
	t.Run("Offsets", func(t *testing.T) {
		if _, ok := c.New(t).(pipeline.OffsetKeeper); !ok {
			return // not a capability of this sink
		}
		t.Run("MoveWithTheWrite", c.offsetsMove)
		t.Run("FencedOwnerWritesNothing", c.offsetsFenced)
		t.Run("WrongStartWritesNothing", c.offsetsWrongStart)
		t.Run("ResetIsHonoured", c.offsetsReset)
	})
	t.Run("Away", func(t *testing.T) {
		if _, ok := c.New(t).(pipeline.Reconciler); !ok {
			return // not a capability of this sink
		}
		t.Run("ReadAtIsKept", c.readAt)
		t.Run("ReconcileDeletesWhatHasNoKey", c.reconcile)
		t.Run("ReconcileDeletesNothingOfTheCutOff", c.reconcileCutOff)
		t.Run("FencedOwnerReconcilesNothing", c.reconcileFenced)
		t.Run("ReconcileThatFailsDeletesNothing", c.reconcileFails)
	})
}

func (c *SinkCase) feed(t *testing.T) *Feed {
	f := NewFeed(t, c.Topic)
	f.Mark, f.Fill = c.Mark, c.Fill
	return f
}

func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// write writes b and releases it; failures fail the test.
func write(t *testing.T, s pipeline.Sink, b *change.Batch) {
	t.Helper()
	defer b.Release()
	fs, err := s.Write(ctxOf(t), b)
	if err != nil {
		t.Fatalf("Write: %v", err)
	}
	for _, f := range fs {
		t.Fatalf("change %d failed: %v", f.Index, f.Err)
	}
}

func (c *SinkCase) want(t *testing.T, why string, keysAndVersions ...int) {
	t.Helper()
	want := map[string]string{}
	for i := 0; i+1 < len(keysAndVersions); i += 2 {
		want[KeyOf(keysAndVersions[i])] = MarkOf(keysAndVersions[i+1])
	}
	if got := c.Read(t); !maps.Equal(got, want) {
		t.Fatalf("%s: the target has %v, want %v", why, got, want)
	}
}

func (c *SinkCase) writes(t *testing.T) {
	s, f := c.New(t), c.feed(t)
	write(t, s, f.Batch(1, 1, 2, 1, 3, 1))
	c.want(t, "after three records", 1, 1, 2, 1, 3, 1)
	write(t, s, f.Batch(2, 2))
	c.want(t, "after an update", 1, 1, 2, 2, 3, 1)
}

func (c *SinkCase) twice(t *testing.T) {
	s, f := c.New(t), c.feed(t)
	for range 2 {
		f.Next = 0
		write(t, s, f.Batch(1, 1, 2, 1, 1, 2))
	}
	c.want(t, "an engine that crashed before its commit doubled a write", 1, 2, 2, 1)
}

func (c *SinkCase) older(t *testing.T) {
	s, f := c.New(t), c.feed(t)
	write(t, s, f.Batch(1, 1, 1, 2))
	b := change.Get()
	f.At(b, 0, 1, 1)
	write(t, s, b)
	c.want(t, "a replay brought an old version back", 1, 2)
}

func (c *SinkCase) versions(t *testing.T) {
	s, f := c.New(t), c.feed(t)
	write(t, s, f.Batch(1, 1, 2, 1, 1, 2, 1, 3))
	c.want(t, "order within a batch was lost", 1, 3, 2, 1)
}

func (c *SinkCase) tombstone(t *testing.T) {
	s, f := c.New(t), c.feed(t)
	write(t, s, f.Batch(1, 1, 2, 1))
	for range 2 { // the second finds nothing to delete
		b, from := change.Get(), f.Next
		f.Delete(b, 1)
		write(t, s, f.Close(b, from))
	}
	if c.KeepsDeleted {
		if got := c.Read(t)[KeyOf(2)]; got != MarkOf(1) {
			t.Fatalf("a tombstone of another key changed key 2 to %q", got)
		}
		return
	}
	c.want(t, "a deleted entity is still there", 2, 1)
	write(t, s, f.Batch(1, 5))
	c.want(t, "an entity made again after its deletion is missing", 1, 5, 2, 1)
}

func (c *SinkCase) failure(t *testing.T) {
	if c.Spoil == nil {
		return
	}
	s, f := c.New(t), c.feed(t)
	b, from := change.Get(), f.Next
	f.Put(b, 1, 1)
	c.Spoil(b, f.Put(b, 2, 1))
	f.Put(b, 3, 1)
	f.Close(b, from)
	fs, err := s.Write(ctxOf(t), b)
	b.Release()
	if err != nil {
		t.Fatalf("one bad change stopped the sink: %v", err)
	}
	if len(fs) != 1 || fs[0].Index != 1 || fs[0].Err == nil {
		t.Fatalf("failures: %v, want one, of change 1", fs)
	}
	if fs[0].WaitsFor == "" && pipeline.Classify(fs[0].Err) != problem.Reject {
		t.Fatalf("the failure is not a reject: %v", fs[0].Err)
	}
	c.want(t, "a bad change took others with it", 1, 1, 3, 1)
	write(t, s, f.Batch(2, 2))
	c.want(t, "the mended change was not taken", 1, 1, 2, 2, 3, 1)
}

func (c *SinkCase) poison(t *testing.T) {
	change.PoisonOnRelease(true)
	defer change.PoisonOnRelease(false)
	s, f := c.New(t), c.feed(t)
	for v := 1; v <= 3; v++ {
		write(t, s, f.Batch(1, v, 2, v))
	}
	c.want(t, "memory of a released batch was written", 1, 3, 2, 3)
}

func (c *SinkCase) cancel(t *testing.T) {
	s, f := c.New(t), c.feed(t)
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		f.Next = 0
		ctx, cancel := context.WithTimeout(ctxOf(t), after)
		b := f.Batch(1, 1, 2, 1, 3, 1)
		fs, err := s.Write(ctx, b) // either outcome is right
		cancel()
		b.Release()
		if err == nil && len(fs) > 0 {
			t.Fatalf("a cancelled write blamed changes: %v", fs)
		}
	}
	f.Next = 0
	write(t, s, f.Batch(1, 1, 2, 1, 3, 1))
	c.want(t, "a write that was cut off left something behind", 1, 1, 2, 1, 3, 1)
}

func (c *SinkCase) empty(t *testing.T) {
	s := c.New(t)
	write(t, s, change.Get())
	c.want(t, "nothing was written")
}

// The keeper's subtests.

func (c *SinkCase) keeper(t *testing.T) (pipeline.OffsetKeeper, *Feed, change.Coord) {
	s, f := c.New(t), c.feed(t)
	return s.(pipeline.OffsetKeeper), f, change.Coord{Topic: f.Topic, Partition: f.Part}
}

func claim(t *testing.T, k pipeline.OffsetKeeper, id string, at change.Coord, want int64) {
	t.Helper()
	got, err := k.Claim(ctxOf(t), id, []change.Coord{at})
	if err != nil || len(got) != 1 || got[0] != want {
		t.Fatalf("Claim by %s: %v, %v, want offset %d", id, got, err, want)
	}
}

func setOffset(t *testing.T, k pipeline.OffsetKeeper, id string, at change.Coord, offset int64) {
	t.Helper()
	at.Offset = offset
	if err := k.SetOffsets(ctxOf(t), id, []change.Coord{at}); err != nil {
		t.Fatalf("SetOffsets: %v", err)
	}
}

func writeAt(t *testing.T, k pipeline.OffsetKeeper, id string, b *change.Batch) error {
	t.Helper()
	defer b.Release()
	fs, err := k.WriteWithOffsets(ctxOf(t), id, b)
	if err == nil && len(fs) > 0 {
		err = fmt.Errorf("change %d failed: %w", fs[0].Index, fs[0].Err)
	}
	return err
}

func (c *SinkCase) offsetsMove(t *testing.T) {
	k, f, at := c.keeper(t)
	claim(t, k, "a", at, -1)
	setOffset(t, k, "a", at, 0)
	for v := 1; v <= 2; v++ {
		if err := writeAt(t, k, "a", f.Batch(1, v, 2, v)); err != nil {
			t.Fatalf("WriteWithOffsets: %v", err)
		}
	}
	// A range without changes (duplicates, markers) moves the offset too.
	f.Next += 3
	if err := writeAt(t, k, "a", f.Close(change.Get(), f.Next-3)); err != nil {
		t.Fatalf("WriteWithOffsets of an empty range: %v", err)
	}
	c.want(t, "after two batches", 1, 2, 2, 2)
	claim(t, k, "b", at, f.Next)
}

func (c *SinkCase) offsetsFenced(t *testing.T) {
	k, f, at := c.keeper(t)
	claim(t, k, "a", at, -1)
	setOffset(t, k, "a", at, 0)
	if err := writeAt(t, k, "a", f.Batch(1, 1)); err != nil {
		t.Fatalf("WriteWithOffsets: %v", err)
	}
	claim(t, k, "b", at, 1)
	if err := writeAt(t, k, "a", f.Batch(1, 2)); !isFenced(err) {
		t.Fatalf("a process that lost the partition wrote: %v, want ErrFenced", err)
	}
	c.want(t, "a process that lost the partition wrote", 1, 1)
	f.Next = 1
	if err := writeAt(t, k, "b", f.Batch(1, 3)); err != nil {
		t.Fatalf("the new owner cannot write: %v", err)
	}
	c.want(t, "after the new owner's write", 1, 3)
}

func (c *SinkCase) offsetsWrongStart(t *testing.T) {
	k, f, at := c.keeper(t)
	claim(t, k, "a", at, -1)
	setOffset(t, k, "a", at, 0)
	f.Next = 5
	if err := writeAt(t, k, "a", f.Batch(1, 1)); !isFenced(err) {
		t.Fatalf("offsets 0 to 4 were skipped: %v, want ErrFenced", err)
	}
	c.want(t, "a batch that starts elsewhere was written")
}

func (c *SinkCase) offsetsReset(t *testing.T) {
	k, f, at := c.keeper(t)
	claim(t, k, "a", at, -1)
	setOffset(t, k, "a", at, 0)
	if err := writeAt(t, k, "a", f.Batch(1, 1, 2, 1, 1, 2)); err != nil {
		t.Fatalf("WriteWithOffsets: %v", err)
	}
	claim(t, k, "b", at, 3)
	setOffset(t, k, "b", at, 0)
	f.Next = 0
	if err := writeAt(t, k, "b", f.Batch(1, 1, 2, 1, 1, 2)); err != nil {
		t.Fatalf("a reset was not honoured: %v", err)
	}
	c.want(t, "a reset changed the content", 1, 2, 2, 1)
	claim(t, k, "c", at, 3)
}

func isFenced(err error) bool { return errors.Is(err, &problem.Error{Code: pipeline.ErrFenced}) }
