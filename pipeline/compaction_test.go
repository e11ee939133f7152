package pipeline

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
)

// Compaction of the embedded broker moves the start of a partition past what a
// group that was away had yet to read. Nothing is lost by it, so nothing may
// halt; and a sink's own offset must go on from where it was.
func TestCompactedAwayIsNotLost(t *testing.T) {
	for name, loop := range loops {
		t.Run(name, func(t *testing.T) {
			b := newTransformBed(newBed(t, ""))
			in := *b.in
			in.Topic += ".compacted"
			b.in = in.Index()
			if _, err := b.direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: in.Topic, Partitions: 3, Compact: true}); err != nil {
				t.Fatal(err)
			}
			if _, err := b.outs.Ensure(t.Context(), b.in); err != nil {
				t.Fatal(err)
			}
			start, through := loop(b)
			update := func() { b.put(row{op: change.Update, id: 7, val: "newer"}) }
			update()
			stop, _ := start(b.env)
			b.drained()
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			had := through()
			for range 5 {
				update()
			}
			b.fake.Compact()
			starts, err := b.direct.Admin().ListStartOffsets(t.Context(), in.Topic)
			if err != nil {
				t.Fatal(err)
			}
			moved := false
			starts.Each(func(o kadm.ListedOffset) { moved = moved || o.Offset > 1 })
			if !moved {
				t.Fatal("the compaction moved nothing: this tests nothing")
			}
			_, ended := start(b.env)
			b.eventually("what is still there", func() (bool, string) {
				select {
				case err := <-ended:
					t.Fatalf("ended with %v", err)
				default:
				}
				v := b.view(b.env, name)
				return through() > had, fmt.Sprintf("%s %s %+v", v.State, v.Reason, v)
			})
			b.drained()
		})
	}
}

// The embedded broker applies retention to compacted topics too, and the time
// of our records is that of the commit at the source: a row that nobody changed
// for a week must stay in its topic, or a rebuilt state and a new sink miss it.
func TestCompactedTopicsKeepOldRecords(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	topic, err := b.direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.source + ".compacted", Partitions: 1, Compact: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"a", "b"} {
		r := &kgo.Record{Topic: topic.Name, Key: []byte(k), Value: []byte("v"), Timestamp: time.Now().AddDate(-1, 0, 0)}
		if err := b.cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	b.fake.Compact()
	b.fake.ApplyRetention()
	if got := b.read(topic.Name); len(got) != 2 {
		t.Errorf("%d of 2 records are left", len(got))
	}
}
