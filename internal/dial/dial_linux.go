package dial

import (
	"errors"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// control sets how long octets that were sent may stay without an answer
// (tcp(7), TCP_USER_TIMEOUT): probes do not run while there are such.
func control(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(Patience.Milliseconds()))
	})
	return errors.Join(err, failed)
}
