// Package demo is the main job end to end in one process: a firm's PSA, the
// pipeline, the warehouse, an ERP, the page; and the check of it all against
// itself. demo.go is its course.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/demo/firm"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/supervise"
)

// Options of a demo.
type Options struct {
	StateDir string
	Kafka    string // "embedded" or "real"
	Redis    string // "embedded" or "real"
	Ports    Ports
	Rate     float64       // changes per second that the generator is asked for
	For      time.Duration // 0: until ctx ends; else so long, then drain, verify, report
	Drain    time.Duration // how long draining may take
	Reset    bool          // start over
	GoLive   time.Time     // first work date that the ERP gets
	Without  []string      // components that are left out
	Version  string
	LogLevel string
	LogFile  string    // where the log goes; "": StateDir/tallywire.log
	Say      io.Writer // what a person reads
}

// ErrDemo is what can go wrong with the demo itself.
var (
	ErrDemo = problem.Define("TW-DEMO", problem.Halt,
		"The demo could not go on.",
		"tallywire.log in the state directory (./.tallywire, or --state-dir) tells more; `tallywire demo --reset` starts over.")
	ErrDrain = problem.Define("TW-DEMO-DRAIN", problem.Halt,
		"The flow did not drain in time.",
		"The message and the log name the component that lags; a slower machine needs a longer --drain or a lower --rate.")
)

// DefaultOptions are those of `make demo`.
func DefaultOptions() Options {
	return Options{
		StateDir: ".tallywire", Kafka: "embedded", Redis: "embedded", Ports: DefaultPorts, Rate: 100,
		Drain: 3 * time.Minute, GoLive: firm.GoLive, LogLevel: "info", Say: io.Discard,
	}
}

// Run runs the demo until ctx ends (For: until it is verified) and stops
// everything that it started. The Report is nil unless For is set.
func Run(ctx context.Context, o Options) (rep *Report, err error) {
	began := time.Now()
	if o.Reset {
		if err := reset(ctx, o.StateDir); err != nil {
			return nil, err
		}
	}
	if err := endLeftBehind(ctx, o.StateDir); err != nil {
		return nil, err
	}
	if err := o.Ports.check(o.StateDir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	if o.LogFile == "" {
		o.LogFile = filepath.Join(o.StateDir, "tallywire.log")
	}
	logFile, err := os.OpenFile(o.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	defer func() { err = errors.Join(err, logFile.Close()) }()
	log, err := obs.NewLog(logFile, o.LogLevel, "text")
	if err != nil {
		return nil, err
	}
	ob := obs.New(log)
	ob.ExposeProcess(o.Version)

	w := &world{o: o, obs: ob}
	defer func() {
		if cerr := w.close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("stopping the demo: %w", cerr))
		}
	}()
	w.say("Starting Postgres, Kafka, the registry, Redis and the ERP …")
	if err := w.start(ctx); err != nil {
		return nil, err
	}
	if w.seed.New {
		w.say("The firm is seeded: %s time entries, %s people, %s projects.", thousands(w.seed.Rows["time_entry"]), thousands(w.seed.Rows["employee"]), thousands(w.seed.Rows["project"]))
	}
	if err := w.startOver(ctx); err != nil {
		return nil, err
	}
	file := filepath.Join(o.StateDir, "tallywire.yml")
	if err := w.writeConfig(file); err != nil {
		return nil, err
	}
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		return nil, fmt.Errorf("BUG: the demo's own configuration: %w", err)
	}
	if err := cfg.Without(o.Without); err != nil {
		return nil, err
	}
	w.placeNotes()

	pipe := w.runPipeline(ctx, cfg)
	defer func() { err = errors.Join(err, pipe.stop()) }()
	took, err := w.ready(ctx, began, pipe)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil
		}
		return nil, err
	}
	w.welcome(took)

	gen := w.generate(ctx, o.Rate)
	if o.For == 0 {
		select {
		case <-ctx.Done():
		case <-pipe.done:
		case <-gen.done:
		}
		if err := gen.stop(); err != nil {
			return nil, err
		}
		w.say("\nStopping …")
		return nil, nil
	}
	return w.check(ctx, pipe, gen, took)
}

// check lets the generator work for For, then drains, verifies and reports.
func (w *world) check(ctx context.Context, pipe *pipe, gen *generator, ready time.Duration) (*Report, error) {
	rep := &Report{Ready: ready.Seconds(), Asked: w.o.Rate, Kafka: w.o.Kafka, Redis: w.o.Redis}
	groups, err := w.groups()
	if err != nil {
		return nil, errors.Join(err, gen.stop())
	}
	t := time.NewTimer(w.o.For)
	defer t.Stop()
	// Latencies are those of the work; the initial load's would hide them.
	var caught sync.WaitGroup
	catching, enough := context.WithCancel(ctx)
	defer caught.Wait()
	defer enough()
	caught.Go(func() {
		if rep.CaughtUp = w.caughtUp(catching, groups); rep.CaughtUp {
			w.obs.ForgetLatencies()
		}
	})
	select {
	case <-ctx.Done():
		return nil, gen.stop()
	case <-pipe.done:
		return nil, errors.Join(gen.stop(), ErrDemo.New("every component has stopped"))
	case <-gen.done:
		if err := gen.stop(); err != nil {
			return nil, err
		}
	case <-t.C:
	}
	enough()
	caught.Wait()
	rep.Latency = latencies(w.obs.Views())
	if err := gen.stop(); err != nil {
		return nil, err
	}
	st := gen.g.Stats()
	rep.Changes, rep.Transactions, rep.Reached, rep.ByKind = st.Changes, st.Transactions, st.Reached, st.ByKind
	w.say("\nThe generator has stopped after %s changes (%.0f/s asked, %.0f/s reached). Draining …", thousands(rep.Changes), rep.Asked, rep.Reached)
	lsn, err := w.lsn(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := w.drain(ctx, pipe, groups, lsn); err != nil {
		return nil, err
	}
	rep.Drained = time.Since(began).Seconds()
	w.say("Drained in %.1f s. Comparing the PSA with the warehouse and the ERP …", rep.Drained)
	v, err := Verify(ctx, VerifyOptions{PSA: w.psaDSN(), Warehouse: w.warehouseDSN(), Control: w.controlDSN(), ERP: w.erp.URL(), GoLive: w.o.GoLive})
	if err != nil {
		return nil, err
	}
	rep.Verification = v
	rep.Captured, rep.Components = counts(w.obs.Views())
	return rep, nil
}

// groups are the consumer groups, in the order of the flow.
func (w *world) groups() ([]string, error) {
	cfg, err := config.Load(w.configFile(), config.Options{})
	if err != nil {
		return nil, err
	}
	p, err := supervise.Build(nil, cfg)
	if err != nil {
		return nil, err
	}
	return p.Groups(), nil
}

// pipe is the pipeline at work.
type pipe struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func (p *pipe) stop() error {
	p.cancel()
	<-p.done
	return p.err
}

func (w *world) runPipeline(ctx context.Context, cfg *config.Config) *pipe {
	// Not ctx itself: on Ctrl-C the generator stops first.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &pipe{cancel: cancel, done: make(chan struct{})}
	go func() { // ends with cancel; stop waits for it
		defer close(p.done)
		p.err = supervise.Run(run, cfg, w.obs, supervise.RunOptions{Version: w.o.Version, Title: "Halden Moor, the demo's firm", Costs: true, Notes: w.notes})
	}()
	return p
}

// ready waits until the margin has rows.
func (w *world) ready(ctx context.Context, began time.Time, pipe *pipe) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	c, err := pgx.Connect(ctx, w.warehouseDSN())
	if err != nil {
		return 0, fmt.Errorf("connecting to the warehouse: %w", err)
	}
	defer c.Close(context.WithoutCancel(ctx))
	for {
		var there bool
		err := c.QueryRow(ctx, `select to_regclass('ps.margin_by_project_month') is not null`).Scan(&there)
		if err == nil && there {
			err = c.QueryRow(ctx, `select exists (select from ps.margin_by_project_month where labour_cost > 0)`).Scan(&there)
			if err == nil && there {
				return time.Since(began), nil
			}
		}
		if err != nil {
			return 0, fmt.Errorf("looking for rows in the margin: %w", err)
		}
		if w.obs.Halted() != "" {
			return 0, ErrDemo.New("a component halted: %s", w.obs.Halted())
		}
		select {
		case <-ctx.Done():
			return 0, ErrDemo.New("the margin has no rows yet: %w", ctx.Err())
		case <-pipe.done:
			return 0, ErrDemo.New("the pipeline ended before the margin had rows") // stop tells why
		case <-tick.C:
		}
	}
}

// generator is the firm at work.
type generator struct {
	g      *firm.Generator
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func (w *world) generate(ctx context.Context, rate float64) *generator {
	run, cancel := context.WithCancel(ctx)
	g := &generator{g: firm.NewGenerator(w.psaDSN(), firm.Options{Rate: rate, Log: w.obs.Log}), cancel: cancel, done: make(chan struct{})}
	go func() { // ends with cancel; stop waits for it
		defer close(g.done)
		g.err = g.g.Run(run)
	}()
	return g
}

func (g *generator) stop() error {
	g.cancel()
	<-g.done
	if g.err != nil && !errors.Is(g.err, context.Canceled) {
		return fmt.Errorf("the generator: %w", g.err)
	}
	return nil
}
