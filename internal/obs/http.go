// http.go: /metrics, /healthz and /readyz.

package obs

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// ExposeProcess adds the Go runtime's and the process's own metrics.
func (o *Obs) ExposeProcess(version string) {
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tallywire_build_info", Help: "1, with the version as label."}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	o.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build)
}

// Handle adds /metrics, /healthz and /readyz to mux.
//
//	/healthz 200 while the process serves: restart it when it does not.
//	/readyz  200 when every component is running, else 503; the body lists
//	         those that are not, and why.
func (o *Obs) Handle(mux *http.ServeMux) {
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, map[string]any{"ok": true}) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		not := o.NotRunning()
		status := http.StatusOK
		if len(not) > 0 {
			status = http.StatusServiceUnavailable
		}
		answer(w, status, map[string]any{"ready": len(not) == 0, "not_running": not})
	})
}

// Unready is a component that does not run.
type Unready struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"`
}

// NotRunning lists the components in another state than Running. A process
// without components is not ready either: it lists itself.
func (o *Obs) NotRunning() []Unready {
	views := o.Views()
	if len(views) == 0 {
		return []Unready{{"process", "tallywire", Starting, "its components are being set up"}}
	}
	out := []Unready{}
	for _, v := range views {
		if v.State != Running {
			reason := v.Reason
			if reason == "" {
				reason = v.Progress
			}
			out = append(out, Unready{v.Kind, v.Name, v.State, reason})
		}
	}
	return out
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		return // the reader went away
	}
}
