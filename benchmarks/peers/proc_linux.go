package main

import (
	"os/exec"
	"syscall"
)

// endWithUs has the kernel kill the process when the thread that forked it
// ends, and keeps the terminal's Ctrl-C from it: we end it.
func endWithUs(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
