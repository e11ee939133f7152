package consume_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/deliver"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/transform"
)

// loops are the two that are members of groups: how one is started, as a sink
// or a transform of the bed, and how many records have come through it.
var loops = map[string]func(b *enginetest.TopicBed) (start func(env *pipeline.Env) (stop func() error, ended <-chan error), through func() int){
	"transform": func(b *enginetest.TopicBed) (func(*pipeline.Env) (func() error, <-chan error), func() int) {
		st := &enginetest.Copier{Topic: b.Output()}
		return func(env *pipeline.Env) (func() error, <-chan error) {
				return b.Running(func(ctx context.Context) error { return transform.Run(ctx, env, b.TransformSpec(st)) })
			},
			func() int {
				if _, err := b.Direct.Topic(b.T.Context(), b.Output()); err != nil {
					return 0
				}
				return len(b.Read(b.Output()))
			}
	},
	"sink": func(b *enginetest.TopicBed) (func(*pipeline.Env) (func() error, <-chan error), func() int) {
		k := enginetest.NewKeeping()
		return func(env *pipeline.Env) (func() error, <-chan error) {
				return b.Running(func(ctx context.Context) error { return deliver.Run(ctx, env, b.DeliverSpec(k)) })
			},
			func() int {
				k.Mu.Lock()
				defer k.Mu.Unlock()
				return len(k.Applied)
			}
	},
}

func onBothLoops(t *testing.T, test func(t *testing.T, b *enginetest.TopicBed, start func(*pipeline.Env) (func() error, <-chan error), through func() int)) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		for name, loop := range loops {
			t.Run(name, func(t *testing.T) {
				bd := *bd
				bd.T, bd.Source = t, bd.Source+"-"+name
				b := enginetest.NewTopicBed(&bd)
				start, through := loop(b)
				test(t, b, start, through)
			})
		}
	})
}

// A killed process takes no leave. Without a static place the one that is
// started after it waits until the dead session has run out: half a minute in
// which nothing moves.
func TestMemberIsBackAfterAKill(t *testing.T) {
	onBothLoops(t, func(t *testing.T, b *enginetest.TopicBed, start func(*pipeline.Env) (func() error, <-chan error), through func() int) {
		b.Many(300)
		stop, _ := start(b.Env)
		b.Drained()
		b.Proxy.Cut() // what the process says from now on, nobody hears
		t.Cleanup(b.Proxy.Mend)
		b.Many(100)
		began := time.Now()
		start(b.Beside())
		b.Eventually("the records after the kill", func() (bool, string) {
			n := through()
			return n == b.N, fmt.Sprint(n)
		})
		took := time.Since(began)
		t.Logf("%v from the start to the last record", took)
		if took > 20*time.Second {
			t.Errorf("the place of the killed process was free after %v only", took)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// Who stops must not leave a group behind that still counts as active: neither
// Kafka's reset tool nor `tallywire replay` would do anything for half a minute.
func TestMemberLeavesOnStop(t *testing.T) {
	onBothLoops(t, func(t *testing.T, b *enginetest.TopicBed, start func(*pipeline.Env) (func() error, <-chan error), through func() int) {
		b.Many(100)
		stop, _ := start(b.Env)
		b.Drained()
		if g := b.Group(); len(g.Members) != 1 || g.Members[0].InstanceID == nil {
			t.Errorf("while it runs the group is %s with members %+v, want a static one", g.State, g.Members)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if g := b.Group(); g.State != "Empty" || len(g.Members) != 0 {
			t.Errorf("after the stop the group is %s with members %+v", g.State, g.Members)
		}
	})
}

// What stops during the pause after an outage has a place too.
func TestMemberLeavesWhenStoppedInAPause(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	m := enginetest.NewMemory()
	k := &enginetest.Keeping{Memory: m, Offsets: map[string]int64{}, Owner: map[string]string{}, Applied: map[string]int{}}
	b.Many(10)
	stop, _ := b.Running(func(ctx context.Context) error { return deliver.Run(ctx, b.Env, b.DeliverSpec(k)) })
	b.Drained()
	k.Mu.Lock()
	k.Down = func() error { return enginetest.ErrSinkDown.New("down") }
	k.Mu.Unlock()
	b.Many(10)
	b.Eventually("a pause", func() (bool, string) {
		v := b.View(b.Env, "sink")
		return v.State == obs.Retrying && len(b.Group().Members) == 1, string(v.State)
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if g := b.Group(); len(g.Members) != 0 {
		t.Errorf("the group is %s with members %+v", g.State, g.Members)
	}
}

// Two processes with one instance: the older one must stop and stay so. If it
// came back, the two would throw each other out without end.
func TestMemberWithTheSameInstanceFences(t *testing.T) {
	onBothLoops(t, func(t *testing.T, b *enginetest.TopicBed, start func(*pipeline.Env) (func() error, <-chan error), through func() int) {
		b.Many(100)
		_, ended := start(b.Env)
		b.Drained()
		_, second := start(b.Beside())
		select {
		case err := <-ended:
			if !problem.Has(err, pipeline.ErrFenced) {
				t.Fatalf("ended with %v, want TW-FENCED", err)
			}
		case err := <-second:
			t.Fatalf("the newer process ended: %v", err)
		case <-time.After(testkit.Patience):
			t.Fatal("both go on")
		}
		b.Many(100)
		b.Eventually("the newer process to go on", func() (bool, string) { // Remedy: TW-FENCED
			n := through()
			return n == b.N, fmt.Sprint(n)
		})
		if g := b.Group(); len(g.Members) != 1 {
			t.Errorf("the group is %s with members %+v: the older one took the newer one along", g.State, g.Members)
		}
	})
}

// Partitions of a process that stopped must not lie idle until its session has
// run out.
func TestMemberHandsItsPartitionsOver(t *testing.T) {
	onBothLoops(t, func(t *testing.T, b *enginetest.TopicBed, start func(*pipeline.Env) (func() error, <-chan error), through func() int) {
		b.Many(100)
		stop, _ := start(b.Member("a"))
		start(b.Member("b"))
		b.Eventually("two members", func() (bool, string) {
			g := b.Group()
			return len(g.Members) == 2 && g.State == "Stable", g.State
		})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		b.Many(100)
		b.Eventually("all records", func() (bool, string) {
			n := through()
			return n == b.N, fmt.Sprint(n)
		})
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %v until the partitions were read again", took)
		}
	})
}

// A session that is made anew finds its place as it was: no rebalance for the
// others, and above all no fencing of ourselves.
func TestMemberKeepsItsPlaceAcrossSessions(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := enginetest.NewTopicBed(bd)
		b.Many(100)
		k := enginetest.NewKeeping()
		fail := 0
		k.Down = func() error {
			if fail++; fail%2 == 1 && fail < 8 {
				return enginetest.ErrSinkDown.New("down")
			}
			return nil
		}
		_, ended := b.Running(func(ctx context.Context) error { return deliver.Run(ctx, b.Env, b.DeliverSpec(k)) })
		b.Drained()
		b.Newest(k.Memory)
		select {
		case err := <-ended:
			t.Fatalf("ended with %v", err)
		default:
		}
		b.Shows(b.Env, "sink", "that it runs", func(v obs.View) bool { return v.State == obs.Running })
	})
}

// A group that may not be joined shows at once. The client tries again and
// again by itself, and says so only in passing.
func TestMemberThatIsRefusedHalts(t *testing.T) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	b.Many(10)
	b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Err: kerr.GroupAuthorizationFailed})
	_, ended := b.Running(func(ctx context.Context) error {
		return transform.Run(ctx, b.Env, b.TransformSpec(&enginetest.Copier{Topic: b.Output()}))
	})
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	select {
	case err := <-ended:
		if !problem.Has(err, kafka.ErrRefused) {
			t.Fatalf("ended with %v, want TW-KAFKA-REFUSED", err)
		}
	case <-ctx.Done():
		t.Fatal("a group that may not be joined is tried for ever")
	}
}
