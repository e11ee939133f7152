package wire

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

var (
	gatherBulkTCP  = 4 * time.Millisecond
	gatherBulkUnix = 300 * time.Microsecond
	precise        = true
)

func rest(d time.Duration) {
	if !precise {
		time.Sleep(d)
		return
	}
	left := unix.NsecToTimespec(int64(d))
	for errors.Is(unix.Nanosleep(&left, &left), unix.EINTR) {
	}
}
