// The server: its life, its routes, and what a request goes through.

package erp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Options of a Server; what is empty gets the default in brackets.
type Options struct {
	Addr         string // to listen on [127.0.0.1:0]
	Dir          string // of the ledger; required
	CompanyID    string // [DefaultCompanyID]
	CompanyName  string // [CRONUS]
	ClientID     string // [tallywire]
	ClientSecret string // required
	Fsync        Fsync  // [FsyncInterval]

	RatePer5Min int           // requests in five minutes [6000]
	Running     int           // requests that run at once [5]
	Queued      int           // requests that wait [95]
	QueueWait   time.Duration // then 503 [8m]
	PageSize    int           // objects in one answer [20000]
	TokenLife   time.Duration // [1h]

	// AllowDuplicates takes away the uniqueness of externalReference: a far
	// side that does not protect itself.
	AllowDuplicates bool

	Log *slog.Logger // [discards]
}

// DefaultCompanyID is the id of the one company.
const DefaultCompanyID = "9b7e0c1a-5a57-4f3e-8d43-6f0a51c3d2e1"

// Server is a running ERP. Stop ends it.
type Server struct {
	opt     Options
	addr    string
	ledger  *ledger
	faults  faultState
	tokens  tokens
	window  window
	gate    *gate
	stats   stats
	handler http.Handler

	mu      sync.Mutex // guards http, stopped and comeback
	http    *http.Server
	stopped bool
	back    *time.Timer

	done chan struct{} // closed by Stop
	wg   sync.WaitGroup
}

// Start replays the ledger and listens. Cancelling ctx does not stop the
// server: Stop does.
func Start(ctx context.Context, opt Options) (*Server, error) {
	if opt.Dir == "" || opt.ClientSecret == "" {
		return nil, errors.New("starting the ERP: Dir and ClientSecret are required")
	}
	def(&opt.Addr, "127.0.0.1:0")
	def(&opt.CompanyID, DefaultCompanyID)
	def(&opt.CompanyName, "CRONUS")
	def(&opt.ClientID, "tallywire")
	def(&opt.Fsync, FsyncInterval)
	def(&opt.RatePer5Min, 6000)
	def(&opt.Running, 5)
	def(&opt.Queued, 95)
	def(&opt.QueueWait, 8*time.Minute)
	def(&opt.PageSize, 20000)
	def(&opt.TokenLife, time.Hour)
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	// The port is taken before the ledger is touched: of two servers with
	// the same address only one replays and writes.
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", opt.Addr)
	if err != nil {
		return nil, fmt.Errorf("starting the ERP: %w", err)
	}
	l, err := openLedger(opt.Dir, opt.Fsync)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the ERP: %w", err), ln.Close())
	}
	s := &Server{opt: opt, addr: ln.Addr().String(), ledger: l, gate: newGate(opt.Running, opt.Queued), done: make(chan struct{})}
	s.tokens = tokens{m: map[[32]byte]time.Time{}, ttl: opt.TokenLife}
	s.window.limit = opt.RatePer5Min
	s.stats.m = map[string]int64{}
	mux := http.NewServeMux()
	mux.HandleFunc("/{tenant}/oauth2/v2.0/token", s.serveToken)
	mux.HandleFunc("/api/v2.0/", func(w http.ResponseWriter, r *http.Request) { s.serveAPI(w, r, "/api/v2.0/", false) })
	mux.HandleFunc(CustomPath, func(w http.ResponseWriter, r *http.Request) { s.serveAPI(w, r, CustomPath, true) })
	mux.HandleFunc("/_faults", s.serveFaults)
	mux.HandleFunc("GET /_ledger", s.serveLedger)
	mux.HandleFunc("GET /_stats", func(w http.ResponseWriter, r *http.Request) { s.reply(w, 200, s.Stats()) })
	s.handler = mux
	s.mu.Lock()
	s.serve(ln)
	s.mu.Unlock()
	s.wg.Add(1)
	go s.syncEverySecond()
	return s, nil
}

// CustomPath is where the custom pages are.
const CustomPath = "/api/tallywire/timesheets/v1.0/"

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Addr is host:port, URL the base, TokenURL the token endpoint.
func (s *Server) Addr() string     { return s.addr }
func (s *Server) URL() string      { return "http://" + s.addr }
func (s *Server) TokenURL() string { return s.URL() + "/demo/oauth2/v2.0/token" }

// Company is the id of the company.
func (s *Server) Company() string { return s.opt.CompanyID }

// serve runs an http.Server on ln; s.mu is held.
func (s *Server) serve(ln net.Listener) {
	h := &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(s.opt.Log.Handler(), slog.LevelDebug)}
	s.http = h
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		if err := h.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.opt.Log.Error("the ERP's listener ended", "error", err)
		}
	}()
}

// Stop closes the listener, gives requests five seconds, and forces the ledger
// to the disk.
func (s *Server) Stop() error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return nil
	}
	s.stopped = true
	h := s.http
	if s.back != nil && s.back.Stop() {
		s.wg.Done()
	}
	s.mu.Unlock()
	close(s.done)
	var err error
	if h != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err = h.Shutdown(ctx); err != nil {
			err = h.Close()
		}
	}
	s.wg.Wait()
	return errors.Join(err, s.ledger.close())
}

// SetFaults replaces the faults in force.
func (s *Server) SetFaults(f Faults) {
	if f.RevokeTokens {
		s.tokens.revoke()
		f.RevokeTokens = false
	}
	s.faults.set(f)
	if f.Down > 0 {
		s.down(time.Duration(f.Down))
	}
}

// down closes everything and comes back after d.
func (s *Server) down(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || s.http == nil {
		return
	}
	if err := s.http.Close(); err != nil {
		s.opt.Log.Debug("closing", "error", err)
	}
	s.http = nil
	s.wg.Add(1)
	s.back = time.AfterFunc(d, func() {
		defer s.wg.Done()
		s.comeBack()
	})
}

func (s *Server) comeBack() {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		s.mu.Lock()
		if s.stopped {
			s.mu.Unlock()
			return
		}
		ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", s.addr)
		if err == nil {
			f := s.faults.get()
			f.Down = 0
			s.faults.set(f)
			s.serve(ln)
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		s.opt.Log.Warn("the ERP cannot come back yet", "error", err)
		select {
		case <-t.C:
		case <-s.done:
			return
		}
	}
}

func (s *Server) syncEverySecond() {
	defer s.wg.Done()
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := s.ledger.sync(); err != nil {
				s.opt.Log.Error("forcing the ERP's ledger to the disk", "error", err)
			}
		case <-s.done:
			return
		}
	}
}

// Records copies what the ledger holds, by set in order of arrival.
func (s *Server) Records() map[string][]Record {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.x.copy()
}

// serveLedger streams the records, one JSON object a line.
func (s *Server) serveLedger(w http.ResponseWriter, _ *http.Request) {
	all := s.Records()
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	for _, name := range []string{"customers", "employees", "projects", "timeRegistrationEntries"} {
		for _, r := range all[name] {
			if err := enc.Encode(r); err != nil {
				return // the reader has gone
			}
		}
	}
}

// FetchLedger reads the ledger of the server at url (its base).
func FetchLedger(ctx context.Context, url string) (map[string][]Record, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/_ledger", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reading the ERP's ledger: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("reading the ERP's ledger: %s", resp.Status)
	}
	out := map[string][]Record{}
	d := json.NewDecoder(resp.Body)
	for {
		var r Record
		switch err := d.Decode(&r); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("reading the ERP's ledger: %w", err)
		}
		out[r.Set] = append(out[r.Set], r)
	}
}

// stats counts requests by "METHOD set status".
type stats struct {
	mu sync.Mutex
	m  map[string]int64
}

func (s *stats) add(key string) {
	s.mu.Lock()
	s.m[key]++
	s.mu.Unlock()
}

// Stats gives the number of answers since the start by method, set and status,
// e.g. "POST customers 201". An answer that a fault swallowed counts by what
// was done.
func (s *Server) Stats() map[string]int64 {
	s.stats.mu.Lock()
	defer s.stats.mu.Unlock()
	out := make(map[string]int64, len(s.stats.m))
	for k, v := range s.stats.m {
		out[k] = v
	}
	return out
}
