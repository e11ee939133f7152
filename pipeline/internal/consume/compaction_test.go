package consume_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// Compaction of the embedded broker moves the start of a partition past what a
// group that was away had yet to read. Nothing is lost by it, so nothing may
// halt; and a sink's own offset must go on from where it was.
func TestCompactedAwayIsNotLost(t *testing.T) {
	for name, loop := range loops {
		t.Run(name, func(t *testing.T) {
			b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
			in := *b.In
			in.Topic += ".compacted"
			b.In = in.Index()
			if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: in.Topic, Partitions: 3, Compact: true}); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Outs.Ensure(t.Context(), b.In); err != nil {
				t.Fatal(err)
			}
			start, through := loop(b)
			update := func() { b.Put(enginetest.Row{Op: change.Update, ID: 7, Val: "newer"}) }
			update()
			stop, _ := start(b.Env)
			b.Drained()
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			had := through()
			for range 5 {
				update()
			}
			b.Fake.Compact()
			starts, err := b.Direct.Admin().ListStartOffsets(t.Context(), in.Topic)
			if err != nil {
				t.Fatal(err)
			}
			moved := false
			starts.Each(func(o kadm.ListedOffset) { moved = moved || o.Offset > 1 })
			if !moved {
				t.Fatal("the compaction moved nothing: this tests nothing")
			}
			_, ended := start(b.Env)
			b.Eventually("what is still there", func() (bool, string) {
				select {
				case err := <-ended:
					t.Fatalf("ended with %v", err)
				default:
				}
				v := b.View(b.Env, name)
				return through() > had, fmt.Sprintf("%s %s %+v", v.State, v.Reason, v)
			})
			b.Drained()
		})
	}
}

// The embedded broker applies retention to compacted topics too, and the time
// of our records is that of the commit at the source: a row that nobody changed
// for a week must stay in its topic, or a rebuilt state and a new sink miss it.
func TestCompactedTopicsKeepOldRecords(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	topic, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.Source + ".compacted", Partitions: 1, Compact: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"a", "b"} {
		r := &kgo.Record{Topic: topic.Name, Key: []byte(k), Value: []byte("v"), Timestamp: time.Now().AddDate(-1, 0, 0)}
		if err := b.Client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	b.Fake.Compact()
	b.Fake.ApplyRetention()
	if got := b.Read(topic.Name); len(got) != 2 {
		t.Errorf("%d of 2 records are left", len(got))
	}
}
