//go:build !linux

// Elsewhere connections stay as they are, and are read eagerly.

package wire

import "net"

// Conn is never made here.
type Conn struct{ net.Conn }

func newConn(net.Conn) (*Conn, error) { return nil, nil }

// Gather is of Linux alone.
func (c *Conn) Gather(func()) {}

// Counts are not kept.
func (c *Conn) Counts() Counts { return Counts{} }
