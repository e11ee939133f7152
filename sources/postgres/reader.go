// The socket of a replication connection: one goroutine reads it into a bounded
// buffer and never waits for Kafka while there is room, another (status.go)
// answers keepalives. What reads faster changes only this file.

package postgres

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	readSize  = 256 << 10 // octets asked of the socket at once
	readAhead = 8 << 20   // octets that wait for decoding, at most; then the socket is left to fill
	maxFrame  = 1 << 30   // Postgres sends no larger message
)

// socket is a connection after START_REPLICATION. The zero of everything but
// conn is set by newSocket.
type socket struct {
	conn net.Conn
	in   io.Reader // conn, after what pgconn had read ahead

	mu    sync.Mutex
	room  *sync.Cond
	ahead []byte // read and not taken yet
	err   error  // why reading ended; after all that is in ahead

	more chan struct{} // holds one token while ahead or err is new
	done chan struct{} // closed when the reader has ended

	write sync.Mutex
	buf   []byte // taken by next, whole and partial frames
	off   int
}

// newSocket takes over the connection and starts to read from in, the reader
// that its Frontend was built on.
func newSocket(h *pgconn.HijackedConn, in io.Reader) (*socket, error) {
	s := &socket{conn: h.Conn, in: in, more: make(chan struct{}, 1), done: make(chan struct{})}
	s.room = sync.NewCond(&s.mu)
	// What pgconn has read beyond its last message is in its buffer: it is
	// taken out frame by frame, the last one completed from the socket.
	for h.Frontend.ReadBufferLen() > 0 {
		msg, err := h.Frontend.Receive()
		if err != nil {
			return nil, err
		}
		if s.ahead, err = msg.(pgproto3.Message).Encode(s.ahead); err != nil {
			return nil, err
		}
	}
	if len(s.ahead) > 0 {
		s.more <- struct{}{}
	}
	go s.read()
	return s, nil
}

// read runs until the connection fails or is closed.
func (s *socket) read() {
	defer close(s.done)
	p := make([]byte, readSize)
	for {
		n, err := s.in.Read(p)
		s.mu.Lock()
		s.ahead = append(s.ahead, p[:n]...)
		if s.err == nil {
			s.err = err
		}
		s.signal()
		for len(s.ahead) >= readAhead && s.err == nil {
			s.room.Wait()
		}
		closed := s.err != nil
		s.mu.Unlock()
		if closed {
			return
		}
	}
}

// signal is called with mu held.
func (s *socket) signal() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// next gives the next frame: its type and its content, valid until the next
// call. ok is false when none is at hand: wait for more, then call again.
func (s *socket) next() (kind byte, body []byte, ok bool, err error) {
	for {
		if have := s.buf[s.off:]; len(have) >= 5 {
			size := int(binary.BigEndian.Uint32(have[1:]))
			if size < 4 || size > maxFrame {
				return 0, nil, false, ErrProtocol.New("a frame of %d octets", size)
			}
			if len(have) >= 1+size {
				s.off += 1 + size
				return have[0], have[5 : 1+size], true, nil
			}
		}
		if got, err := s.take(); err != nil || !got {
			return 0, nil, false, err
		}
	}
}

// take moves what was read ahead behind the partial frame.
func (s *socket) take() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ahead) == 0 {
		return false, s.err
	}
	if s.off == len(s.buf) { // nothing partial: swap the buffers
		s.buf, s.ahead = s.ahead, s.buf[:0]
	} else {
		s.buf = append(s.buf[:copy(s.buf, s.buf[s.off:])], s.ahead...)
		s.ahead = s.ahead[:0]
	}
	s.off = 0
	if cap(s.ahead) > 2*readAhead { // blown up by one huge row
		s.ahead = nil
	}
	s.room.Signal()
	return true, nil
}

// send writes one CopyData frame; safe for concurrent use.
func (s *socket) send(payload []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	frame := make([]byte, 0, 5+len(payload))
	frame = append(frame, 'd')
	frame = binary.BigEndian.AppendUint32(frame, uint32(4+len(payload)))
	_, err := s.conn.Write(append(frame, payload...))
	return err
}

// close ends the connection and waits for the reader.
func (s *socket) close() {
	// Terminate frees the slot at once. Failing does not matter: the server
	// notices the end of the connection either way. The deadline also ends a
	// send that holds the lock.
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Second))
	s.write.Lock()
	_, _ = s.conn.Write([]byte{'X', 0, 0, 0, 4})
	s.write.Unlock()
	_ = s.conn.Close()
	s.mu.Lock()
	if s.err == nil {
		s.err = net.ErrClosed
	}
	s.room.Broadcast()
	s.mu.Unlock()
	<-s.done
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
