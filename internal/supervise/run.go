// run.go: one configuration from start to end, with its HTTP server.

package supervise

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/console"
	"github.com/tallywire/tallywire/internal/obs"
)

// RunOptions of Run.
type RunOptions struct {
	Version string
	Title   string                                    // of the page
	Notes   [][2]string                               // what else runs where, for the page
	Ready   func(p *Parts, httpAddr string)           // called when the parts are up, before the components start
	Costs   bool                                      // the page shows labour cost and margin
	Before  func(ctx context.Context, p *Parts) error // after the parts are up, before the components start; may be nil
}

// Run runs a configuration until ctx ends or no component is left. The error
// joins what could not start and what halted.
func Run(ctx context.Context, cfg *config.Config, o *obs.Obs, ro RunOptions) (err error) {
	// The whole of the configuration before the first connection.
	if _, err := Build(nil, cfg); err != nil {
		return err
	}
	mux := http.NewServeMux()
	o.Handle(mux)
	var page swap
	mux.Handle("/", &page)
	web, err := Serve(ctx, "the page", cfg.HTTP.Listen, mux)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, web.Stop()) }()

	p, err := Open(ctx, cfg, o)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	pl, err := Build(p.Env, cfg)
	if err != nil {
		return err
	}
	if ro.Before != nil {
		if err := ro.Before(ctx, p); err != nil {
			return err
		}
	}
	view, closeView := openMargin(cfg, ro.Costs)
	defer closeView()
	srv := console.New(console.Options{
		Title: ro.Title, Version: ro.Version, Views: o.Views, Wires: pl.wires(), Parked: parkedFunc(p.Env.Control), Margin: view, Notes: append(append([][2]string(nil), ro.Notes...), p.Notes...),
	})
	page.set(srv.Handler())
	if ro.Ready != nil {
		ro.Ready(p, web.Addr)
	}
	var wg sync.WaitGroup
	sampling, stop := context.WithCancel(ctx)
	wg.Go(func() { srv.Run(sampling) })
	err = pl.Run(ctx, p.Env)
	stop()
	wg.Wait()
	return err
}

// swap is a handler that comes later.
type swap struct {
	mu sync.RWMutex
	h  http.Handler
}

func (s *swap) set(h http.Handler) {
	s.mu.Lock()
	s.h = h
	s.mu.Unlock()
}

func (s *swap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.RLock()
	h := s.h
	s.mu.RUnlock()
	if h == nil {
		w.Header().Set("Refresh", "1")
		http.Error(w, "tallywire is starting: it is waiting for what the configuration names", http.StatusServiceUnavailable)
		return
	}
	h.ServeHTTP(w, r)
}
