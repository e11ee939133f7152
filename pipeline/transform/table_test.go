package transform

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/state"
)

// counting is a stage whose output depends on all that came before: each record
// says how many of its key there were. A value that is lost, kept from an aborted
// transaction, or older than what was committed shows for ever.
type counting struct {
	*enginetest.Copier
	table *state.Table
	mid   func() // called in the midst of a batch, once; nil: nothing
}

func (c *counting) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	want := map[int32][]string{}
	key := func(ch *change.Change) string { return string(change.AppendKey(nil, in, ch)) }
	for i := range in.Changes {
		ch := &in.Changes[i]
		want[ch.Coord.Partition] = append(want[ch.Coord.Partition], key(ch))
	}
	if err := c.table.Fetch(ctx, want); err != nil {
		in.Release()
		return err
	}
	if c.mid != nil {
		c.mid()
	}
	for i := range in.Changes {
		ch := &in.Changes[i]
		n, _ := strconv.Atoi(string(c.table.Get(ch.Coord.Partition, key(ch))))
		if err := c.table.Put(ch.Coord.Partition, key(ch), strconv.AppendInt(nil, int64(n+1), 10)); err != nil {
			in.Release()
			return err
		}
		ch.New[1] = in.SpanString(change.String, fmt.Sprintf("number %d;", n+1))
	}
	return c.Copier.Apply(ctx, in, out)
}

// countingBed runs countings on a Redis of their own.
type countingBed struct {
	*enginetest.TopicBed
	server *embedded.MiniRedis
}

func newCountingBed(t *testing.T, bd *enginetest.Bed) *countingBed {
	b := &countingBed{TopicBed: enginetest.NewTopicBed(bd)}
	var err error
	if b.server, err = embedded.StartMiniRedis("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.server.Close(); err != nil {
			t.Error(err)
		}
	})
	b.Env.Redis = b.redis()
	return b
}

func (b *countingBed) redis() *goredis.Client {
	b.T.Helper()
	c, err := redis.Open(b.T.Context(), b.server.Addr())
	if err != nil {
		b.T.Fatal(err)
	}
	b.T.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *countingBed) spec(env *pipeline.Env, mid func()) pipeline.TransformSpec {
	table := state.NewTable(env.Redis, env.Obs.Log, b.Source)
	spec := b.TransformSpec(&counting{Copier: &enginetest.Copier{Topic: b.Output()}, table: table, mid: mid})
	spec.State = table
	return spec
}

var numberIn = regexp.MustCompile(`number (\d+);`)

// counted fails unless each record says how many of its key there were.
func (b *countingBed) counted() {
	b.T.Helper()
	b.Once()
	last := map[string]int{}
	for _, r := range b.Read(b.Output()) {
		m := numberIn.FindSubmatch(r.Value)
		if m == nil {
			b.T.Fatalf("no number in %q", r.Value)
		}
		n, _ := strconv.Atoi(string(m[1]))
		if n != last[string(r.Key)]+1 {
			b.T.Errorf("key %q: number %d comes after %d", r.Key, n, last[string(r.Key)])
		}
		last[string(r.Key)] = n
	}
}

// D1. Without the overlay, or with Redis before the commit, numbers are skipped
// after an abort; without the changelog they begin again after a loss.
func TestStateSurvivesAborts(t *testing.T) {
	for name, key := range map[string]int16{"EndTxn": 26, "TxnOffsetCommit": 28} {
		for how, loss := range map[string]testkit.KafkaLoss{"request": testkit.LoseRequest, "reply": testkit.LoseReply} {
			t.Run(name+"-"+how, func(t *testing.T) {
				enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
					b := newCountingBed(t, bd)
					b.Many(600)
					hit := bd.Proxy.Lose(key, loss, 4)
					transforming(b.TopicBed, b.Env, b.spec(b.Env, nil))
					select {
					case <-hit:
					case <-time.After(testkit.Patience):
						t.Fatal("the proxy lost nothing")
					}
					b.Many(600)
					b.Drained()
					b.counted()
				})
			})
		}
	}
}

// Redis is emptied in the midst of batches, and between them: every value is read
// from the changelog again.
func TestStateSurvivesLoss(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := newCountingBed(t, bd)
		var flush atomic.Bool
		other := b.redis()
		stop, _ := transforming(b.TopicBed, b.Env, b.spec(b.Env, func() {
			if flush.Swap(false) {
				_ = other.FlushAll(context.Background()).Err()
			}
		}))
		for range 4 {
			flush.Store(true)
			b.Many(300)
			b.Drained()
			if err := other.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			b.Many(100)
			b.Drained()
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.Many(100)
		transforming(b.TopicBed, b.Env, b.spec(b.Env, nil))
		b.Drained()
		b.counted()
	})
}

// breaking fails MULTI … EXEC as often as it is told to: before the server has it,
// or after, when only the answer is lost.
type breaking struct {
	left  atomic.Int32
	after bool
	hit   func()
}

var errBroken = errors.New("connection reset by the test")

func (h *breaking) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (h *breaking) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook { return next }

func (h *breaking) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		if cmds[0].Name() != "multi" || h.left.Add(-1) < 0 {
			return next(ctx, cmds)
		}
		if h.after {
			if err := next(ctx, cmds); err != nil {
				return err
			}
		}
		h.hit()
		err := fmt.Errorf("%w: %w", errBroken, syscall.ECONNRESET)
		for _, c := range cmds {
			c.SetErr(err)
		}
		return err
	}
}

// A transaction is committed, and Redis cannot be told, as when the process dies
// between the two: the changelog is ahead. The rest is read from there, or all of
// it where Redis was emptied too.
func TestStateSurvivesDeathBeforeRedis(t *testing.T) {
	for name, how := range map[string]struct{ after, wipe bool }{
		"never written": {}, "never written and emptied": {wipe: true},
		"written unknown": {after: true}, "written unknown and emptied": {after: true, wipe: true},
	} {
		t.Run(name, func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
				b := newCountingBed(t, bd)
				other := b.redis()
				hits := make(chan struct{}, 100)
				h := &breaking{after: how.after, hit: func() {
					if how.wipe {
						_ = other.FlushAll(context.Background()).Err()
					}
					hits <- struct{}{}
				}}
				b.Env.Redis.AddHook(h)
				b.Many(300)
				transforming(b.TopicBed, b.Env, b.spec(b.Env, nil))
				b.Drained()
				for range 3 {
					h.left.Store(1)
					b.Many(200)
					select {
					case <-hits:
					case <-time.After(testkit.Patience):
						t.Fatal("nothing was broken")
					}
					b.Drained()
				}
				b.Many(100)
				b.Drained()
				b.counted()
			})
		})
	}
}

// Two processes come and go: each partition's state goes on where the other left
// it, and no owner's values are taken for those of now.
func TestStateMovesWithItsPartition(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := newCountingBed(t, bd)
		b.Many(300)
		transforming(b.TopicBed, b.Env, b.spec(b.Env, nil))
		b.Drained()
		for i := range 3 {
			env := b.Member(fmt.Sprintf("second%d", i))
			env.Redis = b.redis()
			stop, _ := transforming(b.TopicBed, env, b.spec(env, nil))
			b.Eventually("the second to own a partition", func() (bool, string) {
				return len(b.Group().Members) == 2, fmt.Sprint(b.Group().State)
			})
			b.Many(300)
			b.Drained()
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			b.Many(300)
			b.Drained()
		}
		b.counted()
	})
}
