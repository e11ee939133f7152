// Building a mutant beside the tree, running its test, and what that says.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const (
	testTimeout = 5 * time.Minute
	hangTimeout = time.Minute      // for a mutant that is expected to hang
	killAfter   = 30 * time.Second // past the timeout that the test has of itself
)

// ready is a mutant whose test can be run.
type ready struct {
	*mutant
	env     []string // with the overlay, for what the test itself builds
	binary  string
	problem error // why there is no binary
}

// overlay writes the mutated files, and the list of them that the go command
// reads, into dir. It gives the environment in which every go command, one that
// a test starts too, sees them.
func (m *mutant) overlay(root, dir string) ([]string, error) {
	files, err := m.apply(root)
	if err != nil {
		return nil, err
	}
	replace := map[string]string{}
	for file, text := range files {
		to := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(to, text, 0o600); err != nil {
			return nil, fmt.Errorf("writing mutant %s: %w", m.name, err)
		}
		replace[file] = to
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, fmt.Errorf("writing mutant %s: %w", m.name, err)
	}
	name := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(name, list, 0o600); err != nil {
		return nil, fmt.Errorf("writing mutant %s: %w", m.name, err)
	}
	flags := strings.TrimSpace(os.Getenv("GOFLAGS") + " '-overlay=" + name + "'")
	return append(os.Environ(), "GOFLAGS="+flags), nil
}

// build makes the test's binary of the tree, with the mutant in it or without.
func (m *mutant) build(ctx context.Context, root, dir string, mutated bool) *ready {
	r := &ready{mutant: m, env: os.Environ(), binary: filepath.Join(dir, "test")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.problem = err
		return r
	}
	if mutated {
		if r.env, r.problem = m.overlay(root, dir); r.problem != nil {
			return r
		}
		// The test is to be red: what it waits for may never come.
		if os.Getenv(patience) == "" {
			r.env = append(r.env, patience+"=10s")
		}
	}
	out, err := goCommand(ctx, root, r.env, "test", "-c", "-vet=off", "-o", r.binary, m.testPackage)
	if err != nil {
		r.problem = fmt.Errorf("does not build: %w\n%s", err, out)
	} else if _, err := os.Stat(r.binary); err != nil {
		r.problem = fmt.Errorf("did not run: %s has no tests", m.testPackage)
	}
	return r
}

// compile sees whether the mutant builds, without its test.
func (m *mutant) compile(ctx context.Context, root, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	env, err := m.overlay(root, dir)
	if err != nil {
		return err
	}
	if out, err := goCommand(ctx, root, env, "build", "-o", os.DevNull, m.pkg); err != nil {
		return fmt.Errorf("does not build: %w\n%s", err, out)
	}
	return nil
}

func goCommand(ctx context.Context, root string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = root, env
	return cmd.CombinedOutput()
}

// run runs the test and gives what it printed. Past its time it is killed with
// all that it started, and hung is true.
func (r *ready) run(ctx context.Context, root string) (out string, hung bool, err error) {
	timeout := testTimeout
	if r.hangs {
		timeout = hangTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout+killAfter)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.binary,
		"-test.run="+r.test, "-test.timeout="+timeout.String(), "-test.count=1", "-test.v", "-test.paniconexit0")
	cmd.Dir, cmd.Env = filepath.Join(root, r.testPackage), r.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // whoever left the group may hold the output open
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // the test itself ended well
	}
	return b.String(), errors.Is(ctx.Err(), context.DeadlineExceeded) || strings.Contains(b.String(), "panic: test timed out after"), err
}

// patience is how long tests wait for what never comes (testkit.Patience).
const patience = "TALLYWIRE_PATIENCE"

var (
	runLine  = regexp.MustCompile(`(?m)^=== RUN +(\S+)`)
	skipLine = regexp.MustCompile(`(?m)^\s*--- SKIP: \S+`)
	failLine = regexp.MustCompile(`(?m)^\s*(--- FAIL: \S+)`)
	diedLine = regexp.MustCompile(`(?m)^(panic: .*|fatal error: .*|BUG.*)`)
)

// judge says what made the test red, or why the mutant was not caught.
func (m *mutant) judge(out string, hung bool, err error) (string, error) {
	if !ran(out, m.test) {
		return "", fmt.Errorf("did not run: no test of %s matches %s\n%s", m.testPackage, m.test, tail(out))
	}
	if err == nil {
		if s := skipLine.FindString(out); s != "" {
			return "", fmt.Errorf("did not run: %s", strings.TrimSpace(s))
		}
		return "", fmt.Errorf("survived %s in %s", m.test, m.testPackage)
	}
	if hung {
		if m.hangs {
			return "hangs", nil
		}
		return "", fmt.Errorf("hung, and nothing noticed it but the time\n%s", tail(out))
	}
	if all := failLine.FindAllStringSubmatch(out, -1); all != nil {
		return deepest(all), nil
	}
	if d := diedLine.FindString(out); d != "" {
		return d, nil
	}
	return "", fmt.Errorf("ended without a test that failed: %w\n%s", err, tail(out))
}

// ran says whether a test began that is as deep as the pattern: a parent whose
// parts all have other names passes without having tested anything.
func ran(out, pattern string) bool {
	for _, r := range runLine.FindAllStringSubmatch(out, -1) {
		if strings.Count(r[1], "/") >= strings.Count(pattern, "/") {
			return true
		}
	}
	return false
}

// deepest is the first of the failures that lie deepest: of a test and its
// parts, the part says more.
func deepest(all [][]string) string {
	best := all[0][1]
	for _, a := range all[1:] {
		if strings.Count(a[1], "/") > strings.Count(best, "/") {
			best = a[1]
		}
	}
	return best
}

// tail is the end of what a command printed.
func tail(out string) string {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
