// World: the servers, and the configuration of the demo without its ERP.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/examples"
	"github.com/tallywire/tallywire/internal/demo/firm"
	"github.com/tallywire/tallywire/internal/demo/truth"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/supervise"
)

// world outlives the pipeline, which is stopped and started in it.
type world struct {
	dir     string
	log     *slog.Logger
	closers []func() error

	psa, far *embedded.Postgres
	cluster  *kafka.Cluster
	rows     int64 // of the seed
	config   string
	servers  []server // besides this process
	profiled bool     // this process, over all drains
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

// newWorld starts the servers; the world is to be closed also after an error.
func newWorld(ctx context.Context, kind, dir string, log *slog.Logger) (*world, error) {
	w := &world{dir: dir, log: log}
	return w, w.start(ctx, kind)
}

func (w *world) start(ctx context.Context, kind string) (err error) {
	// The PSA's own commits do not wait for its disk, so that backlogs are made
	// fast; the warehouse's do, as it comes out of the box.
	if w.psa, err = w.postgres(ctx, "PSA", map[string]string{"synchronous_commit": "off"}, "psa"); err != nil {
		return err
	}
	if w.far, err = w.postgres(ctx, "warehouse", nil, "warehouse", "control"); err != nil {
		return err
	}
	seed, err := firm.Seed(ctx, w.psa.DSN("psa"))
	if err != nil {
		return err
	}
	for _, n := range seed.Rows {
		w.rows += n
	}
	broker, cache, err := w.parts(ctx, kind)
	if err != nil {
		return err
	}
	o := obs.New(w.log)
	if w.cluster, err = kafka.New(kafka.Config{Brokers: []string{broker}, ClientID: "tallywire-drain"}, o); err != nil {
		return err
	}
	w.onClose(func() error { w.cluster.Close(); return nil })
	schemas, stop, err := supervise.StartRegistry(ctx, "127.0.0.1:0", w.cluster, o)
	if err != nil {
		return err
	}
	w.onClose(stop)
	w.config = fmt.Sprintf(configuration, broker, schemas, cache, w.far.DSN("control"), filepath.Join(w.dir, "state"), w.psa.DSN("psa"), w.far.DSN("warehouse"))
	return nil
}

func (w *world) postgres(ctx context.Context, name string, params map[string]string, databases ...string) (*embedded.Postgres, error) {
	p, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Dir: filepath.Join(w.dir, name), Params: params})
	if err != nil {
		return nil, err
	}
	w.onClose(p.Stop)
	w.servers = append(w.servers, server{"the " + name + "'s Postgres", p.PID()})
	for _, d := range databases {
		if err := p.CreateDatabase(ctx, d); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// parts starts Kafka and Redis and gives their addresses.
func (w *world) parts(ctx context.Context, kind string) (broker, cache string, err error) {
	if kind == "real" {
		k, err := embedded.StartKafka(ctx, embedded.KafkaOptions{Dir: filepath.Join(w.dir, "kafka"), HeapMB: 1024})
		if err != nil {
			return "", "", err
		}
		w.onClose(k.Stop)
		r, err := embedded.StartRedis(ctx, embedded.RedisOptions{})
		if err != nil {
			return "", "", err
		}
		w.onClose(r.Stop)
		w.servers = append(w.servers, server{"Kafka", k.PID()}, server{"redis-server", r.PID()})
		return k.Addr(), r.Addr, nil
	}
	k, err := embedded.StartMiniKafka(ctx, filepath.Join(w.dir, "kafka"), "127.0.0.1:0", w.log)
	if err != nil {
		return "", "", err
	}
	w.onClose(k.Close)
	r, err := embedded.StartMiniRedis("127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	w.onClose(r.Close)
	return k.Addr(), r.Addr(), nil
}

var configuration = `
kafka: {brokers: ["%s"]}
registry: {url: "http://%s"}
redis: {addr: "%s"}
control: {dsn: %q}
http: {listen: "127.0.0.1:0"}
state_dir: %q
instance: drain
partitions: 4
sources:
  psa: {type: postgres, dsn: %q, slot: tallywire_psa, publication: tallywire_psa, tables: [public.*]}
transforms:
` + examples.Transforms() + `
sinks:
  warehouse: {type: warehouse, dsn: %q}
`

// marker is what the last commit of a backlog puts into a row of ps.resource:
// nothing joins with it.
func marker(n int) string { return fmt.Sprintf("backlog %d", n) }

// backlog makes changes in the PSA; its marker is the last of them.
func (w *world) backlog(changes int64, n int) func(context.Context) (int64, string, error) {
	return func(ctx context.Context) (int64, string, error) {
		st, err := firm.Load(ctx, w.psa.DSN("psa"), changes)
		if err != nil {
			return 0, "", fmt.Errorf("making the backlog: %w", err)
		}
		return st.Changes, marker(n), w.psa.Exec(ctx, "psa", fmt.Sprintf(`update employee set title = '%s' where id = (select min(id) from employee)`, marker(n)))
	}
}

// marked waits for the marker to be in the warehouse.
func marked(ctx context.Context, c *pgx.Conn, mark string) (there bool, err error) {
	if err := c.QueryRow(ctx, `select to_regclass('ps.resource') is not null`).Scan(&there); err != nil || !there || mark == "" {
		return there, err
	}
	err = c.QueryRow(ctx, `select exists (select from ps.resource where title = $1)`, mark).Scan(&there)
	return there, err
}

// verify compares the PSA with the warehouse.
func (w *world) verify(ctx context.Context) (rows int64, err error) {
	psa, err := pgxpool.New(ctx, w.psa.DSN("psa"))
	if err != nil {
		return 0, err
	}
	defer psa.Close()
	warehouse, err := pgxpool.New(ctx, w.far.DSN("warehouse"))
	if err != nil {
		return 0, err
	}
	defer warehouse.Close()
	r, err := truth.Compare(ctx, psa, warehouse, truth.Options{Keep: 5})
	if err != nil {
		return 0, err
	}
	if r.Count > 0 || r.Rows == 0 {
		return 0, fmt.Errorf("PSA and warehouse differ: %d differences in %d rows, such as %v", r.Count, r.Rows, r.Differences)
	}
	return r.Rows, nil
}
