package state_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline/state"
)

var changelog = &change.Topic{Name: "_tallywire.state.canonical", ID: [16]byte{4, 5, 6}, Partitions: 2}

// owner is a process with a table, and the changelog that all owners share.
type owner struct {
	t     *testing.T
	table *state.Table
	log   *[]state.Entry // of partition 1; a marker has no key
}

func newOwner(t *testing.T, rdb *goredis.Client, log *[]state.Entry) *owner {
	o := &owner{t, state.NewTable(rdb, slog.New(slog.DiscardHandler), "canonical"), log}
	o.table.Open(changelog, 1000)
	return o
}

// own takes the partition, and gives where it was read from: −1, nothing was.
func (o *owner) own(young time.Duration) int64 {
	o.t.Helper()
	end := int64(len(*o.log))
	from, ok, err := o.table.Own(o.t.Context(), 1, end, young)
	must(o.t, err)
	if ok {
		return -1
	}
	if o.table.Owned(1) {
		o.t.Fatal("it is owned before it was read")
	}
	var es []state.Entry
	for at := from; at < end; at++ { // two at a time, as the engine does with many
		if e := (*o.log)[at]; e.Key != nil {
			es = append(es, e)
		}
		if len(es) == 2 {
			must(o.t, o.table.Load(o.t.Context(), 1, es, at+1, false))
			es = nil
		}
	}
	must(o.t, o.table.Load(o.t.Context(), 1, es, end, true))
	return from
}

// write is a transaction that is committed; tell says whether Redis hears of it.
func (o *owner) write(tell bool, pairs ...string) error {
	o.t.Helper()
	o.table.Begin()
	for i := 0; i < len(pairs); i += 2 {
		must(o.t, o.table.Fetch(o.t.Context(), map[int32][]string{1: {pairs[i]}}))
		var v []byte
		if pairs[i+1] != "" {
			v = []byte(pairs[i+1])
		}
		must(o.t, o.table.Put(1, pairs[i], v))
	}
	es := o.table.Changes()
	*o.log = append(*o.log, es...)
	end := int64(len(*o.log))
	*o.log = append(*o.log, state.Entry{})
	if !tell {
		return nil
	}
	return o.table.Committed(o.t.Context(), es, map[int32]int64{1: end})
}

func (o *owner) has(pairs ...string) {
	o.t.Helper()
	o.table.Begin()
	for i := 0; i < len(pairs); i += 2 {
		must(o.t, o.table.Fetch(o.t.Context(), map[int32][]string{1: {pairs[i]}}))
		if v := o.table.Get(1, pairs[i]); string(v) != pairs[i+1] {
			o.t.Errorf("%s is %q, want %q", pairs[i], v, pairs[i+1])
		}
	}
}

// The life of a partition: each owner finds what was committed, whatever Redis
// heard of it, and reads as little as will do.
func TestTable(t *testing.T) {
	stateServers(t, func(t *testing.T, rdb *goredis.Client) {
		var log []state.Entry
		a := newOwner(t, rdb, &log)
		if a.own(time.Hour) != -1 {
			t.Error("an empty changelog was read")
		}
		a.has("x", "")
		must(t, a.write(true, "x", "1", "y", "1"))
		must(t, a.write(true, "x", "2", "z", "1"))
		must(t, a.write(true, "y", ""))
		a.has("x", "2", "y", "", "z", "1")

		b := newOwner(t, rdb, &log)
		if b.own(time.Hour) != -1 {
			t.Error("what Redis has was read again")
		}
		b.has("x", "2", "y", "", "z", "1")

		// One is paused in the midst of a transaction.
		a.table.Begin()
		must(t, a.table.Fetch(t.Context(), map[int32][]string{1: {"x"}}))
		must(t, a.table.Put(1, "x", []byte("old")))
		paused := a.table.Changes()

		// Another dies before Redis hears of it.
		must(t, b.write(false, "x", "3", "z", "", "y", "2"))
		c := newOwner(t, rdb, &log)
		if from := c.own(time.Hour); from != 7 {
			t.Errorf("the rest was read from %d", from)
		}
		c.has("x", "3", "y", "2", "z", "")

		// The paused one wakes up: what it then tells Redis is refused.
		mustBe(t, a.table.Committed(t.Context(), paused, map[int32]int64{1: 8}), state.ErrLost)
		c.has("x", "3")
		mustBe(t, a.table.Fetch(t.Context(), map[int32][]string{1: {"x"}}), state.ErrLost)

		// A mark that is old: deletes may be gone from the changelog by now.
		must(t, c.write(false, "x", ""))
		d := newOwner(t, rdb, &log)
		if from := d.own(0); from != 0 {
			t.Errorf("after a long time it was read from %d", from)
		}
		d.has("x", "", "y", "2", "z", "")

		// Redis is emptied: nothing reads as 'not there'.
		must(t, rdb.FlushAll(t.Context()).Err())
		d.table.Begin()
		mustBe(t, d.table.Fetch(t.Context(), map[int32][]string{1: {"y"}}), state.ErrLost)
		if d.table.Owned(1) {
			t.Error("what was lost is owned")
		}
		if from := d.own(time.Hour); from != 0 {
			t.Errorf("after a loss it was read from %d", from)
		}
		d.has("x", "", "y", "2", "z", "")
		must(t, d.write(true, "x", "5"))

		// A changelog that ends before what Redis has lost records: it counts.
		log = log[:2]
		e := newOwner(t, rdb, &log)
		if from := e.own(time.Hour); from != 0 {
			t.Errorf("a shorter changelog was read from %d", from)
		}
		e.has("x", "1", "y", "1", "z", "")
	})
}

// An owner with nothing to write still looks whether Redis has its state, since others
// read that. If this failed, they would wait until it has something to write.
func TestTableConfirm(t *testing.T) {
	ctx := t.Context()
	srv := testkit.NewRedis(t)
	rdb, err := redis.Open(ctx, srv.Addr)
	must(t, err)
	t.Cleanup(func() { must(t, rdb.Close()) })
	var log []state.Entry
	a := newOwner(t, rdb, &log)
	a.own(time.Hour)
	must(t, a.write(true, "x", "1"))
	other := state.NewReader("canonical", state.ChangelogOf("canonical"), func(context.Context, string) (*change.Topic, error) { return changelog, nil })
	reads := func() error {
		read, err := state.NewConsistentRead(ctx, other)
		must(t, err)
		read.Only(0, []int32{1})
		p := rdb.Pipeline()
		read.Begin(ctx, p)
		x := p.HGet(ctx, read.RowsKey(0, 1), "x")
		read.End(ctx, p)
		if _, err := p.Exec(ctx); err != nil && !errors.Is(err, goredis.Nil) {
			return err
		}
		if err := read.Err(); err != nil {
			return err
		}
		if x.Val() != "1" || read.Applied(0, 1) != 1 {
			t.Errorf("it reads %q, applied up to %d", x.Val(), read.Applied(0, 1))
		}
		return nil
	}
	must(t, reads())
	a.table.CheckEvery(time.Hour)
	must(t, a.table.Confirm(ctx))

	// Redis starts again, and has kept it.
	must(t, rdb.Save(ctx).Err())
	must(t, srv.Kill())
	must(t, srv.Start(ctx))
	mustBe(t, reads(), state.ErrUnknown)
	must(t, a.table.Confirm(ctx)) // by its last look
	mustBe(t, reads(), state.ErrUnknown)
	a.table.CheckEvery(0)
	must(t, a.table.Confirm(ctx))
	must(t, reads())
	must(t, a.write(true, "y", "1"))

	must(t, rdb.FlushAll(ctx).Err())
	must(t, a.table.Confirm(ctx))
	if a.table.Owned(1) {
		t.Error("what was lost is owned")
	}
}

// A rebuild that is broken off begins again, and is no state until it is done.
func TestTableLoadIsBrokenOff(t *testing.T) {
	stateServers(t, func(t *testing.T, rdb *goredis.Client) {
		var log []state.Entry
		a := newOwner(t, rdb, &log)
		a.own(time.Hour)
		must(t, a.write(true, "x", "1", "y", "1"))
		must(t, rdb.FlushAll(t.Context()).Err())
		b := newOwner(t, rdb, &log)
		if from, ok, err := b.table.Own(t.Context(), 1, 3, time.Hour); from != 0 || ok || err != nil {
			t.Fatal(from, ok, err)
		}
		must(t, b.table.Load(t.Context(), 1, log[:1], 1, false))
		mustBe(t, b.table.Fetch(t.Context(), map[int32][]string{1: {"x"}}), state.ErrLost)
		c := newOwner(t, rdb, &log)
		if from := c.own(time.Hour); from != 0 {
			t.Errorf("it went on at %d", from)
		}
		c.has("x", "1", "y", "1")
	})
}

// What is written and taken back within a transaction is no record; what is too
// large is refused before the broker does.
func TestTableWithinATransaction(t *testing.T) {
	stateServers(t, func(t *testing.T, rdb *goredis.Client) {
		var log []state.Entry
		a := newOwner(t, rdb, &log)
		a.own(time.Hour)
		must(t, a.write(true, "x", "1"))
		must(t, a.table.Fetch(t.Context(), map[int32][]string{1: {"x", "y"}}))
		must(t, a.table.Put(1, "x", []byte("2")))
		must(t, a.table.Put(1, "y", []byte("2")))
		if v := a.table.Get(1, "x"); string(v) != "2" {
			t.Errorf("its own write reads as %q", v)
		}
		must(t, a.table.Put(1, "x", []byte("1")))
		must(t, a.table.Put(1, "y", nil))
		mustBe(t, a.table.Put(1, "y", []byte(strings.Repeat("y", 1000))), state.ErrTooLarge)
		if es := a.table.Changes(); len(es) > 0 {
			t.Errorf("nothing changed, and is written: %q", es)
		}
		a.table.Begin()
		a.has("x", "1", "y", "")
	})
}
