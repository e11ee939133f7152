// parts.go: what the components share, connected or embedded.

package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/internal/registry"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/pipeline"
)

// ErrInstance says that the state directory belongs to a running process.
var ErrInstance = problem.Define("TW-INSTANCE-RUNNING", problem.Halt,
	"Another tallywire process uses this state directory and instance.",
	"Stop it, or give this one another instance and state_dir: transactional ids must belong to one process.")

// Parts are the shared parts of one process.
type Parts struct {
	Env *pipeline.Env
	// Notes say what runs where, name and address.
	Notes [][2]string
	// StartedOver: the embedded broker was not stopped cleanly and is empty.
	StartedOver bool

	closers []func() error
}

func (p *Parts) onClose(f func() error) { p.closers = append(p.closers, f) }

func (p *Parts) note(what, where string) { p.Notes = append(p.Notes, [2]string{what, where}) }

// Close ends everything in the reverse order of its start. Components must
// have ended before.
func (p *Parts) Close() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	p.closers = nil
	return errors.Join(errs...)
}

// Open locks the instance, then connects to what the configuration names and
// embeds the rest. What is down is tried again until ctx ends; each try is
// logged. Close the Parts, also after an error of a later step.
func Open(ctx context.Context, cfg *config.Config, o *obs.Obs) (*Parts, error) {
	p := &Parts{Env: &pipeline.Env{Obs: o, Instance: cfg.Instance, Partitions: cfg.Partitions, Retention: cfg.Kafka.Retention}}
	var err error
	if p.Env.Contracts, err = avro.LoadCatalogue(cfg.ContractDirs()...); err != nil {
		return nil, err
	}
	if p.Env.Codes, err = codes.Load(cfg.CodeDirs()...); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context, *config.Config) error{p.lock, p.kafka, p.registry, p.redis, p.control} {
		if err := patiently(ctx, o, func() error { return step(ctx, cfg) }); err != nil {
			return nil, errors.Join(err, p.Close())
		}
	}
	return p, nil
}

// patiently repeats what failed for an outage.
func patiently(ctx context.Context, o *obs.Obs, f func() error) error {
	t := time.NewTicker(2 * time.Second)
	defer t.Stop()
	for {
		err := f()
		if err == nil || pipeline.Classify(err) != problem.Retry {
			return err
		}
		o.Log.Warn("waiting for what is down", "err", err)
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-t.C:
		}
	}
}

// lock makes sure that the instance's transactional ids are ours alone on this
// machine; between machines the names are the operator's care.
func (p *Parts) lock(_ context.Context, cfg *config.Config) error {
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	name := filepath.Join(cfg.StateDir, "instance-"+cfg.Instance+".lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("locking the instance: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrInstance.New("instance %s in %s", cfg.Instance, cfg.StateDir)
		}
		return errors.Join(err, f.Close())
	}
	p.onClose(f.Close)
	return nil
}

func (p *Parts) kafka(ctx context.Context, cfg *config.Config) error {
	brokers := cfg.Kafka.Brokers
	fake := len(brokers) == 0
	if fake {
		e, err := embedded.StartMiniKafka(ctx, filepath.Join(cfg.StateDir, "kafka"), cfg.Kafka.Listen, p.Env.Obs.Log)
		if err != nil {
			return err
		}
		p.onClose(e.Close)
		p.StartedOver = e.StartedOver()
		brokers = []string{e.Addr()}
		cfg.Kafka.Brokers = brokers
		p.note("Kafka (embedded)", e.Addr())
	}
	c, err := kafka.New(kafka.Config{Brokers: brokers, ClientID: "tallywire-" + cfg.Instance, DeleteRetention: cfg.Kafka.DeleteRetention, Fake: fake}, p.Env.Obs)
	if err != nil {
		return err
	}
	if _, err := c.ID(ctx); err != nil {
		c.Close()
		return err
	}
	p.onClose(func() error { c.Close(); return nil })
	p.Env.Kafka = c
	return nil
}

func (p *Parts) registry(ctx context.Context, cfg *config.Config) error {
	url := cfg.Registry.URL.Reveal()
	if url == "" {
		addr, stop, err := StartRegistry(ctx, cfg.Registry.Listen, p.Env.Kafka, p.Env.Obs)
		if err != nil {
			return err
		}
		p.onClose(stop)
		url = "http://" + addr
		cfg.Registry.URL = secret.URLOf(url)
		p.note("schema registry (embedded)", url)
	}
	r, err := avro.NewRegistry(url)
	if err != nil {
		return err
	}
	if err := r.Ping(ctx); err != nil {
		return err
	}
	r.Contracts = p.Env.Contracts
	p.Env.Registry = r
	return nil
}

// StartRegistry serves the embedded registry on listen.
func StartRegistry(ctx context.Context, listen string, c *kafka.Cluster, o *obs.Obs) (addr string, stop func() error, err error) {
	srv, err := registry.New(ctx, c, o.Log)
	if err != nil {
		return "", nil, err
	}
	h, err := Serve(ctx, "the embedded registry", listen, srv)
	if err != nil {
		srv.Close()
		return "", nil, err
	}
	return h.Addr, func() error { err := h.Stop(); srv.Close(); return err }, nil
}

func (p *Parts) redis(ctx context.Context, cfg *config.Config) error {
	if len(cfg.Transforms) == 0 {
		return nil
	}
	addr := cfg.Redis.Addr.Reveal()
	if addr == "" {
		e, err := embedded.StartMiniRedis(cfg.Redis.Listen)
		if err != nil {
			return err
		}
		p.onClose(e.Close)
		addr = e.Addr()
		cfg.Redis.Addr = secret.URLOf(addr)
		p.note("Redis (embedded)", addr)
	}
	c, err := redis.Open(ctx, addr)
	if err != nil {
		return err
	}
	p.onClose(c.Close)
	p.Env.Redis = c
	return nil
}

func (p *Parts) control(ctx context.Context, cfg *config.Config) error {
	dsn := cfg.Control.DSN.Reveal()
	if dsn == "" {
		host, port, err := net.SplitHostPort(cfg.Control.Listen)
		n, err2 := strconv.Atoi(port)
		if err != nil || err2 != nil || host != "127.0.0.1" {
			return config.ErrValue.New("control.listen: want 127.0.0.1:port, got %q", cfg.Control.Listen)
		}
		pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Dir: filepath.Join(cfg.StateDir, "control"), Port: n, Adopt: true})
		if err != nil {
			return err
		}
		p.onClose(pg.Stop)
		if err := pg.CreateDatabase(ctx, "control"); err != nil {
			return fmt.Errorf("creating the control database: %w", err)
		}
		dsn = pg.DSN("control")
		p.note("control database (embedded)", dsn)
	}
	pool, err := control.Open(ctx, dsn)
	if err != nil {
		return err
	}
	p.onClose(func() error { pool.Close(); return nil })
	p.Env.Control = pool
	return nil
}

// HTTP is a running HTTP server.
type HTTP struct {
	Addr string
	srv  *http.Server
	done chan error
}

// ErrPort says that an address cannot be listened on.
var ErrPort = problem.Define("TW-LISTEN", problem.Halt,
	"An address cannot be listened on.",
	"Stop what uses it, or name another address: http.listen for the page, registry.listen, kafka.listen, redis.listen and control.listen for what is embedded.")

// Serve starts serving h on listen; what is for messages. Stop ends it.
func Serve(ctx context.Context, what, listen string, h http.Handler) (*HTTP, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, ErrPort.New("%s wants %s: %w", what, listen, err)
	}
	s := &HTTP{
		Addr: ln.Addr().String(), done: make(chan error, 1),
		srv: &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10},
	}
	go func() { s.done <- s.srv.Serve(ln) }() // ends with Stop, which waits for it
	return s, nil
}

// Stop lets requests under way end for two seconds, then ends them.
func (s *HTTP) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := s.srv.Shutdown(ctx); err != nil {
		if err := s.srv.Close(); err != nil {
			return fmt.Errorf("stopping the server on %s: %w", s.Addr, err)
		}
	}
	if err := <-s.done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving on %s: %w", s.Addr, err)
	}
	return nil
}
