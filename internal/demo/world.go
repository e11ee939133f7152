// world.go: the servers of the demo, from start to stop.

package demo

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/template"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/examples"
	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/demo/firm"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/supervise"
)

// world is every server of the demo.
type world struct {
	o    Options
	obs  *obs.Obs
	psa  *embedded.Postgres
	wh   *embedded.Postgres
	erp  *erp.Server
	kc   *kafka.Cluster
	seed firm.Summary

	kafkaAddr, registryAddr, redisAddr string
	unclean                            bool // the embedded broker was killed and is empty
	clusterID                          string
	notes                              [][2]string

	mu      sync.Mutex
	closers []func() error
}

func (w *world) onClose(f func() error) {
	w.mu.Lock()
	w.closers = append(w.closers, f)
	w.mu.Unlock()
}

// close stops everything, the last started first.
func (w *world) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	w.closers = nil
	return errors.Join(errs...)
}

func (w *world) psaDSN() string       { return w.psa.DSN("psa") }
func (w *world) warehouseDSN() string { return w.wh.DSN("warehouse") }
func (w *world) controlDSN() string   { return w.wh.DSN("control") }

// start starts the servers beside each other.
func (w *world) start(ctx context.Context) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, f := range []func(context.Context) error{w.startPSA, w.startWarehouse, w.startKafka, w.startRedis, w.startERP} {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (w *world) startPSA(ctx context.Context) error {
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Version: embedded.Postgres17, Dir: filepath.Join(w.o.StateDir, "psa"), Port: w.o.Ports.PSA, Adopt: true})
	if err != nil {
		return fmt.Errorf("starting the PSA's Postgres: %w", err)
	}
	w.psa = pg
	w.onClose(pg.Stop)
	if pg.Adopted {
		w.say("The PSA's Postgres was left running by a killed demo: taken over.")
	}
	if err := pg.CreateDatabase(ctx, "psa"); err != nil {
		return fmt.Errorf("creating the PSA's database: %w", err)
	}
	if w.seed, err = firm.Seed(ctx, pg.DSN("psa")); err != nil {
		return err
	}
	return nil
}

func (w *world) startWarehouse(ctx context.Context) error {
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Version: embedded.Postgres17, Dir: filepath.Join(w.o.StateDir, "warehouse"), Port: w.o.Ports.Warehouse, Adopt: true})
	if err != nil {
		return fmt.Errorf("starting the warehouse's Postgres: %w", err)
	}
	w.wh = pg
	w.onClose(pg.Stop)
	if pg.Adopted {
		w.say("The warehouse's Postgres was left running by a killed demo: taken over.")
	}
	for _, db := range []string{"warehouse", "control"} {
		if err := pg.CreateDatabase(ctx, db); err != nil {
			return fmt.Errorf("creating the database %s: %w", db, err)
		}
	}
	return nil
}

func (w *world) startKafka(ctx context.Context) error {
	name := "Kafka (embedded)"
	if w.o.Kafka == "real" {
		k, err := embedded.StartKafka(ctx, embedded.KafkaOptions{Dir: filepath.Join(w.o.StateDir, "kafka-real"), Port: w.o.Ports.Kafka})
		if err != nil {
			return fmt.Errorf("starting Apache Kafka: %w", err)
		}
		w.onClose(k.Stop)
		w.kafkaAddr, name = k.Addr(), "Kafka (Apache)"
	} else {
		e, err := embedded.StartMiniKafka(ctx, filepath.Join(w.o.StateDir, "kafka"), local(w.o.Ports.Kafka), w.obs.Log)
		if err != nil {
			return err
		}
		w.onClose(e.Close)
		w.kafkaAddr, w.unclean = e.Addr(), e.StartedOver()
	}
	kc, err := kafka.New(kafka.Config{Brokers: []string{w.kafkaAddr}, ClientID: "tallywire-demo"}, w.obs)
	if err != nil {
		return err
	}
	w.kc = kc
	w.onClose(func() error { kc.Close(); return nil })
	if w.clusterID, err = kc.ID(ctx); err != nil {
		return err
	}
	addr, stop, err := supervise.StartRegistry(ctx, local(w.o.Ports.Registry), kc, w.obs)
	if err != nil {
		return err
	}
	w.registryAddr = addr
	w.onClose(stop)
	w.note(name, w.kafkaAddr)
	w.note("Schema registry", "http://"+addr)
	return nil
}

func (w *world) startRedis(ctx context.Context) error {
	if w.o.Redis == "real" {
		r, err := embedded.StartRedis(ctx, embedded.RedisOptions{Dir: filepath.Join(w.o.StateDir, "redis")})
		if err != nil {
			return fmt.Errorf("starting redis-server: %w", err)
		}
		w.redisAddr = r.Addr
		w.onClose(r.Stop)
		return nil
	}
	r, err := embedded.StartMiniRedis("127.0.0.1:0")
	if err != nil {
		return err
	}
	w.redisAddr = r.Addr()
	w.onClose(r.Close)
	return nil
}

func (w *world) startERP(ctx context.Context) error {
	secret, err := w.secret()
	if err != nil {
		return err
	}
	s, err := erp.Start(ctx, erp.Options{Addr: local(w.o.Ports.ERP), Dir: filepath.Join(w.o.StateDir, "erp"), ClientSecret: secret, Log: w.obs.Log})
	if err != nil {
		return err
	}
	w.erp = s
	w.onClose(s.Stop)
	return nil
}

func (w *world) secretFile() string { return filepath.Join(w.o.StateDir, "erp-client-secret") }

// secret is the ERP's client secret, made at the first start.
func (w *world) secret() (string, error) {
	b, err := os.ReadFile(w.secretFile())
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("reading the ERP's client secret: %w", err)
	}
	var r [24]byte
	if _, err := rand.Read(r[:]); err != nil {
		return "", fmt.Errorf("making the ERP's client secret: %w", err)
	}
	s := hex.EncodeToString(r[:])
	if err := os.WriteFile(w.secretFile(), []byte(s+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keeping the ERP's client secret: %w", err)
	}
	return s, nil
}

//go:embed config.yml.tmpl
var configTemplate string

// writeConfig writes the configuration that the pipeline, and every command,
// reads.
func (w *world) writeConfig(name string) error {
	t := template.Must(template.New("config").Parse(configTemplate))
	var b strings.Builder
	err := t.Execute(&b, map[string]string{
		"Kafka": w.kafkaAddr, "Registry": w.registryAddr, "Redis": w.redisAddr, "Control": w.controlDSN(), "Page": local(w.o.Ports.Page),
		"LogLevel": w.o.LogLevel, "StateDir": quote(w.o.StateDir), "PSA": w.psaDSN(), "Transforms": examples.Transforms(), "Warehouse": w.warehouseDSN(), "ERP": w.erp.URL(), "Company": w.erp.Company(),
		"TokenURL": w.erp.TokenURL(), "SecretFile": w.secretFile(), "GoLive": w.o.GoLive.Format("2006-01-02"),
	})
	if err != nil {
		return fmt.Errorf("BUG: the demo's configuration: %w", err)
	}
	if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("writing the demo's configuration: %w", err)
	}
	return nil
}

func quote(s string) string {
	return `"` + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `"`, `\"`) + `"`
}

// startOver brings what the far sides know back in line with a broker that is
// another than last time: killed while embedded, or exchanged. The PSA's slot is
// dropped, so that it is loaded again; the warehouse's copy is emptied. What
// the ERP has been given is on record in the control database and stays.
func (w *world) startOver(ctx context.Context) error {
	mark := filepath.Join(w.o.StateDir, "cluster-id")
	b, err := os.ReadFile(mark)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading which broker it was: %w", err)
	}
	was := strings.TrimSpace(string(b))
	if was != w.clusterID {
		switch {
		case w.unclean:
			w.say("The demo was killed, and the embedded Kafka's transactions do not survive that.")
			w.say("Starting over from the PSA: new slot, new topics, empty warehouse. The ERP gets nothing twice.")
		case was != "":
			w.say("Another Kafka than last time: starting over from the PSA. The ERP gets nothing twice.")
		}
		if err := w.forget(ctx); err != nil {
			return err
		}
	}
	if err := os.WriteFile(mark, []byte(w.clusterID+"\n"), 0o600); err != nil {
		return fmt.Errorf("noting which broker it is: %w", err)
	}
	return nil
}

func (w *world) forget(ctx context.Context) error {
	psa, err := pgx.Connect(ctx, w.psaDSN())
	if err != nil {
		return fmt.Errorf("connecting to the PSA: %w", err)
	}
	defer psa.Close(context.WithoutCancel(ctx))
	for _, sql := range []string{
		// A walsender of the killed process may not have noticed yet.
		`select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = 'tallywire_psa' and active_pid is not null`,
		`select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = 'tallywire_psa'`,
	} {
		if _, err := psa.Exec(ctx, sql); err != nil {
			return fmt.Errorf("dropping the PSA's slot: %w", err)
		}
	}
	for db, sql := range map[string]string{
		"warehouse": `drop schema if exists ps cascade; drop schema if exists _tallywire cascade`,
		"control":   `do $$ begin if to_regclass('tallywire.parked') is not null then truncate tallywire.parked; end if; end $$`,
	} {
		if err := w.wh.Exec(ctx, db, sql); err != nil {
			return fmt.Errorf("emptying the %s database: %w", db, err)
		}
	}
	return nil
}

// parts of the state directory that are the demo's.
var ownDirs = []string{"psa", "warehouse", "kafka", "kafka-real", "redis", "erp", "cluster-id", "erp-client-secret", "tallywire.yml", "instance-demo.lock"}

// endLeftBehind ends the Kafka and the Redis that a killed demo left running on
// a state directory: their ports are wanted, and their state is on disk, or of
// the kind that may be lost. A Postgres is taken over where it is started.
func endLeftBehind(ctx context.Context, stateDir string) error {
	for _, d := range []string{"kafka-real", "redis"} {
		if _, err := embedded.EndLeftBehind(ctx, filepath.Join(stateDir, d)); err != nil {
			return err
		}
	}
	return nil
}

// reset stops what a killed demo left running and removes the demo's state.
func reset(ctx context.Context, stateDir string) error {
	for _, d := range []string{"psa", "warehouse"} {
		dir := filepath.Join(stateDir, d)
		if postgresPort(dir) == 0 {
			continue
		}
		pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Version: embedded.Postgres17, Dir: dir, Port: postgresPort(dir), Adopt: true})
		if err != nil {
			return fmt.Errorf("stopping what was left running: %w", err)
		}
		if err := pg.Stop(); err != nil {
			return fmt.Errorf("stopping what was left running: %w", err)
		}
	}
	if err := endLeftBehind(ctx, stateDir); err != nil {
		return err
	}
	for _, d := range ownDirs {
		if err := os.RemoveAll(filepath.Join(stateDir, d)); err != nil {
			return fmt.Errorf("starting over: %w", err)
		}
	}
	return nil
}

func (w *world) note(what, where string) {
	w.mu.Lock()
	w.notes = append(w.notes, [2]string{what, where})
	w.mu.Unlock()
}

func (w *world) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := fmt.Fprintf(w.o.Say, format+"\n", args...); err != nil {
		w.o.Say = io.Discard // the terminal is gone; the log remains
	}
}
