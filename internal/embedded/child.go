// Processes that end with the one that started them.

package embedded

import (
	"os/exec"
	"runtime"
	"syscall"
)

// StartChild starts a process in a group of its own: a Ctrl-C in the terminal
// is for us, who end it in order. When this process dies without having done
// so, even by kill -9, the kernel kills the child (on Linux; elsewhere see
// EndLeftBehind). Ended, which may be nil, is called once with what Wait gave.
func StartChild(cmd *exec.Cmd, ended func(error)) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	dieWithParent(cmd.SysProcAttr)
	started := make(chan error, 1)
	go func() {
		// The kernel ends it when the thread that forked it ends, so the
		// thread waits with it.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if err = cmd.Wait(); ended != nil {
			ended(err)
		}
	}()
	return <-started
}
