//go:build !linux

package embedded

import "syscall"

// dieWithParent does nothing: without the kernel's help a server that was left
// behind is ended by the next start on its folder (EndLeftBehind).
func dieWithParent(*syscall.SysProcAttr) {}
