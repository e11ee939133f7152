// Store: the side of the owner, the process that has the partition.

package state

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/clock"
	twredis "github.com/tallywire/tallywire/internal/redis"
)

// Store is what one transform keeps of one topic, as its owner sees it.
// Safe for concurrent use by one process.
type Store struct {
	rdb       *redis.Client
	log       *slog.Logger
	transform string
	topic     string
	// CheckEvery is how long Check relies on its last look; set before use.
	// Writes compare each time, so this only bounds how late an idle owner
	// notices a loss. Default 250 ms.
	CheckEvery time.Duration
	// Shape names the form of what is kept; what has another is rebuilt. Set
	// before use, the same as that of its readers. No colon, no dot.
	Shape string
	// Idle is called at the end of a Check that finds all well, at most each
	// CheckEvery, by the caller of Check; nil: nothing. For work that is not
	// urgent. Set before use.
	Idle func(ctx context.Context, t *change.Topic, partition int32) error

	mu      sync.Mutex
	slots   map[slotKey]*slot
	evicted int64 // evicted_keys at the first look at this run
	run     string
}

// NewStore describes what transform keeps of topic; nothing is read yet.
func NewStore(rdb *redis.Client, log *slog.Logger, transform, topic string) *Store {
	return &Store{
		rdb: rdb, log: log.With("state", transform, "topic", topic), transform: transform, topic: topic,
		CheckEvery: 250 * time.Millisecond, slots: map[slotKey]*slot{},
	}
}

// Topic is the topic that the state is a function of, and rebuilt from.
func (s *Store) Topic() string { return s.topic }

// Epoch names the rebuild that a partition's state is of; "": not checked yet.
func (s *Store) Epoch(t *change.Topic, partition int32) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.slots[slotKey{t.ID, partition}]; sl != nil {
		return sl.m.epoch
	}
	return ""
}

// Applied is the offset up to which a partition is kept, whether that was committed or
// not; 0: not checked yet.
func (s *Store) Applied(t *change.Topic, partition int32) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.slots[slotKey{t.ID, partition}]; sl != nil {
		return sl.m.offset
	}
	return 0
}

// Check compares the partition's mark with the offset that the group has
// committed (−1 or 0: none). ok: what is kept covers [0, committed), go on.
// Else replay the topic from `from` up to committed through Keeper.Restore,
// call Replayed, and Check again.
//
// The engine calls it when a partition is assigned, before each batch, and at
// least every second while there is nothing to read: others wait for what an
// idle owner keeps.
func (s *Store) Check(ctx context.Context, t *change.Topic, partition int32, committed int64) (from int64, ok bool, err error) {
	from, ok, cached, err := s.check(ctx, t, partition, committed)
	if ok && !cached && s.Idle != nil {
		err = s.Idle(ctx, t, partition)
	}
	return from, ok, err
}

// Held lists the partitions of t that were checked, and so are owned by this
// process, within the last `within`.
func (s *Store) Held(t *change.Topic, within time.Duration) []int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []int32
	for k, sl := range s.slots {
		if k.id == t.ID && clock.Since(sl.called) < within {
			out = append(out, k.partition)
		}
	}
	return out
}

func (s *Store) check(ctx context.Context, t *change.Topic, partition int32, committed int64) (from int64, ok, cached bool, err error) {
	committed = max(committed, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := slotKey{t.ID, partition}
	sl := s.slots[k]
	if sl == nil {
		sl = &slot{}
		s.slots[k] = sl
	}
	sl.called = time.Now()
	if sl.sure && !sl.m.restoring && sl.m.offset >= committed && clock.Since(sl.checked) < s.CheckEvery {
		return 0, true, true, nil
	}
	key := markKey(namespace(s.transform, t.ID), partition)
	raw, ptr, err := s.readMark(ctx, key)
	if err != nil {
		sl.sure = false
		return 0, false, false, err
	}
	m, known := parseMark(raw)
	// Without the pointer no reader finds what is here.
	known = known && shapeOf(m.epoch) == s.Shape && ptr == pointerValue(t)
	mine := known && raw == sl.raw
	sl.sure, sl.raw, sl.m, sl.checked = true, raw, m, time.Now()
	switch {
	case known && m.restoring && mine && m.run == s.run && m.offset < committed:
		return m.offset, false, false, nil // our own rebuild, under way
	case known && m.restoring && mine && m.run == s.run: // our own rebuild, done
	case known && !m.restoring && m.offset >= committed:
		if m.run == s.run {
			return 0, true, false, nil
		}
		// Redis restarted and kept enough: confirm it.
	default:
		if raw != "" || committed > 0 {
			s.log.Info("rebuilding state", "partition", partition, "found", raw, "committed", committed)
		}
		if err := s.empty(ctx, t, partition, sl, ptr); err != nil {
			return 0, false, false, err
		}
		if committed > 0 {
			return 0, false, false, nil
		}
	}
	m = sl.m
	m.restoring, m.run = false, s.run
	if err := s.swap(ctx, key, sl, m, nil); err != nil {
		return 0, false, false, err
	}
	return 0, true, false, nil
}

// Replayed tells that all records below `to` have passed Restore, also when
// the last of them no longer exist.
func (s *Store) Replayed(ctx context.Context, t *change.Topic, partition int32, to int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl := s.slots[slotKey{t.ID, partition}]
	if sl == nil || !sl.sure {
		return s.lost(t, partition)
	}
	m := sl.m
	if !m.restoring {
		return nil
	}
	m.restoring, m.offset = false, max(m.offset, to)
	return s.swap(ctx, markKey(namespace(s.transform, t.ID), partition), sl, m, nil)
}

// readMark reads a mark and the pointer, and watches the server: who it is, and
// that it drops nothing.
func (s *Store) readMark(ctx context.Context, key string) (raw, ptr string, err error) {
	p := s.rdb.Pipeline()
	vals := p.MGet(ctx, key, pointer(s.transform, s.topic))
	server, stats := p.Info(ctx, "server"), p.Info(ctx, "stats")
	if _, err := p.Exec(ctx); err != nil {
		return "", "", twredis.Classify("reading the applied offset of "+s.topic, err)
	}
	run, evicted := twredis.Field(server.Val(), "run_id"), twredis.Evicted(stats.Val())
	switch {
	case s.run != run:
		s.run, s.evicted = run, evicted
	case evicted > s.evicted:
		return "", "", twredis.ErrEvicted.New("Redis dropped %d keys since this process first looked", evicted-s.evicted)
	}
	raw, _ = vals.Val()[0].(string)
	ptr, _ = vals.Val()[1].(string)
	return raw, ptr, nil
}

// empty starts a new epoch with nothing in it.
func (s *Store) empty(ctx context.Context, t *change.Topic, partition int32, sl *slot, ptr string) error {
	ns := namespace(s.transform, t.ID)
	want := pointerValue(t)
	if len(ptr) > 32 && ptr[:32] != want[:32] {
		s.log.Warn("the topic is another than before: its old state is discarded", "old", ptr, "new", want)
		if err := s.discard(ctx, "tw:{"+s.transform+"}:"+ptr[:16]+":"); err != nil {
			return err
		}
	}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return fmt.Errorf("naming an epoch: %w", err)
	}
	m := mark{epoch: s.Shape + "." + hex.EncodeToString(b[:]), restoring: true, run: s.run}
	return s.swap(ctx, markKey(ns, partition), sl, m, func(p redis.Pipeliner) error {
		p.Set(ctx, pointer(s.transform, s.topic), want, 0)
		p.Unlink(ctx, rowsKey(ns, partition), s.NotesKey(t, partition), s.TodoKey(t, partition))
		return nil
	})
}

// discard deletes what is under a prefix, a thousand keys at a time.
func (s *Store) discard(ctx context.Context, prefix string) error {
	var cursor uint64
	for {
		keys, next, err := s.rdb.Scan(ctx, cursor, prefix+"*", 1000).Result()
		if err != nil {
			return twredis.Classify("discarding the state of an older topic", err)
		}
		if len(keys) > 0 {
			if err := s.rdb.Unlink(ctx, keys...).Err(); err != nil {
				return twredis.Classify("discarding the state of an older topic", err)
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// swap replaces one mark, which must be what sl says.
func (s *Store) swap(ctx context.Context, key string, sl *slot, to mark, with func(redis.Pipeliner) error) error {
	return compareAndSet(ctx, s.rdb, []*marked{{s: s, key: key, sl: sl, to: to}}, with)
}

func (s *Store) lost(t *change.Topic, partition int32) error {
	return ErrLost.New("the state of %s partition %d for %s is not what this process wrote", t.Name, partition, s.transform)
}
