package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/internal/obs"
)

var write = flag.String("write", "", "write the page with made-up numbers to this file, to look at")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// firm makes components as the engine would, with numbers.
func firm() *obs.Obs {
	o := obs.New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	src := o.Component("source", "psa")
	can := o.Component("transform", "canonical")
	right := o.Component("transform", "costed.ps.time_entry_costed.right")
	left := o.Component("transform", "costed.ps.time_entry_costed")
	wh := o.Component("sink", "warehouse")
	erp := o.Component("sink", "erp")
	for _, t := range []string{"time_entry", "project", "customer", "employee", "cost_rate", "invoice", "invoice_line"} {
		src.Out("psa.public."+t, 100, 1000)
		can.In("psa.public."+t, 98, 900)
	}
	src.Latency("psa.public.time_entry", 21*time.Millisecond)
	for _, t := range []string{"time_entry", "project", "customer", "resource", "cost_rate", "invoice", "invoice_line"} {
		can.Out("ps."+t, 98, 900)
		wh.In("ps."+t, 98, 900)
		wh.Out("ps."+t, 98, 900)
	}
	can.Latency("ps.time_entry", 65*time.Millisecond)
	for _, t := range []string{"project", "customer", "cost_rate"} {
		right.In("ps."+t, 98, 900)
	}
	right.Out("_tallywire.refresh.costed.ps.time_entry_costed", 5, 10)
	left.In("ps.time_entry", 98, 900)
	left.In("_tallywire.refresh.costed.ps.time_entry_costed", 5, 10)
	left.Out("ps.time_entry_costed", 98, 900)
	left.Latency("ps.time_entry_costed", 120*time.Millisecond)
	left.Lag("ps.time_entry", 0, 12)
	left.Waiting(37)
	wh.In("ps.time_entry_costed", 90, 900)
	wh.Out("ps.time_entry_costed", 90, 900)
	wh.Latency("ps.time_entry_costed", 240*time.Millisecond)
	wh.Lag("ps.time_entry_costed", 1, 1402)
	for _, t := range []string{"time_entry", "project", "customer", "resource"} {
		erp.In("ps."+t, 98, 900)
	}
	erp.Out("customers", 3, 100)
	erp.Latency("customers", 1800*time.Millisecond)
	erp.Parked(3)
	for _, c := range []*obs.Component{src, can, right, left, wh} {
		c.Is(obs.Running, "")
	}
	erp.Is(obs.Retrying, "TW-ERP-THROTTLED: POST /timeRegistrationEntries answered 429, the next try is in 4 s")
	return o
}

func server(o *obs.Obs) *Server {
	return New(Options{
		Title: "Demo firm", Version: "test", Views: o.Views,
		Parked: func(context.Context, int) ([]Parked, int, error) {
			return []Parked{
				{
					Stage: "erp", Topic: "ps.customer", Key: "17", Code: "TW-REST-REJECTED", Reason: "POST /customers answered 400: the tax registration number is not valid",
					Remedy: "Correct the customer in the PSA, or run `tallywire parked retry erp 17`.", Attempts: 2, Since: time.Now().Add(-3 * time.Minute),
				},
				{Stage: "erp", Topic: "ps.project", Key: "<script>", Code: "TW-REST-WAITS", Reason: "held until it is delivered", WaitsFor: "customer/17", Attempts: 1, Since: time.Now().Add(-2 * time.Minute)},
			}, 2, nil
		},
		Margin: func(_ context.Context, month string) (*Margin, error) {
			if month == "" {
				month = "2026-03"
			}
			return &Margin{Months: []string{"2026-03", "2026-02", "2026-01"}, Month: month, Total: 140, Costs: true, Rows: []MarginRow{
				{"DE01", "EUR", "P-0001", "Rollout of the ledger for the northern plants", "1204.50", 0, "98234.12", "151200.00", "52965.88", "35.0"},
				{"UK01", "GBP", "P-0017", "Due diligence", "310.00", 4, "", "28000.00", "", ""},
				{"US01", "USD", "P-0102", "Warranty case", "44.25", 0, "5120.33", "0.00", "-5120.33", ""},
				{"DE01", "EUR", "P-0044", "Operating model", "881.75", 0, "71002.00", "64500.00", "-6502.00", "-10.1"},
			}}, nil
		},
		Notes: [][2]string{{"PSA", "127.0.0.1:5433"}, {"Kafka", "127.0.0.1:9092"}},
	})
}

// The flow that is drawn must be the flow that is: who reads whose topics.
func TestFlow(t *testing.T) {
	f := NewFlow(firm().Views(), nil, rates{})
	got := map[string]string{}
	for _, a := range f.Arrows {
		got[a.From.Name+"→"+a.To.Name] = a.Label
	}
	want := map[string]string{
		"psa→canonical": "psa.public.* · 7 topics", "canonical→costed": "ps.* · 4 topics", "canonical→warehouse": "ps.* · 7 topics",
		"canonical→erp": "ps.* · 4 topics", "costed→warehouse": "ps.time_entry_costed",
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("arrow %s is labelled %q, want %q", k, got[k], v)
		}
		delete(got, k)
	}
	if len(got) > 0 {
		t.Errorf("arrows that are not: %v", got)
	}
	for i, a := range f.Boxes {
		if a.X+a.W > f.Width || a.Y+a.H > f.Height {
			t.Errorf("%s lies outside the picture", a.Name)
		}
		for _, b := range f.Boxes[i+1:] {
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies over %s", a.Name, b.Name)
			}
		}
	}
}

// Before anything flowed, the picture is that of the configuration.
func TestFlowOfWires(t *testing.T) {
	o := obs.New(slog.New(slog.DiscardHandler))
	o.Component("source", "psa")
	o.Component("transform", "canonical")
	o.Component("sink", "warehouse")
	f := NewFlow(o.Views(), []Wires{
		{Kind: "source", Name: "psa", Writes: []string{"psa."}},
		{Kind: "transform", Name: "canonical", Reads: []string{"psa.public.a", "psa.public.b"}, Writes: []string{"ps.a"}},
		{Kind: "sink", Name: "warehouse", Reads: []string{"ps.a"}},
	}, rates{})
	if len(f.Arrows) != 2 || f.Arrows[0].Label != "psa.public.* · 2 topics" || f.Arrows[1].To.Name != "warehouse" {
		t.Errorf("arrows %+v", f.Arrows)
	}
}

// A number that the page shows wrongly is a wrong decision of who reads it.
func TestPage(t *testing.T) {
	o := firm()
	s := server(o)
	now := time.Now()
	s.now = func() time.Time { return now }
	s.Sample(t.Context())
	for range 8 {
		now = now.Add(time.Second)
		o.Component("source", "psa").Out("psa.public.time_entry", 1200, 1)
		o.Component("transform", "canonical").In("psa.public.time_entry", 1100, 1)
		s.Sample(t.Context())
	}
	h := s.Handler()
	get := func(path string) string {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if w.Code != http.StatusOK {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
		return w.Body.String()
	}
	page := get("/")
	for _, want := range []string{
		"1,200", "1,100 /s", "lag 1,402", "37 waiting", "TW-ERP-THROTTLED", "151,200.00", "−5,120.33", "waits", "customer/17", "&lt;script&gt;", "http-equiv=\"refresh\"",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(get("/live?month=2026-02"), "<html") || !strings.Contains(get("/live?month=2026-02"), `href="/?month=2026-02" class="on"`) {
		t.Error("the moving part is not the part for February")
	}
	var st Status
	if err := json.Unmarshal([]byte(get("/api/status")), &st); err != nil {
		t.Fatal(err)
	}
	if len(st.Components) != 6 || st.Waiting != 37 || st.ParkedCount != 2 || len(st.Arrows) != 5 {
		t.Errorf("status %+v", st)
	}
	if *write != "" {
		if err := os.WriteFile(*write, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A database that is down takes its part of the page with it, not the page.
func TestPageWithoutDatabases(t *testing.T) {
	o := firm()
	down := errors.New("dial tcp: connection refused")
	s := New(Options{
		Views:  o.Views,
		Parked: func(context.Context, int) ([]Parked, int, error) { return nil, 0, down },
		Margin: func(context.Context, string) (*Margin, error) { return nil, down },
	})
	s.Sample(t.Context())
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	if w.Code != http.StatusOK || !bytes.Contains(w.Body.Bytes(), []byte("the warehouse does not answer yet")) || !bytes.Contains(w.Body.Bytes(), []byte("the control database does not answer")) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Lost if this fails: why there is no margin, for as long as nobody looks into the
// warehouse's log; or a value, which the server quotes.
func TestPageSaysWhyThereIsNoMargin(t *testing.T) {
	o := firm()
	for _, c := range []struct {
		err       error
		says, not string
	}{
		{fmt.Errorf("taking the role tallywire_reader: %w", &pgconn.PgError{Code: "42501", Message: `permission denied to set role "tallywire_reader"`}), `permission denied to set role &#34;tallywire_reader&#34; (SQLSTATE 42501); tallywire doctor`, "answer yet"},
		{&pgconn.PgError{Code: "57P03", Message: "the database system is starting up"}, "the database system is starting up", "doctor"},
		{&pgconn.PgError{Code: "22P02", Message: `invalid input syntax for type numeric: "4711.50"`}, "SQLSTATE 22P02", "4711.50"},
		{context.DeadlineExceeded, "the warehouse does not answer yet", "SQLSTATE"},
	} {
		s := New(Options{Views: o.Views, Margin: func(context.Context, string) (*Margin, error) { return nil, c.err }})
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		if page := w.Body.String(); !strings.Contains(page, c.says) || strings.Contains(page, c.not) {
			t.Errorf("%v: the page does not say %q, or says %q", c.err, c.says, c.not)
		}
	}
}

// Lost if this fails: the statement that mends this very halt, for a sentence
// that fits all of its code.
func TestStatusHasTheRemedyOfTheCase(t *testing.T) {
	o := obs.New(slog.New(slog.DiscardHandler))
	o.Component("source", "psa").Ails(obs.Halted, "TW-PANIC: of a test", "Run:\nALTER THIS;")
	o.Component("sink", "warehouse").Is(obs.Halted, "TW-PANIC: of a test")
	st := New(Options{Views: o.Views}).status()
	remedies := map[string]string{}
	for _, c := range st.Components {
		remedies[c.Name] = c.Remedy
	}
	if remedies["psa"] != "Run:\nALTER THIS;" || remedies["warehouse"] != remedy(obs.View{Reason: "TW-PANIC: x"}) {
		t.Errorf("the remedies are %q", remedies)
	}
	o.Component("source", "psa").Is(obs.Running, "")
	if v := o.Component("source", "psa").View(); v.Remedy != "" {
		t.Errorf("it runs, and is to be mended: %s", v.Remedy)
	}
}

func TestFormats(t *testing.T) {
	for in, want := range map[string]string{"1234567.891": "1,234,567.891", "-1234": "−1,234", "0.00": "0.00", "999": "999"} {
		if got := amount(in); got != want {
			t.Errorf("amount(%s) = %s, want %s", in, got, want)
		}
	}
	if got := number(int64(-1234567)); got != "−1,234,567" {
		t.Error(got)
	}
}
