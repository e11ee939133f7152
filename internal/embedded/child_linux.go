// What the kernel does for a child whose parent was killed.

package embedded

import "syscall"

// dieWithParent has the kernel kill the process when the thread that forks it
// ends.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }
