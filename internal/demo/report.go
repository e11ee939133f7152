// report.go: what the demo prints, and its report.

package demo

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/tallywire/tallywire/internal/obs"
)

// Report is what `tallywire demo --for` found. Times are in seconds, latencies
// in milliseconds from the commit in the PSA.
type Report struct {
	Kafka        string           `json:"kafka"`
	Redis        string           `json:"redis"`
	Ready        float64          `json:"ready_s"`
	Changes      int64            `json:"changes"` // by the generator
	Transactions int64            `json:"transactions"`
	ByKind       map[string]int64 `json:"changes_by_kind"`
	Asked        float64          `json:"asked_per_s"`
	Reached      float64          `json:"reached_per_s"`
	Drained      float64          `json:"drained_s"`
	Captured     int64            `json:"captured"`  // by the source in this run, initial load included
	CaughtUp     bool             `json:"caught_up"` // the initial load had gone through before the generator stopped; else it is in the latencies
	Latency      []Latency        `json:"latency"`
	Components   []Count          `json:"components"`
	Verification *Verification    `json:"verification"`
}

// Latency of one component over the last minute of work.
type Latency struct {
	Kind string  `json:"kind"`
	Name string  `json:"name"`
	P50  float64 `json:"p50_ms"`
	P95  float64 `json:"p95_ms"`
	P99  float64 `json:"p99_ms"`
}

// Count is what one component did.
type Count struct {
	Kind    string `json:"kind"`
	Name    string `json:"name"`
	In      int64  `json:"records_in"`
	Out     int64  `json:"records_out"`
	Parked  int64  `json:"parked"`
	Waiting int64  `json:"waiting"`
}

func latencies(views []obs.View) []Latency {
	out := []Latency{}
	for _, v := range views {
		if v.P50 > 0 {
			out = append(out, Latency{v.Kind, v.Name, ms(v.P50), ms(v.P95), ms(v.P99)})
		}
	}
	return out
}

func counts(views []obs.View) (captured int64, out []Count) {
	for _, v := range views {
		c := Count{Kind: v.Kind, Name: v.Name, Parked: v.Parked, Waiting: v.Waiting}
		for _, t := range v.Topics {
			if t.Direction == "in" {
				c.In += t.Records
			} else {
				c.Out += t.Records
			}
		}
		if v.Kind == "source" {
			captured += c.Out
		}
		out = append(out, c)
	}
	return captured, out
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Print writes the report for a person.
func (r *Report) Print(w io.Writer) {
	fmt.Fprintf(w, "\nReport (Kafka %s, Redis %s)\n\n", r.Kafka, r.Redis)
	fmt.Fprintf(w, "  ready in          %.1f s\n", r.Ready)
	fmt.Fprintf(w, "  changes           %s, %.0f/s asked, %.0f/s reached\n", thousands(r.Changes), r.Asked, r.Reached)
	fmt.Fprintf(w, "  captured          %s, initial load included\n", thousands(r.Captured))
	fmt.Fprintf(w, "  drained in        %.1f s\n\n", r.Drained)
	fmt.Fprintf(w, "  %-22s %12s %12s %12s\n", "commit to …", "p50", "p95", "p99")
	for _, l := range r.Latency {
		fmt.Fprintf(w, "  %-22s %9.0f ms %9.0f ms %9.0f ms\n", l.Kind+" "+l.Name, l.P50, l.P95, l.P99)
	}
	if !r.CaughtUp {
		fmt.Fprintln(w, "  (the initial load was still going through, so its wait is part of these)")
	}
	fmt.Fprintf(w, "\n  %-22s %12s %12s %8s %8s\n", "", "in", "out", "parked", "waiting")
	for _, c := range r.Components {
		fmt.Fprintf(w, "  %-22s %12s %12s %8d %8d\n", c.Kind+" "+c.Name, thousands(c.In), thousands(c.Out), c.Parked, c.Waiting)
	}
	fmt.Fprintln(w)
	if r.Verification != nil {
		r.Verification.Print(w)
	}
}

// placeNotes says what runs where, for the page.
func (w *world) placeNotes() {
	w.note("PSA", w.psaDSN())
	w.note("Warehouse", w.warehouseDSN())
	w.note("Control", w.controlDSN())
	w.note("ERP", w.erp.URL())
	w.note("Redis", w.redisAddr+" ("+w.o.Redis+")")
	w.note("Log", w.o.LogFile)
}

func (w *world) configFile() string { return filepath.Join(w.o.StateDir, "tallywire.yml") }

// welcome prints what runs where, and lines to copy.
func (w *world) welcome(took time.Duration) {
	page := "http://" + local(w.o.Ports.Page)
	w.say("\nready in %.1f s\n", took.Seconds())
	w.say("  %-18s %s", "The page", page)
	for _, n := range w.notes {
		w.say("  %-18s %s", n[0], n[1])
	}
	cfg := ""
	if filepath.Clean(w.o.StateDir) != ".tallywire" {
		cfg = " -c " + w.configFile()
	}
	w.say("\nLines to copy:\n")
	for _, l := range []string{
		"bin/tallywire status" + cfg,
		"bin/tallywire consume ps.time_entry_costed --max 3" + cfg,
		"bin/tallywire consume psa.public.time_entry --from end --follow" + cfg,
		"bin/tallywire parked list" + cfg,
		"bin/tallywire verify" + cfg,
		"kcat -b " + w.kafkaAddr + " -L | grep 'topic \"ps'",
		"kcat -b " + w.kafkaAddr + " -t psa.public.time_entry -C -o -3 -e -f '%t %p@%o %T\\n'",
		"psql '" + w.warehouseDSN() + "' -c 'select project_name, month, approved_hours, round(labour_cost,2) cost, revenue, round(margin_pct,1) pct from ps.margin_by_project_month order by month desc, revenue desc limit 10'",
		"bin/tallywire replay warehouse --to beginning" + cfg + "      # shows what would be read again",
	} {
		w.say("  %s", l)
	}
	w.say("\nTo reset offsets, stop the demo (Ctrl-C), start it without the sink, and set its group back from another terminal:\n")
	w.say("  bin/tallywire demo --without warehouse")
	w.say("  bin/tallywire replay warehouse --to beginning --yes%s", cfg)
	w.say("\nThe generator works at %.0f changes/s (--rate). Ctrl-C stops; starting again resumes; --reset starts over.", w.o.Rate)
}

func thousands(n int64) string {
	s := fmt.Sprint(n)
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	return b.String()
}
