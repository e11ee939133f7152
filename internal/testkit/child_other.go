//go:build !linux

package testkit

import (
	"os/exec"
	"syscall"
)

// setDieWithParent: without the kernel's help a server that was left behind is ended
// by the next start on its folder (EndLeftBehind).
func setDieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
