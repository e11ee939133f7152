// Servers that outlived the process that started them: it was killed, and could
// not stop them.

package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// noteServer writes which process serves a folder, and who started it, for
// EndLeftBehind.
func noteServer(dir string, pid, owner int) error {
	if err := os.WriteFile(filepath.Join(dir, "server.pid"), fmt.Appendln(nil, pid, owner), 0o600); err != nil {
		return fmt.Errorf("noting which process serves %s: %w", dir, err)
	}
	return nil
}

// EndLeftBehind ends the server, Kafka or Redis, that was started here on a
// folder by a process that is gone, and says whether there was one. It returns
// when the server has ended and its ports are free. Any other process is left
// alone: a number may be another's by now, so it must work in the folder.
func EndLeftBehind(ctx context.Context, dir string) (bool, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "server.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for a server left behind: %w", err)
	}
	var pid, owner int
	if n, _ := fmt.Sscan(string(text), &pid, &owner); n != 2 || pid <= 1 || alive(owner) || !serves(ctx, pid, dir) {
		return false, nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return false, fmt.Errorf("ending process %d, left behind on %s: %w", pid, dir, err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := poll(ctx, 20*time.Millisecond, func() (bool, error) { return !serves(ctx, pid, dir), nil }); err != nil {
		return false, fmt.Errorf("waiting until process %d, left behind on %s, has ended: %w", pid, dir, err)
	}
	return true, nil
}

// serves reports whether a process is alive and was started on a folder.
func serves(ctx context.Context, pid int, dir string) bool {
	if !alive(pid) {
		return false
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	// The folder is its working directory. Its command line names it too, but
	// Redis writes a title over that.
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
		return cwd == dir
	}
	line, err := exec.CommandContext(ctx, "ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output() // not Linux, or gone by now
	return err == nil && bytes.Contains(line, []byte(dir))
}
