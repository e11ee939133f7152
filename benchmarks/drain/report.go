// Report: what was measured, on what, with what.

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallywire/tallywire/internal/testkit"
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

func (r *report) text() (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "# Results\n\nMade by `%s` on %s. %s. Read the figures of a shared machine as ratios.\n", r.o.command, time.Now().UTC().Format("2006-01-02"), r.machine)
	fmt.Fprintf(&b, "\nVersions: %s.\n", strings.Join(r.versions, ", "))
	if r.o.hotpath != "" {
		rows, err := hotpath(r.o.hotpath)
		if err != nil {
			return "", err
		}
		b.WriteString("\n## The hot path\n\npgoutput's octets (binary, a time entry of 13 columns, updates and deletes with the full old row) → change.Batch → key and value as Avro in Debezium's envelope, 1,000 changes in a batch, one goroutine. Beside it `pglogrepl.ParseV2`, decoding into goavro's native form, and goavro, on the same octets in turns; both write the same octets. Medians.\n\n" +
			"| operation | tallywire ns | allocations | oracle ns | allocations | times |\n|---|---|---|---|---|---|\n")
		for _, row := range rows {
			b.WriteString(row)
		}
	}
	fmt.Fprintf(&b, "\n## Draining to the warehouse\n\nA backlog of about %d changes of the demo's firm is in the PSA's log before tallywire starts: the PSA → raw topics → mapping → canonical topics → join → warehouse (tables and costed entries), 4 partitions, one process, exactly once. The clock runs from the start of the process' components until the last change is in the warehouse and no consumer group has any lag. Afterwards PSA and warehouse were compared row by row, without a difference.\n\n", r.o.changes)
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
	return b.String(), nil
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// hotpath reads the output of the benchmark.
func hotpath(name string) (rows []string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || !strings.HasPrefix(words[0], "BenchmarkHotPath/") {
			continue
		}
		m := map[string]float64{}
		for i := 2; i+1 < len(words); i += 2 {
			if m[words[i+1]], err = strconv.ParseFloat(words[i], 64); err != nil {
				return nil, fmt.Errorf("reading %s: %w", name, err)
			}
		}
		op, _, _ := strings.Cut(strings.TrimPrefix(words[0], "BenchmarkHotPath/"), "-")
		rows = append(rows, fmt.Sprintf("| %s | %.0f | %.0f | %.0f | %.0f | %.1f |\n", op, m["ns/change"], m["allocs/change"], m["oracle-ns/change"], m["oracle-allocs/change"], m["times"]))
	}
	return rows, lines.Err()
}

// machine says what it was measured on.
func machine() string {
	value := func(file, key string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			return ""
		}
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
				return strings.TrimSpace(v)
			}
		}
		return ""
	}
	s := fmt.Sprintf("%s/%s, %d cores", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	if m := value("/proc/cpuinfo", "model name"); m != "" {
		s += " (" + m + ")"
	}
	if kb, err := strconv.Atoi(strings.TrimSuffix(value("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		s += fmt.Sprintf(", %d GiB", (kb+1<<19)>>20)
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		if load := strings.Fields(string(b)); len(load) > 0 {
			s += ", load average " + load[0] + " before the drains began"
		}
	}
	return s
}

// versions of what took part.
func versions(ctx context.Context, parts string) []string {
	out := []string{runtime.Version(), "Postgres " + testkit.Postgres17}
	if strings.Contains(parts, "real") {
		out = append(out, "Apache Kafka "+testkit.KafkaVersion)
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
