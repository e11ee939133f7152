package dial

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// If this failed, a source whose network is gone would read as running for a
// quarter of an hour, and its slot grow.
func TestPeersThatAreGoneAreNoticed(t *testing.T) {
	cfg, err := pgconn.ParseConfig("host=127.0.0.1 user=x")
	if err != nil {
		t.Fatal(err)
	}
	Postgres(cfg)
	for network, addr := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		ln, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		c, err := cfg.DialFunc(t.Context(), network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if network == "unix" {
			continue
		}
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for opt, want := range map[int]int{unix.TCP_USER_TIMEOUT: 60_000, unix.TCP_KEEPIDLE: 15, unix.TCP_KEEPINTVL: 15, unix.TCP_KEEPCNT: 3} {
			var got int
			if err := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, opt) }); err != nil || got != want {
				t.Errorf("%s: option %d is %d, want %d (%v)", network, opt, got, want, os.NewSyscallError("getsockopt", err))
			}
		}
	}
}
