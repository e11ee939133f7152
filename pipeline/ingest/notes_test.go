package ingest

import (
	"context"
	"fmt"
	"maps"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// noting runs a source that gives what it finds noted to do, and ends when all that
// this sends is durable.
func noting(b *enginetest.Bed, limits pipeline.IngestLimits, do func(ctx context.Context, out pipeline.SourceOutlet) error) (found map[string]string, err error) {
	b.T.Helper()
	ctx, cancel := context.WithCancel(b.T.Context())
	defer cancel()
	src := scripted(func(run context.Context, out pipeline.SourceOutlet) error {
		if _, err := out.Resume(run); err != nil {
			return err
		}
		found = nil
		for key, value := range out.Notes() {
			if found == nil {
				found = map[string]string{}
			}
			found[key] = string(value)
		}
		if err := do(run, out); err != nil {
			return err
		}
		cancel()
		return nil
	})
	return found, runIngest(b, ctx, src, limits)
}

func finds(b *enginetest.Bed, what string, want map[string]string) {
	b.T.Helper()
	found, err := noting(b, pipeline.IngestLimits{}, func(context.Context, pipeline.SourceOutlet) error { return nil })
	if err != nil {
		b.T.Fatal(err)
	}
	if !maps.Equal(found, want) || (found == nil) != (want == nil) {
		b.T.Errorf("%s: noted is %v, want %v", what, found, want)
	}
}

// What a source notes belongs to the position that it was written with: after a
// transaction that never ended it is what it was before. If this failed, a table would
// be taken for loaded whose rows were aborted.
func TestIngestNotes(t *testing.T) {
	for name, limits := range map[string]pipeline.IngestLimits{"exactly once": {}, "at least once": plain} {
		t.Run(name, func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
				found, err := noting(b, limits, func(ctx context.Context, out pipeline.SourceOutlet) error {
					out.Note("one", []byte("loading"))
					out.Note("two", []byte("loaded"))
					if err := out.Checkpoint(ctx, []byte(`{"lsn":1}`)); err != nil {
						return err
					}
					value := []byte("loaded")
					out.Note("one", []byte("half loaded"))
					out.Note("one", value)
					value[0] = 'L' // it was copied
					out.Note("two", nil)
					out.Note("three", []byte("loading"))
					if err := out.Send(ctx, oneRow(b.Table(), 1, 1, "a", true)); err != nil {
						return err
					}
					return out.Checkpoint(ctx, []byte(`{"lsn":2}`))
				})
				if err != nil || found != nil {
					t.Fatalf("a new source finds %v (%v)", found, err)
				}
				want := map[string]string{"one": "loaded", "three": "loading"}
				finds(b, "after a restart", want)

				if _, err := noting(b, limits, func(ctx context.Context, out pipeline.SourceOutlet) error {
					out.Note("one", nil)
					out.Note("three", []byte("loaded"))
					return out.Send(ctx, oneRow(b.Table(), 3, 3, "b", false)) // no boundary: it is aborted
				}); err != nil {
					t.Fatal(err)
				}
				finds(b, "after a transaction that was aborted", want)
			})
		})
	}
}

// A version that keeps no notes wrote the last position, or the position was deleted:
// what is noted is of before, and must not be taken for now, then or later.
func TestIngestNotesOfAnotherTime(t *testing.T) {
	b := enginetest.NewBed(t, "")
	keep := func(keys ...string) {
		t.Helper()
		if _, err := noting(b, pipeline.IngestLimits{}, func(ctx context.Context, out pipeline.SourceOutlet) error {
			for _, key := range keys {
				out.Note(key, []byte("x"))
			}
			return out.Checkpoint(ctx, []byte(`{"lsn":1}`))
		}); err != nil {
			t.Fatal(err)
		}
	}
	keep("one", "two")
	old, err := decodePosition(lastPositionRecord(b))
	if err != nil {
		t.Fatal(err)
	}
	old.Notes = 0
	r := &kgo.Record{Topic: positionsTopicOf(b.Source), Key: []byte(b.Source), Value: old.encode()}
	if err := b.Direct.Shared().ProduceSync(t.Context(), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	finds(b, "after another version", nil)
	finds(b, "and again", nil)
	keep("two", "three")
	finds(b, "after something was noted again", map[string]string{"two": "x", "three": "x"})
	if _, err := b.Direct.Admin().DeleteTopic(t.Context(), positionsTopicOf(b.Source)); err != nil {
		t.Fatal(err)
	}
	finds(b, "after the position was deleted", nil)
	keep("four")
	finds(b, "after something was noted anew", map[string]string{"four": "x"})
}

// If this failed, a source whose notes were deleted would take its tables for new ones.
func TestIngestNotesAreGone(t *testing.T) {
	b := enginetest.NewBed(t, "")
	if _, err := noting(b, pipeline.IngestLimits{}, func(ctx context.Context, out pipeline.SourceOutlet) error {
		for n := range 3000 {
			out.Note(fmt.Sprint(n), make([]byte, 1000))
		}
		return out.Checkpoint(ctx, []byte(`{"lsn":1}`))
	}); err != nil {
		t.Fatal(err)
	}
	found, err := noting(b, pipeline.IngestLimits{}, func(context.Context, pipeline.SourceOutlet) error { return nil })
	if err != nil || len(found) != 3000 {
		t.Fatalf("%d notes are found, want 3000 (%v)", len(found), err)
	}
	r := &kgo.Record{Topic: tablesTopicOf(b.Source), Key: []byte(noteKey + "7")}
	if err := b.Direct.Shared().ProduceSync(t.Context(), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	_, err = noting(b, pipeline.IngestLimits{}, func(context.Context, pipeline.SourceOutlet) error { return nil })
	if !problem.Has(err, ErrNotes) {
		t.Fatalf("%v, want TW-SOURCE-NOTES", err)
	}
	startedOver(b) // Remedy: TW-SOURCE-NOTES
}
