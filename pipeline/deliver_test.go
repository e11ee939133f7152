package pipeline

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline/parked"
)

var errSinkDown = problem.Define("TW-TEST-SINK-DOWN", problem.Retry, "The test's sink is down.", "Wait.")

// Without it: nothing arrives, or a restart loses what came meanwhile.
func TestDeliverWritesAllAndResumes(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		for name, sink := range map[string]func() (Sink, *memory){
			"plain":   func() (Sink, *memory) { m := newMemory(); return m, m },
			"keeping": func() (Sink, *memory) { k := newKeeping(); return k, k.memory },
		} {
			t.Run(name, func(t *testing.T) {
				bd := *bd
				bd.t, bd.source = t, bd.source+"-"+name
				b := newTransformBed(&bd)
				s, m := sink()
				b.many(500)
				stop, _ := delivering(b, b.env, b.dspec(s))
				b.drained()
				b.newest(m)
				b.many(100)
				b.drained()
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				b.many(100)
				delivering(b, b.env, b.dspec(s))
				b.drained()
				b.newest(m)
				b.shows(b.env, "sink", "no lag", func(v obs.View) bool { return v.State == obs.Running && v.Lag[b.in.Topic] == 0 })
			})
		}
	})
}

// Invariant 10. With offsets outside of the sink's transaction, a crash between
// the two writes each record of the batch twice, or never.
func TestDeliverCrashAfterTheWrite(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		k := newKeeping()
		n := 0
		k.crash = func() error {
			if n++; n%3 == 1 && n < 20 {
				return errSinkDown.New("the reply of the write was lost")
			}
			return nil
		}
		b.many(1000)
		delivering(b, b.env, b.dspec(k))
		b.drained()
		b.newest(k.memory)
		k.mu.Lock()
		defer k.mu.Unlock()
		if len(k.outside) > 0 {
			t.Errorf("%d records were written outside of the transaction of their offsets", len(k.outside))
		}
		if len(k.applied) != b.n {
			t.Errorf("%d records were applied, want %d", len(k.applied), b.n)
		}
		for at, n := range k.applied {
			if n != 1 {
				t.Errorf("record %s was applied %d times", at, n)
			}
		}
	})
}

// H1. A reset by Kafka's own tool commits no metadata: it is honoured, once.
func TestDeliverResetIsHonoured(t *testing.T) {
	reset := func(t *testing.T, b *tbed) {
		offsets := kadm.Offsets{}
		for p := range int32(3) {
			offsets.AddOffset(b.in.Topic, p, 0, -1)
		}
		rs, err := b.direct.Admin().CommitOffsets(t.Context(), GroupOf(b.source), offsets)
		if err == nil {
			err = rs.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		k := newKeeping()
		b.many(300)
		stop, _ := delivering(b, b.env, b.dspec(k))
		b.drained()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// Once with the target emptied.
		clear(k.rows)
		clear(k.from)
		clear(k.applied)
		if b.fake != nil {
			reset(t, b)
		} else {
			resetByTool(t, b)
		}
		stop, _ = delivering(b, b.env, b.dspec(k))
		b.eventually("all records to be applied again", func() (bool, string) {
			k.mu.Lock()
			defer k.mu.Unlock()
			return len(k.applied) == b.n, fmt.Sprint(len(k.applied), " of ", b.n)
		})
		b.drained()
		b.newest(k.memory)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// And with the target as it is; then once more without a reset, which
		// must apply nothing.
		reset(t, b)
		for range 2 {
			stop, _ = delivering(b, b.env, b.dspec(k))
			b.drained()
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		}
		b.newest(k.memory)
		for at, n := range k.applied {
			if n != 2 {
				t.Fatalf("record %s was applied %d times, want 2", at, n)
			}
		}
	})
}

func resetByTool(t *testing.T, b *tbed) {
	t.Helper()
	k := testkit.SharedKafka(t)
	out, err := k.Tool(t.Context(), "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
		"--bootstrap-server", k.Addr(), "--group", GroupOf(b.source), "--all-topics", "--reset-offsets", "--to-earliest", "--execute")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// The group's offsets were lost: the sink's are the truth.
func TestDeliverOffsetsAbsentInKafka(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	k := newKeeping()
	b.many(200)
	stop, _ := delivering(b, b.env, b.dspec(k))
	b.drained()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.direct.Admin().DeleteGroups(t.Context(), GroupOf(b.source)); err != nil {
		t.Fatal(err)
	}
	b.many(50)
	delivering(b, b.env, b.dspec(k))
	b.drained()
	k.mu.Lock()
	defer k.mu.Unlock()
	for at, n := range k.applied {
		if n != 1 {
			t.Fatalf("record %s was applied %d times", at, n)
		}
	}
	if len(k.applied) != b.n {
		t.Fatalf("%d records applied, want %d", len(k.applied), b.n)
	}
}

// G. What the sink refuses is parked, durably before the offset moves; a newer
// version is tried at once and takes it out; the rest flows.
func TestDeliverParksAndReplaces(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		t.Run(fmt.Sprintf("keeping=%v", keeps), func(t *testing.T) {
			b := newTransformBed(newBed(t, ""))
			store := b.control()
			k := newKeeping()
			k.judge = func(_, _, note string) (error, string) {
				if strings.Contains(note, "bad") {
					return errNotTaken.New("the sink refuses this"), ""
				}
				return nil, ""
			}
			var s Sink = k.memory
			if keeps {
				s = k
			}
			b.many(50)
			b.put(row{op: change.Update, id: 1, val: "bad 1"}, row{op: change.Update, id: 2, val: "bad 2"}, row{op: change.Update, id: 2, val: "good after all"})
			garbage := &kgo.Record{Topic: b.in.Topic, Partition: 1, Key: []byte("junk"), Value: []byte("not avro")}
			if err := b.cl.ProduceSync(t.Context(), garbage).FirstErr(); err != nil {
				t.Fatal(err)
			}
			stop, _ := delivering(b, b.env, b.dspec(s))
			b.drained()
			if got := k.has(b.in.Topic + "/2"); got != "good after all" {
				t.Errorf("key 2 is %q: the newer version was not tried", got)
			}
			if got := k.has(b.in.Topic + "/1"); got != "value 1" {
				t.Errorf("key 1 is %q", got)
			}
			list := func() []control.Parked {
				ps, err := store.List(t.Context(), control.Filter{Stage: b.source})
				if err != nil {
					t.Fatal(err)
				}
				return ps
			}
			ps := list()
			if len(ps) != 2 {
				t.Fatalf("parked: %+v, want key 1 and the garbage", ps)
			}
			for _, p := range ps {
				if p.Key != "1" && p.Key != "junk" || p.Code == "" || p.Remedy == "" {
					t.Errorf("parked: %+v", p)
				}
			}
			b.shows(b.env, "sink", "what is parked", func(v obs.View) bool { return v.Parked == 2 })
			// The far side mends itself: asked again, it takes it.
			k.mu.Lock()
			k.judge = nil
			k.mu.Unlock()
			if _, err := parked.Retry(t.Context(), b.env.Kafka, b.env.Control, control.Filter{Stage: b.source, Key: "1"}); err != nil {
				t.Fatal(err)
			}
			b.eventually("key 1 to be delivered", func() (bool, string) { return k.has(b.in.Topic+"/1") == "bad 1", k.has(b.in.Topic + "/1") })
			b.eventually("its row to go", func() (bool, string) { return len(list()) == 1, fmt.Sprint(len(list())) })
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A newer version of a parked key, in a later batch, takes the row out, also
// after a restart.
func TestDeliverNewerVersionReleases(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	store := b.control()
	m := newMemory()
	m.judge = func(_, _, note string) (error, string) {
		if strings.Contains(note, "bad") {
			return errNotTaken.New("the sink refuses this"), ""
		}
		return nil, ""
	}
	b.put(row{op: change.Update, id: 1, val: "bad 1"})
	stop, _ := delivering(b, b.env, b.dspec(m))
	b.drained()
	b.put(row{op: change.Update, id: 1, val: "bad 2"})
	b.drained()
	ps, err := store.List(t.Context(), control.Filter{})
	if err != nil || len(ps) != 1 || ps[0].Attempts != 1 || ps[0].Kind != control.KindSink {
		t.Fatalf("parked: %+v, %v, want the newer version alone", ps, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	delivering(b, b.env, b.dspec(m))
	b.put(row{op: change.Update, id: 1, val: "good"})
	b.drained()
	b.eventually("the row to go", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return err == nil && len(ps) == 0, fmt.Sprint(ps, err)
	})
}

// Invariant 9. Dependents wait, visibly, and go in order of dependency when
// what they wait for has come.
func TestDeliverDependentsWait(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	store := b.control()
	parent := *b.in
	parent.Topic = b.source + ".a-parent"
	parents := &tbed{bed: b.bed, in: parent.Index(), outs: b.outs, cl: b.cl}
	if _, err := b.outs.Ensure(t.Context(), parents.in); err != nil {
		t.Fatal(err)
	}
	m := newMemory()
	m.judge = func(topic, key, _ string) (error, string) { // called with mu held
		if topic == b.in.Topic {
			p := parents.in.Topic + "/" + key
			if m.rows[p] == "" {
				return errNotTaken.New("its parent is not there"), p
			}
		}
		return nil, ""
	}
	for id := int64(1); id <= 20; id++ {
		b.put(row{op: change.Update, id: id, val: "child"})
	}
	spec := b.dspec(m, parents.in.Topic, b.in.Topic)
	spec.Patience = time.Hour // nothing but their parents releases them
	delivering(b, b.env, spec)
	b.drained()
	b.shows(b.env, "sink", "who waits", func(v obs.View) bool { return v.Waiting == 20 && v.Parked == 0 })
	for id := int64(1); id <= 20; id++ {
		parents.put(row{op: change.Update, id: id, val: "parent"})
	}
	parents.drained()
	// Not some time later: a crash from here on would forget it.
	ps, err := store.List(t.Context(), control.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ps {
		if !p.RetryAsked {
			t.Fatalf("the offsets of the parents are committed, and %s waits for %s as before", p.Key, p.WaitsFor)
		}
	}
	b.eventually("the children to be released", func() (bool, string) { return m.size() == 40, fmt.Sprint(m.size()) })
	b.eventually("no row to be left", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return err == nil && len(ps) == 0, fmt.Sprint(len(ps), err)
	})
	b.shows(b.env, "sink", "that nobody waits", func(v obs.View) bool { return v.Waiting == 0 })
}

// A sink that is down for a while: nothing is skipped, and the state says so.
func TestDeliverSinkDown(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	var down atomic.Bool
	down.Store(true)
	m := newMemory()
	m.down = func() error {
		if down.Load() {
			return errSinkDown.New("no answer").WithDelay(300 * time.Millisecond)
		}
		return nil
	}
	b.many(200)
	stop, _ := delivering(b, b.env, b.dspec(m))
	b.eventually("the state to say so", func() (bool, string) {
		v := b.view(b.env, "sink")
		return v.State == obs.Retrying && strings.Contains(v.Reason, "no answer"), string(v.State)
	})
	down.Store(false)
	b.drained()
	b.newest(m)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// Partitions move under load: an older owner writes nothing any more.
func TestDeliverRebalances(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		k := newKeeping()
		b.many(1000)
		a, second := b.member("a"), b.member("b")
		stopA, _ := delivering(b, a, b.dspec(k))
		b.many(500)
		delivering(b, second, b.dspec(k))
		b.eventually("the second member to work", func() (bool, string) {
			b.many(50)
			v := b.view(second, "sink")
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
		b.many(500)
		b.drained()
		b.newest(k.memory)
		k.mu.Lock()
		defer k.mu.Unlock()
		for at, n := range k.applied {
			if n != 1 {
				t.Errorf("record %s was applied %d times", at, n)
			}
		}
		if len(k.applied) != b.n {
			t.Errorf("%d records were applied, want %d", len(k.applied), b.n)
		}
	})
}

// A record that must be parked where nothing can be parked: halt, do not skip.
func TestDeliverWithoutControlHalts(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	m := newMemory()
	m.judge = func(string, string, string) (error, string) { return errNotTaken.New("never"), "" }
	b.many(1)
	_, ended := delivering(b, b.env, b.dspec(m))
	select {
	case err := <-ended:
		if !problem.Has(err, control.ErrMissing) {
			t.Fatalf("ended with %v", err)
		}
	case <-time.After(testkit.Patience):
		t.Fatal("a failed record was skipped")
	}
}

// Failures that a crash kept from being parked: the sink's offset is past them,
// Kafka's is not, so they are written once more and parked.
func TestDeliverCrashBeforeParking(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	store := b.control()
	k := newKeeping()
	k.judge = func(_, _, note string) (error, string) {
		if strings.Contains(note, "bad") {
			return errNotTaken.New("the sink refuses this"), ""
		}
		return nil, ""
	}
	crashed := false
	k.crash = func() error {
		if !crashed && k.rows[b.in.Topic+"/1"] != "" {
			crashed = true
			return errSinkDown.New("died after the commit, before the failures were told")
		}
		return nil
	}
	b.put(row{op: change.Update, id: 1, val: "good"}, row{op: change.Update, id: 4, val: "bad"}, row{op: change.Update, id: 7, val: "bad"})
	for id := int64(10); id < 40; id++ {
		b.put(row{op: change.Update, id: id, val: "bad"})
	}
	delivering(b, b.env, b.dspec(k))
	b.drained()
	ps, err := store.List(t.Context(), control.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if !crashed || len(ps) != 32 {
		t.Fatalf("crashed: %v; %d records are parked, want 32: the others are lost", crashed, len(ps))
	}
}

// G1. A retry asked for a transform's parked record: by command on its parked
// topic, or through the control database; both lists agree.
func TestTransformRetriesParked(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		store := b.control()
		var refuse atomic.Bool
		refuse.Store(true)
		st := &copier{topic: b.output(), refuse: func(n string) bool { return refuse.Load() && strings.Contains(n, "bad") }}
		stop, _ := transforming(b, b.env, b.spec(st))
		for id := int64(1); id <= 4; id++ {
			b.put(row{op: change.Update, id: id, val: "bad"})
		}
		b.drained()
		list := func() []control.Parked {
			ps, err := store.List(t.Context(), control.Filter{Stage: b.source})
			if err != nil {
				t.Fatal(err)
			}
			return ps
		}
		b.eventually("the projection to show four", func() (bool, string) { return len(list()) == 4, fmt.Sprint(list()) })
		if p := list()[0]; p.Kind != control.KindTransform || p.Code != errNotTaken.ID || p.Topic != b.in.Topic {
			t.Errorf("parked: %+v", p)
		}
		// Still refused: parked again, with one more attempt.
		if n, err := parked.Retry(t.Context(), b.env.Kafka, b.env.Control, control.Filter{Stage: b.source, Key: "1"}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		b.eventually("the second attempt", func() (bool, string) {
			for _, p := range list() {
				if p.Key == "1" {
					return p.Attempts >= 2, fmt.Sprint(p.Attempts)
				}
			}
			return false, "gone"
		})
		refuse.Store(false)
		if n, err := parked.Retry(t.Context(), b.env.Kafka, b.env.Control, control.Filter{Stage: b.source, Key: "1"}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := store.RequestRetry(t.Context(), b.source, "", "2"); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := parked.Discard(t.Context(), b.env.Kafka, b.env.Control, control.Filter{Stage: b.source, Key: "3"}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		b.eventually("one to be left", func() (bool, string) { return len(list()) == 1 && len(b.parkedNow()) == 1, fmt.Sprint(list()) })
		b.once(3, 4)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// The projection is made anew from the topic.
		if err := store.Delete(t.Context(), b.source, []control.Ref{{Topic: list()[0].Topic, RecordKey: list()[0].RecordKey}}); err != nil {
			t.Fatal(err)
		}
		transforming(b, b.env, b.spec(st))
		b.eventually("the projection to be mended", func() (bool, string) { return len(list()) == 1, "" })
	})
}
