// Command mutants takes each guarantee out of the code, one at a time, and sees
// that its test goes red. A mutant is a file testdata/mutants/NAME.mutant that
// names a piece of a declaration and what stands there instead; the tree itself
// is not touched.
//
//	go run ./internal/mutants                  all of them
//	go run ./internal/mutants NAME…            these
//	go run ./internal/mutants -changed REV     those of the packages changed since, and three others
//	go run ./internal/mutants -apply-only      that all pieces are found and build, without a test
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	failed, err := mutants(ctx)
	stop()
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	case failed > 0:
		os.Exit(1)
	}
}

// mutants does what the command line asks for, and gives how many failed.
func mutants(ctx context.Context) (int, error) {
	r := runner{out: os.Stdout}
	rev := flag.String("changed", "", "only mutants of packages changed since this `revision`, and three others")
	list := flag.Bool("list", false, "list the mutants and run nothing")
	flag.DurationVar(&r.span, "for", 0, "start no mutant after this time, and name those left out; 0: no bound")
	flag.BoolVar(&r.applyOnly, "apply-only", false, "find and build the pieces and run no test")
	flag.BoolVar(&r.clean, "clean", false, "run each test without its mutant first: it must pass")
	flag.BoolVar(&r.verbose, "v", false, "print what the tests print")
	flag.Parse()

	var err error
	if r.root, err = moduleRoot(); err != nil {
		return 0, err
	}
	chosen, err := readAll(r.root)
	if err != nil {
		return 0, err
	}
	switch {
	case *rev != "" && flag.NArg() > 0:
		return 0, errors.New("names and -changed exclude each other")
	case *rev != "":
		chosen, err = changedSince(ctx, r.root, *rev, chosen)
	case flag.NArg() > 0:
		chosen, err = named(chosen, flag.Args())
	}
	if err != nil {
		return 0, err
	}
	if *list {
		for _, m := range chosen {
			fmt.Printf("%-40s %-8s %s\n", m.name, strings.Join(m.invariants, ", "), m.what)
		}
		return 0, nil
	}
	return r.run(ctx, chosen)
}

// moduleRoot is the folder with go.mod, here or above.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the module: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("finding the module: no go.mod here or above")
		}
	}
}

// runner runs mutants and reports each with a line.
type runner struct {
	root      string
	out       io.Writer
	applyOnly bool
	clean     bool
	verbose   bool
	span      time.Duration
}

// run gives how many mutants failed.
func (r *runner) run(ctx context.Context, chosen []*mutant) (failed int, err error) {
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return 0, fmt.Errorf("making a folder for the mutants: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	began := time.Now()
	// A mutant is built while the test of the one before it runs.
	built := make(chan *ready)
	go func() {
		defer close(built)
		for _, m := range chosen {
			if r.span > 0 && time.Since(began) > r.span {
				return
			}
			b := &ready{mutant: m}
			if !r.applyOnly {
				b = m.build(ctx, r.root, filepath.Join(dir, m.name), true)
			}
			select {
			case built <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	n := 0
	for b := range built {
		n++
		start := time.Now()
		red, err := r.try(ctx, b, dir)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			failed++
			fmt.Fprintf(r.out, "FAIL %s: %v\n", b.name, err)
		} else {
			fmt.Fprintf(r.out, "ok   %s %.1fs: %s\n", b.name, time.Since(start).Seconds(), red)
		}
		_ = os.RemoveAll(filepath.Join(dir, b.name)) // binaries are large; what stays goes with the folder
	}
	if ctx.Err() != nil {
		for range built { // the folder goes away only when nobody builds there
		}
		return failed, fmt.Errorf("stopped: %w", ctx.Err())
	}
	for _, m := range chosen[n:] {
		fmt.Fprintf(r.out, "left out: %s\n", m.name)
	}
	fmt.Fprintf(r.out, "%d mutants, %d failed, %.0f s\n", n, failed, time.Since(began).Seconds())
	return failed, nil
}

// try gives what made a mutant's test red, or why the mutant was not caught.
func (r *runner) try(ctx context.Context, b *ready, dir string) (string, error) {
	if r.applyOnly {
		return "applies", b.compile(ctx, r.root, filepath.Join(dir, b.name))
	}
	if b.problem != nil {
		return "", b.problem
	}
	if r.clean {
		plain := b.build(ctx, r.root, filepath.Join(dir, b.name, "clean"), false)
		if plain.problem != nil {
			return "", fmt.Errorf("without the mutant: %w", plain.problem)
		}
		if out, _, err := plain.run(ctx, r.root); err != nil {
			return "", fmt.Errorf("red without the mutant: %w\n%s", err, tail(out))
		}
	}
	out, hung, err := b.run(ctx, r.root)
	if r.verbose {
		fmt.Fprintln(r.out, out)
	}
	return b.judge(out, hung, err)
}
