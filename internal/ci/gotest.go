// What `go test` says, read as it is said: a line for each package, the whole
// text of what was red, and counts for the table.

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

const module = "github.com/tallywire/tallywire"

// outcome is what became of a run of tests. Subtests count.
type outcome struct {
	passed, failed int
	skipped        []string
	red            map[string]string // package and test → what it printed; the package alone: outside of its tests
	seconds        map[string]float64
}

// event is one line of `go test -json` (go doc test2json; build events have an
// ImportPath).
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// goTest runs `go test -json` with the arguments and tells of it on w. The error
// says that the tests could not be run; red tests are in the outcome.
func goTest(ctx context.Context, w io.Writer, env []string, args ...string) (*outcome, error) {
	cmd := child(ctx, env, "go", append([]string{"test", "-json"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting go test: %w", err)
	}
	o, readErr := readEvents(stdout, w)
	err = cmd.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if readErr != nil {
		return nil, fmt.Errorf("reading what go test says: %w", readErr)
	}
	if err != nil && len(o.red) == 0 {
		return nil, fmt.Errorf("running go test %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return o, nil
}

// child is a command in a process group of its own, which ends whole with ctx:
// what a test started goes with it.
func child(ctx context.Context, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// readEvents reads events to their end.
func readEvents(r io.Reader, w io.Writer) (*outcome, error) {
	o := &outcome{red: map[string]string{}, seconds: map[string]float64{}}
	said := map[string][]byte{} // by package and test
	count := map[string]int{}
	lines := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) == 0 && err != nil {
			if err == io.EOF {
				return o, nil
			}
			return o, err
		}
		var e event
		if json.Unmarshal(line, &e) != nil { // not everything is an event: a build's own words
			fmt.Fprintf(w, "%s", line)
			continue
		}
		pkg := strings.TrimPrefix(strings.TrimPrefix(e.Package, module), "/")
		key := strings.TrimSuffix(pkg+" "+e.Test, " ")
		switch e.Action {
		case "output":
			said[key] = append(said[key], e.Output...)
		case "build-output":
			said[e.ImportPath] = append(said[e.ImportPath], e.Output...)
		case "build-fail":
			o.red[e.ImportPath] = string(said[e.ImportPath])
			fmt.Fprintf(w, "FAIL %s does not build\n%s", e.ImportPath, said[e.ImportPath])
		case "pass", "fail", "skip":
			if e.Test == "" {
				o.seconds[pkg] = e.Elapsed
				o.packageEnded(w, &e, pkg, count[pkg], said)
				continue
			}
			count[pkg]++
			switch e.Action {
			case "pass":
				o.passed++
				delete(said, key)
			case "skip":
				o.skipped = append(o.skipped, key)
			case "fail":
				o.failed++
				o.red[key] = string(said[key])
			}
		}
	}
}

func (o *outcome) packageEnded(w io.Writer, e *event, pkg string, n int, said map[string][]byte) {
	if e.Action != "fail" {
		if n > 0 {
			fmt.Fprintf(w, "ok   %6.1f s  %4d tests  %s\n", e.Elapsed, n, pkg)
		}
		return
	}
	fmt.Fprintf(w, "FAIL %6.1f s  %4d tests  %s\n", e.Elapsed, n, pkg)
	tests := 0
	for _, key := range slices.Sorted(maps.Keys(o.red)) {
		if strings.HasPrefix(key, pkg+" ") {
			tests++
			fmt.Fprintf(w, "---- %s\n%s", key, o.red[key])
		}
	}
	// A test that never ended (a panic, the timeout) has no event of its own.
	for _, key := range slices.Sorted(maps.Keys(said)) {
		if _, told := o.red[key]; !told && (strings.HasPrefix(key, pkg+" ") || key == pkg) && (tests == 0 || key == pkg) {
			fmt.Fprintf(w, "---- %s\n%s", key, said[key])
			o.red[key] = string(said[key])
		}
	}
	if tests == 0 {
		o.failed++
	}
	if len(o.red) == 0 {
		o.red[pkg] = "failed without a word"
	}
}

// add counts another outcome in.
func (o *outcome) add(p *outcome) {
	o.passed += p.passed
	o.failed += p.failed
	o.skipped = append(o.skipped, p.skipped...)
	maps.Copy(o.red, p.red)
	maps.Copy(o.seconds, p.seconds)
}

// close prints the closing line, which run reads, and gives errRed for a red
// one. A skipped test is red too: it did not run.
func (o *outcome) close(w io.Writer, maySkip bool) error {
	for _, key := range slices.Sorted(maps.Keys(o.red)) {
		fmt.Fprintln(w, "red:", key)
	}
	for _, key := range o.skipped {
		fmt.Fprintln(w, "skipped:", key)
	}
	fmt.Fprintf(w, "tests: %d passed, %d failed, %d skipped\n", o.passed, o.failed, len(o.skipped))
	if len(o.red) > 0 || o.failed > 0 || o.passed == 0 || len(o.skipped) > 0 && !maySkip {
		return errRed
	}
	return nil
}
