package transform

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/state"
)

func TestTransformBatchesAreBoundedInOctets(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	enginetest.Wide(b)
	var y enginetest.Tally
	spec := b.TransformSpec(&enginetest.Copier{Topic: b.Output(), Before: y.Begin, Refuse: func(note string) bool { y.Add(note); return false }})
	spec.BatchBytes = enginetest.BoundRows * enginetest.WideOctets
	stop, _ := transforming(b, b.Env, spec)
	b.Drained()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	b.Once()
	y.Check(t)
}

// G1. A retry asked for a transform's parked record: by command on its parked
// topic, or through the control database; both lists agree.
func TestTransformRetriesParked(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		store := b.Control()
		var refuse atomic.Bool
		refuse.Store(true)
		st := &enginetest.Copier{Topic: b.Output(), Refuse: func(n string) bool { return refuse.Load() && strings.Contains(n, "bad") }}
		stop, _ := transforming(b, b.Env, b.TransformSpec(st))
		for id := int64(1); id <= 4; id++ {
			b.Put(enginetest.Row{Op: change.Update, ID: id, Val: "bad"})
		}
		b.Drained()
		list := func() []control.Parked {
			ps, err := store.List(t.Context(), control.Filter{Stage: b.Source})
			if err != nil {
				t.Fatal(err)
			}
			return ps
		}
		b.Eventually("the projection to show four", func() (bool, string) { return len(list()) == 4, fmt.Sprint(list()) })
		if p := list()[0]; p.Kind != control.KindTransform || p.Code != enginetest.ErrNotTaken.ID || p.Topic != b.In.Topic {
			t.Errorf("parked: %+v", p)
		}
		// Still refused: parked again, with one more attempt.
		if n, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "1"}, 0); n.Asked != 1 || err != nil {
			t.Fatal(n, err)
		}
		b.Eventually("the second attempt", func() (bool, string) {
			for _, p := range list() {
				if p.Key == "1" {
					return p.Attempts >= 2, fmt.Sprint(p.Attempts)
				}
			}
			return false, "gone"
		})
		refuse.Store(false)
		if n, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "1"}, 0); n.Asked != 1 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := store.RequestRetry(t.Context(), b.Source, "", "2"); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := parked.Discard(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "3"}, 0); n.Asked != 1 || err != nil {
			t.Fatal(n, err)
		}
		b.Eventually("one to be left", func() (bool, string) { return len(list()) == 1 && len(b.ParkedNow()) == 1, fmt.Sprint(list()) })
		b.Once(3, 4)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// The projection is made anew from the topic.
		if _, err := b.Env.Control.Exec(t.Context(), "delete from tallywire.parked"); err != nil {
			t.Fatal(err)
		}
		transforming(b, b.Env, b.TransformSpec(st))
		b.Eventually("the projection to be mended", func() (bool, string) { return len(list()) == 1, "" })
	})
}

// Shown if this fails: the rows of a topic with rates, to everybody who may see
// what is parked.
func TestTransformParksRestricted(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	b.Env.Restricted = map[string]bool{b.In.Topic: true}
	var refuse atomic.Bool
	refuse.Store(true)
	stop, _ := transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output(), Refuse: func(string) bool { return refuse.Load() }}))
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "a rate of 82.50 an hour"})
	b.Drained()
	b.Eventually("it to be listed", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{Stage: b.Source})
		return len(ps) == 1, fmt.Sprint(ps, err)
	})
	enginetest.CheckNotShown(b, "a rate of 82.50 an hour")
	refuse.Store(false)
	if n, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source}, 0); n.Asked != 1 || err != nil {
		t.Fatal(n, err)
	}
	b.Eventually("nothing to be parked", func() (bool, string) { return len(b.ParkedNow()) == 0, "" })
	b.Once()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// What holds the readers up must show in the metric, with its partition.
func TestStableAgeIsShown(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	b.Many(30)
	transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
	b.Drained()
	other, err := b.Direct.Client(kgo.TransactionalID("other"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := other.ProduceSync(t.Context(), &kgo.Record{Topic: b.In.Topic, Partition: 1, Key: []byte("k")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	age := func() (largest float64, partitions int) {
		fams, err := b.Env.Obs.Registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fams {
			if f.GetName() == "tallywire_last_stable_age_seconds" {
				for _, m := range f.GetMetric() {
					largest = max(largest, m.GetGauge().GetValue())
					partitions++
				}
			}
		}
		return largest, partitions
	}
	b.Eventually("the age to grow", func() (bool, string) {
		s, n := age()
		return s > 1 && n == 3, fmt.Sprintf("%v s at most, of %d partitions", s, n)
	})
	if err := other.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	b.Eventually("the age to end", func() (bool, string) {
		s, _ := age()
		return s == 0, fmt.Sprintf("%v s", s)
	})
}

// Without it: nothing arrives, or offsets move without records.
func TestTransformCopiesEachRecordOnce(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		b.Many(1000)
		stop, _ := transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
		b.Drained()
		b.Many(500)
		b.Drained()
		b.Shows(b.Env, "transform", "no lag", func(v obs.View) bool { return v.State == obs.Running && v.Lag[b.In.Topic] == 0 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.Many(200)
		transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
		b.Drained()
		b.Once()
	})
}

// A1. Without the new session after an unknown end: twenty outputs for ten
// inputs, or ten lost.
func TestTransformLostReplies(t *testing.T) {
	for name, key := range map[string]int16{"EndTxn": 26, "TxnOffsetCommit": 28, "Produce": 0, "InitProducerID": 22} {
		for how, loss := range map[string]testkit.KafkaLoss{"request": testkit.LoseRequest, "reply": testkit.LoseReply} {
			t.Run(name+"-"+how, func(t *testing.T) {
				enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
					b := enginetest.NewTopicBed(bd)
					b.Many(1000)
					// More often than the client itself tries again.
					hit := bd.Proxy.Lose(key, loss, 4)
					transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
					select {
					case <-hit:
					case <-time.After(testkit.Patience):
						t.Fatal("the proxy lost nothing")
					}
					b.Many(1000)
					b.Drained()
					b.Once()
				})
			})
		}
	}
}

// A3. Without looking at every promise, the record that failed alone is gone
// while its offset is committed.
func TestTransformRecordThatTheBrokerRefuses(t *testing.T) {
	t.Run("kfake", func(t *testing.T) {
		b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
		transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
		b.Many(10)
		b.Drained()
		refused := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: b.Output(), Err: kerr.MessageTooLarge, Count: 1})
		b.Many(10)
		b.Eventually("a record to be refused", func() (bool, string) { return refused.Hits() > 0, "" })
		b.Drained()
		b.Once()
	})
	t.Run("kafka", func(t *testing.T) {
		if testing.Short() {
			t.Log("short: on kfake only")
			return
		}
		b := enginetest.NewTopicBed(enginetest.NewBed(t, testkit.SharedKafka(t).Addr()))
		// The session begins with the topic's larger limit; then the topic
		// takes less, which the check of sizes before produce cannot know.
		transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
		b.Many(10)
		b.Drained()
		enginetest.SetTopic(t, b.Direct, b.Output(), "max.message.bytes", "2000")
		// The broker says that the limit is set before it heeds it: what comes
		// until then still fits.
		b.Eventually("the transaction to be given up", func() (bool, string) {
			v := b.View(b.Env, "transform")
			if v.State == obs.Retrying || v.Parked > 0 {
				return true, ""
			}
			b.Put(enginetest.Row{Op: change.Update, ID: 7, Val: incompressible()})
			return false, string(v.State) + " " + v.Reason
		})
		enginetest.SetTopic(t, b.Direct, b.Output(), "max.message.bytes", "1000000")
		b.Drained()
		if len(b.ParkedNow()) == 0 { // else: found too large by the check of the next session
			b.Once()
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

// A4, A5. A process killed between produce and commit: its records must never
// be seen, and its open transaction must not hold readers up for its timeout.
func TestTransformTakesOverAnOpenTransaction(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		b.Many(300)
		spec := b.TransformSpec(&enginetest.Copier{Topic: b.Output()})
		if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.Output(), Partitions: 3}); err != nil {
			t.Fatal(err)
		}
		dead, err := b.Direct.Client(kgo.TransactionalID("tallywire."+b.Source+"."+b.Env.Instance),
			kgo.TransactionTimeout(60*time.Second), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			t.Fatal(err)
		}
		defer dead.Close()
		if err := dead.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for p := range int32(3) {
			r := &kgo.Record{Topic: b.Output(), Partition: p, Key: []byte("left"), Value: []byte("behind")}
			if err := dead.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		transforming(b, b.Env, spec)
		b.Drained()
		b.Once()
		for _, r := range b.Read(b.Output()) {
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
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		b.Many(100)
		_, ended := transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
		b.Drained()
		other, err := b.Direct.Client(kgo.TransactionalID("tallywire." + b.Source + "." + b.Env.Instance))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if _, _, err := other.ProducerID(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.Many(10)
		select {
		case err := <-ended:
			if !problem.Has(err, pipeline.ErrFenced) {
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
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		b.Many(500)
		a, second := b.Member("a"), b.Member("b")
		slow := func() { <-time.After(2 * time.Millisecond) }
		stopA, _ := transforming(b, a, b.TransformSpec(&enginetest.Copier{Topic: b.Output(), Before: slow}))
		b.Many(1500)
		stopB, _ := transforming(b, second, b.TransformSpec(&enginetest.Copier{Topic: b.Output(), Before: slow}))
		b.Many(1500)
		b.Eventually("the second member to work", func() (bool, string) {
			v := b.View(second, "transform")
			b.Many(50)
			for _, x := range v.Topics {
				if x.Direction == "in" && x.Records > 0 {
					return true, ""
				}
			}
			return false, string(v.State) + " " + v.Reason
		})
		b.Many(1000)
		if err := stopA(); err != nil {
			t.Fatal(err)
		}
		b.Many(1000)
		b.Drained()
		b.Once()
		if err := stopB(); err != nil {
			t.Fatal(err)
		}
	})
}

// G1. One bad record must not stop the others, and must not be lost.
func TestTransformParksGarbageAndRejects(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		st := &enginetest.Copier{Topic: b.Output(), Refuse: func(n string) bool { return strings.Contains(n, "bad") }}
		b.Many(20)
		garbage := &kgo.Record{Topic: b.In.Topic, Partition: 1, Key: []byte("junk"), Value: []byte("not avro"), Timestamp: time.UnixMilli(1_780_000_000_000)}
		keyless := &kgo.Record{Topic: b.In.Topic, Partition: 2, Value: []byte{0, 0, 0, 77, 77, 1}}
		if err := b.Client.ProduceSync(t.Context(), garbage, keyless).FirstErr(); err != nil {
			t.Fatal(err)
		}
		b.Put(enginetest.Row{Op: change.Update, ID: 3, Val: "bad"}) // record 21
		b.Put(enginetest.Row{Op: change.Update, ID: 4, Val: "bad"}, enginetest.Row{Op: change.Update, ID: 4, Val: "mended at once"})
		b.Many(20)
		stop, _ := transforming(b, b.Env, b.TransformSpec(st))
		b.Drained()
		parked := b.ParkedNow()
		// Key 3 has a newer version by many; so has 4.
		if len(parked) != 2 {
			t.Errorf("parked: %q, want the two records of garbage", parked)
		}
		b.Once(21, 22)
		b.Put(enginetest.Row{Op: change.Update, ID: 99, Val: "bad"})
		n := uint64(b.N)
		b.Drained()
		b.Shows(b.Env, "transform", "what is parked", func(v obs.View) bool { return v.Parked == 3 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// Another process knows it from the topic alone, and a newer version
		// releases it.
		transforming(b, b.Env, b.TransformSpec(st))
		b.Put(enginetest.Row{Op: change.Update, ID: 99, Val: "good"})
		b.Drained()
		if parked := b.ParkedNow(); len(parked) != 2 {
			t.Errorf("parked after the newer version: %q", parked)
		}
		b.Once(21, 22, n)
	})
}

// A8. Records that were deleted before they were read: never skipped silently.
func TestTransformOffsetOutOfRangeHalts(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		b.Many(300)
		stop, _ := transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
		b.Drained()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.Many(300)
		ends, err := b.Direct.Admin().ListEndOffsets(t.Context(), b.In.Topic)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Direct.Admin().DeleteRecords(t.Context(), ends.Offsets()); err != nil {
			t.Fatal(err)
		}
		_, ended := transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
		select {
		case err := <-ended:
			if !problem.Has(err, kafka.ErrOffsetRange) || !strings.Contains(err.Error(), "never read") {
				t.Fatalf("ended with %v, want TW-OFFSET-OUT-OF-RANGE with the missing range", err)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("the gap was skipped")
		}
		// Remedy: TW-OFFSET-OUT-OF-RANGE
		rs, err := b.Direct.Admin().CommitOffsets(t.Context(), pipeline.GroupOf(b.Source), ends.Offsets())
		if err == nil {
			err = rs.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
		transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
		b.Many(100)
		b.Drained()
		var skipped []uint64
		for n := uint64(301); n <= 600; n++ {
			skipped = append(skipped, n)
		}
		b.Once(skipped...)
	})
}

// F1. Topics that do not lie together must not be joined.
func TestTransformOtherPartitionCountHalts(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.Source + ".five", Partitions: 5}); err != nil {
		t.Fatal(err)
	}
	spec := b.TransformSpec(&enginetest.Copier{Topic: b.Output()})
	spec.CoPartitioned = []string{b.In.Topic, b.Source + ".five"}
	_, ended := transforming(b, b.Env, spec)
	select {
	case err := <-ended:
		if !problem.Has(err, pipeline.ErrCoPartition) {
			t.Fatalf("ended with %v, want TW-CO-PARTITION", err)
		}
	case <-time.After(testkit.Patience):
		t.Fatal("topics of 3 and 5 partitions were read together")
	}
	// Remedy: TW-CO-PARTITION
	if _, err := b.Direct.Admin().DeleteTopic(t.Context(), b.Source+".five"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.Source + ".five", Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	transforming(b, b.Env, spec)
	b.Many(20)
	b.Drained()
	b.Once()
}

// A stage that must wait sends nothing and is asked again; a broken one halts
// and says so.
func TestTransformStageErrors(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	b.Many(10)
	waits := 3
	st := &enginetest.Failing{Copier: &enginetest.Copier{Topic: b.Output()}, Err: func() error {
		if waits > 0 {
			waits--
			return state.ErrUnknown.New("not yet") // Remedy: TW-STATE-UNKNOWN
		}
		return nil
	}}
	stop, _ := transforming(b, b.Env, b.TransformSpec(st))
	b.Drained()
	b.Once()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	b.Many(10)
	broken := errors.New("nobody foresaw this")
	_, ended := transforming(b, b.Env, b.TransformSpec(&enginetest.Failing{Copier: &enginetest.Copier{Topic: b.Output()}, Err: func() error { return broken }}))
	select {
	case err := <-ended:
		if !errors.Is(err, broken) {
			t.Fatalf("ended with %v", err)
		}
	case <-time.After(testkit.Patience):
		t.Fatal("an error of no class was tried again")
	}
	if v := b.View(b.Env, "transform"); v.State != obs.Halted || !strings.Contains(v.Reason, "nobody foresaw") {
		t.Errorf("state %s: %s", v.State, v.Reason)
	}
	// Remedy: TW-INTERNAL
	transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
	b.Drained()
	b.Once()
}

// What is parked of a topic that nobody reads any more. If this failed, a retry
// or a discard of it would say that it was done, and it would stay.
func TestTransformParkedOfATopicThatIsNotRead(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	st := &enginetest.Copier{Topic: b.Output(), Refuse: func(n string) bool { return n == "bad" }}
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "bad"}, enginetest.Row{Op: change.Update, ID: 2, Val: "bad"})
	stop, _ := transforming(b, b.Env, b.TransformSpec(st))
	b.Drained()
	b.Eventually("both to be listed", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return len(ps) == 2, fmt.Sprint(ps, err)
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.Source + ".other", Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	spec := b.TransformSpec(st)
	spec.Topics = []string{b.Source + ".other"}
	stop, _ = transforming(b, b.Env, spec)
	b.Shows(b.Env, "transform", "both", func(v obs.View) bool { return v.State == obs.Running && v.Parked == 2 })
	out, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "1"}, testkit.Patience)
	if err != nil || out != (parked.Outcome{Asked: 1, Parked: 1}) {
		t.Errorf("a retry: %+v, %v", out, err)
	}
	b.Eventually("the reason to be listed", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{Key: "1"})
		return len(ps) == 1 && ps[0].Code == parked.ErrGone.ID && strings.Contains(ps[0].Remedy, "read again"), fmt.Sprint(ps, err)
	})
	out, err = parked.Discard(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "2"}, testkit.Patience)
	if now := b.ParkedNow(); err != nil || out != (parked.Outcome{Asked: 1, Taken: 1}) || len(now) != 1 {
		t.Errorf("a discard: %+v, %v; parked are %v", out, err, now)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// Read again, it is tried.
	st.Refuse = nil
	transforming(b, b.Env, b.TransformSpec(st))
	out, err = parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "1"}, testkit.Patience)
	if err != nil || out != (parked.Outcome{Asked: 1, Taken: 1}) {
		t.Errorf("a retry: %+v, %v", out, err)
	}
	b.Once(2)
}

// A stage meets a bug. If this failed, the process would end with all its
// components, or what the stage had sent would hold up readers until its
// transaction times out.
func TestTransformOutlivesAPanic(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		b.Many(1000) // more than one poll brings
		st := &enginetest.Copier{Topic: b.Output()}
		st.Before = func() {
			if st.Sent() > 50 {
				panic("BUG: of a test's stage")
			}
		}
		_, ended := transforming(b, b.Env, b.TransformSpec(st))
		select {
		case err := <-ended:
			if !problem.Has(err, outage.ErrPanic) {
				t.Fatalf("ended with %v, want %s", err, outage.ErrPanic.ID)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("it goes on")
		}
		if v := b.View(b.Env, "transform"); v.State != obs.Failed {
			t.Errorf("state %s: %s", v.State, v.Reason)
		}
		// Remedy: TW-PANIC
		transforming(b, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
		b.Drained()
		b.Once()
	})
}

// What the registry would refuse is known at the start, not with the first record
// of a quiet topic.
func TestTransformAsksTheRegistryAtTheStart(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	spec := b.TransformSpec(&enginetest.Copier{Topic: b.Output()})
	spec.Outputs = append(spec.Outputs, "ps.customer")
	b.Registry.SetDown(true)
	transforming(b, b.Env, spec)
	select {
	case <-b.Registry.Refused:
	case <-time.After(testkit.Patience):
		t.Fatal("the registry was not asked")
	}
	b.Registry.SetDown(false)
	b.Many(20)
	b.Drained()
	b.Once()
}

// Lost if this fails: a repetition passes as new, since what was remembered of the
// first could not be made again (D2).
func TestTransformThatLooksBackFurther(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	spec := b.TransformSpec(&enginetest.Copier{Topic: b.Output()})
	spec.Topics, spec.CoPartitioned, spec.Window = []string{b.In.Topic}, nil, 48*time.Hour
	keep := func(ms string) {
		if _, err := b.Direct.Admin().AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &ms}}, b.In.Topic); err != nil {
			t.Fatal(err)
		}
	}
	keep("86400000")
	_, ended := transforming(b, b.Env, spec)
	select {
	case err := <-ended:
		if problem.Of(err) == nil || problem.Of(err).ID != "TW-RETENTION" || !strings.Contains(err.Error(), "stay for 24h0m0s") {
			t.Fatalf("ended with %v, want TW-RETENTION", err)
		}
	case <-time.After(testkit.Patience):
		t.Fatal("it runs over records that go too soon")
	}
	keep("172800000")
	transforming(b, b.Env, spec)
	b.Many(20)
	b.Drained()
	b.Once()
}
