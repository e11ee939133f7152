//go:build unix && !linux

// How a Postgres process is started on other Unixes: in a session of its own,
// so that Ctrl-C in the terminal does not reach it. As root initdb refuses.

package embedded

import "syscall"

func postgresProcess() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
