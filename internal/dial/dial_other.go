//go:build !linux

package dial

import "syscall"

// control does nothing: of others than Linux the probes are all there is.
func control(string, string, syscall.RawConn) error { return nil }
