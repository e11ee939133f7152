package pipeline

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline/state"
)

// Without it: nothing arrives, or offsets move without records.
func TestTransformCopiesEachRecordOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		b.many(1000)
		stop, _ := transforming(b, b.env, b.spec(&copier{topic: b.output()}))
		b.drained()
		b.many(500)
		b.drained()
		b.shows(b.env, "transform", "no lag", func(v obs.View) bool { return v.State == obs.Running && v.Lag[b.in.Topic] == 0 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.many(200)
		transforming(b, b.env, b.spec(&copier{topic: b.output()}))
		b.drained()
		b.once()
	})
}

// A1. Without the new session after an unknown end: twenty outputs for ten
// inputs, or ten lost.
func TestTransformLostReplies(t *testing.T) {
	for name, key := range map[string]int16{"EndTxn": 26, "TxnOffsetCommit": 28, "Produce": 0, "InitProducerID": 22} {
		for how, loss := range map[string]testkit.KafkaLoss{"request": testkit.LoseRequest, "reply": testkit.LoseReply} {
			t.Run(name+"-"+how, func(t *testing.T) {
				onBoth(t, func(t *testing.T, bd *bed) {
					b := newTransformBed(bd)
					b.many(1000)
					// More often than the client itself tries again.
					hit := bd.proxy.Lose(key, loss, 4)
					transforming(b, b.env, b.spec(&copier{topic: b.output()}))
					select {
					case <-hit:
					case <-time.After(testkit.Patience):
						t.Fatal("the proxy lost nothing")
					}
					b.many(1000)
					b.drained()
					b.once()
				})
			})
		}
	}
}

// A3. Without looking at every promise, the record that failed alone is gone
// while its offset is committed.
func TestTransformRecordThatTheBrokerRefuses(t *testing.T) {
	t.Run("kfake", func(t *testing.T) {
		b := newTransformBed(newBed(t, ""))
		transforming(b, b.env, b.spec(&copier{topic: b.output()}))
		b.many(10)
		b.drained()
		refused := b.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: b.output(), Err: kerr.MessageTooLarge, Count: 1})
		b.many(10)
		b.eventually("a record to be refused", func() (bool, string) { return refused.Hits() > 0, "" })
		b.drained()
		b.once()
	})
	t.Run("kafka", func(t *testing.T) {
		if testing.Short() {
			t.Log("short: on kfake only")
			return
		}
		b := newTransformBed(newBed(t, testkit.SharedKafka(t).Addr()))
		// The session begins with the topic's larger limit; then the topic
		// takes less, which the check of sizes before produce cannot know.
		transforming(b, b.env, b.spec(&copier{topic: b.output()}))
		b.many(10)
		b.drained()
		setTopic(t, b.direct, b.output(), "max.message.bytes", "2000")
		// The broker says that the limit is set before it heeds it: what comes
		// until then still fits.
		b.eventually("the transaction to be given up", func() (bool, string) {
			v := b.view(b.env, "transform")
			if v.State == obs.Retrying || v.Parked > 0 {
				return true, ""
			}
			b.put(row{op: change.Update, id: 7, val: incompressible()})
			return false, string(v.State) + " " + v.Reason
		})
		setTopic(t, b.direct, b.output(), "max.message.bytes", "1000000")
		b.drained()
		if len(b.parkedNow()) == 0 { // else: found too large by the check of the next session
			b.once()
		}
	})
}

// incompressible gives 4000 characters that do not compress below the limit.
func incompressible() string {
	var sb strings.Builder
	x := uint32(12345)
	for range 4000 {
		x = x*1664525 + 1013904223
		sb.WriteByte('!' + byte(x>>24)%90)
	}
	return sb.String()
}

// setTopic sets a topic's setting and waits until the broker shows it, which is
// a little before it heeds it.
func setTopic(t *testing.T, c *kafka.Cluster, topic, key, value string) {
	t.Helper()
	defer func() {
		for deadline := time.Now().Add(testkit.Patience); ; {
			rs, err := c.Admin().DescribeTopicConfigs(t.Context(), topic)
			if err == nil && slices.ContainsFunc(rs[0].Configs, func(c kadm.Config) bool { return c.Key == key && c.MaybeValue() == value }) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s of topic %q is not %s: %v, %v", key, topic, value, rs, err)
			}
		}
	}()
	rs, err := c.Admin().AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: key, Value: &value}}, topic)
	if err == nil {
		_, err = rs.On(topic, func(r *kadm.AlterConfigsResponse) error { return r.Err })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A4, A5. A process killed between produce and commit: its records must never
// be seen, and its open transaction must not hold readers up for its timeout.
func TestTransformTakesOverAnOpenTransaction(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		b.many(300)
		spec := b.spec(&copier{topic: b.output()})
		if _, err := b.direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.output(), Partitions: 3}); err != nil {
			t.Fatal(err)
		}
		dead, err := b.direct.Client(kgo.TransactionalID("tallywire."+b.source+"."+b.env.Instance),
			kgo.TransactionTimeout(60*time.Second), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			t.Fatal(err)
		}
		defer dead.Close()
		if err := dead.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for p := range int32(3) {
			r := &kgo.Record{Topic: b.output(), Partition: p, Key: []byte("left"), Value: []byte("behind")}
			if err := dead.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		transforming(b, b.env, spec)
		b.drained()
		b.once()
		for _, r := range b.read(b.output()) {
			if string(r.Key) == "left" {
				t.Error("a record of the killed process's open transaction is there")
			}
		}
		if d := time.Since(began); d > 50*time.Second {
			t.Errorf("readers were held up for %v by the open transaction", d)
		}
	})
}

// A4. A process that was replaced must stop, not fight.
func TestTransformFencedHalts(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		b.many(100)
		_, ended := transforming(b, b.env, b.spec(&copier{topic: b.output()}))
		b.drained()
		other, err := b.direct.Client(kgo.TransactionalID("tallywire." + b.source + "." + b.env.Instance))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if _, _, err := other.ProducerID(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.many(10)
		select {
		case err := <-ended:
			if !problem.Has(err, ErrFenced) {
				t.Fatalf("ended with %v, want TW-FENCED", err)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("a fenced process goes on")
		}
	})
}

// Partitions move between processes under load: without fencing by the group's
// generation, records are doubled; without blocking, the work starts anew
// again and again.
func TestTransformRebalances(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		b.many(500)
		a, second := b.member("a"), b.member("b")
		slow := func() { <-time.After(2 * time.Millisecond) }
		stopA, _ := transforming(b, a, b.spec(&copier{topic: b.output(), before: slow}))
		b.many(1500)
		stopB, _ := transforming(b, second, b.spec(&copier{topic: b.output(), before: slow}))
		b.many(1500)
		b.eventually("the second member to work", func() (bool, string) {
			v := b.view(second, "transform")
			b.many(50)
			for _, x := range v.Topics {
				if x.Direction == "in" && x.Records > 0 {
					return true, ""
				}
			}
			return false, string(v.State) + " " + v.Reason
		})
		b.many(1000)
		if err := stopA(); err != nil {
			t.Fatal(err)
		}
		b.many(1000)
		b.drained()
		b.once()
		if err := stopB(); err != nil {
			t.Fatal(err)
		}
	})
}

// G1. One bad record must not stop the others, and must not be lost.
func TestTransformParksGarbageAndRejects(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		st := &copier{topic: b.output(), refuse: func(n string) bool { return strings.Contains(n, "bad") }}
		b.many(20)
		garbage := &kgo.Record{Topic: b.in.Topic, Partition: 1, Key: []byte("junk"), Value: []byte("not avro"), Timestamp: time.UnixMilli(1_780_000_000_000)}
		keyless := &kgo.Record{Topic: b.in.Topic, Partition: 2, Value: []byte{0, 0, 0, 77, 77, 1}}
		if err := b.cl.ProduceSync(t.Context(), garbage, keyless).FirstErr(); err != nil {
			t.Fatal(err)
		}
		b.put(row{op: change.Update, id: 3, val: "bad"}) // record 21
		b.put(row{op: change.Update, id: 4, val: "bad"}, row{op: change.Update, id: 4, val: "mended at once"})
		b.many(20)
		stop, _ := transforming(b, b.env, b.spec(st))
		b.drained()
		parked := b.parkedNow()
		// Key 3 has a newer version by many; so has 4.
		if len(parked) != 2 {
			t.Errorf("parked: %q, want the two records of garbage", parked)
		}
		b.once(21, 22)
		b.put(row{op: change.Update, id: 99, val: "bad"})
		n := uint64(b.n)
		b.drained()
		b.shows(b.env, "transform", "what is parked", func(v obs.View) bool { return v.Parked == 3 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// Another process knows it from the topic alone, and a newer version
		// releases it.
		transforming(b, b.env, b.spec(st))
		b.put(row{op: change.Update, id: 99, val: "good"})
		b.drained()
		if parked := b.parkedNow(); len(parked) != 2 {
			t.Errorf("parked after the newer version: %q", parked)
		}
		b.once(21, 22, n)
	})
}

// A8. Records that were deleted before they were read: never skipped silently.
func TestTransformOffsetOutOfRangeHalts(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		b.many(300)
		stop, _ := transforming(b, b.env, b.spec(&copier{topic: b.output()}))
		b.drained()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.many(300)
		ends, err := b.direct.Admin().ListEndOffsets(t.Context(), b.in.Topic)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.direct.Admin().DeleteRecords(t.Context(), ends.Offsets()); err != nil {
			t.Fatal(err)
		}
		_, ended := transforming(b, b.env, b.spec(&copier{topic: b.output()}))
		select {
		case err := <-ended:
			if !problem.Has(err, kafka.ErrOffsetRange) || !strings.Contains(err.Error(), "never read") {
				t.Fatalf("ended with %v, want TW-OFFSET-OUT-OF-RANGE with the missing range", err)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("the gap was skipped")
		}
	})
}

// F1. Topics that do not lie together must not be joined.
func TestTransformOtherPartitionCountHalts(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	if _, err := b.direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.source + ".five", Partitions: 5}); err != nil {
		t.Fatal(err)
	}
	spec := b.spec(&copier{topic: b.output()})
	spec.CoPartitioned = []string{b.in.Topic, b.source + ".five"}
	_, ended := transforming(b, b.env, spec)
	select {
	case err := <-ended:
		if !problem.Has(err, ErrCoPartition) {
			t.Fatalf("ended with %v, want TW-CO-PARTITION", err)
		}
	case <-time.After(testkit.Patience):
		t.Fatal("topics of 3 and 5 partitions were read together")
	}
}

// A stage that must wait sends nothing and is asked again; a broken one halts
// and says so.
func TestTransformStageErrors(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	b.many(10)
	waits := 3
	st := &failing{copier: &copier{topic: b.output()}, err: func() error {
		if waits > 0 {
			waits--
			return state.ErrUnknown.New("not yet")
		}
		return nil
	}}
	stop, _ := transforming(b, b.env, b.spec(st))
	b.drained()
	b.once()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	b.many(10)
	broken := errors.New("nobody foresaw this")
	_, ended := transforming(b, b.env, b.spec(&failing{copier: &copier{topic: b.output()}, err: func() error { return broken }}))
	select {
	case err := <-ended:
		if !errors.Is(err, broken) {
			t.Fatalf("ended with %v", err)
		}
	case <-time.After(testkit.Patience):
		t.Fatal("an error of no class was tried again")
	}
	if v := b.view(b.env, "transform"); v.State != obs.Halted || !strings.Contains(v.Reason, "nobody foresaw") {
		t.Errorf("state %s: %s", v.State, v.Reason)
	}
}
