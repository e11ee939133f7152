//go:build !linux

package testkit

import (
	"os/exec"
	"syscall"
)

// setDieWithParent: without the kernel's help the broker is ended by Stop
// alone.
func setDieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
