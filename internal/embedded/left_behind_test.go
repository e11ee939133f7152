package embedded

import (
	"errors"
	"os"
	"os/exec"
	"testing"
)

// Lost if this fails: after a kill -9 of the demo its servers keep their ports,
// and the next start says that they are taken; or a process that is not ours is
// killed, since it has the number that ours had.
func TestEndLeftBehind(t *testing.T) {
	r, err := StartRedis(t.Context(), RedisOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	gone := exec.Command("true")
	other := exec.Command("sleep", "1000")
	if err := errors.Join(gone.Run(), other.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		other.Process.Kill()
		other.Wait()
	})
	end := func(dir string, pid, owner int) bool {
		t.Helper()
		if err := noteServer(dir, pid, owner); err != nil {
			t.Fatal(err)
		}
		ended, err := EndLeftBehind(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return ended
	}
	if end(t.TempDir(), other.Process.Pid, gone.Process.Pid) || !alive(other.Process.Pid) {
		t.Error("a process that is not ours is ended")
	}
	if end(r.Dir, r.cmd.Process.Pid, os.Getpid()) {
		t.Error("a server whose owner lives is ended")
	}
	if _, err := StartRedis(t.Context(), RedisOptions{Addr: r.Addr, Dir: r.Dir}); err == nil {
		t.Error("two servers have one port")
	}
	if !end(r.Dir, r.cmd.Process.Pid, gone.Process.Pid) {
		t.Error("a server that was left behind is not ended")
	}
	again, err := StartRedis(t.Context(), RedisOptions{Addr: r.Addr, Dir: r.Dir})
	if err != nil {
		t.Fatal("its port and folder:", err)
	}
	if err := again.Stop(); err != nil {
		t.Error(err)
	}
	if ended, err := EndLeftBehind(t.Context(), t.TempDir()); ended || err != nil {
		t.Error("in an empty folder:", ended, err)
	}
}
