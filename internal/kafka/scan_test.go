package kafka_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/internal/testkit/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// connect gives a cluster at addr, and a client of it that produces to
// partition 0.
func connect(t *testing.T, addr string) (*kafka.Cluster, *kgo.Client) {
	t.Helper()
	c, err := kafka.New(kafka.Config{Brokers: []string{addr}}, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	cl, err := c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return c, cl
}

// A range whose offsets were compacted away, at its start, in its midst, or up
// to its end, must be read to its end all the same: else a transform waits for
// ever for records that do not exist, before it has read its first.
func TestScanEndsWhereRecordsAreGone(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	c, cl := connect(t, fake.ListenAddrs()[0])
	topic, err := c.EnsureTopic(t.Context(), kafka.TopicSpec{Name: "scan.compacted", Partitions: 1, Compact: true})
	if err != nil {
		t.Fatal(err)
	}
	put := func(keys ...string) {
		for _, k := range keys {
			// One batch each.
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic.Name, Key: []byte(k), Value: []byte("v")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(from, to int64, want ...int64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
		defer cancel()
		var got []int64
		if err := kafka.Scan(ctx, cl, topic, 0, from, to, func(r *kgo.Record) error {
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
	fake.Compact()
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
	fake.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
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
	scanned := func(t *testing.T, addr string) {
		c, plain := connect(t, addr)
		// A name of its own: with -count the test comes back to a broker that
		// holds what it left.
		name := fmt.Sprintf("scan.txn-%d", time.Now().UnixNano())
		topic, err := c.EnsureTopic(t.Context(), kafka.TopicSpec{Name: name, Partitions: 1})
		if err != nil {
			t.Fatal(err)
		}
		cl, err := c.Client(kgo.TransactionalID(name), kgo.RecordPartitioner(kgo.ManualPartitioner()))
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
			err = kafka.Scan(ctx, plain, topic, 0, 0, to, func(r *kgo.Record) error {
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
			if err := kafka.Scan(ctx, plain, topic, 0, 4, 5, func(*kgo.Record) error { return nil }); err == nil {
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
	}
	t.Run("kfake", func(t *testing.T) {
		fake, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(fake.Close)
		scanned(t, fake.ListenAddrs()[0])
	})
	t.Run("kafka", func(t *testing.T) {
		if testing.Short() {
			t.Log("short: on kfake only")
			return
		}
		scanned(t, testkit.SharedKafka(t).Addr())
	})
}
