// Package wire is the socket of a replication connection: Conn, which lets
// octets gather in the kernel and takes them in large bites, and Socket, which
// reads it ahead of who decodes. conn.go is what all platforms share.
//
// A walsender sends once per row. A reader that sleeps in epoll is woken for
// each, and waking it is most of the CPU of both processes. A reader that is
// not registered with any poller while octets flow costs the sender nothing:
// benchmarks/socket.txt has the figures.
package wire

import (
	"context"
	"net"
)

// DialFunc opens a connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Counts say how a Conn was read.
type Counts struct {
	Bites  uint64 // reads of the kernel that gave octets
	Octets uint64
	Waits  uint64 // times that there was nothing, and the reader slept until woken
	Pauses uint64 // times that it let octets gather
}

// Dial connects by dial. The connection behaves like dial's own until Gather is
// called. Where a Conn cannot be made of it, it is given as it is, and nil.
func Dial(ctx context.Context, dial DialFunc, network, address string) (net.Conn, *Conn, error) {
	plain, err := dial(ctx, network, address)
	if err != nil {
		return nil, nil, err
	}
	c, err := newConn(plain)
	if err != nil {
		plain.Close()
		return nil, nil, err
	}
	if c == nil {
		return plain, nil, nil
	}
	return c, c, nil
}
