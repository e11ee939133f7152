// The tier that a change must pass, and the one for an issue's end: steps, one
// after the other, and a table of what each was.

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// step is a command and what the table says of it.
type step struct {
	name string
	env  []string
	argv []string

	seconds         float64
	tests, skipped  int
	counted, failed bool
}

func command(name string, argv ...string) *step { return &step{name: name, argv: argv} }

func (s *step) with(env ...string) *step {
	s.env = env
	return s
}

// ciSteps are what every change must pass, on two cores in 20 minutes. Nothing
// among them is judged by a clock: on a busy machine that says nothing of the
// code.
func ciSteps() []*step {
	return []*step{
		command("build", "make", "build"),
		command("test", "make", "test", "TEST=-beside-race"),
		command("race", "make", "race"),
		command("lint", "make", "lint"),
		command("generated files", "deploy/fresh-docs.sh"),
		command("benchmarks once", "go", "test", "-run", "^$", "-bench", ".", "-benchtime", "1x", "./change/...", "./avro/...", "./sources/...", "./benchmarks/..."),
		command("fuzz, a slice", "make", "fuzz", "FUZZ=-time 5s -since HEAD^1 -for 1m"),
		command("mutants, a slice", "make", "mutants", "MUTANTS=-changed HEAD^1 -for 2m"),
		command("demo", "make", "demo", "ARGS=--for 20s --state-dir .tallywire-ci"),
	}
}

// fullSteps are everything; each is recorded when it was green.
func fullSteps() []*step {
	return []*step{
		command("build", "make", "build"),
		command("test", "make", "test", "TEST=-all"),
		command("race", "make", "race"),
		command("lint", "make", "lint"),
		command("generated files", "deploy/fresh-docs.sh"),
		command("benchmarks", "make", "bench"),
		command("fuzz", "make", "fuzz", "FUZZ=-time 30s"),
		command("mutants", "make", "mutants"),
		command("crash over TLS", "go", "test", "-count=1", "-v", "-timeout", "20m", "-run", "^TestChaosKill$", "./internal/chaos").with("CHAOS_KILLS=5", "CHAOS_TRANSPORT=tls"),
		command("crash over a Unix socket", "go", "test", "-count=1", "-v", "-timeout", "20m", "-run", "^TestChaosKill$", "./internal/chaos").with("CHAOS_KILLS=5", "CHAOS_TRANSPORT=unix"),
		command("demo", "make", "demo", "ARGS=--for 60s --state-dir .tallywire-ci"),
		command("demo on real parts", "make", "demo", "KAFKA=real", "REDIS=real", "ARGS=--for 60s --reset --state-dir .tallywire-ci"),
		command("real applications", "make", "applications"),
		command("drain", "go", "run", "./benchmarks/drain", "-runs", "1", "-out", os.DevNull),
	}
}

// run is what .ci/run runs.
func run(ctx context.Context, _ []string) error {
	steps := ciSteps()
	for _, s := range steps {
		s.do(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return table(os.Stdout, steps)
}

// do runs a step with its output shown, and reads from it how many tests ran.
func (s *step) do(ctx context.Context) {
	began := time.Now()
	fmt.Printf("\n== %s (%s)\n", s.name, began.Format(time.TimeOnly))
	cmd := child(ctx, s.env, s.argv[0], s.argv[1:]...)
	read, write := io.Pipe()
	cmd.Stdout, cmd.Stderr = write, write
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.read(io.TeeReader(read, os.Stdout))
	}()
	err := errors.Join(cmd.Run(), write.Close())
	<-done
	s.seconds = time.Since(began).Seconds()
	if err != nil {
		s.failed = true
		fmt.Printf("FAIL %s: %v\n", s.name, err)
	}
}

// read takes the counts from the closing line of goTest.
func (s *step) read(r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		var passed, failed, skipped int
		if n, _ := fmt.Sscanf(string(bytes.TrimSpace(line)), "tests: %d passed, %d failed, %d skipped", &passed, &failed, &skipped); n == 3 {
			s.counted, s.tests, s.skipped = true, s.tests+passed+failed, s.skipped+skipped
		}
		if err != nil {
			return
		}
	}
}

// table is the end of a run.
func table(w io.Writer, steps []*step) error {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "step\tseconds\ttests\tskipped\t")
	var seconds float64
	var tests, skipped int
	var red []string
	for _, s := range steps {
		counts, word := "\t", ""
		if s.counted {
			counts = fmt.Sprintf("%d\t%d", s.tests, s.skipped)
		}
		if s.failed {
			word = "FAIL"
			red = append(red, s.name)
		}
		fmt.Fprintf(t, "%s\t%.0f\t%s\t%s\n", s.name, s.seconds, counts, word)
		seconds, tests, skipped = seconds+s.seconds, tests+s.tests, skipped+s.skipped
	}
	fmt.Fprintf(t, "all\t%.0f\t%d\t%d\t\n", seconds, tests, skipped)
	if err := t.Flush(); err != nil {
		return err
	}
	if len(red) > 0 {
		fmt.Fprintf(w, "red: %s\n", strings.Join(red, ", "))
		return errRed
	}
	return nil
}

// full runs the parts that were not green yet on this tree, and records each
// that is, as a line "tree<tab>part<tab>seconds<tab>when" of full-green in
// git's folder.
func full(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("full", flag.ExitOnError)
	list := fs.Bool("list", false, "only say which parts are green on this tree")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if extra, err := git(ctx, "ls-files", "--others", "--exclude-standard"); err != nil || extra != "" {
		return errors.Join(err, fmt.Errorf("files that git does not track would be part of what is green: commit or remove %s", strings.Join(strings.Fields(extra), ", ")))
	}
	id, err := tree(ctx)
	if err != nil {
		return err
	}
	file, err := record(ctx, "full-green")
	if err != nil {
		return err
	}
	green, err := recorded(file, id)
	if err != nil {
		return err
	}
	var did []*step
	missing := 0
	for _, s := range fullSteps() {
		if fs.NArg() > 0 && !slices.Contains(fs.Args(), s.name) {
			continue
		}
		if line := green[s.name]; line != "" {
			fmt.Println("green on this tree:", strings.ReplaceAll(line, "\t", " "))
			continue
		}
		if missing++; *list {
			fmt.Println("not yet:", s.name)
			continue
		}
		s.do(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		did = append(did, s)
		if s.failed {
			continue
		}
		if now, err := tree(ctx); err != nil || now != id {
			return errors.Join(err, fmt.Errorf("the tree changed while %q ran: it is not recorded", s.name))
		}
		if err := appendLine(file, fmt.Sprintf("%s\t%s\t%.0f\t%s", id, s.name, s.seconds, time.Now().UTC().Format(time.RFC3339))); err != nil {
			return err
		}
	}
	if *list || len(did) == 0 {
		fmt.Printf("tree %s: %d parts are missing\n", id, missing)
		return nil
	}
	return table(os.Stdout, did)
}

// recorded are the lines of a tree, by part.
func recorded(file, tree string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	green := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(strings.TrimSpace(line), "\t"); len(f) == 4 && f[0] == tree {
			green[f[1]] = strings.Join(f[1:], "\t")
		}
	}
	return green, nil
}

func appendLine(file, line string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}
