package transform

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// numbered is a Stage that gives a row the key that its number makes.
type numbered struct {
	table *change.Table
	key   func(id int64) string
}

func (s *numbered) row(b *change.Batch, row []change.Value) []change.Value {
	if row == nil {
		return nil
	}
	to := b.Row(2)
	to[0], to[1] = b.SpanString(change.String, s.key(row[0].Int())), row[1]
	return to
}

func (s *numbered) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	for i := range in.Changes {
		c := &in.Changes[i]
		c.Table, c.Old, c.New = s.table, s.row(in, c.Old), s.row(in, c.New)
	}
	return out.Send(ctx, in)
}

// between is the stage that ends what former gave and now does not.
type between struct {
	now, former *numbered
	batches     atomic.Int64
	before      func(batch int64) // each batch
}

func (s *between) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	if n := s.batches.Add(1); s.before != nil {
		s.before(n)
	}
	in.Keep(func(c *change.Change) bool {
		id := c.Row()[0].Int()
		was := s.former.row(in, c.Row())
		c.Table, c.Op, c.Old, c.New = s.former.table, change.Delete, was, nil
		return s.former.key(id) != s.now.key(id)
	})
	return out.Send(ctx, in)
}

// switching is a bed whose rows were given under their numbers; the rules in
// force give each the number of the next: all keys but one pass from one row to
// another.
func switching(bd *enginetest.Bed) (b *enginetest.TopicBed, now pipeline.TransformSpec, s Switching, st *between) {
	b = enginetest.NewTopicBed(bd)
	table := canonicalOf(b).table
	former := &numbered{table, func(id int64) string { return strconv.FormatInt(id, 10) }}
	next := &numbered{table, func(id int64) string { return strconv.FormatInt(id+1, 10) }}
	st = &between{now: next, former: former}
	puts(b, 1, 60, "row")
	b.Put(enginetest.Row{Op: change.Delete, ID: 60}, enginetest.Row{Op: change.Update, ID: 7, Val: "row seven"})
	stop, _ := transforming(b, b.Env, b.TransformSpec(former))
	b.Drained()
	if err := stop(); err != nil {
		b.T.Fatal(err)
	}
	now = b.TransformSpec(next)
	return b, now, Switching{Name: b.Source, Topics: []string{b.In.Topic}, Ends: st, Outputs: []string{b.Output(), "not-there"}}, st
}

// wantNext checks that the output is what the rules in force make of all rows.
func wantNext(b *enginetest.TopicBed) {
	b.T.Helper()
	var want []string
	for id := 1; id < 60; id++ {
		if id != 7 {
			want = append(want, fmt.Sprintf("row %03d", id))
		}
	}
	want = append(want, "row seven")
	if got := notes(b); !slices.Equal(got, want) {
		b.T.Errorf("alive: %q", got)
	}
	if n := len(alive(b)); n != 59 {
		b.T.Errorf("%d keys", n)
	}
}

func offsetsOf(listed kadm.ListedOffsets) map[int32]int64 {
	out := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { out[o.Partition] = o.Offset })
	return out
}

// refused checks that the transform does not run.
func refused(b *enginetest.TopicBed, spec pipeline.TransformSpec) {
	b.T.Helper()
	stop, ended := transforming(b, b.Env, spec)
	select {
	case err := <-ended:
		if !problem.Has(err, ErrSwitchOpen) {
			b.T.Fatal(err)
		}
	case <-time.After(testkit.Patience):
		b.T.Fatal("it runs")
	}
	_ = stop()
}

// Lost if this fails: a key that one row gives up and another takes over, when its
// end is read after its record; or what only the former rules gave stays for ever.
func TestSwitch(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b, now, s, _ := switching(bd)
		before := len(b.Read(b.Output()))
		dry := s
		dry.Dry = true
		counted, err := Switch(t.Context(), b.Env, dry)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(b.Read(b.Output())); n != before {
			t.Errorf("a dry run wrote %d records", n-before)
		}
		stop, _ := transforming(b, b.Env, b.TransformSpec(s.Ends.(*between).former)) // nothing was set back
		b.Drained()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := len(b.Read(b.Output())); n != before {
			t.Errorf("after a dry run %d records were read again", n-before)
		}
		done, err := Switch(t.Context(), b.Env, s)
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(done.Ended, map[string]int64{b.Output(): 60}) || done.Records != 63 || len(done.Begins) > 0 || !maps.Equal(counted.Ended, done.Ended) || counted.Records != done.Records {
			t.Errorf("it did %+v, and counted %+v", done, counted)
		}
		if got := alive(b); len(got) > 0 {
			t.Errorf("alive: %v", got)
		}
		transforming(b, b.Env, now)
		b.Put(enginetest.Row{Op: change.Update, ID: 3, Val: "row 003"})
		b.Drained()
		wantNext(b)
	})
}

// Killed in between, the transform does not go on with half of it ended: rows
// that were ended and are not read again would be missing in silence.
func TestSwitchBrokenOff(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b, now, s, st := switching(bd)
		ctx, kill := context.WithCancel(t.Context())
		st.before = func(batch int64) {
			if batch == 2 { // one partition is done
				kill()
			}
		}
		if _, err := Switch(ctx, b.Env, s); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		refused(b, now)
		// Remedy: TW-SWITCH-OPEN
		if _, err := Switch(t.Context(), b.Env, s); err != nil {
			t.Fatal(err)
		}
		transforming(b, b.Env, now)
		b.Drained()
		wantNext(b)
	})
}

// One that is broken off while it writes holds nobody up.
func TestSwitchBrokenOffEndsItsTransaction(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b, _, s, _ := switching(bd)
		ctx, kill := context.WithCancel(t.Context())
		hold := b.Proxy.Hold(func(r testkit.KafkaRequest) bool { return r.Key() == int16(kmsg.Produce) })
		go func() {
			<-hold.Held()
			kill()
			hold.Release()
		}()
		if _, err := Switch(ctx, b.Env, s); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		b.Eventually("readers to go on", func() (bool, string) {
			stable, err := b.Direct.Admin().ListCommittedOffsets(t.Context(), b.Output())
			if err != nil {
				return false, err.Error()
			}
			ends, err := b.Direct.Admin().ListEndOffsets(t.Context(), b.Output())
			return err == nil && maps.Equal(offsetsOf(stable), offsetsOf(ends)), fmt.Sprint(offsetsOf(stable), offsetsOf(ends), err)
		})
	})
}

// A switch that was paused writes nothing behind the rows of the next.
func TestSwitchIsFenced(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b, now, s, st := switching(bd)
		here, woken := make(chan struct{}), make(chan struct{})
		st.before = func(batch int64) {
			if batch == 2 {
				close(here)
				<-woken
			}
		}
		paused := make(chan error, 1)
		go func() {
			_, err := Switch(t.Context(), b.Env, s)
			paused <- err
		}()
		b.Await("the first switch to be in the middle", here)
		again := s
		again.Ends = &between{now: st.now, former: st.former}
		if _, err := Switch(t.Context(), b.Beside(), again); err != nil {
			t.Fatal(err)
		}
		stop, _ := transforming(b, b.Beside(), now)
		b.Drained()
		close(woken)
		if err := <-paused; !problem.Has(err, pipeline.ErrFenced) && !problem.Has(err, ErrSwitchActive) {
			t.Errorf("the paused one: %v", err)
		}
		wantNext(b)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// One that has nothing left to write, and is paused before it says so, does not
// say it of another.
func TestSwitchEndsItself(t *testing.T) {
	b, now, s, st := switching(enginetest.NewBed(t, ""))
	first := s
	first.Ends = &between{now: st.former, former: st.former, before: func(batch int64) { // no key differs
		if batch != 3 { // of three
			return
		}
		ctx, kill := context.WithCancel(t.Context())
		st.before = func(int64) { kill() }
		if _, err := Switch(ctx, b.Beside(), s); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}}
	if _, err := Switch(t.Context(), b.Env, first); !problem.Has(err, ErrSwitchActive) {
		t.Fatal(err)
	}
	refused(b, now)
}

// While somebody runs the transform nothing is begun.
func TestSwitchOfARunningTransform(t *testing.T) {
	b, now, s, st := switching(enginetest.NewBed(t, ""))
	former := b.TransformSpec(st.former)
	stop, _ := transforming(b, b.Env, former)
	b.Shows(b.Env, "transform", "that it runs", func(v obs.View) bool { return v.State == obs.Running })
	if _, err := Switch(t.Context(), b.Beside(), s); !problem.Has(err, ErrSwitchActive) {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n := len(alive(b)); n != 59 {
		t.Errorf("%d alive", n)
	}
	// Remedy: TW-SWITCH-ACTIVE
	if _, err := Switch(t.Context(), b.Beside(), s); err != nil {
		t.Fatal(err)
	}
	transforming(b, b.Beside(), now)
	b.Drained()
	wantNext(b)
}

// The mark is told from our other tokens, and keeps the topic's id.
func TestSwitchToken(t *testing.T) {
	topic := &change.Topic{Name: "a", ID: [16]byte{1, 2, 3}}
	mark := consume.SwitchToken(topic, "one")
	if id, ok := consume.TokenTopic(mark); !ok || id != topic.ID {
		t.Errorf("%q has %x, %v", mark, id, ok)
	}
	for metadata, want := range map[string]string{mark: "one", consume.TokenOf(topic): "", "": "", "somebody else's switch one": ""} {
		if got := consume.Switching(metadata); got != want {
			t.Errorf("%q: %q", metadata, got)
		}
	}
}
