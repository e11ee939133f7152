package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// alone is a command under deploy/alone.sh with a lock of the test's own.
type alone struct {
	*exec.Cmd
	in   io.WriteCloser
	said *bufio.Reader
}

func start(t *testing.T, lock string, args ...string) *alone {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	a := &alone{Cmd: exec.CommandContext(ctx, filepath.Join("..", "..", "deploy", "alone.sh"), args...)}
	a.Env = append(os.Environ(), "TALLYWIRE_LOCK="+lock, "TALLYWIRE_ALONE=")
	out, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	a.Stdout, a.Stderr, a.said = write, write, bufio.NewReader(out)
	if a.in, err = a.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	return a
}

// says reads one line.
func (a *alone) says(t *testing.T, want string) {
	t.Helper()
	line, err := a.said.ReadString('\n')
	if err != nil || !strings.Contains(line, want) {
		t.Fatalf("it says %q (%v), want %q", line, err, want)
	}
}

// Lost if this fails: two suites run at once on one machine and make each other
// red; or one that was killed blocks all others for ever.
func TestAlone(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "lock")
	// Holds the lock until its standard input ends.
	holder := start(t, lock, "the first", "sh", "-c", "echo has it; cat")
	holder.says(t, "has it")
	second := start(t, lock, "the second", "echo", "second has it")
	second.says(t, `the second waits for "the first" in `)
	holder.in.Close()
	second.says(t, "second has it")
	for _, a := range []*alone{holder, second} {
		if err := a.Wait(); err != nil {
			t.Error(err)
		}
	}

	// What a holder runs has the lock already.
	script := filepath.Join("..", "..", "deploy", "alone.sh")
	outer := start(t, lock, "outer", script, "inner", "echo", "inner runs")
	outer.says(t, "inner runs")
	if err := outer.Wait(); err != nil {
		t.Error(err)
	}

	// A holder that is killed leaves a child behind; the lock is free.
	killed := start(t, lock, "killed", "sh", "-c", "echo has it; cat")
	killed.says(t, "has it")
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	after := start(t, lock, "after", "sh", "-c", "echo after has it; exit 3")
	for {
		line, err := after.said.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, "after has it") {
			break
		}
	}
	if err := after.Wait(); err == nil || after.ProcessState.ExitCode() != 3 {
		t.Errorf("the exit status is %d, want the command's", after.ProcessState.ExitCode())
	}
	killed.in.Close()
	if err := killed.Wait(); err == nil {
		t.Error("it was not killed")
	}
}
