// The mark of a partition: how far it is applied, in which epoch, and who
// confirmed it.

package state

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	twredis "github.com/tallywire/tallywire/internal/redis"
)

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

// marked is one mark that a write compares and sets.
type marked struct {
	s   *Store
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
			return errors.Join(ErrLost.New("the state of %s for %s has mark %q, this process left %q", m.s.topic, m.s.transform, have, m.sl.raw),
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
		return ErrLost.New("the state of %s for %s was touched by another process during a write", ms[0].s.topic, ms[0].s.transform)
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
