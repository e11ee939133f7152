// The tiers that are tests: check, test, race, fuzz.

package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

// needJava are the tests outside of the crash suite that run a JVM whatever is
// asked; those that run on both brokers leave Kafka out with -short. A test
// holds the names true.
var needJava = []string{
	"TestEndHanging", "TestTransactional", "TestTransactionalOutlivesABroker", "TestKafkaKillRestartTool", "TestPythonReadsThroughApicurio", "TestTwoRegistriesOnApacheKafka",
	"TestPythonReadsThroughTheEmbeddedRegistry", "TestPythonWritesWhatWeRead",
}

// crashTests take turns in `test`, one for each commit beside TestChaosKill;
// `full` runs them all.
var crashTests = []string{"TestChaosAllAtOnce", "TestChaosKillWithoutReference", "TestBadInput", "TestChaosLoad", "TestChaosSweep", "TestChaosServers", "TestChaosKafkaKilled", "TestChaosReset", "TestChaosUpgrade", "TestChaosTruncate", "TestChaosHandOver", "TestChaosProcesses", "TestChaosLookups"}

const crashPackage = "./internal/chaos"

// applicationsPackage installs real applications, in minutes and from the
// network: it is a part of `full` and of nothing else.
const applicationsPackage = "./internal/applications"

// racePackages are those whose goroutines meet.
var racePackages = []string{
	"./change/...", "./avro/...", "./pipeline/...", "./transforms/...", "./internal/config/...", "./internal/secret/...", "./internal/obs/...",
}

// longest are the packages that take longest: begun first, so that nobody waits
// for one of them alone in the end.
var longest = []string{"./pipeline/ingest", "./pipeline/internal/consume", "./pipeline/deliver", "./pipeline/transform", "./sources/postgres/wire", "./internal/demo/truth"}

// packages are those of the module with the tests of a tier, the longest first.
func packages(ctx context.Context, but ...string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "./...").Output()
	if err != nil {
		return nil, fmt.Errorf("listing the packages: %w", err)
	}
	var ps []string
	for _, p := range strings.Fields(string(out)) {
		p = "./" + strings.TrimPrefix(strings.TrimPrefix(p, module), "/")
		if p != applicationsPackage && !slices.Contains(but, p) {
			ps = append(ps, p)
		}
	}
	first := func(p string) int {
		if i := slices.Index(longest, p); i >= 0 {
			return i
		}
		return len(longest)
	}
	slices.SortStableFunc(ps, func(a, b string) int { return first(a) - first(b) })
	return ps, nil
}

// sharing starts the Postgres that the packages of a run share and gives the
// environment that says so.
func sharing(ctx context.Context) (env []string, stop func() error, err error) {
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Params: testkit.SharedParams})
	if err != nil {
		return nil, nil, err
	}
	return []string{testkit.Environ(pg)}, pg.Stop, nil
}

// check is for every commit.
func check(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("check", flag.ExitOnError)
	since := fs.String("since", base(ctx), "lint the packages that changed since this revision")
	if err := fs.Parse(args); err != nil {
		return err
	}
	dirs, err := changed(ctx, *since)
	if err != nil {
		return err
	}
	if err := say(ctx, "build", "go", "build", "./..."); err != nil {
		return err
	}
	if err := say(ctx, "vet", "go", "vet", "./..."); err != nil {
		return err
	}
	if len(dirs) > 0 {
		if err := say(ctx, "lint", "deploy/lint.sh", dirs...); err != nil {
			return err
		}
	}
	if err := testkit.PostgresArtefacts(ctx); err != nil {
		return err
	}
	ps, err := packages(ctx, crashPackage)
	if err != nil {
		return err
	}
	env, stop, err := sharing(ctx)
	if err != nil {
		return err
	}
	// What did not change since it was green is not run again.
	o, err := goTest(ctx, os.Stdout, env, append([]string{"-short", "-vet=off", "-p", "3", "-timeout", "10m", "-skip", "^(" + strings.Join(needJava, "|") + ")$"}, ps...)...)
	if err := stop(); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	return o.close(os.Stdout, true)
}

// say runs a command with what it prints, and says how long it took.
func say(ctx context.Context, what, name string, args ...string) error {
	began := time.Now()
	cmd := child(ctx, nil, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Printf("ok   %6.1f s  %s\n", time.Since(began).Seconds(), what)
	return nil
}

// test is all packages on real servers, and of the crash tests TestChaosKill
// and one other in turn; with -all every one of them, and with -beside-race none
// that `race` runs as well.
func test(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("test", flag.ExitOnError)
	all := fs.Bool("all", false, "the whole crash suite")
	beside := fs.Bool("beside-race", false, "leave out what make race runs: packages without a server of ours, and kfake where there is Kafka")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := testkit.Artefacts(ctx); err != nil {
		return err
	}
	left := []string{crashPackage}
	if *beside {
		raced, err := sameUnderRace(ctx)
		if err != nil {
			return err
		}
		left = append(left, raced...)
	}
	ps, err := packages(ctx, left...)
	if err != nil {
		return err
	}
	n, err := turn(ctx)
	if err != nil {
		n = 0 // not a clone: an archive of the sources
	}
	slice, kills := "^(TestParseTestDecoding|TestBadConfiguration|TestChaosKill|"+crashTests[n%len(crashTests)]+")$", "4"
	if *all {
		slice, kills = ".", "30"
	}
	if os.Getenv("CHAOS_KILLS") == "" {
		if err := os.Setenv("CHAOS_KILLS", kills); err != nil {
			return err
		}
	}
	env, stop, err := sharing(ctx)
	if err != nil {
		return err
	}
	if *beside {
		env = append(env, testkit.KafkaAlone+"=1")
	}
	// Tests mostly let time pass: beside them there is room, on a busy machine
	// too.
	var wg sync.WaitGroup
	var crash *outcome
	var crashErr error
	wg.Go(func() {
		crash, crashErr = goTest(ctx, os.Stdout, env, "-count=1", "-timeout", "40m", "-run", slice, crashPackage)
	})
	o, err := goTest(ctx, os.Stdout, env, append([]string{"-count=1", "-timeout", "15m", "-p", "3"}, ps...)...)
	wg.Wait()
	if err := stop(); err != nil {
		return err
	}
	for _, err := range []error{err, crashErr} {
		if err != nil {
			return err
		}
	}
	o.add(crash)
	return o.close(os.Stdout, false)
}

// moreWithoutShort is in a test file that runs more without -short.
var moreWithoutShort = append([]string{"testing.Short", "OnBoth", "SharedKafka"}, needJava...)

// sameUnderRace are the packages whose tests `race` runs all of.
func sameUnderRace(ctx context.Context) ([]string, error) {
	root, err := git(ctx, "rev-parse", "--show-toplevel")
	if err != nil {
		return nil, err
	}
	list := exec.CommandContext(ctx, "go", append([]string{"list", "-f", "{{.Dir}}"}, racePackages...)...)
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the packages: %w", err)
	}
	var same []string
	for _, dir := range strings.Fields(string(out)) {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			return nil, err
		}
		more := false
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			more = more || slices.ContainsFunc(moreWithoutShort, func(s string) bool { return strings.Contains(string(text), s) })
		}
		if !more {
			same = append(same, "."+strings.TrimPrefix(dir, root))
		}
	}
	return same, nil
}

// race is the unit tests under the race detector.
func race(ctx context.Context, _ []string) error {
	if err := testkit.PostgresArtefacts(ctx); err != nil {
		return err
	}
	env, stop, err := sharing(ctx)
	if err != nil {
		return err
	}
	o, err := goTest(ctx, os.Stdout, env, append([]string{"-race", "-short", "-vet=off", "-count=1", "-timeout", "15m", "-p", "3"}, racePackages...)...)
	if err := stop(); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	return o.close(os.Stdout, false)
}

// fuzz runs fuzz targets: all of them, or those of changed packages and one
// other in turn; within a time, if need be, beginning with another one each time.
func fuzz(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("fuzz", flag.ExitOnError)
	span := fs.String("time", "10s", "how long each target runs (20000x: how often)")
	since := fs.String("since", "", "only those of packages that changed since this revision, and one other in turn")
	bound := fs.Duration("for", 0, "start no target after this time, and name those left out; 0: no bound")
	if err := fs.Parse(args); err != nil {
		return err
	}
	began := time.Now()
	found, err := git(ctx, "grep", "--untracked", "-nE", `^func Fuzz[A-Z]`, "--", "*_test.go")
	if err != nil {
		return err
	}
	type target struct{ dir, name string }
	var all, slice []target
	for line := range strings.SplitSeq(found, "\n") {
		file, rest, _ := strings.Cut(line, ":")
		_, decl, _ := strings.Cut(rest, "func ")
		name, _, _ := strings.Cut(decl, "(")
		all = append(all, target{file[:strings.LastIndexByte(file, '/')], name})
	}
	slice = all
	if *since != "" {
		dirs, err := changed(ctx, *since)
		if err != nil {
			return err
		}
		n, err := turn(ctx)
		if err != nil {
			return err
		}
		slice = nil
		for i, t := range all {
			if slices.Contains(dirs, t.dir) || i == n%len(all) {
				slice = append(slice, t)
			}
		}
		at := n % len(slice)
		slice = slices.Concat(slice[at:], slice[:at])
	}
	ran := 0
	for _, t := range slice {
		if *bound > 0 && time.Since(began) > *bound {
			fmt.Printf("left out: %s in %s\n", t.name, t.dir)
			continue
		}
		ran++
		cmd := child(ctx, nil, "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$", "-fuzztime", *span, "-fuzzminimizetime", "1s", "./"+t.dir)
		out, err := cmd.CombinedOutput()
		if err != nil && endedAtItsTime(string(out), t.name) {
			err = nil
		}
		if err != nil {
			fmt.Printf("%s\nFAIL %s in %s\n", out, t.name, t.dir)
			return errRed
		}
		last := strings.Split(strings.TrimSpace(string(out)), "\n")
		fmt.Printf("ok   %s in %s: %s\n", t.name, t.dir, last[max(0, len(last)-3)])
	}
	fmt.Printf("%d of %d fuzz targets ran for %s each\n", ran, len(all), *span)
	return nil
}

// endedAtItsTime reports whether a fuzz target is red for nothing but that its time
// was over: up to Go 1.26 the coordinator takes its own deadline for a fault when it
// hears of it before its workers do (go.dev/issue/75804). A target that found
// something says what, and which file has it.
func endedAtItsTime(out, name string) bool {
	_, rest, is := strings.Cut(out, "--- FAIL: "+name+" (")
	_, rest, cut := strings.Cut(rest, "s)\n")
	return is && cut && strings.HasPrefix(rest, "    context deadline exceeded\nFAIL\n")
}
