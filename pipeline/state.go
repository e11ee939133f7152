// State: what a transform keeps of one topic in Redis, and how its loss is
// noticed. This is the side of the owner: the process that has the partition.
// Who reads what others keep goes through a Look (state_look.go).

package pipeline

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	twredis "github.com/tallywire/tallywire/internal/redis"
)

// What the state of a transform can meet.
var (
	// ErrStateLost: the owner found another mark than it left. The engine
	// aborts, asks Check, and replays through Keeper.Restore.
	ErrStateLost = problem.Define("TW-STATE-LOST", problem.Retry,
		"The state in Redis is not what this process last wrote: it was flushed, rolled back, or another process took the partition over.",
		"Nothing to do: the state is rebuilt from Kafka. If it happens again and again, two groups of processes share one Redis database.")
	// ErrStateUnknown: a reader cannot tell 'missing' from 'not there yet'.
	ErrStateUnknown = problem.Define("TW-STATE-UNKNOWN", problem.Retry,
		"State that another partition's owner keeps is being rebuilt, or was not confirmed since Redis restarted.",
		"Nothing to do while that owner runs; see `tallywire status` for a group that is halted or has no process.")
)

// State is what one transform keeps of one topic. Everything of it lies under
// "tw:{<transform>}:<topic id>:", so that a topic that was deleted and created
// again starts with nothing; the braces keep it in one slot of a cluster.
//
// Per partition there is a mark, "<epoch>:<phase>:<offset>:<run>":
//
//   - offset: all records below it are applied, in order. It is written in one
//     MULTI with the values, after WATCH and a comparison of the whole mark
//     with the one that this owner left. So values and mark appear together,
//     or not at all, and a process that lost the partition writes nothing.
//   - phase: 'a' applied, or 'r' while a rebuild runs, when nobody may read.
//   - epoch: the Shape, a dot, and a random name given by each rebuild. A reader compares it before
//     and after, and so notices a loss and a rebuild in the midst of reading.
//   - run: the server's run_id when the owner last confirmed the mark. After a
//     restart or a failover the run is another one; what is there may then be
//     an older copy, and until the owner has compared it with the committed
//     offset no reader believes it. Without this, a reader that starts beside
//     a rolled-back Redis takes 'not there' for 'missing', and since a rebuild
//     emits nothing, nothing would ever correct what it emitted.
//
// A mark below the committed offset, or none, means loss (invariant 6): the
// partition is emptied and rebuilt from the beginning of the compacted topic.
// Going on from the older offset would keep keys whose tombstones were
// compacted away meanwhile.
//
// A mark above the committed offset is what an aborted transaction leaves. The
// records come again; those below the mark are already in, so they are not
// written again (see Write), and values never go back in time. They are judged
// and emitted all the same: a replay always emits.
//
// Values need no version of their own: the mark admits one writer, and that
// one applies records in the order of their offsets, each at most once per
// epoch; so the last write is the highest version, and a delete may delete.
//
// Safe for concurrent use by one process.
type State struct {
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

type slotKey struct {
	id        [16]byte
	partition int32
}

type slot struct {
	m       mark
	raw     string    // as it is in Redis
	sure    bool      // raw was what Redis had, last time
	checked time.Time // when Redis was asked
	called  time.Time // when the engine asked
}

// mark is the content of a partition's mark.
type mark struct {
	epoch     string
	restoring bool
	offset    int64
	run       string
}

func (m mark) String() string {
	phase := "a"
	if m.restoring {
		phase = "r"
	}
	return m.epoch + ":" + phase + ":" + strconv.FormatInt(m.offset, 10) + ":" + m.run
}

func parseMark(s string) (mark, bool) {
	f := strings.Split(s, ":")
	if len(f) != 4 || (f[1] != "a" && f[1] != "r") {
		return mark{}, false
	}
	n, err := strconv.ParseInt(f[2], 10, 64)
	return mark{epoch: f[0], restoring: f[1] == "r", offset: n, run: f[3]}, err == nil
}

func shapeOf(epoch string) string {
	shape, _, _ := strings.Cut(epoch, ".")
	return shape
}

// NewState describes what transform keeps of topic; nothing is read yet.
func NewState(rdb *redis.Client, log *slog.Logger, transform, topic string) *State {
	return &State{
		rdb: rdb, log: log.With("state", transform, "topic", topic), transform: transform, topic: topic,
		CheckEvery: 250 * time.Millisecond, slots: map[slotKey]*slot{},
	}
}

// Topic is the topic that the state is a function of, and rebuilt from.
func (s *State) Topic() string { return s.topic }

// namespace is where all that is kept of a topic lies.
func namespace(transform string, id [16]byte) string {
	return "tw:{" + transform + "}:" + hex.EncodeToString(id[:8]) + ":"
}

// pointer is the key that tells the topic's id and partition count to readers.
func pointer(transform, topic string) string { return "tw:{" + transform + "}:topic:" + topic }

func pointerValue(t *change.Topic) string {
	return hex.EncodeToString(t.ID[:]) + ":" + strconv.Itoa(int(t.Partitions))
}

func markKey(ns string, partition int32) string {
	return ns + strconv.Itoa(int(partition)) + ":mark"
}

// RowsKey is the hash of a partition's rows: field = canonical key. It is
// emptied before a rebuild.
func (s *State) RowsKey(t *change.Topic, partition int32) string {
	return rowsKey(namespace(s.transform, t.ID), partition)
}

func rowsKey(ns string, partition int32) string { return ns + strconv.Itoa(int(partition)) + ":rows" }

// NotesKey is a set of a partition for what is only shown to people; emptied
// before a rebuild, and no part of what may be relied on.
func (s *State) NotesKey(t *change.Topic, partition int32) string {
	return namespace(s.transform, t.ID) + strconv.Itoa(int(partition)) + ":notes"
}

// TodoKey is like NotesKey: what is still to be looked at for the notes.
func (s *State) TodoKey(t *change.Topic, partition int32) string {
	return namespace(s.transform, t.ID) + strconv.Itoa(int(partition)) + ":todo"
}

// IndexKey is the sorted set of an index entry. Indexes are supersets, shared
// by all partitions, and not emptied before a rebuild: what is too much in
// them is found out when it is used.
func (s *State) IndexKey(t *change.Topic, index, key string) string {
	return indexKey(namespace(s.transform, t.ID), index, key)
}

func indexKey(ns, index, key string) string { return ns + "ix:" + index + ":" + key }

// Check compares the partition's mark with the offset that the group has
// committed (−1 or 0: none). ok: what is kept covers [0, committed), go on.
// Else replay the topic from `from` up to committed through Keeper.Restore,
// call Replayed, and Check again.
//
// The engine calls it when a partition is assigned, before each batch, and at
// least every second while there is nothing to read: others wait for what an
// idle owner keeps.
func (s *State) Check(ctx context.Context, t *change.Topic, partition int32, committed int64) (from int64, ok bool, err error) {
	from, ok, cached, err := s.check(ctx, t, partition, committed)
	if ok && !cached && s.Idle != nil {
		err = s.Idle(ctx, t, partition)
	}
	return from, ok, err
}

// Held lists the partitions of t that were checked, and so are owned by this
// process, within the last `within`.
func (s *State) Held(t *change.Topic, within time.Duration) []int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []int32
	for k, sl := range s.slots {
		if k.id == t.ID && time.Since(sl.called) < within {
			out = append(out, k.partition)
		}
	}
	return out
}

func (s *State) check(ctx context.Context, t *change.Topic, partition int32, committed int64) (from int64, ok, cached bool, err error) {
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
	if sl.sure && !sl.m.restoring && sl.m.offset >= committed && time.Since(sl.checked) < s.CheckEvery {
		return 0, true, true, nil
	}
	key := markKey(namespace(s.transform, t.ID), partition)
	raw, ptr, err := s.look(ctx, key)
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
func (s *State) Replayed(ctx context.Context, t *change.Topic, partition int32, to int64) error {
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

// look reads a mark and the pointer, and watches the server: who it is, and
// that it drops nothing.
func (s *State) look(ctx context.Context, key string) (raw, ptr string, err error) {
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
func (s *State) empty(ctx context.Context, t *change.Topic, partition int32, sl *slot, ptr string) error {
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
func (s *State) discard(ctx context.Context, prefix string) error {
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
func (s *State) swap(ctx context.Context, key string, sl *slot, to mark, with func(redis.Pipeliner) error) error {
	return compareAndSet(ctx, s.rdb, []*marked{{s: s, key: key, sl: sl, to: to}}, with)
}

func (s *State) lost(t *change.Topic, partition int32) error {
	return ErrStateLost.New("the state of %s partition %d for %s is not what this process wrote", t.Name, partition, s.transform)
}

// marked is one mark that a write compares and sets.
type marked struct {
	s   *State
	key string
	sl  *slot
	to  mark
}

// compareAndSet writes what fill queues and the new marks, all or nothing, if
// each mark in Redis is what its slot says. Two round trips on one connection:
// WATCH and read; MULTI … EXEC, which the server refuses when a watched key
// was touched between. A script would save one, but a script per value costs
// miniredis 130 µs, and a script for the marks alone could not hold back the
// values of a process that has lost the partition.
//
// MULTI also makes running out of memory harmless: the refusal of one queued
// command voids the whole transaction.
func compareAndSet(ctx context.Context, rdb *redis.Client, ms []*marked, fill func(redis.Pipeliner) error) (err error) {
	sure := false
	defer func() {
		for _, m := range ms {
			m.sl.sure = sure
		}
	}()
	conn := rdb.Conn()
	defer func() { err = errors.Join(err, conn.Close()) }()

	keys := make([]any, 1, len(ms)+1)
	names := make([]string, 0, len(ms))
	keys[0] = "WATCH"
	for _, m := range ms {
		keys = append(keys, m.key)
		names = append(names, m.key)
	}
	p := conn.Pipeline()
	p.Do(ctx, keys...)
	found := p.MGet(ctx, names...)
	if _, err := p.Exec(ctx); err != nil {
		return twredis.Classify("reading applied offsets", err)
	}
	changes := fill != nil
	for i, m := range ms {
		if have, _ := found.Val()[i].(string); have != m.sl.raw {
			// The connection goes back to the pool: it must watch nothing.
			return errors.Join(ErrStateLost.New("the state of %s for %s has mark %q, this process left %q", m.s.topic, m.s.transform, have, m.sl.raw),
				conn.Do(ctx, "UNWATCH").Err())
		}
		changes = changes || m.to.String() != m.sl.raw
	}
	if !changes {
		sure = true
		return twredis.Classify("ending the watch", conn.Do(ctx, "UNWATCH").Err())
	}
	tx := conn.TxPipeline()
	if fill != nil {
		if err := fill(tx); err != nil {
			return errors.Join(err, conn.Do(ctx, "UNWATCH").Err())
		}
	}
	for _, m := range ms { // last: after the values
		tx.Set(ctx, m.key, m.to.String(), 0)
	}
	if _, err := tx.Exec(ctx); errors.Is(err, redis.TxFailedErr) {
		return ErrStateLost.New("the state of %s for %s was touched by another process during a write", ms[0].s.topic, ms[0].s.transform)
	} else if err != nil && strings.HasPrefix(err.Error(), "EXECABORT") {
		return twredis.Refused(ctx, rdb, "writing state", err)
	} else if err != nil {
		return twredis.Classify("writing state", err)
	}
	sure = true
	// checked stays: a busy owner too must look now and then whether the
	// server is still the same run, or readers would wait for ever.
	for _, m := range ms {
		m.sl.m, m.sl.raw = m.to, m.to.String()
	}
	return nil
}

// Write applies one batch to the state, atomically: what fill queues, then the
// marks of those ranges whose topics have a State here. fill must leave out
// what fresh says is already in: a record of the batch's ranges below the mark,
// the redo of what an aborted transaction had written. (A record outside of
// the ranges is a parked one that is tried again: the newest of its key, and
// maybe never written.) It fails with ErrStateLost when a mark is not what this
// process left; then nothing was written.
//
// restoring: the batch came to Keeper.Restore.
func Write(ctx context.Context, states []*State, in *change.Batch, restoring bool,
	fill func(p redis.Pipeliner, fresh func(*change.Change) bool) error,
) error {
	// The order of states is the same in all calls of one stage, and each has
	// its own: this cannot deadlock.
	for _, s := range states {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	w := write{restoring: restoring, at: map[slotKey]int{}}
	stale := true
	for _, r := range in.Ranges {
		m, err := w.slot(states, r.Topic, r.Partition)
		if err != nil || m == nil {
			if err != nil {
				return err
			}
			continue
		}
		// A gap is no loss: offsets of markers, and of what was compacted.
		// Only during a rebuild must the first batch continue it.
		if m.sl.m.restoring && !restoring && m.sl.m.offset < r.From {
			return m.s.lost(r.Topic, r.Partition)
		}
		m.to.restoring = restoring
		m.to.offset = max(m.to.offset, r.To)
		stale = stale && r.To <= m.sl.m.offset
	}
	var last change.Coord
	for i := range in.Changes {
		c := &in.Changes[i]
		if c.Coord.Topic == nil || c.Coord.Topic == last.Topic && c.Coord.Partition == last.Partition && !outside(in.Ranges, c) {
			continue
		}
		last = c.Coord
		if outside(in.Ranges, c) {
			m, err := w.slot(states, c.Coord.Topic, c.Coord.Partition)
			if err != nil {
				return err
			}
			stale = stale && m == nil
		}
	}
	if len(w.ms) == 0 {
		return nil
	}
	fresh := func(c *change.Change) bool {
		if c.Coord.Topic == nil {
			return false
		}
		i, ok := w.at[slotKey{c.Coord.Topic.ID, c.Coord.Partition}]
		return ok && (c.Coord.Offset >= w.ms[i].sl.m.offset || outside(in.Ranges, c))
	}
	var f func(redis.Pipeliner) error
	if !stale {
		f = func(p redis.Pipeliner) error { return fill(p, fresh) }
	}
	return compareAndSet(ctx, w.ms[0].s.rdb, w.ms, f)
}

// write gathers the marks of one Write.
type write struct {
	restoring bool
	ms        []*marked
	at        map[slotKey]int // index in ms
}

// slot gives the mark of a partition, nil when no State here is of its topic.
func (w *write) slot(states []*State, t *change.Topic, partition int32) (*marked, error) {
	k := slotKey{t.ID, partition}
	if i, ok := w.at[k]; ok {
		return w.ms[i], nil
	}
	s := stateOf(states, t.Name)
	if s == nil {
		return nil, nil //nolint:nilnil // no state is kept of this topic
	}
	sl := s.slots[k]
	if sl == nil || !sl.sure || w.restoring && !sl.m.restoring {
		return nil, s.lost(t, partition)
	}
	m := &marked{s: s, key: markKey(namespace(s.transform, t.ID), partition), sl: sl, to: sl.m}
	w.at[k] = len(w.ms)
	w.ms = append(w.ms, m)
	return m, nil
}

func outside(ranges []change.Range, c *change.Change) bool {
	for i := range ranges {
		r := &ranges[i]
		if r.Partition == c.Coord.Partition && r.Topic.ID == c.Coord.Topic.ID && c.Coord.Offset >= r.From && c.Coord.Offset < r.To {
			return false
		}
	}
	return true
}

func stateOf(states []*State, topic string) *State {
	for _, s := range states {
		if s.topic == topic {
			return s
		}
	}
	return nil
}
