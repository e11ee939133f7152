// Another network on the same machine: a namespace behind a veth pair, so that
// octets pass a device and its queues instead of the loopback.

package testkit

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Veth is a pair of devices: one here, with the address Near, the other in a
// network namespace of its own, with the address Far.
type Veth struct {
	Near, Far string
	device    string
	jobs      chan func() // run on the thread that lives in the namespace
	done      chan struct{}
}

// NewVeth makes a pair. It needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN, and
// the program ip (package iproute2); the error says which is missing. Close it.
func NewVeth(ctx context.Context) (*Veth, error) {
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, fmt.Errorf("the program ip is not installed (Debian: apt-get install iproute2): %w", err)
	}
	v := &Veth{jobs: make(chan func()), done: make(chan struct{})}
	tid := make(chan int)
	failed := make(chan error, 1)
	go func() {
		defer close(v.done)
		// Never unlocked: the runtime ends the thread with the goroutine, and
		// the namespace and the pair go with the last who uses them.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			failed <- fmt.Errorf("making a network namespace (unshare(CLONE_NEWNET) needs CAP_SYS_ADMIN): %w", err)
			return
		}
		tid <- unix.Gettid()
		for job := range v.jobs {
			job()
		}
	}()
	var thread int
	select {
	case thread = <-tid:
	case err := <-failed:
		return nil, err
	}
	n := thread % 60000
	v.device = fmt.Sprintf("twv%d", n)
	// 198.18.0.0/15 is set aside for measuring networks (RFC 2544).
	net4 := fmt.Sprintf("198.18.%d", n%250)
	v.Near, v.Far = net4+".1", net4+".2"
	err := ip(ctx, "link", "add", v.device, "type", "veth", "peer", "name", v.device+"p", "netns", fmt.Sprint(thread))
	if err == nil {
		err = ip(ctx, "addr", "add", v.Near+"/24", "dev", v.device)
	}
	if err == nil {
		err = ip(ctx, "link", "set", v.device, "up")
	}
	if err == nil {
		err = v.inside(func() error { // a child of a thread is born in its namespace
			if err := ip(ctx, "addr", "add", v.Far+"/24", "dev", v.device+"p"); err != nil {
				return err
			}
			return ip(ctx, "link", "set", v.device+"p", "up")
		})
	}
	if err != nil {
		v.Close()
		return nil, fmt.Errorf("making a veth pair (it needs CAP_NET_ADMIN): %w", err)
	}
	return v, nil
}

// inside runs f on the thread in the namespace.
func (v *Veth) inside(f func() error) error {
	var err error
	ran := make(chan struct{})
	v.jobs <- func() { err = f(); close(ran) }
	<-ran
	return err
}

// Dial connects from the namespace. It has only TCP and addresses.
func (v *Veth) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = v.inside(func() error {
		// With a single address the dialer opens the socket in its caller's
		// goroutine, on this thread; a socket stays where it was opened.
		var d net.Dialer
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Close removes the pair.
func (v *Veth) Close() error {
	err := ip(context.Background(), "link", "del", v.device)
	close(v.jobs)
	<-v.done
	return err
}

func ip(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "ip", args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
