// The socket of a replication connection: wire reads it ahead, bounded, and lets
// octets gather while they flow; status.go answers keepalives in a goroutine of
// its own. What reads faster changes only wire.

package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/tallywire/tallywire/sources/postgres/wire"
)

// socket is a connection after START_REPLICATION.
type socket struct {
	*wire.Socket
	more <-chan struct{} // gives a token when next may have something after it had nothing
}

// newSocket takes over the connection.
func newSocket(h *pgconn.HijackedConn, r *replication) (*socket, error) {
	s, err := wire.NewSocket(h, r.in, r.under)
	if err != nil {
		return nil, err
	}
	return &socket{Socket: s, more: s.More()}, nil
}

// next gives the next frame: its type and its content, valid until the next
// call. ok is false when none is at hand: wait for more, then call again.
func (s *socket) next() (kind byte, body []byte, ok bool, err error) {
	if kind, body, ok, err = s.Next(); errors.Is(err, wire.ErrFrame) {
		err = ErrProtocol.New("%w", err)
	}
	return kind, body, ok, err
}

// send writes one CopyData frame; safe for concurrent use.
func (s *socket) send(payload []byte) error { return s.Send(payload) }

// close ends the connection and waits for the reader.
func (s *socket) close() { s.Close() }

// dialInto makes cfg dial connections that can gather; the last one is kept in
// under, nil when it cannot.
func dialInto(cfg *pgconn.Config, under **wire.Conn) {
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, u, err := wire.Dial(ctx, wire.DialFunc(dial), network, address)
		*under = u
		return c, err
	}
}

// serverError reads an ErrorResponse frame.
func serverError(body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return fmt.Errorf("reading an error of the server: %w", err)
	}
	return pgconn.ErrorResponseToPgError(&e)
}

var errStreamEnd = fmt.Errorf("the server ended the stream: %w", io.EOF)
