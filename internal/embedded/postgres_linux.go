// How a Postgres process is started on Linux: in a session of its own, so that
// Ctrl-C in the terminal does not reach it; and, since initdb and postgres
// refuse to run as root, in a user namespace when we are root: user 1000 inside
// is root outside, so no file has to change hands.

package embedded

import (
	"os"
	"syscall"
)

func postgresProcess() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		a.Cloneflags = syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 0, Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 0, Size: 1}}
	}
	return a
}
