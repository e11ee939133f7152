// Judge: what was aimed at, and what came of it.

package main

import (
	"fmt"
	"math"
	"strings"
)

// line is one target. Those whose contenders were not measured have none.
type line struct {
	what, measured, target string
	ok                     bool
}

// The targets, as ratios within one run; times and sizes are in milliseconds
// and octets.
const (
	bulkDebezium, bulkReceive = 4.0, 1.4
	oltpDebezium, oltpReceive = 3.3, 1.9
	bulk8Debezium             = 3.5
	cpuOfDebezium             = 0.1
	snapshotDebezium          = 4.0
	exactlyOnceOfAtLeastOnce  = 0.95
	rssLimit                  = 256 << 20
	startLimit                = 1.0 // seconds
)

type judging struct {
	res   results
	lines []line
}

// times prints a ratio rounded down: what is printed was reached.
func times(r float64) string { return fmt.Sprintf("%.2f×", math.Floor(r*100)/100) }

// of gives a median; ok is false when it was not measured.
func (j *judging) of(section, name string, by func(figure) float64) (v float64, ok bool) {
	fs := j.res[section][name]
	v = median(fs, by)
	return v, len(fs) > 0 && v > 0
}

// ratio of tallywire to another; ok is false when one of them was not measured.
func ratio(res results, section, mine, other string, by func(figure) float64) (float64, bool) {
	j := &judging{res: res}
	a, ok1 := j.of(section, mine, by)
	b, ok2 := j.of(section, other, by)
	if !ok1 || !ok2 {
		return 0, false
	}
	return a / b, true
}

func (j *judging) add(ok bool, what, measured, target string) {
	j.lines = append(j.lines, line{what, measured, target, ok})
}

func (j *judging) atLeast(what, section, mine, other string, target float64) {
	if r, ok := ratio(j.res, section, mine, other, steady); ok {
		j.add(r >= target, what, times(r), fmt.Sprintf("at least %g×", target))
	}
}

// noSlower wants a latency at or below another's in the same run.
func (j *judging) noSlower(what, mine, other string, by func(figure) float64) {
	a, ok1 := j.of("latency", mine, by)
	b, ok2 := j.of("latency", other, by)
	if ok1 && ok2 {
		j.add(a <= b, what, fmt.Sprintf("%.1f ms", a), fmt.Sprintf("at most %s's: %.1f ms", other, b))
	}
}

func (j *judging) below(what, name string, by func(figure) float64, ms float64) {
	if v, ok := j.of("latency", name, by); ok {
		j.add(v <= ms, what, fmt.Sprintf("%.1f ms", v), fmt.Sprintf("at most %g ms", ms))
	}
}

// largest resident set of tallywire in any run of the drains and loads.
func largest(res results) (v float64) {
	for _, s := range []string{"a", "b", "a8", "snapshot"} {
		for _, n := range []string{"tallywire", "tallywire-alo"} {
			for _, f := range res[s][n] {
				v = max(v, f.rss)
			}
		}
	}
	return v
}

func judge(res results) []line {
	j := &judging{res: res}
	j.atLeast("A, beside Debezium", "a", "tallywire", "debezium", bulkDebezium)
	j.atLeast("A, beside pg_recvlogical", "a", "tallywire", "pg_recvlogical", bulkReceive)
	j.atLeast("A into 8 partitions, beside Debezium", "a8", "tallywire", "debezium", bulk8Debezium)
	j.atLeast("B, beside Debezium", "b", "tallywire", "debezium", oltpDebezium)
	j.atLeast("B, beside pg_recvlogical", "b", "tallywire", "pg_recvlogical", oltpReceive)
	if r, ok := ratio(res, "a", "tallywire", "debezium", self); ok {
		j.add(r <= cpuOfDebezium, "CPU per row on A, of Debezium's", fmt.Sprintf("%.3f", r), fmt.Sprintf("at most %g", cpuOfDebezium))
	}
	if v := largest(res); v > 0 {
		j.add(v <= rssLimit, "peak RSS, the largest of all runs", mib(v)+" MiB", "at most "+mib(rssLimit)+" MiB")
	}
	j.atLeast("initial snapshot, beside Debezium", "snapshot", "tallywire", "debezium", snapshotDebezium)
	j.atLeast("A, exactly-once beside at-least-once", "a", "tallywire", "tallywire-alo", exactlyOnceOfAtLeastOnce)
	j.noSlower("latency at-least-once, p50", "tallywire-alo", "debezium", p50)
	j.noSlower("latency at-least-once, p99", "tallywire-alo", "debezium", p99)
	j.below("latency exactly-once, p50", "tallywire", p50, 8)
	j.below("latency exactly-once, p99", "tallywire", p99, 20)
	j.noSlower("latency exactly-once, p50", "tallywire", "debezium-eo", p50)
	j.noSlower("latency exactly-once, p99", "tallywire", "debezium-eo", p99)
	j.below("latency exactly-once, broker's retry 1 ms, p50", "tallywire-1ms", p50, 6)
	j.below("latency exactly-once, broker's retry 1 ms, p99", "tallywire-1ms", p99, 12)
	if v, ok := j.of("start", "tallywire", first); ok {
		j.add(v < startLimit, "start to the first record", two(v)+" s", fmt.Sprintf("under %g s", startLimit))
	}
	return j.lines
}

// oneLine is the last line: what a reader of a log looks for.
func oneLine(res results) string {
	compare := func(section, other string, by func(figure) float64) string {
		if r, ok := ratio(res, section, "tallywire", other, by); ok {
			return times(r)
		}
		return "–"
	}
	var latency []string
	for _, n := range []string{"tallywire-alo", "debezium", "tallywire", "debezium-eo", "tallywire-1ms"} {
		if fs := res["latency"][n]; len(fs) > 0 {
			latency = append(latency, fmt.Sprintf("%s %.1f/%.1f", n, median(fs, p50), median(fs, p99)))
		}
	}
	if len(latency) == 0 {
		latency = []string{"–"}
	}
	size := "–"
	if v := largest(res); v > 0 {
		size = mib(v) + " MiB"
	}
	return fmt.Sprintf("A %s debezium %s pg_recvlogical, B %s debezium %s pg_recvlogical, A8 %s debezium, cpu %s debezium, rss %s, snapshot %s debezium, latency p50/p99 ms %s",
		compare("a", "debezium", steady), compare("a", "pg_recvlogical", steady), compare("b", "debezium", steady), compare("b", "pg_recvlogical", steady), compare("a8", "debezium", steady),
		compare("a", "debezium", self), size, compare("snapshot", "debezium", steady), strings.Join(latency, ", "))
}
