package obs

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A process that says it is ready while a part of it stands still would never
// be looked at.
func TestReady(t *testing.T) {
	log, err := NewLog(io.Discard, "debug", "json")
	if err != nil {
		t.Fatal(err)
	}
	o := New(log)
	o.ExposeProcess("test")
	mux := http.NewServeMux()
	o.Handle(mux)
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	if c, _ := get("/healthz"); c != 200 {
		t.Errorf("/healthz %d", c)
	}
	if c, _ := get("/readyz"); c != 503 {
		t.Errorf("ready without components: %d", c)
	}
	a, b := o.Component("source", "a"), o.Component("sink", "b")
	a.Is(Running, "")
	b.Is(Halted, "TW-X: because")
	if c, body := get("/readyz"); c != 503 || !strings.Contains(body, `"TW-X: because"`) || strings.Contains(body, `"name":"a"`) {
		t.Errorf("%d %s", c, body)
	}
	b.Is(Running, "")
	if c, body := get("/readyz"); c != 200 {
		t.Errorf("%d %s", c, body)
	}
	a.Out("t", 5, 50)
	a.Latency("t", 3*time.Millisecond)
	_, m := get("/metrics")
	for _, want := range []string{
		`tallywire_records_total{direction="out",kind="source",name="a",topic="t"} 5`,
		`tallywire_component_state{kind="sink",name="b",state="running"} 1`,
		`tallywire_component_state{kind="sink",name="b",state="halted"} 0`,
		`tallywire_build_info{version="test"} 1`, `tallywire_latency_seconds_count{kind="source",name="a",topic="t"} 1`,
	} {
		if !strings.Contains(m, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

// The same component asked for twice is one: else its numbers would be halved.
func TestComponentIsOne(t *testing.T) {
	log, err := NewLog(io.Discard, "info", "text")
	if err != nil {
		t.Fatal(err)
	}
	o := New(log)
	o.Component("sink", "w").Lag("t", 0, 3)
	o.Component("sink", "w").Lag("t", 1, 4)
	o.Component("source", "s").Parked(1)
	v := o.Views()
	if len(v) != 2 || v[0].Kind != "source" || v[1].Lag["t"] != 7 {
		t.Errorf("%+v", v)
	}
}

func TestQuantiles(t *testing.T) {
	var w Window
	if a, b, c := w.Quantiles(); a+b+c != 0 {
		t.Error("an empty window has quantiles")
	}
	for i := 1; i <= 2000; i++ { // more than it holds
		w.Add(time.Duration(i) * time.Millisecond)
	}
	p50, p95, p99 := w.Quantiles()
	if p50 != 1488*time.Millisecond || p95 != 1948*time.Millisecond || p99 != 1989*time.Millisecond {
		t.Error(p50, p95, p99)
	}
}
