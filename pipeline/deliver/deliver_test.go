package deliver

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/parked"
)

func TestDeliverBatchesAreBoundedInOctets(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	enginetest.Wide(b)
	m := enginetest.NewMemory()
	var y enginetest.Tally
	m.Down = func() error { y.Begin(); return nil }
	m.Judge = func(_, _, note string) (error, string) { y.Add(note); return nil, "" }
	spec := b.DeliverSpec(m)
	spec.MaxBytes = enginetest.BoundRows * enginetest.WideOctets
	stop, _ := delivering(b, b.Env, spec)
	b.Drained()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if m.Size() != b.N {
		t.Errorf("%d rows are in the sink, want %d", m.Size(), b.N)
	}
	y.Check(t)
}

// Without it: nothing arrives, or a restart loses what came meanwhile.
func TestDeliverWritesAllAndResumes(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		for name, sink := range map[string]func() (pipeline.Sink, *enginetest.Memory){
			"plain":   func() (pipeline.Sink, *enginetest.Memory) { m := enginetest.NewMemory(); return m, m },
			"keeping": func() (pipeline.Sink, *enginetest.Memory) { k := enginetest.NewKeeping(); return k, k.Memory },
		} {
			t.Run(name, func(t *testing.T) {
				bd := *bd
				bd.T, bd.Source = t, bd.Source+"-"+name
				b := enginetest.NewTopicBed(&bd)
				s, m := sink()
				b.Many(500)
				stop, _ := delivering(b, b.Env, b.DeliverSpec(s))
				b.Drained()
				b.Newest(m)
				b.Many(100)
				b.Drained()
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				b.Many(100)
				delivering(b, b.Env, b.DeliverSpec(s))
				b.Drained()
				b.Newest(m)
				b.Shows(b.Env, "sink", "no lag", func(v obs.View) bool { return v.State == obs.Running && v.Lag[b.In.Topic] == 0 })
			})
		}
	})
}

// Lost if this fails: a firm that keeps no invoices gets no other dashboard.
func TestDeliverContractsThatNobodyFills(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	b.Many(60)
	m := enginetest.NewMemory()
	spec := b.DeliverSpec(m)
	spec.Topics = append([]string{"ps.invoice"}, spec.Topics...)
	delivering(b, b.Env, spec)
	b.Drained()
	b.Newest(m)
	topic, err := b.Direct.Topic(t.Context(), "ps.invoice")
	if err != nil || topic.Partitions != b.Env.Partitions {
		t.Errorf("the topic that nobody fills: %+v, %v", topic, err)
	}
}

// Invariant 10. With offsets outside of the sink's transaction, a crash between
// the two writes each record of the batch twice, or never.
func TestDeliverCrashAfterTheWrite(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		k := enginetest.NewKeeping()
		n := 0
		k.Crash = func() error {
			if n++; n%3 == 1 && n < 20 {
				return enginetest.ErrSinkDown.New("the reply of the write was lost")
			}
			return nil
		}
		b.Many(1000)
		delivering(b, b.Env, b.DeliverSpec(k))
		b.Drained()
		b.Newest(k.Memory)
		k.Mu.Lock()
		defer k.Mu.Unlock()
		if len(k.Outside) > 0 {
			t.Errorf("%d records were written outside of the transaction of their offsets", len(k.Outside))
		}
		if len(k.Applied) != b.N {
			t.Errorf("%d records were applied, want %d", len(k.Applied), b.N)
		}
		for at, n := range k.Applied {
			if n != 1 {
				t.Errorf("record %s was applied %d times", at, n)
			}
		}
	})
}

// H1. A reset by Kafka's own tool commits no metadata: it is honoured, once.
func TestDeliverResetIsHonoured(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		k := enginetest.NewKeeping()
		b.Many(300)
		stop, _ := delivering(b, b.Env, b.DeliverSpec(k))
		b.Drained()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// Once with the target emptied.
		clear(k.Rows)
		clear(k.From)
		clear(k.Applied)
		if b.Fake != nil {
			reset(t, b)
		} else {
			resetByTool(t, b)
		}
		stop, _ = delivering(b, b.Env, b.DeliverSpec(k))
		b.Eventually("all records to be applied again", func() (bool, string) {
			k.Mu.Lock()
			defer k.Mu.Unlock()
			return len(k.Applied) == b.N, fmt.Sprint(len(k.Applied), " of ", b.N)
		})
		b.Drained()
		b.Newest(k.Memory)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// And with the target as it is; then once more without a reset, which
		// must apply nothing.
		reset(t, b)
		for range 2 {
			stop, _ = delivering(b, b.Env, b.DeliverSpec(k))
			b.Drained()
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		}
		b.Newest(k.Memory)
		for at, n := range k.Applied {
			if n != 2 {
				t.Fatalf("record %s was applied %d times, want 2", at, n)
			}
		}
	})
}

// reset does what Kafka's own tool does.
func reset(t *testing.T, b *enginetest.TopicBed) {
	t.Helper()
	offsets := kadm.Offsets{}
	for p := range int32(3) {
		offsets.AddOffset(b.In.Topic, p, 0, -1)
	}
	rs, err := b.Direct.Admin().CommitOffsets(t.Context(), pipeline.GroupOf(b.Source), offsets)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Offsets were committed of a topic that is another now. If this failed, its
// first records would be skipped as read.
func TestDeliverTopicMadeAnew(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		b.Many(60)
		b.HasRead(map[int32]int64{0: 5, 1: 5, 2: 5}, func(is *change.Topic) string {
			was := *is
			was.ID[0]++
			return consume.TokenOf(&was)
		})
		m := enginetest.NewMemory()
		_, ended := delivering(b, b.Env, b.DeliverSpec(m))
		select {
		case err := <-ended:
			if !problem.Has(err, pipeline.ErrTopicRecreated) {
				t.Fatalf("ended with %v, want TW-TOPIC-RECREATED", err)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("it goes on")
		}
		// Remedy: TW-TOPIC-RECREATED
		if b.Fake != nil {
			reset(t, b)
		} else {
			resetByTool(t, b)
		}
		delivering(b, b.Env, b.DeliverSpec(m))
		b.Drained()
		b.Newest(m)
	})
}

func resetByTool(t *testing.T, b *enginetest.TopicBed) {
	t.Helper()
	k := testkit.SharedKafka(t)
	out, err := k.Tool(t.Context(), "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
		"--bootstrap-server", k.Addr(), "--group", pipeline.GroupOf(b.Source), "--all-topics", "--reset-offsets", "--to-earliest", "--execute")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// The group's offsets were lost: the sink's are the truth.
func TestDeliverOffsetsAbsentInKafka(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	k := enginetest.NewKeeping()
	b.Many(200)
	stop, _ := delivering(b, b.Env, b.DeliverSpec(k))
	b.Drained()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Direct.Admin().DeleteGroups(t.Context(), pipeline.GroupOf(b.Source)); err != nil {
		t.Fatal(err)
	}
	b.Many(50)
	delivering(b, b.Env, b.DeliverSpec(k))
	b.Drained()
	k.Mu.Lock()
	defer k.Mu.Unlock()
	for at, n := range k.Applied {
		if n != 1 {
			t.Fatalf("record %s was applied %d times", at, n)
		}
	}
	if len(k.Applied) != b.N {
		t.Fatalf("%d records applied, want %d", len(k.Applied), b.N)
	}
}

// G. What the sink refuses is parked, durably before the offset moves; a newer
// version is tried at once and takes it out; the rest flows.
func TestDeliverParksAndReplaces(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		t.Run(fmt.Sprintf("keeping=%v", keeps), func(t *testing.T) {
			b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
			store := b.Control()
			k := enginetest.NewKeeping()
			k.Judge = func(_, _, note string) (error, string) {
				if strings.Contains(note, "bad") {
					return enginetest.ErrNotTaken.New("the sink refuses this"), ""
				}
				return nil, ""
			}
			var s pipeline.Sink = k.Memory
			if keeps {
				s = k
			}
			b.Many(50)
			b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "bad 1"}, enginetest.Row{Op: change.Update, ID: 2, Val: "bad 2"}, enginetest.Row{Op: change.Update, ID: 2, Val: "good after all"})
			garbage := &kgo.Record{Topic: b.In.Topic, Partition: 1, Key: []byte("junk"), Value: []byte("not avro")}
			if err := b.Client.ProduceSync(t.Context(), garbage).FirstErr(); err != nil {
				t.Fatal(err)
			}
			stop, _ := delivering(b, b.Env, b.DeliverSpec(s))
			b.Drained()
			if got := k.Has(b.In.Topic + "/2"); got != "good after all" {
				t.Errorf("key 2 is %q: the newer version was not tried", got)
			}
			if got := k.Has(b.In.Topic + "/1"); got != "value 1" {
				t.Errorf("key 1 is %q", got)
			}
			list := func() []control.Parked {
				ps, err := store.List(t.Context(), control.Filter{Stage: b.Source})
				if err != nil {
					t.Fatal(err)
				}
				return ps
			}
			if now := b.ParkedNow(); len(now) != 2 {
				t.Fatalf("the offsets are committed, and parked is %v, want key 1 and the garbage", now)
			}
			b.Eventually("the two to be listed", func() (bool, string) { return len(list()) == 2, fmt.Sprint(list()) })
			for _, p := range list() {
				if p.Key != "1" && p.Key != "junk" || p.Code == "" || p.Remedy == "" || p.Kind != control.KindSink {
					t.Errorf("parked: %+v", p)
				}
			}
			b.Shows(b.Env, "sink", "what is parked", func(v obs.View) bool { return v.Parked == 2 })
			// The far side mends itself: asked again, it takes it.
			k.Mu.Lock()
			k.Judge = nil
			k.Mu.Unlock()
			if _, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "1"}, 0); err != nil {
				t.Fatal(err)
			}
			b.Eventually("key 1 to be delivered", func() (bool, string) { return k.Has(b.In.Topic+"/1") == "bad 1", k.Has(b.In.Topic + "/1") })
			b.Eventually("its row to go", func() (bool, string) { return len(list()) == 1, fmt.Sprint(len(list())) })
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A newer version of a parked key, in a later batch, takes the row out, also
// after a restart.
func TestDeliverNewerVersionReleases(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	m := enginetest.NewMemory()
	m.Judge = func(_, _, note string) (error, string) {
		if strings.Contains(note, "bad") {
			return enginetest.ErrNotTaken.New("the sink refuses this"), ""
		}
		return nil, ""
	}
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "bad 1"})
	stop, _ := delivering(b, b.Env, b.DeliverSpec(m))
	b.Drained()
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "bad 2"})
	b.Drained()
	b.Eventually("the newer version alone to be listed", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return err == nil && len(ps) == 1 && ps[0].Attempts == 1 && ps[0].Offset == 1, fmt.Sprintf("%+v, %v", ps, err)
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	delivering(b, b.Env, b.DeliverSpec(m))
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "good"})
	b.Drained()
	b.Eventually("the row to go", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return err == nil && len(ps) == 0, fmt.Sprint(ps, err)
	})
}

// Invariant 9. Dependents wait, visibly, and go in order of dependency when
// what they wait for has come.
func TestDeliverDependentsWait(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	parent := *b.In
	parent.Topic = b.Source + ".a-parent"
	parents := &enginetest.TopicBed{Bed: b.Bed, In: parent.Index(), Outs: b.Outs, Client: b.Client}
	if _, err := b.Outs.Ensure(t.Context(), parents.In); err != nil {
		t.Fatal(err)
	}
	m := enginetest.NewMemory()
	m.Judge = func(topic, key, _ string) (error, string) { // called with mu held
		if topic == b.In.Topic {
			p := parents.In.Topic + "/" + key
			if m.Rows[p] == "" {
				return enginetest.ErrNotTaken.New("its parent is not there"), p
			}
		}
		return nil, ""
	}
	for id := int64(1); id <= 20; id++ {
		b.Put(enginetest.Row{Op: change.Update, ID: id, Val: "child"})
	}
	spec := b.DeliverSpec(m, parents.In.Topic, b.In.Topic)
	spec.Patience = time.Hour // nothing but their parents releases them
	delivering(b, b.Env, spec)
	b.Drained()
	b.Shows(b.Env, "sink", "who waits", func(v obs.View) bool { return v.Waiting == 20 && v.Parked == 0 })
	for id := int64(1); id <= 20; id++ {
		parents.Put(enginetest.Row{Op: change.Update, ID: id, Val: "parent"})
	}
	parents.Drained()
	// Not some time later: a crash from here on would forget it.
	if asked := b.AskedFor(); len(asked) != 20 {
		t.Fatalf("the offsets of the parents are committed, and %d of 20 children were ever asked for", len(asked))
	}
	b.Eventually("the children to be released", func() (bool, string) { return m.Size() == 40, fmt.Sprint(m.Size()) })
	b.Eventually("no row to be left", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return err == nil && len(ps) == 0, fmt.Sprint(len(ps), err)
	})
	b.Shows(b.Env, "sink", "that nobody waits", func(v obs.View) bool { return v.Waiting == 0 })
}

// A sink that is down for a while: nothing is skipped, and the state says so.
func TestDeliverSinkDown(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	var down atomic.Bool
	down.Store(true)
	m := enginetest.NewMemory()
	m.Down = func() error {
		if down.Load() {
			return enginetest.ErrSinkDown.New("no answer").WithDelay(300 * time.Millisecond)
		}
		return nil
	}
	b.Many(200)
	stop, _ := delivering(b, b.Env, b.DeliverSpec(m))
	b.Eventually("the state to say so", func() (bool, string) {
		v := b.View(b.Env, "sink")
		return v.State == obs.Retrying && strings.Contains(v.Reason, "no answer"), string(v.State)
	})
	down.Store(false)
	b.Drained()
	b.Newest(m)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// Partitions move under load: an older owner writes nothing any more.
func TestDeliverRebalances(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		k := enginetest.NewKeeping()
		b.Many(1000)
		a, second := b.Member("a"), b.Member("b")
		stopA, _ := delivering(b, a, b.DeliverSpec(k))
		b.Many(500)
		delivering(b, second, b.DeliverSpec(k))
		b.Eventually("the second member to work", func() (bool, string) {
			b.Many(50)
			v := b.View(second, "sink")
			for _, x := range v.Topics {
				if x.Direction == "in" && x.Records > 0 {
					return true, ""
				}
			}
			return false, string(v.State) + " " + v.Reason
		})
		if err := stopA(); err != nil {
			t.Fatal(err)
		}
		b.Many(500)
		b.Drained() // Remedy: TW-SINK-OWNER
		b.Newest(k.Memory)
		k.Mu.Lock()
		defer k.Mu.Unlock()
		for at, n := range k.Applied {
			if n != 1 {
				t.Errorf("record %s was applied %d times", at, n)
			}
		}
		if len(k.Applied) != b.N {
			t.Errorf("%d records were applied, want %d", len(k.Applied), b.N)
		}
	})
}

// A record that must be parked, and no control database, or none that answers:
// it is parked, and the rest flows. The truth is a topic.
func TestDeliverParksWithoutControl(t *testing.T) {
	for name, control := range map[string]func(*enginetest.TopicBed){
		"none": func(*enginetest.TopicBed) {},
		"away": func(b *enginetest.TopicBed) {
			pool, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/none?connect_timeout=1")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			b.Env.Control = pool
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
			control(b)
			m := enginetest.NewMemory()
			m.Judge = func(_, key, _ string) (error, string) {
				if key == "1" {
					return enginetest.ErrNotTaken.New("never"), ""
				}
				return nil, ""
			}
			b.Many(50)
			stop, _ := delivering(b, b.Env, b.DeliverSpec(m))
			b.Drained()
			if now := b.ParkedNow(); len(now) != 1 || m.Size() != 49 {
				t.Errorf("parked is %v, %d rows are in the sink; want 1 and 49", now, m.Size())
			}
			b.Shows(b.Env, "sink", "what is parked", func(v obs.View) bool { return v.State == obs.Running && v.Parked == 1 })
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Failures that a crash kept from being parked: the sink's offset is past them,
// Kafka's is not, so they are written once more and parked.
func TestDeliverCrashBeforeParking(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	k := enginetest.NewKeeping()
	k.Judge = func(_, _, note string) (error, string) {
		if strings.Contains(note, "bad") {
			return enginetest.ErrNotTaken.New("the sink refuses this"), ""
		}
		return nil, ""
	}
	crashed := false
	k.Crash = func() error {
		if !crashed && k.Rows[b.In.Topic+"/1"] != "" {
			crashed = true
			return enginetest.ErrSinkDown.New("died after the commit, before the failures were told")
		}
		return nil
	}
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "good"}, enginetest.Row{Op: change.Update, ID: 4, Val: "bad"}, enginetest.Row{Op: change.Update, ID: 7, Val: "bad"})
	for id := int64(10); id < 40; id++ {
		b.Put(enginetest.Row{Op: change.Update, ID: id, Val: "bad"})
	}
	delivering(b, b.Env, b.DeliverSpec(k))
	b.Drained()
	if now := b.ParkedNow(); !crashed || len(now) != 32 {
		t.Fatalf("crashed: %v; %d records are parked, want 32: the others are lost", crashed, len(now))
	}
}

// A sink meets a bug, in a write or in what the client calls when partitions
// are assigned. If this failed, the process would end with all its components.
func TestDeliverOutlivesAPanic(t *testing.T) {
	for name, broken := range map[string]func(*enginetest.Keeping){
		"write": func(k *enginetest.Keeping) { k.Down = func() error { panic("BUG: of a test's sink") } },
		"claim": func(k *enginetest.Keeping) { k.Owner = nil }, // it writes to this map
	} {
		t.Run(name, func(t *testing.T) {
			b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
			b.Many(100)
			k := enginetest.NewKeeping()
			broken(k)
			_, ended := delivering(b, b.Env, b.DeliverSpec(k))
			select {
			case err := <-ended:
				if !problem.Has(err, outage.ErrPanic) {
					t.Fatalf("ended with %v, want %s", err, outage.ErrPanic.ID)
				}
			case <-time.After(testkit.Patience):
				t.Fatal("it goes on")
			}
			if v := b.View(b.Env, "sink"); v.State != obs.Failed {
				t.Errorf("state %s: %s", v.State, v.Reason)
			}
			well := enginetest.NewKeeping()
			delivering(b, b.Env, b.DeliverSpec(well))
			b.Drained()
			b.Newest(well.Memory)
		})
	}
}
