// Report: medians of what was measured, and the ratios.

package main

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/tallywire/tallywire/benchmarks/internal/report"
	"github.com/tallywire/tallywire/internal/embedded"
)

// median of the runs, 0 when there are none.
func median(fs []figure, by func(figure) float64) float64 {
	if len(fs) == 0 {
		return 0
	}
	var v []float64
	for _, f := range fs {
		v = append(v, by(f))
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

var titles = map[string]string{
	"load": "%d time entries, right sides read before",
	"live": fmt.Sprintf("Entries of others are written meanwhile, %d a second; how long each takes until its result may be read, in quiet and while %%d are told of a rate", livePerSecond),
	"fan":  "One rate of one employee changes, and with it the cost of %d entries",
}

func (w *world) report(ctx context.Context, res results) error {
	var b strings.Builder
	fmt.Fprintf(&b, "## Lookups beside Kafka Streams\n\nMade by `%s` on %s. %s. Versions: %s, Apache Kafka and Kafka Streams %s, %s.\n\n",
		w.o.command, time.Now().UTC().Format("2006-01-02"), report.Machine(), runtime.Version(), embedded.KafkaVersion, redisVersion(ctx))
	fmt.Fprintf(&b, "Time entries with their project (%d), its customer (%d) and the rate in force of their employee (%d, %d intervals each), %d partitions, exactly once. The clock runs from the first entry written until all results are committed, Java's warm-up included. Medians of %d runs in turns; every cost was compared with what it must be.\n",
		projects, customers, employees, intervals, partitions, w.o.runs)
	for _, section := range w.o.only {
		by := res[section]
		rows := 0
		for _, fs := range by {
			rows = int(fs[0].rows)
		}
		if section == "live" {
			w.liveReport(&b, by, rows)
			continue
		}
		fmt.Fprintf(&b, "\n"+titles[section]+":\n\n| | rows/s | seconds | CPU s per million | of it redis-server | broker | peak RSS, MiB | redis-server | records out | others, %% of the machine |\n|---|---|---|---|---|---|---|---|---|---|\n", rows)
		for _, name := range w.o.contenders {
			m := func(f func(figure) float64) float64 { return median(by[name], f) }
			fmt.Fprintf(&b, "| %s | %.0f | %.2f | %.1f | %.1f | %.1f | %.0f | %.0f | %.0f | %.0f |\n", name, m(figure.rate),
				m(func(f figure) float64 { return f.took.Seconds() }), m(figure.cpu), m(func(f figure) float64 { return f.per(f.redis) }),
				m(func(f figure) float64 { return f.per(f.broker) }), m(func(f figure) float64 { return float64(f.rss >> 20) }),
				m(func(f figure) float64 { return float64(f.redisRSS >> 20) }), m(func(f figure) float64 { return float64(f.written) }), m(figure.foreign))
		}
		b.WriteString("\n")
		ratios(&b, by, section)
	}
	fmt.Print("\n" + b.String())
	if w.o.out == "" {
		return nil
	}
	return report.Replace(w.o.out, "lookups", b.String())
}

// liveReport has milliseconds.
func (w *world) liveReport(b *strings.Builder, by map[string][]figure, rows int) {
	fmt.Fprintf(b, "\n"+titles["live"]+", ms:\n\n| | p50 in quiet | p99 | p50 within | p99 | p99 within ÷ in quiet | seconds that it takes |\n|---|---|---|---|---|---|---|\n", rows)
	for _, name := range w.o.contenders {
		m := func(f func(figure) time.Duration) float64 {
			return median(by[name], func(x figure) float64 { return float64(f(x).Microseconds()) / 1000 })
		}
		quiet, within := m(func(f figure) time.Duration { return f.quiet.at(0.99) }), m(func(f figure) time.Duration { return f.within.at(0.99) })
		fmt.Fprintf(b, "| %s | %.0f | %.0f | %.0f | %.0f | %.1f | %.2f |\n", name, m(func(f figure) time.Duration { return f.quiet.at(0.5) }), quiet,
			m(func(f figure) time.Duration { return f.within.at(0.5) }), within, within/quiet, m(func(f figure) time.Duration { return f.took })/1000)
	}
}

// ratios are those of ours to the peer's two.
func ratios(b *strings.Builder, by map[string][]figure, section string) {
	const us = "tallywire"
	for _, p := range []struct {
		peer, speed string
	}{{"streams-rocksdb", "bound 2, aim 3.4"}, {"streams-memory", "bound 1.5, aim 2.5"}} {
		if len(by[us]) == 0 || len(by[p.peer]) == 0 {
			continue
		}
		speed, cpu := " ("+p.speed+")", " (bound 0.20)"
		if section != "load" {
			speed, cpu = "", ""
		}
		fmt.Fprintf(b, "- %s ÷ %s: rate %.2f%s, CPU per row with redis-server's %.2f%s\n", us, p.peer,
			median(by[us], figure.rate)/median(by[p.peer], figure.rate), speed, median(by[us], figure.cpu)/median(by[p.peer], figure.cpu), cpu)
	}
}

func redisVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "redis-server", "--version").Output()
	if err != nil {
		return "redis-server"
	}
	for _, f := range strings.Fields(string(out)) {
		if v, ok := strings.CutPrefix(f, "v="); ok {
			return "redis-server " + v
		}
	}
	return "redis-server"
}
