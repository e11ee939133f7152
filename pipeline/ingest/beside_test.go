package ingest

import (
	"context"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// placing is a source that can place records beside its stream.
type placing struct{ scripted }

func (placing) Beside(r pipeline.Resume, n uint64) (change.Pos, bool) {
	return (*feed)(nil).Beside(r, n)
}

// Lost if this fails: a row that was read beside the stream, since its place is not
// behind those that went out before it, over restarts too: whoever compares
// positions drops it (C6).
func TestIngestBatchesBesideTheStream(t *testing.T) {
	for name, limits := range map[string]pipeline.IngestLimits{"exactly once": {}, "at least once": plain} {
		t.Run(name, func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
				table := b.Table()
				beside := func(rows ...int64) *change.Batch {
					x := change.Get()
					for i, id := range rows {
						enginetest.AppendRow(x, table, enginetest.Row{Op: change.Read, ID: id, Val: "read"}, 1, i)
					}
					x.Resume, x.Beside = []byte(`{"lsn":1}`), true
					return x
				}
				run := func(batches ...*change.Batch) {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if err := runIngest(b, ctx, placing{func(run context.Context, out pipeline.SourceOutlet) error {
						if _, err := out.Resume(run); err != nil {
							return err
						}
						for _, x := range batches {
							if err := out.Send(run, x); err != nil {
								return err
							}
						}
						if err := out.Checkpoint(run, []byte(`{"lsn":1}`)); err != nil {
							return err
						}
						cancel()
						return nil
					}}, limits); err != nil {
						t.Fatal(err)
					}
				}
				run(oneRow(table, 1, 1, "a", true), beside(1, 2, 3), beside(1))
				run(beside(2, 3), beside(1))
				var got []uint64
				for _, r := range b.Committed() {
					for _, h := range r.Headers {
						if h.Key != kafka.HeaderPos {
							continue
						}
						pos, err := change.ParsePos(h.Value)
						if err != nil {
							t.Fatal(err)
						}
						if pos.Ordinal > 1<<62 {
							got = append(got, pos.Ordinal-1<<62)
						}
					}
				}
				slices.Sort(got)
				if !slices.Equal(got, []uint64{1, 2, 3, 4, 5, 6, 7}) {
					t.Errorf("places %v, want each of 1 to 7 once", got)
				}
				p, err := decodePosition(lastPositionRecord(b))
				if err != nil || p.Beside != 7 {
					t.Errorf("the position counts %d records beside the stream (%v), want 7", p.Beside, err)
				}
			})
		})
	}
}

// What a source is asked stays until what it made of it is written, and is given once.
func TestIngestAsks(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		ask := func(value string) string {
			t.Helper()
			id, err := Ask(t.Context(), b.Direct, b.Source, []byte(value))
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		answered := func(id string) bool {
			t.Helper()
			is, err := Answered(t.Context(), b.Direct, b.Source, id)
			if err != nil {
				t.Fatal(err)
			}
			return is
		}
		asked := func(ctx context.Context, out pipeline.SourceOutlet, want ...string) {
			t.Helper()
			m, err := out.Asked(ctx)
			if err != nil {
				t.Error(err)
			}
			var got []string
			for _, v := range m {
				got = append(got, string(v))
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("asked is %q, want %q", got, want)
			}
		}
		one := ask("one") // nobody runs it
		var two string
		if _, err := noting(b, pipeline.IngestLimits{}, func(ctx context.Context, out pipeline.SourceOutlet) error {
			asked(ctx, out, "one")
			two = ask("two")
			asked(ctx, out, "one", "two")
			out.Answer(one)
			asked(ctx, out, "two")
			if err := out.Checkpoint(ctx, []byte(`{"lsn":1}`)); err != nil {
				return err
			}
			// The end of a transaction is seen a moment after it is confirmed.
			b.AwaitRecord("the answer", tablesTopicOf(b.Source), func(r *kgo.Record) bool { return string(r.Key) == askKey+one && r.Value == nil })
			if !answered(one) {
				t.Error("what was written is no answer")
			}
			out.Answer(two)
			asked(ctx, out)
			return nil // it is not written
		}); err != nil {
			t.Fatal(err)
		}
		if answered(two) {
			t.Error("what was not written is an answer")
		}
		found, err := noting(b, pipeline.IngestLimits{}, func(ctx context.Context, out pipeline.SourceOutlet) error {
			asked(ctx, out, "two")
			return nil
		})
		if err != nil || len(found) != 0 {
			t.Errorf("a request counts as a note: %v (%v)", found, err)
		}
	})
}
