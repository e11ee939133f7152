// What the kernel does for a server whose parent was killed.

package testkit

import (
	"os/exec"
	"syscall"
)

// setDieWithParent has the kernel kill the process when the thread that forks
// it ends.
func setDieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
