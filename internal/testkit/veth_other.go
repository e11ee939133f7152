//go:build !linux

package testkit

import (
	"context"
	"errors"
	"net"
)

// Veth exists on Linux only.
type Veth struct{ Near, Far string }

// NewVeth gives an error: network namespaces are Linux's.
func NewVeth(context.Context) (*Veth, error) {
	return nil, errors.New("network namespaces and veth pairs need Linux")
}

// Dial is not reached.
func (v *Veth) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("network namespaces need Linux")
}

// Close is not reached.
func (v *Veth) Close() error { return nil }
