// Steadiness: each package's tests again and again, with two busy loops beside
// them, and a tally that is kept from run to run.

package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tallywire/tallywire/internal/testkit"
)

// round is one line of the tally: one package's tests, run once.
type round struct {
	When    time.Time `json:"when"`
	Tree    string    `json:"tree"`
	Package string    `json:"package"`
	// Binary is the SHA-256 of the test binary, and of the program where the
	// tests run that: rounds of a package count together as long as nothing
	// that is compiled into them changes.
	Binary  string   `json:"binary"`
	Seconds float64  `json:"seconds"`
	Tests   int      `json:"tests"`
	Red     []string `json:"red,omitempty"`
	Seeds   []string `json:"seeds,omitempty"` // what the tests printed of their seeds
	Log     string   `json:"log,omitempty"`
}

var seed = regexp.MustCompile(`\b[A-Z_]*SEED=\d+|-rapid\.seed=\d+|-rapid\.failfile="?[^" ]+`)

// steady runs rounds until each package has as many as asked for with its
// present binary.
func steady(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("steady", flag.ExitOnError)
	rounds := fs.Int("rounds", 10, "rounds of each package, counted with those of earlier runs")
	busy := fs.Int("busy", 2, "busy loops beside the tests")
	jobs := fs.Int("jobs", 1, "packages that run at the same time")
	bound := fs.Duration("for", 0, "start no round after this time; 0: no bound")
	show := fs.Bool("show", false, "only print the tally")
	if err := fs.Parse(args); err != nil {
		return err
	}
	dir, err := record(ctx, "steady")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tally, err := readTally(filepath.Join(dir, "tally.jsonl"))
	if err != nil {
		return err
	}
	ps := fs.Args()
	if len(ps) == 0 {
		if ps, err = packages(ctx); err != nil {
			return err
		}
	}
	id, err := tree(ctx)
	if err != nil {
		return err
	}
	if err := testkit.Artefacts(ctx); err != nil {
		return err
	}
	built, err := buildTests(ctx, filepath.Join(dir, "bin"), ps)
	if err != nil {
		return err
	}
	if !*show {
		began := time.Now()
		for range *busy {
			go func() {
				for n := 0; ctx.Err() == nil; n++ {
				}
			}()
		}
		env, stop, err := sharing(ctx)
		if err != nil {
			return err
		}
		late := func() bool { return ctx.Err() != nil || *bound > 0 && time.Since(began) > *bound }
		err = gather(ctx, tally, dir, id, built, *rounds, *jobs, env, late)
		if err := errors.Join(err, stop()); err != nil {
			return err
		}
	}
	return report(os.Stdout, tally.rounds, built, *rounds)
}

// built is a package's test binary.
type built struct{ pkg, dir, file, sum string }

func buildTests(ctx context.Context, into string, ps []string) ([]built, error) {
	var all []built
	for _, p := range ps {
		dir := strings.TrimPrefix(p, "./")
		if tests, err := filepath.Glob(filepath.Join(dir, "*_test.go")); err != nil || len(tests) == 0 {
			continue
		}
		b := built{pkg: dir, dir: dir, file: filepath.Join(into, strings.ReplaceAll(dir, "/", "-")+".test")}
		if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-o", b.file, "./"+dir).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building the tests of %s: %w\n%s", dir, err, out)
		}
		files := []string{b.file}
		if p == crashPackage { // it kills the program, which it does not import
			program := filepath.Join(into, "tallywire")
			if out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", program, "./cmd/tallywire").CombinedOutput(); err != nil {
				return nil, fmt.Errorf("building the program: %w\n%s", err, out)
			}
			files = append(files, program)
		}
		var err error
		if b.sum, err = sumOf(files...); err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// sumOf is a hash of what files hold, in hex.
func sumOf(files ...string) (string, error) {
	h := sha256.New()
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// tally is the file of rounds.
type tally struct {
	mu     sync.Mutex
	file   string
	rounds []round
}

func readTally(file string) (*tally, error) {
	t := &tally{file: file}
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var r round
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return t, fmt.Errorf("reading %s: %w", file, err)
		}
		t.rounds = append(t.rounds, r)
	}
	return t, lines.Err()
}

func (t *tally) add(r round) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rounds = append(t.rounds, r)
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return appendLine(t.file, string(line))
}

// with is how many rounds a binary has had.
func (t *tally) with(b built) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, r := range t.rounds {
		if r.Package == b.pkg && r.Binary == b.sum {
			n++
		}
	}
	return n
}

// gather runs rounds: always of the package that has the fewest.
func gather(ctx context.Context, t *tally, dir, tree string, all []built, want, jobs int, env []string, late func() bool) error {
	var mu sync.Mutex
	running := map[string]bool{}
	next := func() (b built, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		least := want
		for _, c := range all {
			if n := t.with(c); n < least && !running[c.pkg] {
				b, least, ok = c, n, true
			}
		}
		running[b.pkg] = running[b.pkg] || ok
		return b, ok
	}
	var wg sync.WaitGroup
	errs := make([]error, jobs)
	for i := range jobs {
		wg.Go(func() {
			for !late() {
				b, ok := next()
				if !ok {
					return
				}
				r, err := once(ctx, dir, b, env)
				if err == nil {
					r.Tree = tree
					err = t.add(r)
				}
				if err != nil {
					errs[i] = err
					return
				}
				mu.Lock()
				delete(running, b.pkg)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// once runs one round.
func once(ctx context.Context, dir string, b built, env []string) (round, error) {
	r := round{When: time.Now().UTC(), Package: b.pkg, Binary: b.sum}
	cmd := child(ctx, env, "go", "tool", "test2json", "-t", "-p", module+"/"+b.pkg, b.file, "-test.v=test2json", "-test.timeout=40m")
	cmd.Dir = b.dir
	if os.Getenv("CHAOS_KILLS") == "" {
		cmd.Env = append(cmd.Env, "CHAOS_KILLS=4") // more rounds say more than more kills
	}
	var raw strings.Builder
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	cmd.Stderr = &raw
	if err := cmd.Start(); err != nil {
		return r, err
	}
	o, err := readEvents(stdout, &raw)
	ended := cmd.Wait() // red tests are in the outcome
	if err != nil || ctx.Err() != nil {
		return r, errors.Join(err, ctx.Err())
	}
	if ended != nil && len(o.red) == 0 {
		o.red[b.pkg] = raw.String()
	}
	r.Seconds, r.Tests, r.Red = time.Since(r.When).Seconds(), o.passed+o.failed, slices.Sorted(maps.Keys(o.red))
	word := "green"
	if len(r.Red) > 0 {
		word = "RED " + strings.Join(r.Red, ", ")
		r.Log = filepath.Join(dir, fmt.Sprintf("%s-%s.log", strings.ReplaceAll(b.pkg, "/", "-"), r.When.Format("20060102-150405")))
		for _, key := range r.Red {
			fmt.Fprintf(&raw, "---- %s\n%s", key, o.red[key])
		}
		r.Seeds = seed.FindAllString(raw.String(), 10)
		if err := os.WriteFile(r.Log, []byte(raw.String()), 0o644); err != nil {
			return r, err
		}
	}
	fmt.Printf("%s %6.1f s  %4d tests  %s %s\n", r.When.Format(time.TimeOnly), r.Seconds, r.Tests, b.pkg, word)
	return r, nil
}

// report prints the tally: rounds by package, and each test that was ever red.
// It is red while a package has too few green rounds with its present binary, or
// a red one.
func report(w io.Writer, rounds []round, all []built, want int) error {
	fmt.Fprintf(w, "\nrounds with the present tests (of %d), red ones, and rounds ever\n", want)
	bad := false
	for _, b := range all {
		n, red, ever := 0, 0, 0
		for _, r := range rounds {
			if r.Package != b.pkg {
				continue
			}
			ever++
			if r.Binary == b.sum {
				n++
				red += min(1, len(r.Red))
			}
		}
		bad = bad || red > 0 || n < want
		fmt.Fprintf(w, "%4d %4d %4d  %s\n", n, red, ever, b.pkg)
	}
	var tests []string
	times := map[string][]round{}
	for _, r := range rounds {
		for _, test := range r.Red {
			if times[test] == nil {
				tests = append(tests, test)
			}
			times[test] = append(times[test], r)
		}
	}
	slices.SortFunc(tests, func(a, b string) int {
		return cmp.Or(len(times[b])-len(times[a]), strings.Compare(a, b))
	})
	for _, test := range tests {
		last := times[test][len(times[test])-1]
		fmt.Fprintf(w, "was red %d times: %s; last %s, tree %.12s, %s %s\n", len(times[test]), test, last.When.Format(time.DateTime), last.Tree, strings.Join(last.Seeds, " "), last.Log)
	}
	if bad {
		return errRed
	}
	return nil
}
