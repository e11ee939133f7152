package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// If this failed, every published rate would be of the wrong part of a run: the
// start of a JVM would count against it, or a queue's end for it.
func TestFigureIsOfTheSteadyPart(t *testing.T) {
	began := time.Unix(1_790_000_000, 0)
	x := &watcher{self: &child{began: began}, peak: 7}
	// Ten seconds of nothing, ten at 100 records/s and 1 CPU s/s, forty at
	// 1,000 and 0.5, and a second of nothing at the end.
	n, used := int64(0), time.Duration(0)
	for at := time.Duration(0); at <= 61*time.Second; at += every {
		x.samples = append(x.samples, sample{at: began.Add(at), n: n, self: used, sender: used / 2})
		switch {
		case at < 10*time.Second || at >= 60*time.Second:
		case at < 20*time.Second:
			n, used = n+5, used+every
		default:
			n, used = n+50, used+every/2
		}
	}
	// A record was half a row.
	f := x.figure(n / 2)
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"steady", f.steady, 500},
		{"whole", f.whole, float64(n-5) / 2 / 49.95},
		{"CPU s per million", f.self, 0.5 / 500 * 1e6},
		{"the walsender's", f.sender, 0.25 / 500 * 1e6},
		{"total", f.total, used.Seconds() / float64(n/2) * 1e6},
		{"first", f.first.Seconds(), 10.05},
		{"rss", f.rss, 7},
	} {
		if d := c.got/c.want - 1; d > 1e-3 || d < -1e-3 {
			t.Errorf("%s: %g, want %g", c.what, c.got, c.want)
		}
	}
}

// If this failed, a run too short to be measured would be published as a rate.
func TestFigureOfARunTooShort(t *testing.T) {
	x := &watcher{self: &child{}, samples: []sample{{n: 0}, {n: 100, at: time.Unix(1, 0)}}}
	if f := x.figure(100); f.steady != 0 || f.whole != 0 {
		t.Errorf("a run of one step has a rate: %v", f)
	}
}

// If this failed, a missed ratio would pass, or the exit code would be 1 for
// what was never measured.
func TestJudge(t *testing.T) {
	run := func(rate, cpu float64) []figure {
		return []figure{{steady: rate * 2, self: cpu}, {steady: rate, self: cpu, rss: 100 << 20}, {steady: rate / 2, self: cpu}}
	}
	res := results{
		"a":     {"tallywire": run(399, 2), "debezium": run(100, 20), "pg_recvlogical": run(200, 1)},
		"b":     {"tallywire": run(330, 2), "debezium": run(100, 20)},
		"start": {"tallywire": {{first: time.Second}}},
	}
	var got []string
	for _, l := range judge(res) {
		got = append(got, fmt.Sprintf("%s %v", l.what, l.ok))
	}
	want := "A, beside Debezium false; A, beside pg_recvlogical true; B, beside Debezium true; CPU per row on A, of Debezium's true; " +
		"peak RSS, the largest of all runs true; start to the first record false"
	if g := strings.Join(got, "; "); g != want {
		t.Errorf("judged: %s\nwant: %s", g, want)
	}
	if s := oneLine(res); !strings.HasPrefix(s, "A 3.99× debezium 1.99× pg_recvlogical, B 3.30× debezium – pg_recvlogical, A8 – debezium, cpu 0.10× debezium, rss 100 MiB, snapshot –") {
		t.Error(s)
	}
}

// If this failed, latencies would be of something else than the row's INSERT.
func TestClockOf(t *testing.T) {
	at := time.UnixMicro(1_790_000_000_123_456)
	got, err := clockOf(fmt.Appendf(nil, "\x00\x02 workshop %s%d notes", clockMark, at.UnixMicro()))
	if err != nil || !got.Equal(at) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", clockMark, clockMark + "179000000012345", clockMark + "179000000012345x"} {
		if _, err := clockOf([]byte(bad)); err == nil {
			t.Errorf("%q has a clock", bad)
		}
	}
}

// If this failed, half an hour of measuring would end without its report, or a
// part of it would take the place of the whole.
func TestReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "RESULTS.md")
	if err := os.WriteFile(file, []byte("# Results\n\nkept\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o := &options{rows: fullRows, runs: 2, only: []string{"a", "latency"}, contenders: names(), out: file, command: "a test"}
	w := &world{o: o, began: time.Now(), failed: []string{"b: it was late"}}
	res := results{
		"a":       {"tallywire": {{steady: 400e3, whole: 390e3}, {steady: 420e3}}, "debezium": {{steady: 50e3}, {steady: 60e3}}},
		"latency": {"tallywire": {{p50: 9, p95: 10, p99: 11}}},
	}
	missed, err := w.report(t.Context(), res, "0.00")
	if err != nil || missed != 1 {
		t.Fatalf("missed %d, %v", missed, err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"kept\n", "<!-- peers -->\n", "<!-- /peers -->\n", "by `a test` on ", "A run failed and was done again: b: it was late\n",
		"| A, beside Debezium | 7.45× | at least 4× | ok |\n", "| latency exactly-once, p50 | 9.0 ms | at most 8 ms | **MISSED** |\n",
		"| tallywire | 410.0k (400.0k–420.0k) |", "| tallywire | 9.0 | 10.0 | 11.0 |", "Backlog A: 2000000 inserts",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", b)
	}
	o.out = ""
	if f := o.reportFile(); f != "" {
		t.Errorf("a part of the sections goes to %s", f)
	}
	if o.only = sections; o.reportFile() != resultsFile {
		t.Error("the whole goes nowhere")
	}
}
