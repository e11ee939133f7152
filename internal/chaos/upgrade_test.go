package chaos

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tallywire/tallywire/pipeline/pipelinetest/history"
)

// landedBefore builds the program as it landed last: TALLYWIRE_BEFORE names a
// revision; without it, it is where this branch left main, or main's own
// predecessor.
func landedBefore(t *testing.T) (program string) {
	t.Helper()
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = filepath.Join("..", "..")
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	rev := os.Getenv("TALLYWIRE_BEFORE")
	if rev == "" {
		head, err := git("rev-parse", "HEAD")
		if err != nil {
			t.Fatal("the last landed version is built from git's history: ", err)
		}
		rev = "HEAD^1"
		for _, main := range []string{"main", "origin/main"} {
			if base, err := git("merge-base", "HEAD", main); err == nil && base != head {
				rev = base
				break
			}
		}
	}
	commit, err := git("rev-parse", "--verify", rev+"^{commit}")
	if err != nil {
		t.Fatalf("the last landed version, %s, is not in git's history (a shallow clone? git fetch --unshallow): %v", rev, err)
	}
	dir := t.TempDir()
	archive := filepath.Join(dir, "source.tar")
	if _, err := git("archive", "-o", archive, commit); err != nil {
		t.Fatalf("git archive %s: %v", commit, err)
	}
	program = filepath.Join(dir, "tallywire-before")
	for _, argv := range [][]string{{"tar", "-xf", archive}, {"go", "build", "-o", program, "./cmd/tallywire"}} {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v at %s: %v\n%s", argv, commit, err, out)
		}
	}
	t.Logf("the version before is %s", commit)
	return program
}

// Lost if this fails: an upgrade, a rollback, or an upgrade of one process after
// the other loses, doubles or halts, because a position, a parked record, a
// state or a table of one version is not what the other expects.
func TestChaosUpgrade(t *testing.T) {
	before := landedBefore(t)
	rnd := seeded(t)
	s := newStack(t)
	s.binary = before
	s.start()
	s.settled(patience)
	s.loaded()
	end := s.work(200)
	// As docs/upgrading.md says, while the version before runs.
	if out, stderr, code := command(t.Context(), "contracts", "register", "--breaking", "-c", s.config); code != 0 {
		t.Fatalf("registering the contracts: exit %d\n%s%s", code, out, stderr)
	}
	// Up, back, and up again, by Ctrl-C and by kill -9.
	for i, program := range []string{binary, before, binary, before, binary} {
		s.pause(time.Duration(2000+rnd.IntN(3000)) * time.Millisecond)
		if i%2 == 0 {
			s.kill()
		} else {
			s.stop()
		}
		t.Logf("%s after %s", filepath.Base(program), s.reached())
		s.binary = program
		s.start()
	}
	// Both at once, each the owner of some partitions, then the version before
	// alone, then both again.
	second := s.launch(before, s.writeConfig("second", freeAddr(t)))
	defer s.signal(second, syscall.SIGKILL)
	s.shared()
	s.pause(time.Duration(rnd.IntN(3000)) * time.Millisecond)
	s.kill()
	s.advance("the version before goes on alone", 0, "")
	begun := len(s.logged())
	s.start()
	s.shared()
	s.advance("both go on, but for lookups whose state has another shape", begun, "is kept in another form")
	s.signal(second, syscall.SIGINT)
	s.advance("this version goes on alone", 0, "")
	end()
	s.settled(patience)
	s.exact(history.Options{})
}

// shared waits until two processes have divided the topics among them.
func (s *stack) shared() {
	s.t.Helper()
	for _, group := range []string{"tallywire.canonical", "tallywire.warehouse", "tallywire.erp"} {
		s.until(patience, "two members share "+group, func(ctx context.Context) (bool, string) {
			groups, err := s.cluster.Admin().DescribeGroups(ctx, group)
			if err != nil {
				return false, err.Error()
			}
			g := groups[group]
			owning := 0
			for _, m := range g.Members {
				if a, ok := m.Assigned.AsConsumer(); ok && len(a.Topics) > 0 {
					owning++
				}
			}
			return g.State == "Stable" && owning == 2, fmt.Sprintf("%s, %d of %d members own partitions, %v", g.State, owning, len(g.Members), g.Err)
		})
	}
}

// advance waits until the warehouse has read further in what is mapped and in
// what is looked up, and the ERP has got more, than when it was called; or, instead of
// what is looked up, until the log says why not, behind so many octets.
func (s *stack) advance(what string, begun int, whyNot string) {
	s.t.Helper()
	progress := func(ctx context.Context) (mapped, joined int64, posted int, err error) {
		err = s.warehouse.QueryRow(ctx, `select coalesce(sum(next_offset) filter (where topic = 'ps.time_entry'), 0), coalesce(sum(next_offset) filter (where topic = 'ps.time_entry_costed'), 0) from _tallywire.offsets`).Scan(&mapped, &joined)
		return mapped, joined, len(s.erp.Records()["timeRegistrationEntries"]), err
	}
	mapped, joined, posted, err := progress(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.until(patience, what, func(ctx context.Context) (bool, string) {
		m, j, p, err := progress(ctx)
		further := j > joined || whyNot != "" && strings.Contains(s.logged()[begun:], whyNot)
		return err == nil && m > mapped && further && p > posted, fmt.Sprintf("%d entries then, %d now; %d costed, %d; %d in the ERP, %d; %v", mapped, m, joined, j, posted, p, err)
	})
}
