package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/testkit"
)

// pair gives a Conn and the far end.
func pair(t *testing.T, network string) (*Conn, net.Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var d net.Dialer
	n, c, err := Dial(t.Context(), d.DialContext, network, ln.Addr().String())
	if err != nil || c == nil || n != net.Conn(c) {
		t.Fatalf("Dial gives %v, %v, %v", n, c, err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); far.Close() })
	return c, far
}

// both runs a test over TCP and over a Unix socket.
func both(t *testing.T, f func(t *testing.T, c *Conn, far net.Conn)) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			c, far := pair(t, network)
			f(t, c, far)
		})
	}
}

// in waits for what a goroutine gives.
func in[T any](t *testing.T, bound time.Duration, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(bound):
		buf := make([]byte, 64<<10)
		t.Fatalf("%s: not within %v\n%s", what, bound, buf[:runtime.Stack(buf, true)])
		panic("not reached")
	}
}

func async[T any](f func() T) <-chan T {
	c := make(chan T, 1)
	go func() { c <- f() }()
	return c
}

// waiting returns once the reader sleeps.
func waiting(t *testing.T, c *Conn, before uint64) {
	t.Helper()
	poll(t, "the reader waits", func() bool { return c.Counts().Waits > before })
}

func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting until %s", what)
		}
	}
}

// Lost if this fails: octets of the stream, or their order; with TLS, which
// reads a few octets at a time, too.
func TestConnGivesAllInOrder(t *testing.T) {
	for _, size := range []int{7, 512, 5000, bigRead, 1 << 20} {
		both(t, func(t *testing.T, c *Conn, far net.Conn) {
			c.Gather(func() {})
			want := bytes.Repeat([]byte("to and fro, "), 1<<18)
			sent := async(func() error {
				for rest := want; len(rest) > 0; {
					n := min(len(rest), 1+len(rest)%3001)
					if _, err := far.Write(rest[:n]); err != nil {
						return err
					}
					rest = rest[n:]
				}
				return far.Close()
			})
			var got []byte
			for p := make([]byte, size); ; {
				n, err := c.Read(p)
				got = append(got, p[:n]...)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d octets of %d arrive, or in another order", len(got), len(want))
			}
		})
	}
}

// Lost if this fails: a connection attempt that is given up hangs for ever, and
// a stopping source with it.
func TestConnDeadlinesAndClose(t *testing.T) {
	both(t, func(t *testing.T, c *Conn, far net.Conn) {
		read := func() error { _, err := c.Read(make([]byte, 10)); return err }
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var timeout net.Error
		if err := in(t, testkit.Patience, "a deadline", async(read)); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("a read past its deadline: %v", err)
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		// The descriptor stayed in the epoll at the deadline; reading goes on.
		if _, err := far.Write([]byte("later")); err != nil {
			t.Fatal(err)
		}
		if err := in(t, testkit.Patience, "a read after a deadline", async(read)); err != nil {
			t.Error(err)
		}
		// A deadline in the past wakes a reader: that is how a context interrupts.
		before := c.Counts().Waits
		ended := async(read)
		waiting(t, c, before)
		if err := c.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := in(t, testkit.Patience, "a deadline in the past", ended); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("interrupted: %v", err)
		}
		// A writer whose peer does not read.
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if err := c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		write := func() error { _, err := c.Write(make([]byte, 64<<20)); return err }
		if err := in(t, testkit.Patience, "a write's deadline", async(write)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a write that nobody reads: %v", err)
		}
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		before = c.Counts().Waits
		reads, writes := async(read), async(write)
		waiting(t, c, before)
		if err := in(t, testkit.Patience, "closing", async(c.Close)); err != nil {
			t.Error(err)
		}
		if err := in(t, testkit.Patience, "a read of what is closed", reads); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a reader at Close: %v", err)
		}
		if err := in(t, testkit.Patience, "a write to what is closed", writes); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a writer at Close: %v", err)
		}
		if err := read(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a read after Close: %v", err)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a second Close: %v", err)
		}
	})
}

// Lost if this fails: what the server said last, its error among it.
func TestConnOctetsBeforeTheEnd(t *testing.T) {
	both(t, func(t *testing.T, c *Conn, far net.Conn) {
		c.Gather(func() {})
		if _, err := far.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		far.Close()
		got, err := io.ReadAll(c)
		if string(got) != "last words" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// Lost if this fails: each reconnect leaves descriptors behind, until the
// process has none left.
func TestConnLeavesNoDescriptor(t *testing.T) {
	names := func() (n int) {
		ds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			if to, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil && (strings.HasPrefix(to, "socket:") || strings.Contains(to, "eventpoll")) {
				n++
			}
		}
		return n
	}
	c, far := pair(t, "tcp") // the runtime's own epoll is there now
	c.Close()
	far.Close()
	before := names()
	for range 20 {
		c, far := pair(t, "tcp")
		c.Close()
		far.Close()
	}
	if after := names(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// A connection without a descriptor is used as it is.
func TestDialWithoutDescriptor(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	n, c, err := Dial(t.Context(), func(context.Context, string, string) (net.Conn, error) { return near, nil }, "", "")
	if n != near || c != nil || err != nil {
		t.Errorf("%v, %v, %v", n, c, err)
	}
	near.Close()
}
