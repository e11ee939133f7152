// Report: what was measured, on what, with what.

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	sections "github.com/tallywire/tallywire/benchmarks/internal/report"
	"github.com/tallywire/tallywire/internal/embedded"
)

// result is what one kind of parts gave.
type result struct {
	kind     string
	load     run
	runs     []run
	compared int64
}

type report struct {
	o        *options
	machine  string
	versions []string
	results  []*result
}

func (r *report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## Draining to the warehouse\n\nMade by `%s` on %s. %s. Versions: %s.\n\nA backlog of about %d changes of the demo's firm is in the PSA's log before tallywire starts: the PSA → raw topics → mapping → canonical topics → lookups → warehouse (tables and costed entries), 4 partitions, one process, exactly once. The clock runs from the start of the process' components until the last change is in the warehouse and no consumer group has any lag. Afterwards PSA and warehouse were compared row by row, without a difference.\n\n", r.o.command, time.Now().UTC().Format("2006-01-02"), r.machine, strings.Join(r.versions, ", "), r.o.changes)
	b.WriteString("| parts | runs | seconds: median (range) | changes/s, median | CPU s of the process, median | initial load: rows, seconds |\n|---|---|---|---|---|---|\n")
	for _, x := range r.results {
		by := func(f func(run) float64) []float64 {
			var v []float64
			for _, q := range x.runs {
				v = append(v, f(q))
			}
			slices.Sort(v)
			return v
		}
		took := by(func(q run) float64 { return q.took.Seconds() })
		fmt.Fprintf(&b, "| %s | %d | %.1f (%.1f–%.1f) | %.0f | %.1f | %d, %.1f |\n", x.kind, len(x.runs), median(took), took[0], took[len(took)-1],
			median(by(run.rate)), median(by(func(q run) float64 { return q.cpu.Seconds() })), x.load.changes, x.load.took.Seconds())
	}
	b.WriteString("\nEmbedded: kfake and miniredis run inside the process, and their work is in its CPU time. Real: Apache Kafka and redis-server beside it. Both Postgres clusters, and the real parts, share the machine with it.\n")
	for _, x := range r.results {
		table(&b, x.kind, x.runs)
	}
	b.WriteString("\nOf servers the kernel's count (proc(5)), of tallywire's components their share of a CPU profile of the process.\n")
	return b.String()
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// machine says what it was measured on, and what else ran.
func machine() string {
	s := sections.Machine()
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		if load := strings.Fields(string(b)); len(load) > 0 {
			s += ", load average " + load[0] + " before the drains began"
		}
	}
	return s
}

// versions of what took part.
func versions(ctx context.Context, parts string) []string {
	out := []string{runtime.Version(), "Postgres " + embedded.Postgres17}
	if strings.Contains(parts, "real") {
		out = append(out, "Apache Kafka "+embedded.KafkaVersion)
		if b, err := exec.CommandContext(ctx, "redis-server", "--version").Output(); err == nil {
			for _, f := range strings.Fields(string(b)) {
				if v, ok := strings.CutPrefix(f, "v="); ok {
					out = append(out, "redis-server "+v)
				}
			}
		}
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return out
	}
	for _, d := range info.Deps {
		for path, name := range map[string]string{
			"github.com/twmb/franz-go": "franz-go", "github.com/twmb/franz-go/pkg/kfake": "kfake", "github.com/alicebob/miniredis/v2": "miniredis",
			"github.com/jackc/pgx/v5": "pgx",
		} {
			if d.Path == path {
				out = append(out, name+" "+d.Version)
			}
		}
	}
	return out
}
