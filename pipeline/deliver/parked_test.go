package deliver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/seal"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/parked"
)

func refusing(word string) func(string, string, string) (error, string) {
	return func(_, _, note string) (error, string) {
		if strings.Contains(note, word) {
			return enginetest.ErrNotTaken.New("the sink refuses this"), ""
		}
		return nil, ""
	}
}

// G5. An owner that was paused in a write, and replaced, wakes and parks what
// its successor has long delivered in a newer version: nobody would ever take
// that out.
func TestDeliverZombieParksNothing(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		store := b.Control()
		asleep, wake := make(chan struct{}), make(chan struct{})
		m := enginetest.NewMemory()
		m.Judge = func(_, _, note string) (error, string) {
			if note == "bad" {
				close(asleep)
				<-wake
				m.Down = func() error { return enginetest.ErrSinkDown.New("it takes nothing more") }
				return enginetest.ErrNotTaken.New("the sink refuses this"), ""
			}
			return nil, ""
		}
		b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "bad"})
		stop, _ := delivering(b, b.Member("a"), b.DeliverSpec(m))
		b.Await("the write", asleep)
		for _, mm := range b.Group().Members {
			if err := b.Direct.LeaveGroup(t.Context(), pipeline.GroupOf(b.Source), *mm.InstanceID, ""); err != nil {
				t.Fatal(err)
			}
		}
		successor := enginetest.NewMemory()
		b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "good"})
		delivering(b, b.Member("b"), b.DeliverSpec(successor))
		b.Drained()
		close(wake)
		if err := stop(); err != nil { // what it has written it still tries to commit
			t.Fatal(err)
		}
		if now := b.ParkedNow(); len(now) != 0 || successor.Has(b.In.Topic+"/1") != "good" {
			t.Errorf("parked for ever: %v; the sink has %q", now, successor.Has(b.In.Topic+"/1"))
		}
		if ps, err := store.List(t.Context(), control.Filter{}); err != nil || len(ps) != 0 {
			t.Errorf("listed for ever: %v, %v", ps, err)
		}
	})
}

// What a sink parked in the control database, as versions before this did, is
// tried by this one, and parked where it parks.
func TestDeliverAdoptsRows(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	m := enginetest.NewMemory()
	m.Judge = refusing("bad")
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "well again"}, enginetest.Row{Op: change.Update, ID: 4, Val: "still bad"})
	records := b.Read(b.In.Topic)
	next := map[int32]int64{}
	for _, r := range records {
		next[r.Partition] = max(next[r.Partition], r.Offset+1)
		topic, err := b.Direct.Topic(t.Context(), r.Topic)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Env.Control.Exec(t.Context(), `insert into tallywire.parked
(stage, kind, topic, record_key, key, topic_id, "partition", record_offset, record_value, record_headers, record_millis, code, reason, remedy)
values ($1, 'sink', $2, $3, $4, $5, $6, $7, $8, '[]', 1, 'TW-OLD', 'was refused', 'none')`,
			b.Source, r.Topic, r.Key, fmt.Sprint("old ", r.Offset), topic.ID, r.Partition, r.Offset, r.Value)
		if err != nil {
			t.Fatal(err)
		}
	}
	b.HasRead(next, consume.TokenOf)
	stop, _ := delivering(b, b.Env, b.DeliverSpec(m))
	b.Eventually("the one that was mended to be delivered", func() (bool, string) {
		return m.Has(b.In.Topic+"/1") == "well again", fmt.Sprint(m.Size())
	})
	b.Eventually("the other one alone to be parked, and listed", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		now := b.ParkedNow()
		return err == nil && len(ps) == 1 && len(now) == 1 && ps[0].Key == "4" && ps[0].Code == enginetest.ErrNotTaken.ID, fmt.Sprint(ps, err, now)
	})
	if rows, err := store.Foreign(t.Context(), b.Source, 10); err != nil || len(rows) != 0 {
		t.Errorf("still foreign: %v, %v", rows, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// The control database goes away and comes back: the flow does not notice, and
// the list catches up with what was parked, released and asked for meanwhile.
func TestDeliverControlCatchesUp(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	exec := func(sql string) {
		t.Helper()
		if _, err := b.Env.Control.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	keys := func() string {
		ps, err := store.List(t.Context(), control.Filter{})
		out := []string{}
		for _, p := range ps {
			out = append(out, p.Key)
		}
		return fmt.Sprint(out, err)
	}
	m := enginetest.NewMemory()
	m.Judge = refusing("bad")
	delivering(b, b.Env, b.DeliverSpec(m))
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "bad"}, enginetest.Row{Op: change.Update, ID: 2, Val: "bad"})
	b.Drained()
	b.Eventually("both to be listed", func() (bool, string) { return keys() == "[1 2] <nil>" || keys() == "[2 1] <nil>", keys() })
	exec("alter table tallywire.parked rename to gone")
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "good"}, enginetest.Row{Op: change.Update, ID: 3, Val: "bad"})
	b.Drained()
	if now := b.ParkedNow(); len(now) != 2 {
		t.Errorf("parked: %v, want 2 and 3", now)
	}
	b.Shows(b.Env, "sink", "that it runs", func(v obs.View) bool { return v.State == obs.Running && v.Parked == 2 })
	exec("alter table tallywire.gone rename to parked")
	b.Eventually("the list to catch up", func() (bool, string) { return keys() == "[2 3] <nil>" || keys() == "[3 2] <nil>", keys() })
}

// A discard is seen at once, in the metric and in the list, and says so to who
// asked. The next version of the key goes its way.
func TestDeliverDiscards(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	m := enginetest.NewMemory()
	m.Judge = refusing("bad")
	delivering(b, b.Env, b.DeliverSpec(m))
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "bad"}, enginetest.Row{Op: change.Update, ID: 2, Val: "bad"})
	b.Drained()
	b.Eventually("both to be listed", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return len(ps) == 2, fmt.Sprint(ps, err)
	})
	out, err := parked.Discard(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "1"}, testkit.Patience)
	if err != nil || out != (parked.Outcome{Asked: 1, Taken: 1}) {
		t.Fatal(out, err)
	}
	b.Shows(b.Env, "sink", "what is left", func(v obs.View) bool { return v.Parked == 1 })
	out, err = parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "2"}, testkit.Patience)
	if err != nil || out != (parked.Outcome{Asked: 1, Parked: 1}) {
		t.Fatal(out, err)
	}
	b.Eventually("the second attempt of the other to be listed alone", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return err == nil && len(ps) == 1 && ps[0].Key == "2" && ps[0].Attempts == 2, fmt.Sprint(ps, err)
	})
	if m.Size() != 0 {
		t.Errorf("%d rows are in the sink", m.Size())
	}
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "good"})
	b.Drained()
	if got := m.Has(b.In.Topic + "/1"); got != "good" {
		t.Errorf("key 1 is %q", got)
	}
}

// Asked to try all again, a sink takes no more at once than it takes of its
// input (invariant 12), and all in the end.
func TestDeliverRetriesAreBoundedInOctets(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	m := enginetest.NewMemory()
	m.Judge = refusing("x")
	enginetest.Wide(b)
	spec := b.DeliverSpec(m)
	spec.MaxBytes = enginetest.BoundRows * enginetest.WideOctets
	delivering(b, b.Env, spec)
	b.Drained()
	b.Eventually("all to be listed", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return len(ps) == b.N, fmt.Sprint(len(ps), err)
	})
	var y enginetest.Tally
	m.Mu.Lock()
	m.Down = func() error { y.Begin(); return nil }
	m.Judge = func(_, _, note string) (error, string) { y.Add(note); return nil, "" }
	m.Mu.Unlock()
	out, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source}, testkit.Patience)
	if err != nil || out.Taken != b.N || m.Size() != b.N {
		t.Errorf("%+v, %v; %d rows are in the sink, want %d", out, err, m.Size(), b.N)
	}
	m.Mu.Lock()
	defer m.Mu.Unlock()
	y.CheckWithin(t, 2) // the last one that is taken passes the bound
}

// A restart finds what was asked for while nothing ran.
func TestDeliverHearsCommandsLater(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	m := enginetest.NewMemory()
	m.Judge = refusing("bad")
	stop, _ := delivering(b, b.Env, b.DeliverSpec(m))
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "bad"})
	b.Drained()
	b.Eventually("it to be listed", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return len(ps) == 1, fmt.Sprint(ps, err)
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	out, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source}, time.Millisecond)
	if err != nil || out != (parked.Outcome{Asked: 1, Pending: 1}) {
		t.Fatal(out, err)
	}
	m.Judge = nil
	delivering(b, b.Env, b.DeliverSpec(m))
	b.Eventually("it to be delivered", func() (bool, string) { return m.Has(b.In.Topic+"/1") == "bad", "" })
	b.Eventually("it to be listed no more", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return err == nil && len(ps) == 0 && len(b.ParkedNow()) == 0, fmt.Sprint(ps, err)
	})
}

// A topic is taken out of what the sink reads. If this failed, a record of it
// that is parked would not be counted, and a command about it never be done:
// nobody would own it.
func TestDeliverParkedOfATopicThatIsNotRead(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	store := b.Control()
	other := b.Source + ".other"
	if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: other, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	m := enginetest.NewMemory()
	m.Judge = refusing("bad")
	b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "bad"}, enginetest.Row{Op: change.Update, ID: 2, Val: "bad"})
	stop, _ := delivering(b, b.Env, b.DeliverSpec(m, b.In.Topic, other))
	b.Drained()
	b.Eventually("both to be listed", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{})
		return len(ps) == 2, fmt.Sprint(ps, err)
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	stop, _ = delivering(b, b.Env, b.DeliverSpec(m, other))
	b.Shows(b.Env, "sink", "both", func(v obs.View) bool { return v.State == obs.Running && v.Parked == 2 })
	for i := range 2 { // the second time for the reason that it is parked for by now
		out, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "1"}, testkit.Patience)
		if err != nil || out != (parked.Outcome{Asked: 1, Parked: 1}) {
			t.Errorf("retry %d: %+v, %v", i, out, err)
		}
		b.Eventually("the reason to be listed", func() (bool, string) {
			ps, err := store.List(t.Context(), control.Filter{Key: "1"})
			return len(ps) == 1 && ps[0].Attempts == i+2 && ps[0].Code == parked.ErrGone.ID && strings.Contains(ps[0].Remedy, "read again by "+b.Source), fmt.Sprint(ps, err)
		})
	}
	out, err := parked.Discard(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "2"}, testkit.Patience)
	if now := b.ParkedNow(); err != nil || out != (parked.Outcome{Asked: 1, Taken: 1}) || len(now) != 1 {
		t.Errorf("a discard: %+v, %v; parked are %v", out, err, now)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// Read again, it is tried.
	m.Judge = nil
	delivering(b, b.Env, b.DeliverSpec(m, b.In.Topic, other))
	out, err = parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source, Key: "1"}, testkit.Patience)
	if got := m.Has(b.In.Topic + "/1"); err != nil || out != (parked.Outcome{Asked: 1, Taken: 1}) || got != "bad" {
		t.Errorf("a retry: %+v, %v; the sink has %q", out, err, got)
	}
}

// What waits lies in a partition of another process than what it waits for.
func TestDeliverReleasesAcrossMembers(t *testing.T) {
	t.Run("who waits is known", func(t *testing.T) { releasesAcrossMembers(t, false, false) })
	// One member has judged a child, and not parked it yet, when the other
	// delivers its parent: nobody there knows that it waits.
	t.Run("who waits is parked too late", func(t *testing.T) { releasesAcrossMembers(t, true, false) })
	// And the far side is away when it is looked at again.
	t.Run("who waits is parked too late and fails once", func(t *testing.T) { releasesAcrossMembers(t, true, true) })
}

// between is a sink that does something between the first judgement that a
// record waits and its parking. With fails it is away when such a record comes
// for the second time.
type between struct {
	*enginetest.Memory
	once  sync.Once
	do    func()
	fails bool
	came  map[string]int // by coordinate; of those that wait
}

func (s *between) Write(ctx context.Context, b *change.Batch) ([]pipeline.Failure, error) {
	at := func(i int) string {
		c := &b.Changes[i]
		return fmt.Sprint(c.Table.Topic, "/", c.Coord.Partition, "/", c.Coord.Offset)
	}
	again := false
	for i := range b.Changes {
		if s.came[at(i)] == 1 {
			s.came[at(i)], again = 2, true
		}
	}
	if s.fails && again {
		return nil, enginetest.ErrSinkDown.New("it is away")
	}
	fs, err := s.Memory.Write(ctx, b)
	for _, f := range fs {
		s.came[at(f.Index)]++
	}
	if slices.ContainsFunc(fs, func(f pipeline.Failure) bool { return f.WaitsFor != "" }) {
		s.once.Do(s.do)
	}
	return fs, err
}

func releasesAcrossMembers(t *testing.T, late, fails bool) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	b.Control()
	parent := *b.In
	parent.Topic = b.Source + ".a-parent"
	parents := &enginetest.TopicBed{Bed: b.Bed, In: parent.Index(), Outs: b.Outs, Client: b.Client}
	if _, err := b.Outs.Ensure(t.Context(), parents.In); err != nil {
		t.Fatal(err)
	}
	m := enginetest.NewMemory()
	m.Judge = func(topic, key, _ string) (error, string) { // called with mu held
		if topic == b.In.Topic {
			if p := parents.In.Topic + "/1" + key; m.Rows[p] == "" {
				return enginetest.ErrNotTaken.New("its parent is not there"), p
			}
		}
		return nil, ""
	}
	spec := b.DeliverSpec(m, parents.In.Topic, b.In.Topic)
	spec.Patience = time.Hour // nothing but their parents releases them
	members := []*pipeline.Env{b.Member("a"), b.Member("b")}
	putParents := func() {
		for id := int64(11); id <= 19; id++ {
			parents.Put(enginetest.Row{Op: change.Update, ID: id, Val: "parent"})
		}
	}
	for _, env := range members {
		spec := spec
		if late && env.Instance == "b" {
			spec.Sink = &between{Memory: m, fails: fails, came: map[string]int{}, do: func() {
				putParents()
				b.Eventually("the other member to deliver its parents", func() (bool, string) {
					mine := map[int32]bool{}
					for _, of := range b.Group().Members {
						if of.InstanceID != nil && strings.HasPrefix(*of.InstanceID, "b.") {
							if a, is := of.Assigned.AsConsumer(); is {
								for _, t := range a.Topics {
									for _, part := range t.Partitions {
										mine[part] = mine[part] || t.Topic == parents.In.Topic
									}
								}
							}
						}
					}
					lags, err := b.Direct.Admin().Lag(t.Context(), pipeline.GroupOf(b.Source))
					if err != nil {
						return false, err.Error()
					}
					theirs := 0
					for _, part := range lags[pipeline.GroupOf(b.Source)].Lag[parents.In.Topic] {
						if mine[part.Partition] {
							continue
						}
						if theirs++; part.Lag != 0 {
							return false, fmt.Sprint("partition ", part.Partition, ": ", part.Lag)
						}
					}
					return theirs > 0 && len(mine) > 0, fmt.Sprint(theirs, mine)
				})
			}}
		}
		delivering(b, env, spec)
	}
	b.Eventually("both to have partitions", func() (bool, string) {
		n := 0
		for _, env := range members {
			if v := b.View(env, "sink"); v.State == obs.Running && len(v.Lag) > 0 {
				n++
			}
		}
		g := b.Group()
		return n == 2 && len(g.Members) == 2 && g.State == "Stable", fmt.Sprint(n, " ", g.State)
	})
	for id := int64(1); id <= 9; id++ {
		b.Put(enginetest.Row{Op: change.Update, ID: id, Val: "child"})
	}
	b.Drained()
	if !late {
		for _, env := range members {
			b.Shows(env, "sink", "who waits", func(v obs.View) bool { return v.Waiting > 0 })
		}
		putParents()
	}
	b.Eventually("the children to be released", func() (bool, string) { return m.Size() == 18, fmt.Sprint(m.Size()) })
	for _, env := range members {
		b.Shows(env, "sink", "that nobody waits", func(v obs.View) bool { return v.Waiting == 0 && v.Parked == 0 })
	}
}

// Shown if this fails: the records of a topic with rates, to everybody who may
// see what is parked. With a key they are sealed.
func TestDeliverParksRestricted(t *testing.T) {
	for name, keys := range map[string][]secret.Value{"by reference": nil, "sealed": {secret.Of("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")}} {
		t.Run(name, func(t *testing.T) {
			b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
			store := b.Control()
			b.Env.Restricted = map[string]bool{b.In.Topic: true}
			var err error
			if b.Env.Seal, err = seal.New(keys, "encryption.keys"); err != nil {
				t.Fatal(err)
			}
			k := enginetest.NewKeeping()
			k.Judge = func(_, _, note string) (error, string) {
				return enginetest.ErrNotTaken.New("the sink refuses this"), ""
			}
			b.Put(enginetest.Row{Op: change.Update, ID: 1, Val: "a rate of 82.50 an hour"})
			stop, _ := delivering(b, b.Env, b.DeliverSpec(k))
			b.Drained()
			b.Eventually("it to be listed", func() (bool, string) {
				ps, err := store.List(t.Context(), control.Filter{Stage: b.Source})
				return len(ps) == 1, fmt.Sprint(ps, err)
			})
			enginetest.CheckNotShown(b, "a rate of 82.50 an hour")
			k.Mu.Lock()
			k.Judge = nil
			k.Mu.Unlock()
			if n, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source}, 0); n.Asked != 1 || err != nil {
				t.Fatal(n, err)
			}
			b.Eventually("it to be delivered", func() (bool, string) {
				return k.Has(b.In.Topic+"/1") == "a rate of 82.50 an hour", k.Has(b.In.Topic + "/1")
			})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
