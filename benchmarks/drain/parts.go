// Parts: where the processor's time goes: to the servers, and within tallywire to its
// components.

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"github.com/tallywire/tallywire/benchmarks/internal/proc"
)

// part is what one took of the processor.
type part struct {
	name string
	cpu  time.Duration
}

// server is a process that takes part, with its children.
type server struct {
	name string
	pid  int
}

// meter measures from when it was made.
type meter struct {
	servers []server
	before  []time.Duration
	cpu     time.Duration // of this process
	profile bytes.Buffer  // of this process
	running bool
}

func (w *world) meter() (*meter, error) {
	m := &meter{servers: w.servers, cpu: processor()}
	for _, s := range m.servers {
		m.before = append(m.before, proc.Family(s.pid))
	}
	if w.profiled { // by somebody else: the process may have one profile
		return m, nil
	}
	if err := pprof.StartCPUProfile(&m.profile); err != nil {
		return nil, err
	}
	m.running = true
	return m, nil
}

// read gives what was taken until now, the most first. The first call ends the profile
// of components: later ones add what they took to all of them.
func (m *meter) read() ([]part, error) {
	var out []part
	for i, s := range m.servers {
		out = append(out, part{s.name, proc.Family(s.pid) - m.before[i]})
	}
	own := processor() - m.cpu
	m.stop()
	components, err := m.components()
	if err != nil {
		return nil, err
	}
	var sum time.Duration
	for _, c := range components {
		sum += c.cpu
	}
	for _, c := range components { // a profile samples; the kernel counts
		out = append(out, part{c.name, time.Duration(float64(c.cpu) / float64(sum) * float64(own))})
	}
	if sum == 0 {
		out = append(out, part{"tallywire", own})
	}
	slices.SortFunc(out, func(a, b part) int { return cmp.Compare(b.cpu, a.cpu) })
	return out, nil
}

func (m *meter) stop() {
	if m.running {
		pprof.StopCPUProfile()
		m.running = false
	}
}

// shared is the time that no component has: collecting garbage, the scheduler, and
// what all of them use.
const shared = "tallywire: garbage, scheduler, shared"

// components are those of tallywire, by the label of their goroutines.
func (m *meter) components() ([]part, error) {
	if m.profile.Len() == 0 {
		return nil, nil
	}
	p, err := profile.Parse(bytes.NewReader(m.profile.Bytes()))
	if err != nil {
		return nil, fmt.Errorf("reading the profile of a drain: %w", err)
	}
	at := slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == "cpu" })
	if at < 0 {
		return nil, fmt.Errorf("the profile of a drain has no CPU time")
	}
	var out []part
	for _, s := range p.Sample {
		name := shared
		if of := s.Label["component"]; len(of) > 0 {
			name = "tallywire: " + of[0]
		}
		i := slices.IndexFunc(out, func(o part) bool { return o.name == name })
		if i < 0 {
			i, out = len(out), append(out, part{name: name})
		}
		out[i].cpu += time.Duration(s.Value[at])
	}
	return out, nil
}

// table is the parts of runs, as the median time per change.
func table(b *strings.Builder, kind string, runs []run) {
	var names []string
	of := map[string][]float64{}
	var sums []float64
	for _, r := range runs {
		sum := 0.0
		for _, p := range r.parts {
			us := p.cpu.Seconds() * 1e6 / float64(r.changes)
			if of[p.name] == nil {
				names = append(names, p.name)
			}
			of[p.name] = append(of[p.name], us)
			sum += us
		}
		sums = append(sums, sum)
	}
	for _, v := range of {
		slices.Sort(v)
	}
	slices.Sort(sums)
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(median(of[b]), median(of[a])) })
	fmt.Fprintf(b, "\nProcessor time per change on %s parts, µs, medians: %.0f in all.\n\n| part | µs |\n|---|---|\n", kind, median(sums))
	for _, name := range names {
		fmt.Fprintf(b, "| %s | %.1f |\n", name, median(of[name]))
	}
}
