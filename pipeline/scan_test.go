package pipeline

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/testkit"
)

// A range whose offsets were compacted away, at its start, in its midst, or up
// to its end, must be read to its end all the same: else a transform waits for
// ever for records that do not exist, before it has read its first.
func TestScanEndsWhereRecordsAreGone(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	topic, err := b.direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.source + ".compacted", Partitions: 1, Compact: true})
	if err != nil {
		t.Fatal(err)
	}
	put := func(keys ...string) {
		for _, k := range keys {
			// One batch each.
			if err := b.cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic.Name, Key: []byte(k), Value: []byte("v")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(from, to int64, want ...int64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
		defer cancel()
		var got []int64
		if err := scan(ctx, b.cl, topic, 0, from, to, func(r *kgo.Record) error {
			got = append(got, r.Offset)
			return nil
		}); err != nil {
			t.Errorf("offsets %d to %d: %v", from, to, err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("offsets %d to %d: %v, want %v", from, to, got, want)
		}
	}
	put("a", "b", "c", "a", "b", "x", "x", "x", "d") // 0 to 8
	b.fake.Compact()
	check(0, 9, 2, 3, 4, 7, 8)
	check(0, 2)          // nothing is left of it
	check(0, 3, 2)       // its start is gone
	check(3, 7, 3, 4)    // its end is gone
	check(5, 7)          // all of it, in the midst
	check(5, 8, 7)       // all but its last
	check(9, 9)          // empty
	check(0, 5, 2, 3, 4) // whole at its end
	// The end of the partition itself is gone, as after its last segment was
	// compacted: a fetch finds nothing, though offsets up to its end exist.
	b.fake.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.fake.KeepControl()
		q := req.(*kmsg.FetchRequest)
		if q.Topics[0].TopicID != topic.ID || q.Topics[0].Partitions[0].FetchOffset < 8 {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.FetchResponse)
		rt := kmsg.NewFetchResponseTopic()
		rt.TopicID, rt.Topic = topic.ID, topic.Name
		rp := kmsg.NewFetchResponseTopicPartition()
		rp.HighWatermark, rp.LastStableOffset = 9, 9
		rt.Partitions = append(rt.Partitions, rp)
		resp.Topics = append(resp.Topics, rt)
		return resp, nil, true
	})
	check(8, 9)
}

// What is after the range, or open in it, is none of its records: markers are
// given, records of a transaction that was aborted are not, and one that is
// open is waited for.
func TestScanWaitsForOpenTransactions(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		topic, err := b.direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.source + ".txn", Partitions: 1})
		if err != nil {
			t.Fatal(err)
		}
		cl, err := b.direct.Client(kgo.TransactionalID(b.source), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		txn := func(end kgo.TransactionEndTry, meanwhile func()) {
			t.Helper()
			if err := cl.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic.Name, Key: []byte("k"), Value: []byte("v")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			meanwhile()
			if err := cl.EndTransaction(t.Context(), end); err != nil {
				t.Fatal(err)
			}
		}
		read := func(to int64) (got []string, err error) {
			ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
			defer cancel()
			err = scan(ctx, b.cl, topic, 0, 0, to, func(r *kgo.Record) error {
				what := "record"
				if r.Attrs.IsControl() {
					what = "marker"
				}
				got = append(got, fmt.Sprint(what, r.Offset))
				return nil
			})
			return got, err
		}
		txn(kgo.TryCommit, func() {}) // 0, 1
		txn(kgo.TryAbort, func() {})  // 2, 3
		type result struct {
			got []string
			err error
		}
		done := make(chan result, 1)
		txn(kgo.TryCommit, func() { // 4, 5
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := scan(ctx, b.cl, topic, 0, 4, 5, func(*kgo.Record) error { return nil }); err == nil {
				t.Error("a record of an open transaction was passed by")
			}
			go func() {
				got, err := read(5)
				done <- result{got, err}
			}()
		})
		r := <-done
		if want := []string{"record0", "marker1", "marker3", "record4"}; r.err != nil || !slices.Equal(r.got, want) {
			t.Errorf("%v, %v, want %v", r.got, r.err, want)
		}
	})
}

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
