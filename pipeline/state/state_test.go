package state_test

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline/state"
)

// stateServers runs a test against the embedded Redis and a real one.
func stateServers(t *testing.T, f func(t *testing.T, rdb *goredis.Client)) {
	t.Helper()
	open := func(t *testing.T, addr string) *goredis.Client {
		c, err := redis.Open(t.Context(), addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		return c
	}
	t.Run("embedded", func(t *testing.T) {
		e, err := embedded.StartMiniRedis("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
		f(t, open(t, e.Addr()))
	})
	t.Run("redis-server", func(t *testing.T) { f(t, open(t, testkit.NewRedis(t).Addr)) })
}

var stateTopic = &change.Topic{Name: "ps.project", ID: [16]byte{1, 2, 3}, Partitions: 1}

func newStore(rdb *goredis.Client) *state.Store {
	s := state.NewStore(rdb, slog.New(slog.DiscardHandler), "costed", stateTopic.Name)
	s.CheckEvery = 0 // each Check really looks
	return s
}

// put writes key = value at an offset as a stage does.
func put(ctx context.Context, s *state.Store, t *change.Topic, offset int64, key, value string, restoring bool) error {
	b := change.Get()
	defer b.Release()
	b.Ranges = append(b.Ranges, change.Range{Topic: t, From: offset, To: offset + 1})
	b.Append(nil, change.Update).Coord = change.Coord{Topic: t, Offset: offset}
	return state.Apply(ctx, []*state.Store{s}, b, restoring,
		func(p goredis.Pipeliner, fresh func(*change.Change) bool) error {
			if fresh(&b.Changes[0]) {
				p.HSet(ctx, s.RowsKey(t, 0), key, value)
			}
			return nil
		})
}

// get reads a row as the other side of a join does.
func get(ctx context.Context, rdb *goredis.Client, r *state.Reader, key string) (string, error) {
	look, err := state.NewConsistentRead(ctx, r)
	if err != nil {
		return "", err
	}
	p := rdb.Pipeline()
	look.Begin(ctx, p)
	v := p.HGet(ctx, look.RowsKey(0, 0), key)
	look.End(ctx, p)
	if _, err := p.Exec(ctx); err != nil && !errors.Is(err, goredis.Nil) {
		return "", err
	}
	return v.Val(), look.Err()
}

func reader(topics ...*change.Topic) *state.Reader {
	return state.NewReader("costed", topics[0].Name, func(context.Context, string) (*change.Topic, error) {
		t := topics[0]
		if len(topics) > 1 {
			topics = topics[1:]
		}
		return t, nil
	})
}

func mustCheck(t *testing.T, s *state.Store, topic *change.Topic, committed int64, want bool) {
	t.Helper()
	from, ok, err := s.Check(t.Context(), topic, 0, committed)
	if err != nil || ok != want {
		t.Fatalf("Check(committed %d) = from %d, ok %v, %v; want ok %v", committed, from, ok, err, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBe(t *testing.T, err error, code problem.Code) {
	t.Helper()
	if !problem.Has(err, code) {
		t.Fatalf("got %v, want %s", err, code.ID)
	}
}

// If a flush in mid-run went unnoticed, entries would wait for projects that
// are long there, and nothing would ever release them.
func TestFlushIsNoticedAndRebuilt(t *testing.T) {
	stateServers(t, func(t *testing.T, rdb *goredis.Client) {
		ctx := t.Context()
		s, r := newStore(rdb), reader(stateTopic)
		_, err := get(ctx, rdb, r, "17")
		mustBe(t, err, state.ErrUnknown) // nobody has begun
		mustCheck(t, s, stateTopic, 0, true)
		if v, err := get(ctx, rdb, r, "17"); v != "" || err != nil {
			t.Fatalf("empty but known: %q, %v", v, err)
		}
		must(t, put(ctx, s, stateTopic, 0, "17", "a", false))
		must(t, put(ctx, s, stateTopic, 1, "18", "b", false))
		if v, err := get(ctx, rdb, r, "17"); v != "a" || err != nil {
			t.Fatalf("after a write: %q, %v", v, err)
		}

		must(t, rdb.FlushAll(ctx).Err())
		_, err = get(ctx, rdb, r, "17")
		mustBe(t, err, state.ErrUnknown)
		mustBe(t, put(ctx, s, stateTopic, 2, "19", "c", false), state.ErrLost)
		if n := rdb.DBSize(ctx).Val(); n != 0 {
			t.Fatalf("a write after the loss left %d keys", n)
		}
		mustCheck(t, s, stateTopic, 2, false)
		_, err = get(ctx, rdb, r, "17")
		mustBe(t, err, state.ErrUnknown) // a rebuild under way is no answer
		must(t, put(ctx, s, stateTopic, 0, "17", "a", true))
		_, err = get(ctx, rdb, r, "17")
		mustBe(t, err, state.ErrUnknown)
		must(t, put(ctx, s, stateTopic, 1, "18", "b", true))
		must(t, s.Replayed(ctx, stateTopic, 0, 2)) // Remedy: TW-STATE-LOST
		mustCheck(t, s, stateTopic, 2, true)
		if v, err := get(ctx, rdb, r, "18"); v != "b" || err != nil {
			t.Fatalf("after the rebuild: %q, %v", v, err)
		}
		must(t, put(ctx, s, stateTopic, 2, "19", "c", false))
	})
}

// A loss and a whole rebuild between two reads of one look must not pass for
// 'missing'.
func TestRebuildInMidRead(t *testing.T) {
	stateServers(t, func(t *testing.T, rdb *goredis.Client) {
		ctx := t.Context()
		s, r := newStore(rdb), reader(stateTopic)
		mustCheck(t, s, stateTopic, 0, true)
		must(t, put(ctx, s, stateTopic, 0, "17", "a", false))
		look, err := state.NewConsistentRead(ctx, r)
		must(t, err)
		p := rdb.Pipeline()
		look.Begin(ctx, p)
		_, err = p.Exec(ctx)
		must(t, err)

		must(t, rdb.FlushAll(ctx).Err())
		if n := rdb.HExists(ctx, look.RowsKey(0, 0), "17").Val(); n {
			t.Fatal("flush did not flush")
		}
		mustCheck(t, s, stateTopic, 1, false)
		must(t, put(ctx, s, stateTopic, 0, "17", "a", true))
		mustCheck(t, s, stateTopic, 1, true)

		p = rdb.Pipeline()
		look.End(ctx, p)
		_, err = p.Exec(ctx)
		must(t, err)
		mustBe(t, look.Err(), state.ErrUnknown)
	})
}

// What an aborted transaction wrote is not written again: a row must not go
// back to an older version while others read it.
func TestRedoDoesNotGoBack(t *testing.T) {
	stateServers(t, func(t *testing.T, rdb *goredis.Client) {
		ctx := t.Context()
		s, r := newStore(rdb), reader(stateTopic)
		mustCheck(t, s, stateTopic, 0, true)
		must(t, put(ctx, s, stateTopic, 0, "17", "old", false))
		must(t, put(ctx, s, stateTopic, 1, "17", "new", false))
		// The transaction was aborted; another process starts at offset 0.
		s = newStore(rdb)
		mustCheck(t, s, stateTopic, 0, true)
		must(t, put(ctx, s, stateTopic, 0, "17", "old", false))
		if v, err := get(ctx, rdb, r, "17"); v != "new" || err != nil {
			t.Fatalf("after the redo: %q, %v", v, err)
		}
	})
}

// A process that lost its partition must not write over its successor.
func TestZombieWritesNothing(t *testing.T) {
	stateServers(t, func(t *testing.T, rdb *goredis.Client) {
		ctx := t.Context()
		zombie, owner := newStore(rdb), newStore(rdb)
		mustCheck(t, zombie, stateTopic, 0, true)
		must(t, put(ctx, zombie, stateTopic, 0, "17", "a", false))
		mustCheck(t, owner, stateTopic, 0, true)
		must(t, put(ctx, owner, stateTopic, 1, "17", "b", false))
		mustBe(t, put(ctx, zombie, stateTopic, 1, "17", "zombie", false), state.ErrLost)
		if v := rdb.HGet(ctx, owner.RowsKey(stateTopic, 0), "17").Val(); v != "b" {
			t.Fatalf("row is %q", v)
		}
	})
}

// A topic that was deleted and created again has other records: rows of the
// old one must not answer for the new one.
func TestOfAnotherTopicIsDiscarded(t *testing.T) {
	stateServers(t, func(t *testing.T, rdb *goredis.Client) {
		ctx := t.Context()
		other := &change.Topic{Name: stateTopic.Name, ID: [16]byte{9}, Partitions: 1}
		s, r := newStore(rdb), reader(stateTopic, other)
		mustCheck(t, s, stateTopic, 0, true)
		must(t, put(ctx, s, stateTopic, 0, "17", "a", false))
		if v, err := get(ctx, rdb, r, "17"); v != "a" || err != nil {
			t.Fatalf("%q, %v", v, err)
		}
		mustCheck(t, s, other, 0, true)
		_, err := get(ctx, rdb, r, "17")
		mustBe(t, err, state.ErrUnknown) // the reader still thinks of the old one
		if v, err := get(ctx, rdb, r, "17"); v != "" || err != nil {
			t.Fatalf("new topic: %q, %v", v, err)
		}
		for _, k := range rdb.Keys(ctx, "*").Val() {
			if strings.Contains(k, "010203") {
				t.Errorf("old state left: %s", k)
			}
		}
	})
}

// Redis comes back from an older copy on disk: a reader that knows nothing of
// what was lost must not take 'not there' for 'missing' before the owner has
// compared.
func TestRolledBackByRestart(t *testing.T) {
	ctx := t.Context()
	srv := testkit.NewRedis(t, "--dbfilename", "dump.rdb")
	rdb, err := redis.Open(ctx, srv.Addr)
	must(t, err)
	t.Cleanup(func() { must(t, rdb.Close()) })
	s := newStore(rdb)
	mustCheck(t, s, stateTopic, 0, true)
	must(t, put(ctx, s, stateTopic, 0, "17", "a", false))
	must(t, rdb.Save(ctx).Err())
	must(t, put(ctx, s, stateTopic, 1, "18", "b", false))
	must(t, srv.Kill())
	_, _, err = s.Check(ctx, stateTopic, 0, 2)
	mustBe(t, err, redis.ErrDown)
	must(t, srv.Start(ctx))

	_, err = get(ctx, rdb, reader(stateTopic), "18")
	mustBe(t, err, state.ErrUnknown)
	mustBe(t, put(ctx, s, stateTopic, 2, "19", "c", false), state.ErrLost)
	mustCheck(t, s, stateTopic, 2, false)
	must(t, put(ctx, s, stateTopic, 0, "17", "a", true))
	must(t, put(ctx, s, stateTopic, 1, "18", "b", true))
	mustCheck(t, s, stateTopic, 2, true)
	if v, err := get(ctx, rdb, reader(stateTopic), "18"); v != "b" || err != nil {
		t.Fatalf("after the rebuild: %q, %v", v, err)
	}

	// A restart that lost nothing needs no rebuild, only a confirmation.
	must(t, rdb.Save(ctx).Err())
	must(t, srv.Kill())
	must(t, srv.Start(ctx))
	_, err = get(ctx, rdb, reader(stateTopic), "18")
	mustBe(t, err, state.ErrUnknown)
	mustCheck(t, s, stateTopic, 2, true)
	if v, err := get(ctx, rdb, reader(stateTopic), "18"); v != "b" || err != nil {
		t.Fatalf("after the confirmation: %q, %v", v, err)
	}
}

// A full Redis is waited for, and leaves neither half a write nor a mark that
// claims it.
func TestFullRedis(t *testing.T) {
	ctx := t.Context()
	srv := testkit.NewRedis(t, "--maxmemory", "4mb")
	rdb, err := redis.Open(ctx, srv.Addr)
	must(t, err)
	t.Cleanup(func() { must(t, rdb.Close()) })
	s := newStore(rdb)
	mustCheck(t, s, stateTopic, 0, true)
	big := strings.Repeat("x", 64<<10)
	var offset int64
	for ; ; offset++ {
		err := put(ctx, s, stateTopic, offset, strconv.FormatInt(offset, 10), big, false)
		if err != nil {
			mustBe(t, err, redis.ErrFull)
			break
		}
	}
	must(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err()) // Remedy: TW-REDIS-FULL
	mustCheck(t, s, stateTopic, offset, true)
	if n := rdb.HLen(ctx, s.RowsKey(stateTopic, 0)).Val(); n != offset {
		t.Fatalf("%d rows for a mark of %d", n, offset)
	}
	must(t, put(ctx, s, stateTopic, offset, "next", "v", false))
}

// Somebody lets Redis drop keys while we run. If this failed, state with holes
// would give wrong results without a sign.
func TestEvictedState(t *testing.T) {
	ctx := t.Context()
	srv := testkit.NewRedis(t)
	rdb, err := redis.Open(ctx, srv.Addr)
	must(t, err)
	t.Cleanup(func() { must(t, rdb.Close()) })
	s := newStore(rdb)
	mustCheck(t, s, stateTopic, 0, true)
	must(t, put(ctx, s, stateTopic, 0, "a", "v", false))
	must(t, rdb.ConfigSet(ctx, "maxmemory-policy", "allkeys-lru").Err())
	must(t, rdb.ConfigSet(ctx, "maxmemory", "3mb").Err())
	for i := 0; ; i++ {
		_ = rdb.Set(ctx, "other"+strconv.Itoa(i), strings.Repeat("x", 64<<10), 0).Err() // what it says does not matter
		if _, _, err := s.Check(ctx, stateTopic, 0, 1); problem.Has(err, redis.ErrEvicted) {
			break
		}
		if i == 10_000 {
			t.Fatal("nothing is dropped")
		}
	}
	// Remedy: TW-REDIS-EVICTED
	must(t, rdb.ConfigSet(ctx, "maxmemory-policy", "noeviction").Err())
	must(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	must(t, srv.FlushAll(ctx))
	again, err := redis.Open(ctx, srv.Addr)
	must(t, err)
	defer func() { must(t, again.Close()) }()
	s = newStore(again)
	mustCheck(t, s, stateTopic, 1, false)
	must(t, put(ctx, s, stateTopic, 0, "a", "v", true))
	mustCheck(t, s, stateTopic, 1, true)
}
