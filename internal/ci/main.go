// Command ci runs the checks of this repository in their tiers, which are
// defined here and nowhere else (docs/decisions/0030-checks-in-tiers.md):
//
//	check   for every commit: build, vet, lint of what changed, the tests that need no Java and no chaos
//	test    all packages on real servers, and a slice of the crash tests
//	race    the unit tests under the race detector
//	fuzz    fuzz targets: all, or a slice
//	run     what a change must pass: the above and more, ending in a table
//	full    everything, in parts that are recorded with the tree
//	steady  test packages again and again beside two busy loops, with a tally
//
// The Makefile has a target for each, and takes the machine-wide lock.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

var commands = map[string]func(context.Context, []string) error{
	"check": check, "test": test, "race": race, "fuzz": fuzz, "run": run, "full": full, "steady": steady,
}

// errRed is a failure that was told already.
var errRed = errors.New("red")

func main() {
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: go run ./internal/ci check | test | race | fuzz | run | full | steady [flags]; the Makefile says what each does")
	}
	flag.Parse()
	command := commands[flag.Arg(0)]
	if command == nil {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, flag.Args()[1:])
	stop()
	if err != nil && !errors.Is(err, errRed) {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
	}
	if err != nil {
		os.Exit(1)
	}
}
