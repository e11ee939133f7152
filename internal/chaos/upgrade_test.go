package chaos

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
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
	end := s.work(200)
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
	// Both at once, each the owner of some partitions, then the other way round.
	second := s.launch(before, s.writeConfig("second", freeAddr(t)))
	defer s.signal(second, syscall.SIGKILL)
	s.pause(8 * time.Second)
	s.kill()
	t.Logf("the version before alone after %s", s.reached())
	s.pause(4 * time.Second)
	s.start()
	s.pause(4 * time.Second)
	s.signal(second, syscall.SIGINT)
	end()
	s.settled(patience)
	s.exact()
}
