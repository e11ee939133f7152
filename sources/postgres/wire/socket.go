// The reader of a replication connection: one goroutine reads it into chunks,
// bounded, and never waits for who decodes while there is room.

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	chunkSize = 256 << 10
	// ReadAhead is how many octets wait for decoding, at most; then the
	// connection is left to fill.
	ReadAhead = 8 << 20
	chunkMin  = 16 << 10 // room left in a chunk that is still read into
	maxFrame  = 1 << 30  // Postgres sends no larger message
	partKept  = 16 << 20 // a buffer for frames across chunks that is kept
)

// chunk is filled by the reader while it is already read from: the octets
// before n do not change any more.
type chunk struct {
	buf    []byte
	n      atomic.Int64
	sealed atomic.Bool // n is final; the next chunk, or the end, is in the queue
}

// Socket is a connection after START_REPLICATION. Next is for one goroutine.
type Socket struct {
	conn net.Conn
	in   io.Reader // conn, after what pgconn had read ahead

	mu    sync.Mutex
	room  *sync.Cond
	queue []*chunk // after the taker's; the last is the one that is filled
	free  []*chunk
	err   error // why reading ended; after all that was read

	more chan struct{} // holds one token while something is new
	done chan struct{} // closed when the reader has ended

	write sync.Mutex

	// The taker's.
	cur   *chunk
	off   int
	part  []byte // a frame that lies across chunks
	whole bool   // part was given out
}

// NewSocket takes over the connection and starts to read from in, the reader
// that its Frontend was built on. under is the Conn below h.Conn, or nil: then
// it is read eagerly. Close it.
func NewSocket(h *pgconn.HijackedConn, in io.Reader, under *Conn) (*Socket, error) {
	s := &Socket{conn: h.Conn, in: in, more: make(chan struct{}, 1), done: make(chan struct{})}
	s.room = sync.NewCond(&s.mu)
	s.cur = &chunk{buf: make([]byte, chunkSize)}
	// What pgconn has read beyond its last message is in its buffer: it is
	// taken out frame by frame, the last one completed from the socket.
	var ahead []byte
	for h.Frontend.ReadBufferLen() > 0 {
		msg, err := h.Frontend.Receive()
		if err != nil {
			return nil, err
		}
		if ahead, err = msg.(pgproto3.Message).Encode(ahead); err != nil {
			return nil, err
		}
	}
	filling := s.cur
	if len(ahead) > 0 {
		filling = &chunk{buf: make([]byte, chunkSize)}
		s.cur.buf = ahead
		s.cur.n.Store(int64(len(ahead)))
		s.cur.sealed.Store(true)
		s.queue = append(s.queue, filling)
		s.signal()
	}
	if under != nil {
		under.Gather(s.signal)
	}
	go s.read(filling, under == nil)
	return s, nil
}

// More gives a token when Next may have something after it had nothing.
func (s *Socket) More() <-chan struct{} { return s.more }

// read runs until the connection fails or is closed. An eager reader tells of
// each read; else the connection tells when it is about to sleep.
func (s *Socket) read(c *chunk, eager bool) {
	defer close(s.done)
	for n := 0; ; {
		got, err := s.in.Read(c.buf[n:])
		n += got
		c.n.Store(int64(n))
		switch {
		case err != nil:
			s.mu.Lock()
			if s.err == nil {
				s.err = err
			}
			s.mu.Unlock()
			c.sealed.Store(true)
			s.signal()
			return
		case len(c.buf)-n < chunkMin:
			if c = s.turn(c); c == nil {
				return
			}
			n = 0
		case eager:
			s.signal()
		}
	}
}

// turn seals the chunk that is full and gives the next one, as soon as there is
// room; nil once the socket is closed.
func (s *Socket) turn(full *chunk) *chunk {
	s.mu.Lock()
	for 1+len(s.queue) >= ReadAhead/chunkSize && s.err == nil {
		s.signal()
		s.room.Wait()
	}
	var c *chunk
	switch k := len(s.free); {
	case s.err != nil:
	case k > 0:
		c, s.free = s.free[k-1], s.free[:k-1]
	default:
		c = &chunk{buf: make([]byte, chunkSize)}
	}
	if c != nil {
		s.queue = append(s.queue, c)
	}
	s.mu.Unlock()
	full.sealed.Store(true)
	s.signal()
	return c
}

func (s *Socket) signal() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// frameSize is that of the frame at the beginning of b, 0 when b is too short
// to tell.
func frameSize(b []byte) (int, error) {
	if len(b) < 5 {
		return 0, nil
	}
	size := int(binary.BigEndian.Uint32(b[1:]))
	if size < 4 || size > maxFrame {
		return 0, fmt.Errorf("%w: its length is %d octets", ErrFrame, size)
	}
	return 1 + size, nil
}

// ErrFrame is what Next gives for octets that are no frame.
var ErrFrame = errors.New("not a frame of the replication protocol")

// Next gives the next frame: its type and its content, valid until the next
// call. ok is false when none is at hand: wait for More, then call again. The
// error that ended the connection comes after all that was read before it.
func (s *Socket) Next() (kind byte, body []byte, ok bool, err error) {
	if s.whole {
		s.whole = false
		if s.part = s.part[:0]; cap(s.part) > partKept {
			s.part = nil
		}
	}
	for {
		sealed := s.cur.sealed.Load() // before n, so that n is final when it is set
		have := s.cur.buf[s.off:s.cur.n.Load()]
		if len(s.part) == 0 {
			size, err := frameSize(have)
			if err != nil {
				return 0, nil, false, err
			}
			if size > 0 && size <= len(have) {
				s.off += size
				return have[0], have[5:size:size], true, nil
			}
		}
		if !sealed && len(s.part) == 0 { // it becomes whole where it lies, or the chunk is sealed
			return 0, nil, false, nil
		}
		if err := s.join(have); err != nil {
			return 0, nil, false, err
		}
		if s.whole {
			return s.part[0], s.part[5:], true, nil
		}
		if !sealed {
			return 0, nil, false, nil
		}
		if ok, err := s.pass(); !ok {
			return 0, nil, false, err
		}
	}
}

// join moves octets of have to the partial frame, up to its end.
func (s *Socket) join(have []byte) error {
	for len(have) > 0 {
		size, err := frameSize(s.part)
		if err != nil {
			return err
		}
		if size == 0 {
			size = 5
		}
		k := min(size-len(s.part), len(have))
		s.part = append(s.part, have[:k]...)
		have = have[k:]
		s.off += k
		if size, err = frameSize(s.part); err != nil {
			return err
		}
		if s.whole = size == len(s.part); s.whole {
			return nil
		}
	}
	return nil
}

// pass goes on to the next chunk. The one before is the reader's again.
func (s *Socket) pass() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return false, s.err
	}
	if used := s.cur; cap(used.buf) == chunkSize {
		used.n.Store(0)
		used.sealed.Store(false)
		s.free = append(s.free, used)
	}
	s.cur, s.off = s.queue[0], 0
	s.queue = s.queue[:copy(s.queue, s.queue[1:])]
	s.room.Signal()
	return true, nil
}

// Send writes one CopyData frame; safe for concurrent use.
func (s *Socket) Send(payload []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	frame := make([]byte, 0, 5+len(payload))
	frame = append(frame, 'd')
	frame = binary.BigEndian.AppendUint32(frame, uint32(4+len(payload)))
	_, err := s.conn.Write(append(frame, payload...))
	return err
}

// Close ends the connection and waits for the reader.
func (s *Socket) Close() {
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
