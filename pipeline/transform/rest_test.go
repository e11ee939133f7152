package transform

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/state"
)

// later is a stage that leaves all work for later: for each record a number is to
// be written, a few at a time, from a count that is state.
type later struct {
	table *state.Table
	out   *change.Table

	mu   sync.Mutex
	hold chan struct{} // pages wait for it when they are about to be written; nil: not
	held chan struct{} // closed when one does
	must error         // wait, since
}

const laterKey = "left"

func (l *later) counts(p int32) (written, all uint64) {
	if v := l.table.Get(p, laterKey); v != nil {
		return binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
	}
	return 0, 0
}

func (l *later) set(p int32, written, all uint64) error {
	return l.table.Put(p, laterKey, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, written), all))
}

func (l *later) Apply(ctx context.Context, in *change.Batch, _ pipeline.Outlet) error {
	defer in.Release()
	want := map[int32][]string{}
	for i := range in.Changes {
		want[in.Changes[i].Coord.Partition] = []string{laterKey}
	}
	if err := l.table.Fetch(ctx, want); err != nil {
		return err
	}
	for i := range in.Changes {
		p := in.Changes[i].Coord.Partition
		written, all := l.counts(p)
		if err := l.set(p, written, all+1); err != nil {
			return err
		}
	}
	return nil
}

func (l *later) rest(ctx context.Context, owned []int32, out pipeline.Outlet) (string, error) {
	want := map[int32][]string{}
	for _, p := range owned {
		want[p] = []string{laterKey}
	}
	if err := l.table.Fetch(ctx, want); err != nil {
		return "", err
	}
	left := uint64(0)
	b := change.Get()
	for _, p := range owned {
		written, all := l.counts(p)
		to := min(written+20, all)
		for n := written + 1; n <= to; n++ {
			row := b.Row(len(l.out.Columns))
			row[0], row[1] = change.IntValue(int64(p)), b.SpanString(change.String, fmt.Sprintf("number %d;", n))
			b.Append(l.out, change.Update).New = row
		}
		if to > written {
			if err := l.set(p, to, all); err != nil {
				return "", err
			}
		}
		left += all - to
	}
	l.mu.Lock()
	hold, held, must := l.hold, l.held, l.must
	l.mu.Unlock()
	if must != nil {
		b.Release()
		return "", must
	}
	if hold != nil && b.Len() > 0 {
		close(held)
		<-hold
		l.mu.Lock()
		l.hold = nil
		l.mu.Unlock()
	}
	if err := out.Send(ctx, b); err != nil || left == 0 {
		return "", err
	}
	return strconv.FormatUint(left, 10) + " left", nil
}

func (b *countingBed) later(env *pipeline.Env) (*later, pipeline.TransformSpec) {
	out := *b.In
	out.Topic = b.Output()
	l := &later{table: state.NewTable(env.Redis, env.Obs.Log, b.Source), out: out.Index()}
	spec := b.TransformSpec(l)
	spec.State, spec.Rest = l.table, l.rest
	return l, spec
}

// numbers waits until as many numbers were written as records, and fails unless
// each partition has each of its own once, in order.
func (b *countingBed) numbers() {
	b.T.Helper()
	b.Eventually("all numbers to be written", func() (bool, string) {
		if _, err := b.Direct.Topic(b.T.Context(), b.Output()); err != nil {
			return false, err.Error()
		}
		n := len(b.Read(b.Output()))
		return n >= b.N, fmt.Sprintf("%d of %d", n, b.N)
	})
	last := map[string]int{}
	for _, r := range b.Read(b.Output()) {
		m := numberIn.FindSubmatch(r.Value)
		if m == nil {
			b.T.Fatalf("no number in %q", r.Value)
		}
		n, _ := strconv.Atoi(string(m[1]))
		if n != last[string(r.Key)]+1 {
			b.T.Fatalf("partition %x: number %d comes after %d", r.Key, n, last[string(r.Key)])
		}
		last[string(r.Key)] = n
	}
}

// What is left for later is done once, page by page, whatever end is lost, when
// Redis is emptied, and over a restart.
func TestRest(t *testing.T) {
	for name, c := range map[string]struct {
		key  int16
		loss testkit.KafkaLoss
	}{"no answer to the end": {26, testkit.LoseReply}, "no offsets": {28, testkit.LoseRequest}} {
		t.Run(name, func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
				b := newCountingBed(t, bd)
				l, spec := b.later(b.Env)
				hold := make(chan struct{})
				l.hold, l.held = hold, make(chan struct{})
				stop, _ := transforming(b.TopicBed, b.Env, spec)
				b.Many(400)
				select {
				case <-l.held:
				case <-time.After(testkit.Patience):
					t.Fatal("no page was begun")
				}
				hit := bd.Proxy.Lose(c.key, c.loss, 4) // the page's, and what follows
				close(hold)
				select {
				case <-hit:
				case <-time.After(testkit.Patience):
					t.Fatal("the proxy lost nothing")
				}
				b.Many(200)
				b.Drained()
				if err := b.redis().FlushAll(t.Context()).Err(); err != nil {
					t.Fatal(err)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				_, spec = b.later(b.Env)
				transforming(b.TopicBed, b.Env, spec)
				b.numbers()
			})
		})
	}
}

var errNotYet = problem.Define("TW-TEST-NOT-YET", problem.Retry, "The test lets no page be done.", "Wait.")

// A page that must wait says why, for as long as it waits and though records come, and
// no longer; nothing of it is lost. If this failed, a fan-out would wait in silence.
func TestRestThatMustWait(t *testing.T) {
	b := newCountingBed(t, enginetest.NewBed(t, ""))
	l, spec := b.later(b.Env)
	must := func(err error) {
		l.mu.Lock()
		l.must = err
		l.mu.Unlock()
	}
	must(errNotYet.New("the test holds them"))
	transforming(b.TopicBed, b.Env, spec)
	for range 2 {
		b.Many(100)
		b.Drained()
		b.Shows(b.Env, "transform", "why pages wait", func(v obs.View) bool {
			return v.State == obs.Running && strings.Contains(v.Reason, "trying again") && strings.Contains(v.Reason, "the test holds them")
		})
	}
	must(nil)
	b.numbers()
	b.Shows(b.Env, "transform", "no reason", func(v obs.View) bool { return v.State == obs.Running && v.Reason == "" })
}

// A11. An owner is paused when a page is about to be written; its partitions go to
// another, which writes it. The first wakes up: without offsets in its transaction
// nothing refuses it, and the page is there twice.
func TestRestOfAnOwnerThatWasReplaced(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := newCountingBed(t, bd)
		l, spec := b.later(b.Env)
		l.hold, l.held = make(chan struct{}), make(chan struct{})
		hold := l.hold
		transforming(b.TopicBed, b.Env, spec)
		b.Many(100)
		select {
		case <-l.held:
		case <-time.After(testkit.Patience):
			t.Fatal("no page was begun")
		}
		g := b.Group()
		if len(g.Members) != 1 || g.Members[0].InstanceID == nil {
			t.Fatalf("members %+v", g.Members)
		}
		if err := b.Direct.LeaveGroup(t.Context(), pipeline.GroupOf(b.Source), *g.Members[0].InstanceID, g.Members[0].MemberID); err != nil {
			t.Fatal(err)
		}
		env := b.Member("second")
		env.Redis = b.redis()
		env.Kafka = b.Direct
		_, other := b.later(env)
		transforming(b.TopicBed, env, other)
		b.numbers()
		close(hold)
		b.Many(100)
		b.numbers()
	})
}
