// Latency: 1,000 transactions of 5 rows a second, each row with the clock at
// its INSERT; a consumer of committed records looks at the clock when it sees
// the row.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/benchmarks/internal/proc"
)

const (
	live      = "live" // the database
	txPerSec  = 1_000
	rowsPerTx = 5
	writers   = 4
	// A JVM compiles for longer.
	warmUp, warmUpJVM = 5 * time.Second, 15 * time.Second
	// What is warm on a broker after bulk is not what a live flow takes: the
	// first who is followed on it would pay for its compiling.
	warmUpBroker = 30 * time.Second
)

// measured is for how long latencies are noted.
func (o *options) measured() time.Duration {
	if o.trial() {
		return 5 * time.Second
	}
	return 20 * time.Second
}

// The clock travels in the note, behind this mark, in microseconds since 1970,
// 16 digits: a text is the same octets in any encoding of Avro.
const (
	clockMark   = "#clock="
	clockDigits = 16
)

const liveSchema = `create table time_entry (id bigint primary key, employee_id int, project_id int, task_id int, work_date date, minutes int,
  bill_rate numeric(12,4), cost_rate numeric(12,4), billable boolean, status text, note text, created_at timestamptz, updated_at timestamptz);
create publication peers for table time_entry; create sequence entries`

const liveInsert = `insert into time_entry select nextval('entries'), 17, 42, 4711, date '2026-01-05', 45, 120.5, 64.25, true, 'submitted',
  'workshop on migration ' || $1::text || (extract(epoch from clock_timestamp()) * 1000000)::bigint || ' notes for the team', now(), now() from generate_series(1, $2)`

// liveDatabase makes it once, and empties the table for each run.
func (w *world) liveDatabase(ctx context.Context) error {
	if !w.warm[live] {
		drop := fmt.Sprintf(`select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '%s'`, live)
		err := errors.Join(w.pg.Exec(ctx, "postgres", drop), w.pg.Exec(ctx, "postgres", "drop database if exists "+live+" with (force)"), w.pg.CreateDatabase(ctx, live))
		if err == nil {
			err = w.pg.Exec(ctx, live, liveSchema)
		}
		if err != nil {
			return fmt.Errorf("making the database %s: %w", live, err)
		}
		w.warm[live] = true
	}
	return w.pg.Exec(ctx, live, "truncate time_entry")
}

// generate writes until ctx ends, each transaction at its time; what it cannot
// keep up with it makes good. Until running is closed it writes ten a second
// only, so that nobody has to catch up with his own start. It gives the number
// of transactions, and how long their commits took, in ms, sorted.
func (w *world) generate(ctx context.Context, running <-chan struct{}) (n int64, took []float64, err error) {
	var wg sync.WaitGroup
	errs, done := make([]error, writers), make([][]float64, writers)
	if n, err = w.trickle(ctx, running); err != nil {
		return n, nil, err
	}
	begin := time.Now()
	for i := range writers {
		wg.Go(func() { done[i], errs[i] = w.write(ctx, begin.Add(time.Duration(i)*time.Second/txPerSec)) })
	}
	wg.Wait()
	for _, d := range done {
		took = append(took, d...)
	}
	slices.Sort(took)
	return n + int64(len(took)), took, errors.Join(errs...)
}

func (w *world) trickle(ctx context.Context, running <-chan struct{}) (n int64, err error) {
	q, err := pgx.Connect(ctx, w.pg.DSN(live))
	if err != nil {
		return 0, err
	}
	defer q.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := q.Exec(context.WithoutCancel(ctx), liveInsert, clockMark, rowsPerTx); err != nil {
			return n, fmt.Errorf("writing: %w", err)
		}
		n++
		select {
		case <-ctx.Done():
			return n, nil
		case <-running:
			return n, nil
		case <-tick.C:
		}
	}
}

// write gives the milliseconds that each of its transactions took.
func (w *world) write(ctx context.Context, next time.Time) (took []float64, err error) {
	q, err := pgx.Connect(ctx, w.pg.DSN(live))
	if err != nil {
		return nil, err
	}
	defer q.Close(context.WithoutCancel(ctx))
	for ; ; next = next.Add(writers * time.Second / txPerSec) {
		select {
		case <-ctx.Done():
			return took, nil
		case <-time.After(time.Until(next)):
		}
		// A transaction that was begun is ended: the generator's own end is not
		// to be seen in the figures.
		began := time.Now()
		if _, err := q.Exec(context.WithoutCancel(ctx), liveInsert, clockMark, rowsPerTx); err != nil {
			return took, fmt.Errorf("writing: %w", err)
		}
		took = append(took, time.Since(began).Seconds()*1e3)
	}
}

// consume notes how old each row is that it sees, until ctx ends.
func (b *broker) consume(ctx context.Context, topic string, note func(seen time.Time, age time.Duration)) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fs.Err(); err != nil {
			return fmt.Errorf("consuming %s: %w", topic, err)
		}
		now := time.Now()
		for it := fs.RecordIter(); !it.Done(); {
			r := it.Next()
			clock, err := clockOf(r.Value)
			if err != nil {
				return fmt.Errorf("offset %d of %s: %w", r.Offset, topic, err)
			}
			note(now, now.Sub(clock))
		}
	}
}

func clockOf(value []byte) (time.Time, error) {
	_, rest, ok := bytes.Cut(value, []byte(clockMark))
	if !ok || len(rest) < clockDigits {
		return time.Time{}, fmt.Errorf("a record of %d octets without %q", len(value), clockMark)
	}
	us, err := strconv.ParseInt(string(rest[:clockDigits]), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("a record without a clock: %w", err)
	}
	return time.UnixMicro(us), nil
}

// latency measures a contender that runs: c copies live's rows into topic.
func (w *world) latency(ctx context.Context, c *child, b *broker, topic string, warmUp time.Duration) (f figure, err error) {
	measured := w.o.measured()
	var (
		mu       sync.Mutex
		ages     []float64 // ms, of rows seen while measuring
		count    int64
		from, to time.Time
	)
	run, stop := context.WithCancel(ctx)
	defer stop()
	writing, enough := context.WithCancel(run)
	failed := make(chan error, 2)
	consumed, running := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(consumed)
		failed <- b.consume(run, topic, func(seen time.Time, age time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			if count++; count == 1 {
				close(running)
			}
			if !from.IsZero() && seen.After(from) && (to.IsZero() || seen.Before(to)) {
				ages = append(ages, age.Seconds()*1e3)
			}
		})
	}()
	var written int64
	var commits []float64
	wrote := make(chan struct{})
	go func() { // ends with enough
		defer close(wrote)
		n, took, err := w.generate(writing, running)
		written, commits = n*rowsPerTx, took
		if err != nil {
			failed <- err
		}
	}()
	// All have ended when we return.
	defer func() { enough(); <-wrote; stop(); <-consumed }()
	wait := func(d time.Duration, or <-chan struct{}) error {
		select {
		case <-time.After(d):
			return nil
		case <-or:
			return nil
		case err := <-failed:
			return err
		case <-c.done:
			return c.ended()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := wait(time.Minute, running); err != nil {
		return f, err
	}
	select {
	case <-running:
	default:
		return f, fmt.Errorf("%s delivered nothing in a minute: %s", c.name, c.tail())
	}
	if !b.followed && !w.o.trial() {
		warmUp += warmUpBroker
	}
	b.followed = true
	if err := wait(warmUp, nil); err != nil {
		return f, err
	}
	mu.Lock()
	from = time.Now()
	mu.Unlock()
	before, machine := proc.CPU(c.pid), w.others(c, b)
	if err := wait(measured, nil); err != nil {
		return f, err
	}
	used := proc.CPU(c.pid) - before
	foreign := w.others(c, b) - machine
	mu.Lock()
	to = time.Now()
	took := to.Sub(from)
	mu.Unlock()
	enough()
	<-wrote
	// Every row arrives, and no more than those.
	late := time.Now().Add(20 * time.Second)
	for {
		mu.Lock()
		n := count
		mu.Unlock()
		if n == written {
			break
		}
		if n > written || time.Now().After(late) {
			return f, fmt.Errorf("%s delivered %d rows of %d", c.name, n, written)
		}
		if err := wait(every, nil); err != nil {
			return f, err
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if want := 0.9 * txPerSec * rowsPerTx * measured.Seconds(); float64(len(ages)) < want {
		return f, fmt.Errorf("%d rows seen in %s, wanted are %.0f at least (%d were written in all): the generator or %s does not keep up", len(ages), measured, want, written, c.name)
	}
	slices.Sort(ages)
	at := func(sorted []float64, q float64) float64 { return sorted[int(q*float64(len(sorted)-1))] }
	f.p50, f.p95, f.p99 = at(ages, 0.50), at(ages, 0.95), at(ages, 0.99)
	f.commit50, f.commit99 = at(commits, 0.50), at(commits, 0.99)
	f.core = used.Seconds() / took.Seconds()
	f.others = max(0, foreign.Seconds()/took.Seconds()/float64(runtime.NumCPU()))
	f.rss = float64(proc.Peak(c.pid))
	return f, nil
}

// others is the CPU time so far of what has no part in a run: not the
// contender, the broker, this process, nor Postgres.
func (w *world) others(c *child, b *broker) time.Duration {
	t := proc.Busy() - proc.CPU(c.pid) - proc.CPU(b.PID()) - proc.CPU(os.Getpid())
	for _, pid := range proc.Children(w.pg.PID()) {
		t -= proc.CPU(pid)
	}
	return t
}

// liveSlot makes the database ready, and a slot in it.
func (w *world) liveSlot(ctx context.Context) (string, error) {
	if err := w.liveDatabase(ctx); err != nil {
		return "", err
	}
	slot := w.newSlot()
	return slot, w.pg.Exec(ctx, live, fmt.Sprintf(`select pg_create_logical_replication_slot('%s', 'pgoutput')`, slot))
}

// latencyOn runs tallywire on a broker.
func (t tallywire) latencyOn(ctx context.Context, w *world, b *broker, name string) (f figure, err error) {
	if err := t.warm(ctx, w); err != nil {
		return f, err
	}
	slot, err := w.liveSlot(ctx)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	if err := b.fresh(ctx, twTopic, 1, nil, twPositions); err != nil {
		return f, err
	}
	c, err := t.start(w, b, name, live, slot, "never", 1)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	return w.latency(ctx, c, b, twTopic, warmUp)
}

// latencyDebezium is at-least-once, in a standalone worker.
func latencyDebezium(ctx context.Context, w *world, name string) (f figure, err error) {
	if err := warmDebezium(ctx, w); err != nil {
		return f, err
	}
	slot, err := w.liveSlot(ctx)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	if err := w.kafka.fresh(ctx, dbzTopic, 1, nil); err != nil {
		return f, err
	}
	k := &connector{db: live, slot: slot, snapshot: "no_data", latency: true}
	c, err := k.start(ctx, w, w.kafka, name)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.kill()) }()
	return w.latency(ctx, c, w.kafka, dbzTopic, warmUpJVM)
}

// latencyDebeziumEO is exactly-once, in a distributed worker.
func latencyDebeziumEO(ctx context.Context, w *world, name string) (f figure, err error) {
	if err := warmDebezium(ctx, w); err != nil {
		return f, err
	}
	slot, err := w.liveSlot(ctx)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.dropSlot(ctx, slot)) }()
	if err := w.kafka.fresh(ctx, dbzTopic, 1, nil, internalTopics(name)...); err != nil {
		return f, err
	}
	k := &connector{db: live, slot: slot, snapshot: "no_data", latency: true}
	c, err := k.startDistributed(ctx, w, w.kafka, name)
	if err != nil {
		return f, err
	}
	defer func() {
		err = errors.Join(err, c.kill(), w.kafka.drop(context.WithoutCancel(ctx), internalTopics(name)...))
	}()
	return w.latency(ctx, c, w.kafka, dbzTopic, warmUpJVM)
}

// quick is the second broker: it retries an early transaction after 1 ms.
func (w *world) quickBroker(ctx context.Context) (_ *broker, err error) {
	if w.quick == nil {
		w.say("starting the broker with add.partitions.to.txn.retry.backoff.ms=1")
		w.quick, err = w.startBroker(ctx, map[string]string{"add.partitions.to.txn.retry.backoff.ms": "1"})
	}
	return w.quick, err
}
