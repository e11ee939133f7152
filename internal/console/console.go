// Package console is the page: the flow alive, what waits, what is parked, and
// the margin that comes out. Server-rendered; a few lines of script replace the
// moving part, and without script the page reloads itself.
package console

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"html/template"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

// Parked is one record that was taken out of the flow.
type Parked struct {
	Stage, Topic, Key string
	Code, Reason      string
	Remedy            string
	WaitsFor          string // what it waits for, "" when it was rejected itself
	Attempts          int
	Since             time.Time
}

// MarginRow is one project of one month; numbers are exact text as for display,
// "" where the warehouse has null.
type MarginRow struct {
	LegalEntity, Currency string
	ProjectNumber         string
	ProjectName           string
	Hours                 string
	Waiting               int64 // approved entries that wait for a rate or a reference
	Cost, Revenue         string
	Margin, Pct           string
}

// Margin is a month of them.
type Margin struct {
	Months  []string // "2026-03", newest first
	Month   string
	Total   int // rows there are; Rows may be fewer
	Rows    []MarginRow
	Costs   bool // cost columns are shown
	Because string
}

// Options is what the page reads. Funcs may be nil: that part is left out.
type Options struct {
	Title   string // e.g. "Demo firm"
	Version string
	Views   func() []obs.View
	Wires   []Wires
	// Parked lists the newest, limit at most, and counts all.
	Parked func(ctx context.Context, limit int) ([]Parked, int, error)
	// Margin gives a month, the newest when month is "".
	Margin func(ctx context.Context, month string) (*Margin, error)
	// Notes are lines of what runs where.
	Notes [][2]string
}

// Server renders the page. Run must run for its numbers to move.
type Server struct {
	o    Options
	page *template.Template
	now  func() time.Time

	mu      sync.Mutex
	samples []sample // the last windowSize, one per second
	parked  []Parked
	nParked int
	pErr    string
	margins map[string]cachedMargin
}

type sample struct {
	at     time.Time
	counts map[string]int64
	in     int64 // captured by all sources
}

type cachedMargin struct {
	m   *Margin
	err string
	at  time.Time
}

const (
	windowSize = 121             // samples: two minutes
	rateOver   = 5 * time.Second // a rate is the mean over this long
	freshFor   = 2 * time.Second // answers of the databases are kept this long
	askLimit   = 3 * time.Second // and asked for this long at most
)

//go:embed page.html
var pageHTML embed.FS

// New makes the page.
func New(o Options) *Server {
	t := template.Must(template.New("page.html").Funcs(template.FuncMap{
		"n": number[int64], "ni": number[int], "rate": perSecond, "took": took, "amount": amount,
		"join": strings.Join, "ago": func(t time.Time) string { return took(max(time.Since(t), time.Second).Truncate(time.Second)) },
		"half": func(n int) int { return n / 2 }, "add": func(a, b int) int { return a + b },
		"clip": clip, "neg": func(s string) bool { return strings.HasPrefix(s, "-") },
	}).ParseFS(pageHTML, "page.html"))
	return &Server{o: o, page: t, now: time.Now, margins: map[string]cachedMargin{}}
}

// Run takes a sample per second until ctx ends.
func (s *Server) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s.Sample(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Sample reads the counters and the parked records once.
func (s *Server) Sample(ctx context.Context) {
	x := sample{at: s.now(), counts: map[string]int64{}}
	for _, v := range s.o.Views() {
		for _, t := range v.Topics {
			x.counts[rateKey(v, t.Direction, t.Topic)] += t.Records
			if v.Kind == "source" && t.Direction == "out" {
				x.in += t.Records
			}
		}
	}
	var (
		ps []Parked
		n  int
		e  string
	)
	if s.o.Parked != nil {
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		var err error
		if ps, n, err = s.o.Parked(ctx, 50); err != nil {
			e = "the control database does not answer"
		}
		cancel()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples = append(s.samples, x)
	if len(s.samples) > windowSize {
		s.samples = append(s.samples[:0], s.samples[len(s.samples)-windowSize:]...)
	}
	s.pErr = e
	if e == "" {
		s.parked, s.nParked = ps, n
	}
}

// rates is the mean over the last rateOver.
func (s *Server) rates() rates {
	out := rates{}
	if len(s.samples) < 2 {
		return out
	}
	last := s.samples[len(s.samples)-1]
	first := s.samples[0]
	for _, x := range s.samples {
		if last.at.Sub(x.at) <= rateOver {
			break
		}
		first = x
	}
	dt := last.at.Sub(first.at).Seconds()
	if dt <= 0 {
		return out
	}
	for k, n := range last.counts {
		if d := n - first.counts[k]; d > 0 {
			out[k] = float64(d) / dt
		}
	}
	return out
}

// Model is what the page shows; /api/status is its JSON.
type Model struct {
	Title, Version string
	Flow           *Flow `json:"-"`
	Captured       int64
	CaptureRate    float64
	EndToEnd       []Sink
	Waiting        int64
	Parked         []Parked
	ParkedCount    int
	ParkedErr      string
	Margin         *Margin
	MarginErr      string
	Troubles       []Trouble
	Notices        []Trouble // of what runs
	Busy           []Trouble // loads and rebuilds under way
	Spark          string    `json:"-"` // points of the capture rate
	Notes          [][2]string
	At             time.Time
}

// Sink is how long changes take to one far side.
type Sink struct {
	Name     string
	P50, P95 time.Duration
}

// Trouble is a component that is not running.
type Trouble struct {
	Kind, Name string
	State      obs.State
	Reason     string
	Remedy     string
	Since      time.Time
}

func (s *Server) model(ctx context.Context, month string) *Model {
	m := &Model{Title: s.o.Title, Version: s.o.Version, Notes: s.o.Notes, At: s.now()}
	views := s.o.Views()
	s.mu.Lock()
	r := s.rates()
	m.Spark = s.spark()
	m.Parked, m.ParkedCount, m.ParkedErr = s.parked, s.nParked, s.pErr
	if len(s.samples) > 0 {
		m.Captured = s.samples[len(s.samples)-1].in
	}
	s.mu.Unlock()
	m.Flow = NewFlow(views, s.o.Wires, r)
	for _, b := range m.Flow.Boxes {
		m.Waiting += b.Waiting
		switch b.Kind {
		case "source":
			m.CaptureRate += b.Rate
		case "sink":
			m.EndToEnd = append(m.EndToEnd, Sink{b.Name, b.P50, b.P95})
		}
	}
	sort.Slice(m.EndToEnd, func(i, j int) bool { return m.EndToEnd[i].Name > m.EndToEnd[j].Name })
	for _, v := range views {
		for _, n := range v.Notices {
			m.Notices = append(m.Notices, Trouble{v.Kind, v.Name, v.State, n.Code + ": " + n.Text, n.Remedy, n.Since})
		}
		switch {
		case v.State == obs.Running && v.Progress == "":
		case v.State.Down() || v.State == obs.Retrying:
			m.Troubles = append(m.Troubles, Trouble{v.Kind, v.Name, v.State, v.Reason, remedy(v), v.Since})
		case v.Progress != "" || v.State == obs.Restoring:
			m.Busy = append(m.Busy, Trouble{v.Kind, v.Name, v.State, v.Progress, "", v.Since})
		}
	}
	m.Margin, m.MarginErr = s.margin(ctx, month)
	return m
}

// margin asks the warehouse, freshFor apart per month at least.
func (s *Server) margin(ctx context.Context, month string) (*Margin, string) {
	if s.o.Margin == nil {
		return nil, ""
	}
	if _, err := time.Parse("2006-01", month); err != nil {
		month = ""
	}
	s.mu.Lock()
	c, ok := s.margins[month]
	s.mu.Unlock()
	if ok && s.now().Sub(c.at) < freshFor {
		return c.m, c.err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	m, err := s.o.Margin(ctx, month)
	c = cachedMargin{m: m, at: s.now()}
	if err != nil {
		c.err = unanswered(err)
	}
	s.mu.Lock()
	if len(s.margins) > 100 {
		clear(s.margins)
	}
	s.margins[month] = c
	s.mu.Unlock()
	return c.m, c.err
}

// unanswered says why the warehouse gives no margin: in the server's words, unless
// they can quote values (SQLSTATE classes 22 and 23; invariant 13).
func unanswered(err error) string {
	var pe *pgconn.PgError
	switch {
	case !errors.As(err, &pe):
		return "the warehouse does not answer yet"
	case strings.HasPrefix(pe.Code, "22"), strings.HasPrefix(pe.Code, "23"):
		return "the warehouse says: an error in data (SQLSTATE " + pe.Code + ")"
	case pe.Code == "42501": // insufficient_privilege
		return "the warehouse says: " + pe.Message + " (SQLSTATE 42501); tallywire doctor says how that is mended"
	}
	return "the warehouse says: " + pe.Message + " (SQLSTATE " + pe.Code + ")"
}

// Handler serves the page at /, its moving part at /live, and /api/status.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	show := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var b bytes.Buffer
			if err := s.page.ExecuteTemplate(&b, name, s.model(r.Context(), r.URL.Query().Get("month"))); err != nil {
				http.Error(w, "the page could not be rendered", http.StatusInternalServerError)
				return
			}
			h := w.Header()
			h.Set("Content-Type", "text/html; charset=utf-8")
			h.Set("Cache-Control", "no-store")
			h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:")
			h.Set("X-Content-Type-Options", "nosniff")
			if _, err := w.Write(b.Bytes()); err != nil {
				return // the reader went away
			}
		}
	}
	mux.HandleFunc("GET /{$}", show("page.html"))
	mux.HandleFunc("GET /live", show("live"))
	mux.HandleFunc("GET /api/status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if err := json.NewEncoder(w).Encode(s.status()); err != nil {
			return // the reader went away
		}
	})
	return mux
}

// Status is the answer of /api/status, and what `tallywire status` prints.
type Status struct {
	Version     string       `json:"version"`
	At          time.Time    `json:"at"`
	Components  []Component  `json:"components"`
	Arrows      []ArrowState `json:"arrows"`
	ParkedCount int          `json:"parked"`
	Waiting     int64        `json:"waiting"`
}

// Component is one component's state; latencies in milliseconds from the
// commit at the source.
type Component struct {
	Kind     string           `json:"kind"`
	Name     string           `json:"name"`
	State    obs.State        `json:"state"`
	Reason   string           `json:"reason,omitempty"`
	Remedy   string           `json:"remedy,omitempty"`
	Progress string           `json:"progress,omitempty"`
	Since    time.Time        `json:"since"`
	In       int64            `json:"records_in"`
	Out      int64            `json:"records_out"`
	Lag      map[string]int64 `json:"lag,omitempty"`
	LagTotal int64            `json:"lag_total"`
	Parked   int64            `json:"parked"`
	Waiting  int64            `json:"waiting"`
	Ladder   []obs.Rung       `json:"ladder,omitempty"` // of a source: from the head of its log to what it acknowledged
	Notices  []obs.Notice     `json:"notices,omitempty"`
	P50      float64          `json:"latency_p50_ms"`
	P95      float64          `json:"latency_p95_ms"`
	P99      float64          `json:"latency_p99_ms"`
}

// ArrowState is one arrow of the flow.
type ArrowState struct {
	From   string   `json:"from"`
	To     string   `json:"to"`
	Topics []string `json:"topics"`
	Rate   float64  `json:"records_per_second"`
	Lag    int64    `json:"lag"`
	P95    float64  `json:"latency_p95_ms"`
}

func (s *Server) status() Status {
	views := s.o.Views()
	s.mu.Lock()
	r := s.rates()
	out := Status{Version: s.o.Version, At: s.now(), ParkedCount: s.nParked, Components: []Component{}, Arrows: []ArrowState{}}
	s.mu.Unlock()
	for _, v := range views {
		c := Component{
			Kind: v.Kind, Name: v.Name, State: v.State, Reason: v.Reason, Remedy: remedy(v), Progress: v.Progress, Since: v.Since,
			Lag: v.Lag, Parked: v.Parked, Waiting: v.Waiting, Ladder: v.Ladder, Notices: v.Notices, P50: ms(v.P50), P95: ms(v.P95), P99: ms(v.P99),
		}
		for _, n := range v.Lag {
			c.LagTotal += n
		}
		for _, t := range v.Topics {
			if t.Direction == "in" {
				c.In += t.Records
				continue
			}
			c.Out += t.Records
		}
		out.Waiting += v.Waiting
		out.Components = append(out.Components, c)
	}
	for _, a := range NewFlow(views, s.o.Wires, r).Arrows {
		out.Arrows = append(out.Arrows, ArrowState{a.From.Name, a.To.Name, a.Topics, a.Rate, a.Lag, ms(a.P95)})
	}
	return out
}

// remedy is what to do about the reason of a component: in this very case, or
// what the catalogue says about the code that it starts with.
func remedy(v obs.View) string {
	if v.Remedy != "" {
		return v.Remedy
	}
	code, _, _ := strings.Cut(v.Reason, ":")
	for _, c := range problem.All() {
		if c.ID == code {
			return c.Remedy
		}
	}
	return ""
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func clip(n int, s string) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
