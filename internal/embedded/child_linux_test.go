package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Lost if this fails: a killed test leaves servers behind that load the
// machine, and hold ports, for days.
func TestChildEndsWithItsParent(t *testing.T) {
	if os.Getenv("TALLYWIRE_TEST_PARENT") != "" {
		child := exec.Command("sleep", "1000")
		if err := StartChild(child, nil); err != nil {
			t.Fatal(err)
		}
		fmt.Println(child.Process.Pid)
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	parent := exec.Command(os.Args[0], "-test.run=^TestChildEndsWithItsParent$")
	parent.Env = append(os.Environ(), "TALLYWIRE_TEST_PARENT=1")
	out, err := parent.Output()
	if err == nil {
		t.Fatal("the parent was not killed")
	}
	var pid int
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		t.Fatalf("the parent said %q: %v", out, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), StartWithin)
	defer cancel()
	err = poll(ctx, 10*time.Millisecond, func() (bool, error) {
		// Gone, or dead and not waited for yet by who adopts orphans here.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return true, nil
		}
		return bytes.Contains(stat, []byte(") Z ")), err
	})
	if err != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		t.Fatalf("the child, process %d, lives: %v", pid, err)
	}
}
