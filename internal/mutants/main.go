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
	var r runner
	rev := flag.String("changed", "", "only mutants of packages changed since this `revision`, and three others")
	list := flag.Bool("list", false, "list the mutants and run nothing")
	flag.BoolVar(&r.applyOnly, "apply-only", false, "find and build the pieces and run no test")
	flag.BoolVar(&r.clean, "clean", false, "run each test without its mutant first: it must pass")
	flag.BoolVar(&r.verbose, "v", false, "print what the tests print")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	root, err := moduleRoot()
	if err != nil {
		exit(err)
	}
	r.root, r.out = root, os.Stdout
	chosen, err := readAll(root)
	if err != nil {
		exit(err)
	}
	switch {
	case *rev != "" && flag.NArg() > 0:
		exit(fmt.Errorf("names and -changed exclude each other"))
	case *rev != "":
		chosen, err = changedSince(root, *rev, chosen)
	case flag.NArg() > 0:
		chosen, err = named(chosen, flag.Args())
	}
	if err != nil {
		exit(err)
	}
	if *list {
		for _, m := range chosen {
			fmt.Printf("%-40s %s (%s, invariant %s)\n", m.name, m.what, m.pkg, strings.Join(m.invariants, ", "))
		}
		return
	}
	failed, err := r.run(ctx, chosen)
	if err != nil {
		exit(err)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func exit(err error) {
	fmt.Fprintln(os.Stderr, "mutants:", err)
	os.Exit(2)
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
			return "", fmt.Errorf("finding the module: no go.mod here or above")
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
}

// run gives how many mutants failed.
func (r *runner) run(ctx context.Context, chosen []*mutant) (int, error) {
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return 0, fmt.Errorf("making a folder for the mutants: %w", err)
	}
	defer os.RemoveAll(dir)
	began, failed := time.Now(), 0
	// A mutant is built while the test of the one before it runs.
	built := make(chan *ready)
	go func() {
		defer close(built)
		for _, m := range chosen {
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
	for b := range built {
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
		os.RemoveAll(filepath.Join(dir, b.name))
	}
	if ctx.Err() != nil {
		for range built { // the folder goes away only when nobody builds there
		}
		return failed, fmt.Errorf("stopped: %w", ctx.Err())
	}
	fmt.Fprintf(r.out, "%d mutants, %d failed, %.0f s\n", len(chosen), failed, time.Since(began).Seconds())
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
		out, _, err := plain.run(ctx, r.root)
		if err != nil || !ran(out, b.test) {
			return "", fmt.Errorf("red without the mutant: %v\n%s", err, tail(out))
		}
	}
	out, hung, err := b.run(ctx, r.root)
	if r.verbose {
		fmt.Fprintln(r.out, out)
	}
	return b.judge(out, hung, err)
}
