// World: the servers that all contenders use, and the folder of the run.

package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

// world outlives the contenders' runs.
type world struct {
	o       *options
	state   string // backlogs and Postgres' data
	tmp     string // all else
	binary  string // tallywire
	began   time.Time
	closers []func() error

	pg       *embedded.Postgres
	sql      *pgx.Conn // to the database postgres; for one goroutine at a time
	kafka    *broker   // at its defaults
	quick    *broker   // with a short retry of early transactions; nil until needed
	registry *testkit.Apicurio
	logs     map[string]*backlog
	warm     map[string]bool // contenders whose schemas are registered
	failed   []string        // runs that were repeated
	slots    int             // made so far, for their names
}

func (w *world) onClose(f func() error) { w.closers = append(w.closers, f) }

// close stops everything, the last started first.
func (w *world) close() error {
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	w.closers = nil
	return errors.Join(errs...)
}

// say tells progress, with the seconds since the start.
func (w *world) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
}

// newWorld starts the servers; the world is to be closed also after an error.
func newWorld(ctx context.Context, o *options) (*world, error) {
	w := &world{o: o, began: time.Now(), warm: map[string]bool{}}
	return w, w.start(ctx)
}

func (w *world) start(ctx context.Context) (err error) {
	if err := w.folders(ctx); err != nil {
		return err
	}
	if err := w.build(ctx); err != nil {
		return err
	}
	w.say("starting Postgres %s", embedded.Postgres17)
	// Without fsync: how long a shared disk takes to flush a commit, tens of
	// milliseconds at times, is in everybody's latency and says nothing of any.
	w.pg, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{Dir: filepath.Join(w.state, "postgres"), Adopt: true, Params: map[string]string{
		"max_replication_slots": "40", "max_wal_senders": "40", "shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min",
		"logical_decoding_work_mem": "64MB", "wal_sender_timeout": "0", "autovacuum": "off", "fsync": "off",
	}})
	if err != nil {
		return err
	}
	w.onClose(w.pg.Stop)
	if err := w.pg.CreateDatabase(ctx, "control"); err != nil {
		return err
	}
	if w.sql, err = pgx.Connect(ctx, w.pg.DSN("postgres")); err != nil {
		return err
	}
	w.onClose(func() error { return w.sql.Close(context.Background()) })
	if _, err := w.pgRecvlogical(); err != nil && w.takesPart("pg_recvlogical") {
		return err
	}
	w.say("looking for the backlogs in %s", w.state)
	if err := w.backlogs(ctx); err != nil {
		return err
	}
	w.say("starting Kafka %s and Apicurio %s", embedded.KafkaVersion, testkit.ApicurioVersion)
	if w.kafka, err = w.startBroker(ctx, nil); err != nil {
		return err
	}
	if w.registry, err = testkit.StartApicurio(ctx); err != nil {
		return err
	}
	w.onClose(w.registry.Stop)
	return nil
}

// folders makes them, and takes the state folder for this process alone.
func (w *world) folders(ctx context.Context) (err error) {
	if w.tmp, err = os.MkdirTemp("", "tallywire-peers-"); err != nil {
		return err
	}
	if w.o.keep {
		w.say("logs are kept in %s", w.tmp)
	} else {
		w.onClose(func() error { return os.RemoveAll(w.tmp) })
	}
	w.state = filepath.Join(w.tmp, "state")
	if w.o.state != "" {
		// Another size, or other rows, are another backlog.
		w.state = filepath.Join(w.o.state, fmt.Sprintf("%d-%08x", w.o.rows, crc32.ChecksumIEEE([]byte(schema))))
	}
	if err := os.MkdirAll(w.state, 0o755); err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(w.state, "lock"), func() { w.say("waiting for another run that uses %s", w.state) })
	if err != nil {
		return err
	}
	w.onClose(unlock)
	return nil
}

// lock takes a lock file; wait is called when another holds it. Waiting in the
// kernel is first come, first served, but does not end with ctx: the goroutine
// that waits is then left to the process's end, which is near.
func lock(ctx context.Context, name string, wait func()) (unlock func() error, err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
		return f.Close, nil
	}
	wait()
	taken := make(chan error, 1)
	go func() {
		for {
			err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
			if !errors.Is(err, syscall.EINTR) {
				taken <- err
				return
			}
		}
	}()
	select {
	case err := <-taken:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", name, err), f.Close())
		}
		return f.Close, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// build makes the binary that is measured.
func (w *world) build(ctx context.Context) error {
	w.binary = w.o.binary
	if w.binary != "" {
		return nil
	}
	w.binary = filepath.Join(w.tmp, "tallywire")
	w.say("building tallywire")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", w.binary, "github.com/tallywire/tallywire/cmd/tallywire").CombinedOutput()
	if err != nil {
		return fmt.Errorf("building tallywire: %w\n%s", err, out)
	}
	return nil
}

// newSlot names a slot that was not used before.
func (w *world) newSlot() string {
	w.slots++
	return fmt.Sprintf("run_%d_%d", os.Getpid(), w.slots)
}
