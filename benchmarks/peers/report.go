// Report: the tables of what was measured, with medians and ranges.

package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallywire/tallywire/benchmarks/internal/report"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

const resultsFile = "benchmarks/RESULTS.md"

// values of the runs, sorted.
func values(fs []figure, by func(figure) float64) []float64 {
	var v []float64
	for _, f := range fs {
		v = append(v, by(f))
	}
	slices.Sort(v)
	return v
}

// median is 0 when nothing was measured.
func median(fs []figure, by func(figure) float64) float64 {
	v := values(fs, by)
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// What a run is judged by.
func steady(f figure) float64 { return f.steady }
func whole(f figure) float64  { return f.whole }
func self(f figure) float64   { return f.self }
func rss(f figure) float64    { return f.rss }
func first(f figure) float64  { return f.first.Seconds() }
func others(f figure) float64 { return f.others }
func p50(f figure) float64    { return f.p50 }
func p95(f figure) float64    { return f.p95 }
func p99(f figure) float64    { return f.p99 }

// column of a table.
type column struct {
	title  string
	by     func(figure) float64
	format func(float64) string
}

func rate(v float64) string { return thousands(v) }
func two(v float64) string {
	if v == 0 { // not measured
		return "–"
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
func one(v float64) string     { return strconv.FormatFloat(v, 'f', 1, 64) }
func percent(v float64) string { return strconv.FormatFloat(v*100, 'f', 0, 64) }
func mib(v float64) string     { return strconv.FormatFloat(v/(1<<20), 'f', 0, 64) }

var drained = []column{
	{"rows/s, steady", steady, rate},
	{"whole", whole, rate},
	{"CPU s per million: steady", self, two},
	{"with its start", func(f figure) float64 { return f.total }, two},
	{"walsender", func(f figure) float64 { return f.sender }, two},
	{"broker", func(f figure) float64 { return f.broker }, two},
	{"peak RSS, MiB", rss, mib},
	{"others, % of the machine", others, percent},
}

var tables = map[string]struct {
	title   string
	columns []column
}{
	"a":        {"Backlog A: %d inserts in transactions of 1,000, 1 partition", drained},
	"b":        {"Backlog B: %d changes (60 %% inserts, 30 %% updates, 10 %% deletes) in transactions of 1 to 3, 1 partition", drained},
	"a8":       {"Backlog A: %d inserts, 8 partitions", drained},
	"snapshot": {"Initial snapshot: %d rows, 1 partition, 1 thread", drained},
	"start":    {"Start of the process to the first record in Kafka, topics existing", []column{{"seconds", first, two}}},
	"latency": {"From the clock in the INSERT to a consumer of committed records, 1,000 transactions/s of 5 rows", []column{
		{"p50 ms", p50, one},
		{"p95 ms", p95, one},
		{"p99 ms", p99, one},
		{"INSERT itself: p50", func(f figure) float64 { return f.commit50 }, one},
		{"p99", func(f figure) float64 { return f.commit99 }, one},
		{"% of a core", func(f figure) float64 { return f.core }, percent},
		{"peak RSS, MiB", rss, mib},
		{"others, % of the machine", others, percent},
	}},
}

// section is the table of one section.
func (w *world) section(name string, res map[string][]figure) string {
	var b strings.Builder
	t := tables[name]
	title := t.title
	switch {
	case strings.Contains(title, "%d") && name == "b":
		title = fmt.Sprintf(title, w.o.rows/2)
	case strings.Contains(title, "%d"):
		title = fmt.Sprintf(title, w.o.rows)
	}
	fmt.Fprintf(&b, "### %s\n\n| |", title)
	for _, c := range t.columns {
		fmt.Fprintf(&b, " %s |", c.title)
	}
	b.WriteString("\n|" + strings.Repeat("---|", len(t.columns)+1) + "\n")
	for _, c := range contenders {
		fs := res[c.name]
		if len(fs) == 0 {
			continue
		}
		fmt.Fprintf(&b, "| %s |", c.name)
		for _, col := range t.columns {
			v := values(fs, col.by)
			text := col.format(median(fs, col.by))
			if lo, hi := col.format(v[0]), col.format(v[len(v)-1]); lo != hi {
				text += " (" + lo + "–" + hi + ")"
			}
			fmt.Fprintf(&b, " %s |", text)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// report prints what was measured, writes it, and says how many ratios were
// missed.
func (w *world) report(ctx context.Context, res results, load string) (missed int, err error) {
	var b strings.Builder
	fmt.Fprintf(&b, "## Capture beside its peers\n\nMade by `%s` on %s: %s, load average %s before the start. Rounds of each section: %d, the contenders in turns, each round beginning with another; medians (ranges).\n",
		w.o.command, time.Now().UTC().Format("2006-01-02"), report.Machine(), load, w.o.runs)
	fmt.Fprintf(&b, "\nVersions: %s.\n", strings.Join(w.versions(ctx), ", "))
	lines := judge(res)
	if len(lines) > 0 {
		b.WriteString("\n| what | measured | target | |\n|---|---|---|---|\n")
		for _, l := range lines {
			word := "ok"
			if !l.ok {
				word = "**MISSED**"
				missed++
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", l.what, l.measured, l.target, word)
		}
	}
	for _, f := range w.failed {
		fmt.Fprintf(&b, "\nA run failed and was done again: %s\n", f)
	}
	for _, s := range w.o.only {
		b.WriteString("\n" + w.section(s, res[s]))
	}
	b.WriteString("\n" + reading)
	text := b.String()
	if w.o.trial() {
		fmt.Printf("\n%s\nA trial: its figures say nothing, and nothing is judged or written.\n", text)
		missed = 0
	} else {
		fmt.Print("\n" + text + "\n")
		if out := w.o.reportFile(); out != "" {
			if err := report.Replace(out, "peers", text); err != nil {
				return missed, err
			}
			w.say("wrote %s", out)
		}
	}
	fmt.Println("bench-peers: " + oneLine(res))
	return missed, nil
}

const reading = `tallywire runs with its defaults: it is exactly-once unless it says alo (at-least-once); tallywire-1ms is exactly-once on a broker with add.partitions.to.txn.retry.backoff.ms=1, all else is on a broker at its defaults. Debezium: Kafka Connect, Avro by Apicurio's converter, schemas registered beforehand, batches of 16,384, a producer with 1 MiB batches and lz4, ParallelGC in a heap of 3 GB; for latency it polls every millisecond and does not linger; debezium-eo is Connect's exactly-once support in a distributed worker. pg_recvlogical receives in binary and writes to /dev/null: no decoding, no Kafka. All run on one machine with Postgres, the broker and the registry. Postgres runs without fsync: what a shared disk takes to flush a commit would be in everybody's latency. The broker is warmed before anybody is measured: by requests, by one run of tallywire on A that does not count, and by 30 s of the live flow before the first latency.

Steady is between 25 % and 95 % of the records, so that a JVM's warm-up does not count against it; whole is from the first record to the last. Every run must have delivered exactly the records expected, counted by a consumer of committed records (a delete is two: the change and its tombstone). Peak RSS is VmHWM. Others is the CPU time of what had no part in the run: where it is more than a little, the machine was not quiet, and the row says less.
`

// reportFile is where the report goes; a part of the measurements does not
// replace all of them unasked.
func (o *options) reportFile() string {
	if o.out != "" || len(o.only) < len(sections) || len(o.contenders) < len(contenders) {
		return o.out
	}
	return resultsFile
}

// versions of what took part.
func (w *world) versions(ctx context.Context) []string {
	out := []string{
		runtime.Version(), "Postgres " + embedded.Postgres17, "Apache Kafka and Connect " + embedded.KafkaVersion, "Debezium " + testkit.DebeziumVersion, "Apicurio " + testkit.ApicurioVersion,
	}
	if p, err := w.pgRecvlogical(); err == nil && w.takesPart("pg_recvlogical") {
		if b, err := exec.CommandContext(ctx, p, "--version").Output(); err == nil {
			out = append(out, strings.TrimSpace(string(b)))
		}
	}
	// It goes to standard error: openjdk version "17.0.19" 2026-04-21
	if b, err := exec.CommandContext(ctx, "java", "-version").CombinedOutput(); err == nil {
		if f := strings.Fields(string(b)); len(f) > 2 {
			out = append(out, "Java "+strings.Trim(f[2], `"`))
		}
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return out
	}
	for _, d := range info.Deps {
		if d.Path == "github.com/twmb/franz-go" || d.Path == "github.com/jackc/pgx/v5" {
			name := strings.TrimSuffix(d.Path, "/v5")
			out = append(out, filepath.Base(name)+" "+d.Version)
		}
	}
	return out
}
