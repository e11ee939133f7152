package pipeline

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
)

// loops are the two that are members of groups: how one is started, as a sink
// or a transform of the bed, and how many records have come through it.
var loops = map[string]func(b *tbed) (start func(env *Env) (stop func() error, ended <-chan error), through func() int){
	"transform": func(b *tbed) (func(*Env) (func() error, <-chan error), func() int) {
		st := &copier{topic: b.output()}
		return func(env *Env) (func() error, <-chan error) {
				return b.running(func(ctx context.Context) error { return RunTransform(ctx, env, b.spec(st)) })
			},
			func() int {
				if _, err := b.direct.Topic(b.t.Context(), b.output()); err != nil {
					return 0
				}
				return len(b.read(b.output()))
			}
	},
	"sink": func(b *tbed) (func(*Env) (func() error, <-chan error), func() int) {
		k := newKeeping()
		return func(env *Env) (func() error, <-chan error) {
				return b.running(func(ctx context.Context) error { return RunDeliver(ctx, env, b.dspec(k)) })
			},
			func() int {
				k.mu.Lock()
				defer k.mu.Unlock()
				return len(k.applied)
			}
	},
}

func onBothLoops(t *testing.T, test func(t *testing.T, b *tbed, start func(*Env) (func() error, <-chan error), through func() int)) {
	onBoth(t, func(t *testing.T, bd *bed) {
		for name, loop := range loops {
			t.Run(name, func(t *testing.T) {
				bd := *bd
				bd.t, bd.source = t, bd.source+"-"+name
				b := newTransformBed(&bd)
				start, through := loop(b)
				test(t, b, start, through)
			})
		}
	})
}

// beside is an Env of the same instance that does not go through the proxy: of
// the process that is started after one was killed, or beside it.
func (b *tbed) beside() *Env {
	env := b.member(b.env.Instance)
	env.Kafka = b.direct
	return env
}

func (b *tbed) group() kadm.DescribedGroup {
	b.t.Helper()
	gs, err := b.direct.Admin().DescribeGroups(b.t.Context(), GroupOf(b.source))
	if err != nil {
		b.t.Fatal(err)
	}
	return gs[GroupOf(b.source)]
}

// A killed process takes no leave. Without a static place the one that is
// started after it waits until the dead session has run out: half a minute in
// which nothing moves.
func TestMemberIsBackAfterAKill(t *testing.T) {
	onBothLoops(t, func(t *testing.T, b *tbed, start func(*Env) (func() error, <-chan error), through func() int) {
		b.many(300)
		stop, _ := start(b.env)
		b.drained()
		b.proxy.Cut() // what the process says from now on, nobody hears
		t.Cleanup(b.proxy.Mend)
		b.many(100)
		began := time.Now()
		start(b.beside())
		b.eventually("the records after the kill", func() (bool, string) {
			n := through()
			return n == b.n, fmt.Sprint(n)
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
	onBothLoops(t, func(t *testing.T, b *tbed, start func(*Env) (func() error, <-chan error), through func() int) {
		b.many(100)
		stop, _ := start(b.env)
		b.drained()
		if g := b.group(); len(g.Members) != 1 || g.Members[0].InstanceID == nil {
			t.Errorf("while it runs the group is %s with members %+v, want a static one", g.State, g.Members)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if g := b.group(); g.State != "Empty" || len(g.Members) != 0 {
			t.Errorf("after the stop the group is %s with members %+v", g.State, g.Members)
		}
	})
}

// What stops during the pause after an outage has a place too.
func TestMemberLeavesWhenStoppedInAPause(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	m := newMemory()
	k := &keeping{memory: m, offsets: map[string]int64{}, owner: map[string]string{}, applied: map[string]int{}}
	b.many(10)
	stop, _ := b.running(func(ctx context.Context) error { return RunDeliver(ctx, b.env, b.dspec(k)) })
	b.drained()
	k.mu.Lock()
	k.down = func() error { return errSinkDown.New("down") }
	k.mu.Unlock()
	b.many(10)
	b.eventually("a pause", func() (bool, string) {
		v := b.view(b.env, "sink")
		return v.State == obs.Retrying && len(b.group().Members) == 1, string(v.State)
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if g := b.group(); len(g.Members) != 0 {
		t.Errorf("the group is %s with members %+v", g.State, g.Members)
	}
}

// Two processes with one instance: the older one must stop and stay so. If it
// came back, the two would throw each other out without end.
func TestMemberWithTheSameInstanceFences(t *testing.T) {
	onBothLoops(t, func(t *testing.T, b *tbed, start func(*Env) (func() error, <-chan error), through func() int) {
		b.many(100)
		_, ended := start(b.env)
		b.drained()
		_, second := start(b.beside())
		select {
		case err := <-ended:
			if !problem.Has(err, ErrFenced) {
				t.Fatalf("ended with %v, want TW-FENCED", err)
			}
		case err := <-second:
			t.Fatalf("the newer process ended: %v", err)
		case <-time.After(testkit.Patience):
			t.Fatal("both go on")
		}
		b.many(100)
		b.eventually("the newer process to go on", func() (bool, string) {
			n := through()
			return n == b.n, fmt.Sprint(n)
		})
		if g := b.group(); len(g.Members) != 1 {
			t.Errorf("the group is %s with members %+v: the older one took the newer one along", g.State, g.Members)
		}
	})
}

// Partitions of a process that stopped must not lie idle until its session has
// run out.
func TestMemberHandsItsPartitionsOver(t *testing.T) {
	onBothLoops(t, func(t *testing.T, b *tbed, start func(*Env) (func() error, <-chan error), through func() int) {
		b.many(100)
		stop, _ := start(b.member("a"))
		start(b.member("b"))
		b.eventually("two members", func() (bool, string) {
			g := b.group()
			return len(g.Members) == 2 && g.State == "Stable", g.State
		})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		b.many(100)
		b.eventually("all records", func() (bool, string) {
			n := through()
			return n == b.n, fmt.Sprint(n)
		})
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %v until the partitions were read again", took)
		}
	})
}

// A session that is made anew finds its place as it was: no rebalance for the
// others, and above all no fencing of ourselves.
func TestMemberKeepsItsPlaceAcrossSessions(t *testing.T) {
	onBoth(t, func(t *testing.T, bd *bed) {
		b := newTransformBed(bd)
		b.many(100)
		k := newKeeping()
		fail := 0
		k.down = func() error {
			if fail++; fail%2 == 1 && fail < 8 {
				return errSinkDown.New("down")
			}
			return nil
		}
		_, ended := b.running(func(ctx context.Context) error { return RunDeliver(ctx, b.env, b.dspec(k)) })
		b.drained()
		b.newest(k.memory)
		select {
		case err := <-ended:
			t.Fatalf("ended with %v", err)
		default:
		}
		b.shows(b.env, "sink", "that it runs", func(v obs.View) bool { return v.State == obs.Running })
	})
}

// A join that belongs to a session of ours that is gone takes our place, since
// it lay in a socket: that is an outage. From anybody else it is for good.
func TestMemberForgivesItsOwnLateJoin(t *testing.T) {
	m := &membership{group: "g", held: true}
	fenced := groupFenced(kerr.FencedInstanceID, "reading")
	if err := m.judge(fenced); !problem.Has(err, ErrFenced) || m.held {
		t.Errorf("a fenced member made %v of it, held %v", err, m.held)
	}
	m.held, m.nameless = true, time.Now()
	if err := m.judge(fenced); !problem.Has(err, kafka.ErrUnavailable) || problem.Has(err, ErrFenced) || !m.held {
		t.Errorf("fenced by a join of its own: %v, held %v", err, m.held)
	}
	other := ErrFenced.New("a newer producer: %w", kerr.ProducerFenced)
	if err := m.judge(other); !problem.Has(err, ErrFenced) {
		t.Errorf("a fenced producer: %v", err)
	}
}

// A group that may not be joined shows at once. The client tries again and
// again by itself, and says so only in passing.
func TestMemberThatIsRefusedHalts(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	b.many(10)
	b.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Err: kerr.GroupAuthorizationFailed})
	_, ended := b.running(func(ctx context.Context) error {
		return RunTransform(ctx, b.env, b.spec(&copier{topic: b.output()}))
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
