// Table: state that is read and written, whose truth is a changelog (D1,
// decision 43).

package state

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/clock"
	twredis "github.com/tallywire/tallywire/internal/redis"
)

// Table is what one transform keeps of which the new value depends on the old
// one. Its truth is a compacted topic, partitioned as the input; Redis has the
// latest value of each key. A transaction's own writes lie here until it is
// committed, with the records of the changelog in it; then they go to Redis. An
// abort leaves nothing.
//
// The stage Fetches, Gets and Puts; the engine Begins, produces the Changes, and
// tells when they are Committed. Only the owner of a partition reads it. Not safe
// for concurrent use.
type Table struct {
	store *Store // of the changelog: its marks and epochs
	topic *change.Topic
	limit int
	parts map[int32]*part
	owns  int
}

// part is a partition that this process owns.
type part struct {
	sure  bool             // Redis has what the changelog says, up to its end
	empty bool             // nothing was ever written: there is nothing to read
	cells map[string]*cell // fetched in this transaction, by key
	spare []cell
	wrote []*cell // those that it wrote, in order of when first
}

// cell is a key in a transaction.
type cell struct {
	key      string
	was, now []byte // committed; and as it was written; nil: there is none
	written  bool
}

// cell is a new one.
func (p *part) cell(key string) *cell {
	if len(p.spare) == 0 {
		p.spare = make([]cell, 256)
	}
	c := &p.spare[0]
	p.spare = p.spare[1:]
	c.key = key
	p.cells[key] = c
	return c
}

// mostCells bounds the map of cells that is used again.
const mostCells = 1 << 14

// begin forgets the cells.
func (p *part) begin() {
	if len(p.cells) > mostCells {
		p.cells = nil
	}
	clear(p.cells)
	clear(p.wrote)
	p.wrote = p.wrote[:0]
}

// Entry is one record of a changelog.
type Entry struct {
	Partition int32
	Key       []byte
	Value     []byte // nil: deleted
}

// recordOctets is what a record takes beside its key and value, at most.
const recordOctets = 128

// readAtOnce bounds how many keys one command reads.
const readAtOnce = 1024

// NewTable describes the table of a transform; nothing is read yet.
func NewTable(rdb *redis.Client, log *slog.Logger, transform string) *Table {
	return &Table{store: NewStore(rdb, log, transform, ChangelogOf(transform)), parts: map[int32]*part{}}
}

// ChangelogOf is the topic that holds the state of a transform.
func ChangelogOf(transform string) string { return "_tallywire.state." + transform }

// Open says what the changelog is, and what a record of it may have, in octets;
// 0: anything. Nothing is owned any more.
func (t *Table) Open(topic *change.Topic, limit int) {
	t.topic, t.limit = topic, limit
	t.Forget()
}

// Topic is the changelog.
func (t *Table) Topic() *change.Topic { return t.topic }

// Forget gives up what was owned, and the transaction.
func (t *Table) Forget() { clear(t.parts) }

// Owned says whether a partition was taken with Own, and nothing was lost since.
func (t *Table) Owned(partition int32) bool {
	p := t.parts[partition]
	return p != nil && p.sure
}

// Owns counts how often a partition was taken: while it is the same, nobody else
// wrote.
func (t *Table) Owns() int { return t.owns }

// Begin starts a transaction; what the one before wrote and nobody committed is
// gone.
func (t *Table) Begin() {
	for _, p := range t.parts {
		p.begin()
	}
}

// Own takes a partition whose changelog ends at end, with nothing open below it.
// ok: Redis has it all. Else the changelog has to be read from `from` up to end,
// through Load, whose last call says so. young is how old a mark may be for the
// rest alone to be read: deletes stay in the changelog for longer than that.
func (t *Table) Own(ctx context.Context, partition int32, end int64, young time.Duration) (from int64, ok bool, err error) {
	p := &part{}
	t.parts[partition] = p
	t.owns++
	if end == 0 {
		p.sure, p.empty = true, true
		return 0, true, nil
	}
	s := t.store
	s.mu.Lock()
	defer s.mu.Unlock()
	sl := t.slot(partition)
	raw, ptr, err := s.readMark(ctx, t.markKey(partition))
	if err != nil {
		return 0, false, err
	}
	at, err := s.rdb.Get(ctx, t.timeKey(partition)).Int64()
	if err != nil && err != redis.Nil { //nolint:errorlint // as go-redis documents it
		return 0, false, twredis.Classify("reading when state was written", err)
	}
	m, known := parseMark(raw)
	known = known && ptr == pointerValue(t.topic) && !m.restoring && m.offset <= end
	sl.sure, sl.raw, sl.m = true, raw, m
	switch {
	case known && end-m.offset <= 1: // a marker at most
		if m.run != s.run { // Redis was started again, and kept it
			m.run = s.run
			if err := s.swap(ctx, t.markKey(partition), sl, m, nil); err != nil {
				return 0, false, err
			}
		}
		p.sure = true
		return end, true, nil
	case known && m.run == s.run && time.Since(time.UnixMilli(at)) < young:
		return m.offset, false, nil
	}
	s.log.Info("rebuilding state", "partition", partition, "found", raw, "end", end)
	return 0, false, s.empty(ctx, t.topic, partition, sl, ptr)
}

// Load applies committed records of the changelog, in order; all before `to` are
// applied then, and done says that this is its end.
func (t *Table) Load(ctx context.Context, partition int32, es []Entry, to int64, done bool) error {
	p := t.parts[partition]
	if p == nil {
		return t.store.lost(t.topic, partition)
	}
	err := t.write(ctx, map[int32][]Entry{partition: latest(es)}, map[int32]int64{partition: to}, done)
	if err == nil {
		p.sure = done
	}
	return err
}

// Confirm looks, now and then, whether Redis still has what this process left of its
// partitions, so that others may read it (Reader) while nothing is written; a partition
// that was lost is to be owned anew.
func (t *Table) Confirm(ctx context.Context) error {
	s := t.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for number, p := range t.parts {
		sl := t.slot(number)
		if !p.sure || p.empty || clock.Since(sl.checked) < s.CheckEvery {
			continue
		}
		raw, _, err := s.readMark(ctx, t.markKey(number))
		if err != nil {
			return err
		}
		sl.checked = time.Now()
		if p.sure = raw == sl.raw; !p.sure || sl.m.run == s.run {
			continue
		}
		m := sl.m // Redis was started again, and kept it
		m.run = s.run
		if err := s.swap(ctx, t.markKey(number), sl, m, nil); err != nil {
			p.sure = false
			return err
		}
	}
	return nil
}

// CheckEvery sets how long Confirm relies on its last look.
func (t *Table) CheckEvery(d time.Duration) { t.store.CheckEvery = d }

// Fetch reads the committed values of keys, by partition; Get has them then, until
// the transaction ends. ErrLost, when Redis does not have what this process
// left, or does not own the partition: the engine owns it anew.
func (t *Table) Fetch(ctx context.Context, want map[int32][]string) error {
	type reading struct {
		cells []*cell
		vals  *redis.SliceCmd
	}
	var reads []reading
	var parts []int32
	var marks []string
	var q redis.Pipeliner
	for number, keys := range want {
		p := t.parts[number]
		if p == nil || !p.sure {
			return t.store.lost(t.topic, number)
		}
		if p.cells == nil {
			p.cells = make(map[string]*cell, len(keys))
		}
		missing := make([]*cell, 0, len(keys))
		for _, k := range keys {
			if p.cells[k] == nil {
				missing = append(missing, p.cell(k))
			}
		}
		if p.empty || len(missing) == 0 {
			continue
		}
		if q == nil {
			q = t.store.rdb.Pipeline()
		}
		parts, marks = append(parts, number), append(marks, t.markKey(number))
		for cells := range slices.Chunk(missing, readAtOnce) {
			ks := make([]string, len(cells))
			for i, c := range cells {
				ks[i] = c.key
			}
			reads = append(reads, reading{cells, q.HMGet(ctx, t.store.RowsKey(t.topic, number), ks...)})
		}
	}
	if q == nil {
		return nil
	}
	// The marks last: as this process left them, they say that what was read
	// before was whole.
	found := q.MGet(ctx, marks...)
	if _, err := q.Exec(ctx); err != nil {
		t.Begin()
		return twredis.Classify("reading state", err)
	}
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	for i, number := range parts {
		if have, _ := found.Val()[i].(string); have != t.slot(number).raw {
			t.parts[number].sure = false
			t.Begin()
			return ErrLost.New("the state of %s partition %d has mark %q, this process left %q", t.topic.Name, number, have, t.slot(number).raw)
		}
	}
	for _, r := range reads {
		for i, v := range r.vals.Val() {
			if text, is := v.(string); is {
				r.cells[i].was = []byte(text)
			}
		}
	}
	return nil
}

// Get is the value of a key that was fetched: as this transaction wrote it, or as
// it was committed; nil: there is none. Borrowed.
func (t *Table) Get(partition int32, key string) []byte {
	return t.fetched(partition, key).value()
}

func (t *Table) fetched(partition int32, key string) *cell {
	c := t.parts[partition].cells[key]
	if c == nil {
		panic("BUG: a key of a state is read that was not fetched")
	}
	return c
}

func (c *cell) value() []byte {
	if c.written {
		return c.now
	}
	return c.was
}

func sameValue(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

// Put sets the value of a key that was fetched; nil deletes it. It takes value
// over. ErrTooLarge, and nothing is set: the changelog does not take so much.
func (t *Table) Put(partition int32, key string, value []byte) error {
	if n := len(key) + len(value) + recordOctets; t.limit > 0 && n > t.limit {
		return ErrTooLarge.New("%d octets of state of one row, of which topic %s takes %d", n, t.topic.Name, t.limit)
	}
	c := t.fetched(partition, key)
	if sameValue(c.value(), value) {
		return nil
	}
	if !c.written {
		p := t.parts[partition]
		p.wrote = append(p.wrote, c)
	}
	c.now, c.written = value, true
	return nil
}

// Changes are what this transaction has to write to the changelog: of each key once,
// in order of partition, and as the keys were written first.
func (t *Table) Changes() []Entry {
	n := 0
	for _, p := range t.parts {
		n += len(p.wrote)
	}
	out := make([]Entry, 0, n)
	for _, number := range slices.Sorted(maps.Keys(t.parts)) {
		for _, c := range t.parts[number].wrote {
			if !sameValue(c.was, c.now) { // not there and back
				out = append(out, Entry{number, []byte(c.key), c.now})
			}
		}
	}
	return out
}

// Committed brings Redis to what a transaction wrote, which is committed: es are
// its Changes, ends are the offsets behind their last record, by partition. On an
// error the changelog has it, and Redis has not: the partitions are to be owned
// anew.
func (t *Table) Committed(ctx context.Context, es []Entry, ends map[int32]int64) error {
	defer t.Begin()
	if len(es) == 0 {
		return nil
	}
	by := map[int32][]Entry{}
	for _, e := range es {
		by[e.Partition] = append(by[e.Partition], e)
	}
	if err := t.begun(ctx, by); err != nil {
		return err
	}
	return t.write(ctx, by, ends, true)
}

// begun starts an epoch in partitions of which nothing was ever written.
func (t *Table) begun(ctx context.Context, by map[int32][]Entry) error {
	s := t.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for number := range by {
		p := t.parts[number]
		if !p.empty {
			continue
		}
		p.sure = false
		raw, ptr, err := s.readMark(ctx, t.markKey(number))
		if err != nil {
			return err
		}
		m, _ := parseMark(raw)
		sl := t.slot(number)
		sl.sure, sl.raw, sl.m = true, raw, m
		if err := s.empty(ctx, t.topic, number, sl, ptr); err != nil {
			return err
		}
		p.empty = false
	}
	return nil
}

// write applies entries, one of each key, and moves the marks, all or nothing.
func (t *Table) write(ctx context.Context, by map[int32][]Entry, ends map[int32]int64, done bool) error {
	s := t.store
	s.mu.Lock()
	defer s.mu.Unlock()
	var ms []*marked
	for number := range by {
		sl := t.slot(number)
		t.parts[number].sure = false
		m := &marked{s: s, key: t.markKey(number), sl: sl, to: sl.m}
		m.to.offset, m.to.restoring, m.to.run = ends[number], sl.m.restoring && !done, s.run
		ms = append(ms, m)
	}
	now := strconv.FormatInt(time.Now().UnixMilli(), 10)
	err := compareAndSet(ctx, s.rdb, ms, func(q redis.Pipeliner) error {
		for number, es := range by {
			rows := s.RowsKey(t.topic, number)
			var set []any
			var gone []string
			for _, e := range es {
				if e.Value == nil {
					gone = append(gone, string(e.Key))
				} else {
					set = append(set, e.Key, e.Value)
				}
			}
			for kv := range slices.Chunk(set, 2*readAtOnce) {
				q.HSet(ctx, rows, kv...)
			}
			for ks := range slices.Chunk(gone, readAtOnce) {
				q.HDel(ctx, rows, ks...)
			}
			q.Set(ctx, t.timeKey(number), now, 0)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for number := range by {
		t.parts[number].sure = true
	}
	return nil
}

// latest are the last entries of each key, which are those that count.
func latest(es []Entry) []Entry {
	last := make(map[string]int, len(es))
	for i := range es {
		last[string(es[i].Key)] = i
	}
	if len(last) == len(es) {
		return es
	}
	out := make([]Entry, 0, len(last))
	for i := range es {
		if last[string(es[i].Key)] == i {
			out = append(out, es[i])
		}
	}
	return out
}

func (t *Table) slot(partition int32) *slot {
	k := slotKey{t.topic.ID, partition}
	sl := t.store.slots[k]
	if sl == nil {
		sl = &slot{}
		t.store.slots[k] = sl
	}
	return sl
}

func (t *Table) markKey(partition int32) string {
	return markKey(namespace(t.store.transform, t.topic.ID), partition)
}

// timeKey is when the mark was written: milliseconds since 1970 by the writer's
// clock.
func (t *Table) timeKey(partition int32) string {
	return namespace(t.store.transform, t.topic.ID) + strconv.Itoa(int(partition)) + ":time"
}
