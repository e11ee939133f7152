package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errTest = problem.Define("TW-TEST-HALT", problem.Halt, "A source of the test halts.", "Nothing to do.")

// steady runs until it is told to stop; broken halts at once.
type steady struct{ out chan<- struct{} }

func (s steady) Run(ctx context.Context, out pipeline.SourceOutlet) error {
	if _, err := out.Resume(ctx); err != nil {
		return err
	}
	s.out <- struct{}{}
	<-ctx.Done()
	return nil
}

type broken struct{}

func (broken) Run(context.Context, pipeline.SourceOutlet) error { return errTest.New("on purpose") }

type panicking struct{}

func (panicking) Run(context.Context, pipeline.SourceOutlet) error { panic("BUG: on purpose") }

type nothing struct{}

func (nothing) Apply(_ context.Context, in *change.Batch, _ pipeline.Outlet) error {
	in.Release()
	return nil
}

var up = make(chan struct{}, 10)

func init() {
	pipeline.Sources.Register("test_steady", func(_ *pipeline.Env, name string, d pipeline.Decode) (pipeline.IngestSpec, error) {
		return pipeline.IngestSpec{Name: name, Source: steady{up}}, d(&struct{}{})
	})
	pipeline.Sources.Register("test_broken", func(_ *pipeline.Env, name string, d pipeline.Decode) (pipeline.IngestSpec, error) {
		return pipeline.IngestSpec{Name: name, Source: broken{}}, d(&struct{}{})
	})
	pipeline.Sources.Register("test_panicking", func(_ *pipeline.Env, name string, d pipeline.Decode) (pipeline.IngestSpec, error) {
		return pipeline.IngestSpec{Name: name, Source: panicking{}}, d(&struct{}{})
	})
	pipeline.Transforms.Register("test_nothing", func(_ *pipeline.Env, name string, d pipeline.Decode) ([]pipeline.TransformSpec, error) {
		c := struct {
			Names []string `yaml:"names"`
		}{[]string{name}}
		err := d(&c)
		var out []pipeline.TransformSpec
		for _, n := range c.Names {
			out = append(out, pipeline.TransformSpec{Name: n, Topics: []string{"x"}, Stages: []pipeline.Stage{nothing{}}})
		}
		return out, err
	})
}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("test.yml", []byte(text), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Two components in one consumer group would each skip what the other read.
func TestBuildRefusesCollisions(t *testing.T) {
	_, err := Build(nil, parse(t, "transforms:\n  a: {type: test_nothing}\n  b: {type: test_nothing, names: [a]}\n"))
	if err == nil || !strings.Contains(err.Error(), `"tallywire.a"`) {
		t.Errorf("got %v", err)
	}
	_, err = Build(nil, parse(t, "sources:\n  a: {type: nope}\n  b: {type: test_broken, zap: 1}\n"))
	got := problem.Format(err)
	if !strings.Contains(got, "sources.a has the type") || !strings.Contains(got, `unknown key "zap" in sources.b`) {
		t.Errorf("not all mistakes are told:\n%s", got)
	}
}

// A component that halts, or meets a bug, must not take the others, or the
// process, with it.
func TestOneHaltsAlone(t *testing.T) {
	dir := t.TempDir()
	// The control database is real in the tests of the demo; here there is none
	// to park in, so it is left out by opening the parts one by one.
	cfg := parse(t, "kafka: {listen: '127.0.0.1:0'}\nregistry: {listen: '127.0.0.1:0'}\nhttp: {listen: '127.0.0.1:0'}\nstate_dir: "+dir+
		"\nsources:\n  good: {type: test_steady}\n  bad: {type: test_broken}\n  ugly: {type: test_panicking}\n")
	o := obs.New(slog.New(slog.DiscardHandler))
	p := &Parts{Env: &pipeline.Env{Obs: o, Instance: cfg.Instance, Partitions: cfg.Partitions}}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	for _, step := range []func(context.Context, *config.Config) error{p.lock, p.kafka, p.registry} {
		if err := step(ctx, cfg); err != nil {
			t.Fatal(err)
		}
	}
	second := &Parts{Env: p.Env}
	if err := second.lock(ctx, cfg); !problem.Has(err, ErrInstance) {
		t.Errorf("the instance's lock is given twice: %v", err)
	}
	// Remedy: TW-INSTANCE-RUNNING
	other := *cfg
	other.Instance, other.StateDir = "other", t.TempDir()
	if err := second.lock(ctx, &other); err != nil {
		t.Errorf("another instance: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	pl, err := Build(p.Env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	o.Handle(mux)
	web, err := Serve(ctx, "the test", "127.0.0.1:0", mux)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := web.Stop(); err != nil {
			t.Error(err)
		}
		again, err := Serve(t.Context(), "another", web.Addr, mux) // Remedy: TW-LISTEN
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := Serve(ctx, "another", web.Addr, mux); !problem.Has(err, ErrPort) {
		t.Errorf("an address that is taken: %v, want TW-LISTEN", err)
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- pl.Run(run, p.Env) }()
	select {
	case <-up:
	case err := <-ended:
		t.Fatalf("all ended: %v", err)
	case <-ctx.Done():
		t.Fatal("the good source does not run")
	}
	var ready struct {
		Not []obs.Unready `json:"not_running"`
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	down := func() bool {
		state := map[string]obs.State{}
		for _, n := range ready.Not {
			state[n.Name] = n.State
		}
		return len(state) == 2 && state["bad"] == obs.Halted && state["ugly"] == obs.Failed
	}
	for !down() {
		select {
		case <-ctx.Done():
			t.Fatalf("not running: %+v", ready.Not)
		case <-tick.C:
		}
		ready.Not = nil
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+web.Addr+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Close = true
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(json.NewDecoder(res.Body).Decode(&ready), res.Body.Close()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; !problem.Has(err, errTest) || !problem.Has(err, outage.ErrPanic) ||
		!strings.Contains(err.Error(), "source bad") || !strings.Contains(err.Error(), "source ugly") {
		t.Errorf("ended with %v", err)
	}
}

// The embedded Redis must be one that Open accepts, or no transform starts.
func TestEmbeddedRedisIsAccepted(t *testing.T) {
	e, err := embedded.StartMiniRedis("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := redis.Open(t.Context(), e.Addr())
	if err := errors.Join(err, c.Close(), e.Close()); err != nil {
		t.Fatal(err)
	}
}
