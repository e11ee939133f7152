// The connection on Linux. Its descriptor is not in the Go runtime's epoll,
// where a thread would be woken for each arrival, whoever waits for it. It is in
// an epoll of its own, and that only while a reader waits; the runtime watches
// that epoll, so that deadlines and Close work as for any file.

package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	biteSize = 256 << 10 // of the buffer that TLS is served from
	bigRead  = 32 << 10  // a read of at least that goes past the buffer

	// How long octets gather. Over TCP the kernel grows the receive buffer by
	// itself to what comes meanwhile: a sender of 300 MB/s in pieces of 250 octets
	// is not held up by 4 ms, so no SO_RCVBUF is set, which would end that growing.
	// A Unix socket holds what the sender's SO_SNDBUF lets it send, a hundred rows
	// or two; then the walsender sleeps, and what it sends looks like less than it
	// could send.
	gatherFlow = time.Millisecond
	gatherBulk = 4 * time.Millisecond
	gatherUnix = 300 * time.Microsecond
)

// Conn is a net.Conn. One goroutine reads and any number write at a time.
type Conn struct {
	fd            int // used only inside in.use and out.use, which Close waits for
	tcp           bool
	in, out       *side
	local, remote net.Addr
	once          sync.Once
	closed        atomic.Bool

	// gather is set once octets gather: what is called before the reader
	// sleeps, in its goroutine.
	gather atomic.Pointer[func()]

	// The reader's.
	pace     pace
	buf      []byte // octets that small reads are served from
	off, end int

	bites, octets, waits, pauses atomic.Uint64
}

// side waits for one direction.
type side struct {
	*os.File // the epoll descriptor
	raw      syscall.RawConn
	events   uint32
	armed    bool // the socket is in the epoll
}

func newSide(events uint32) (*side, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // what makes os.NewFile watch it
		return nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(ep))
	}
	f := os.NewFile(uintptr(ep), "epoll of a replication connection")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &side{File: f, raw: raw, events: events}, nil
}

// try makes what RawConn calls, with the epoll's descriptor, until op does not
// say EAGAIN; between, the caller sleeps until the socket is ready. result is
// what op gave last.
func (s *side) try(fd int, op func() error, idle func()) (wait func(ep uintptr) bool, result *error) {
	var err error
	return func(ep uintptr) bool {
		if s.armed {
			s.armed = false
			if err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_DEL, fd, nil); err != nil {
				err = os.NewSyscallError("epoll_ctl", err)
				return true
			}
		}
		if err = op(); !errors.Is(err, unix.EAGAIN) {
			return true
		}
		if idle != nil {
			idle()
		}
		if err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: s.events, Fd: int32(fd)}); err != nil {
			err = os.NewSyscallError("epoll_ctl", err)
			return true
		}
		s.armed = true
		return false
	}, &err
}

// newConn takes over the descriptor of plain, which is closed on success; nil
// when it has none.
func newConn(plain net.Conn) (*Conn, error) {
	sc, ok := plain.(syscall.Conn)
	if !ok {
		return nil, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &Conn{local: plain.LocalAddr(), remote: plain.RemoteAddr()}
	_, c.tcp = plain.(*net.TCPConn)
	if c.in, err = newSide(unix.EPOLLIN | unix.EPOLLRDHUP); err != nil {
		return nil, err
	}
	if c.out, err = newSide(unix.EPOLLOUT); err != nil {
		return nil, errors.Join(err, c.in.Close())
	}
	if cerr := raw.Control(func(fd uintptr) { c.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), c.in.Close(), c.out.Close())
	}
	// Closing the original takes it out of the runtime's epoll; the connection
	// lives on in the duplicate.
	if err := plain.Close(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Gather lets octets gather from now on, while they flow. idle is called by the
// reader before it sleeps. A read that waits already is not changed.
func (c *Conn) Gather(idle func()) {
	c.pace.flow, c.pace.bulk = gatherUnix, gatherUnix
	if c.tcp {
		c.pace.flow, c.pace.bulk = gatherFlow, gatherBulk
	}
	if c.gather.Swap(&idle) != nil {
		panic("BUG: Gather called twice")
	}
}

// Counts may be called at any time.
func (c *Conn) Counts() Counts {
	return Counts{Bites: c.bites.Load(), Octets: c.octets.Load(), Waits: c.waits.Load(), Pauses: c.pauses.Load()}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	idle := c.gather.Load()
	switch {
	case len(p) == 0:
		return 0, nil
	case c.off < c.end: // below
	case idle == nil:
		return c.receive(p, nil)
	case len(p) >= bigRead:
		return c.bite(p, *idle)
	default: // TLS asks for a few hundred octets at a time
		if c.buf == nil {
			c.buf = make([]byte, biteSize)
		}
		n, err := c.bite(c.buf, *idle)
		if err != nil {
			return 0, err
		}
		c.off, c.end = 0, n
	}
	n := copy(p, c.buf[c.off:c.end])
	c.off += n
	return n, nil
}

// bite is one read in gathering mode.
func (c *Conn) bite(p []byte, idle func()) (int, error) {
	if d := c.pace.pause(); d > 0 {
		c.pauses.Add(1)
		idle()
		rest(d)
	}
	n, err := c.receive(p, idle)
	c.pace.took(n, n == len(p), time.Now())
	return n, err
}

// receive reads what is there, or waits.
func (c *Conn) receive(p []byte, idle func()) (n int, err error) {
	wait, result := c.in.try(c.fd, func() error {
		var err error
		if n, err = ignoreEINTR(func() (int, error) { return unix.Read(c.fd, p) }); err != nil {
			n = 0
		}
		return err
	}, func() {
		c.waits.Add(1)
		if idle != nil {
			idle()
		}
	})
	if err := c.in.raw.Read(wait); err != nil {
		return 0, c.opError("read", err)
	}
	switch {
	case *result != nil:
		return 0, c.opError("read", *result)
	case n == 0:
		return 0, io.EOF
	}
	c.bites.Add(1)
	c.octets.Add(uint64(n))
	return n, nil
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (n int, err error) {
	wait, result := c.out.try(c.fd, func() error {
		for n < len(p) {
			k, err := ignoreEINTR(func() (int, error) {
				return unix.SendmsgN(c.fd, p[n:], nil, nil, unix.MSG_NOSIGNAL)
			})
			if err != nil {
				return err
			}
			n += k
		}
		return nil
	}, nil)
	if err := c.out.raw.Write(wait); err != nil {
		return n, c.opError("write", err)
	}
	if *result != nil {
		return n, c.opError("write", *result)
	}
	return n, nil
}

// rest sleeps. The runtime's timers are about a millisecond late when all
// threads sleep, since epoll_wait counts in milliseconds; but a thread that
// sleeps in the kernel keeps its processor from other goroutines for a while.
func rest(d time.Duration) {
	if d >= time.Millisecond {
		time.Sleep(d)
		return
	}
	left := unix.NsecToTimespec(int64(d))
	for errors.Is(unix.Nanosleep(&left, &left), unix.EINTR) {
	}
}

func ignoreEINTR(op func() (int, error)) (int, error) {
	for {
		n, err := op()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// opError makes an error look like that of package net.
func (c *Conn) opError(op string, err error) error {
	if c.closed.Load() {
		err = net.ErrClosed
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		err = os.NewSyscallError(op, no)
	}
	return &net.OpError{Op: op, Net: c.remote.Network(), Source: c.local, Addr: c.remote, Err: err}
}

// Close ends the connection; readers and writers that wait end with
// net.ErrClosed.
func (c *Conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		c.closed.Store(true)
		err = errors.Join(c.in.Close(), c.out.Close()) // waits until nobody uses fd
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(c.fd)))
	})
	return err
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.in.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }
