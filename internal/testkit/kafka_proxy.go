// A proxy before a broker that loses or holds chosen requests or replies, and
// cuts all connections: outages that a test can place exactly. It understands
// only the frames of Kafka's protocol, not what is in them.

package testkit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// KafkaLoss says what is lost of a request.
type KafkaLoss int

const (
	// LoseRequest: the broker never sees it.
	LoseRequest KafkaLoss = iota + 1
	// LoseReply: the broker acts on it, and nobody hears.
	LoseReply
)

// KafkaProxy forwards to one broker. A client is led through it by its Dial
// (kgo.Dialer), since brokers announce their own address.
type KafkaProxy struct {
	target string
	ln     net.Listener
	wg     sync.WaitGroup

	mu     sync.Mutex
	down   bool
	closed bool
	conns  map[net.Conn]bool
	rules  []*lossRule
	holds  []*KafkaHold
}

type lossRule struct {
	match func(KafkaRequest) bool
	loss  KafkaLoss
	left  int
	hit   chan struct{}
}

// KafkaRequest is a request on its way to the broker: a frame without its
// length.
type KafkaRequest []byte

// Key is the API key (0 is Produce, 26 is EndTxn).
func (r KafkaRequest) Key() int16 { return int16(binary.BigEndian.Uint16(r)) }

// Names reports whether the request holds a string, such as a transactional
// id, as a whole: with its length before it, in either of Kafka's forms. A
// string of 126 octets at most.
func (r KafkaRequest) Names(s string) bool {
	if len(s) > 126 {
		panic("BUG: a string longer than 126 octets")
	}
	n := byte(len(s))
	return bytes.Contains(r, append([]byte{n}, s...)) || bytes.Contains(r, append([]byte{n + 1}, s...))
}

// KafkaHold holds one request up, and all behind it on its connection.
type KafkaHold struct {
	match    func(KafkaRequest) bool
	held     chan struct{}
	released chan struct{}
	once     sync.Once
	took     bool
}

// Held is closed when a request is held.
func (h *KafkaHold) Held() <-chan struct{} { return h.held }

// Release lets the request go on; what Lose says of it then holds.
func (h *KafkaHold) Release() { h.once.Do(func() { close(h.released) }) }

// NewKafkaProxy starts a proxy on a free port; Close it.
func NewKafkaProxy(target string) (*KafkaProxy, error) {
	ln, err := listen()
	if err != nil {
		return nil, fmt.Errorf("starting a proxy for Kafka: %w", err)
	}
	p := &KafkaProxy{target: target, ln: ln, conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the proxy listens.
func (p *KafkaProxy) Addr() string { return p.ln.Addr().String() }

// Dial connects through the proxy whatever address is asked for.
func (p *KafkaProxy) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, p.Addr())
}

// Lose loses the next n requests of an API key (26 is EndTxn), or their
// replies, and breaks the connection each time. The channel gets one element
// for each.
func (p *KafkaProxy) Lose(key int16, loss KafkaLoss, n int) <-chan struct{} {
	return p.LoseIf(func(r KafkaRequest) bool { return r.Key() == key }, loss, n)
}

// LoseIf is Lose of the requests that match says; it must not block.
func (p *KafkaProxy) LoseIf(match func(KafkaRequest) bool, loss KafkaLoss, n int) <-chan struct{} {
	r := &lossRule{match: match, loss: loss, left: n, hit: make(chan struct{}, n)}
	p.mu.Lock()
	p.rules = append(p.rules, r)
	p.mu.Unlock()
	return r.hit
}

// Hold holds the next request that match says, until Release, or Close.
func (p *KafkaProxy) Hold(match func(KafkaRequest) bool) *KafkaHold {
	h := &KafkaHold{match: match, held: make(chan struct{}), released: make(chan struct{})}
	p.mu.Lock()
	p.holds = append(p.holds, h)
	p.mu.Unlock()
	return h
}

// Cut breaks all connections and refuses new ones until Mend.
func (p *KafkaProxy) Cut() {
	p.mu.Lock()
	p.down = true
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
}

// Mend ends Cut.
func (p *KafkaProxy) Mend() {
	p.mu.Lock()
	p.down = false
	p.mu.Unlock()
}

// Close ends the proxy and all its connections.
func (p *KafkaProxy) Close() error {
	err := p.ln.Close()
	p.Cut()
	p.mu.Lock()
	p.closed = true
	for _, h := range p.holds {
		h.Release()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

func (p *KafkaProxy) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

// keep notes a connection; false while the proxy is cut.
func (p *KafkaProxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *KafkaProxy) drop(c net.Conn) {
	c.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

func (p *KafkaProxy) serve(client net.Conn) {
	if !p.keep(client) {
		return
	}
	defer p.drop(client)
	var d net.Dialer
	server, err := d.DialContext(context.Background(), "tcp", p.target)
	if err != nil || !p.keep(server) {
		return
	}
	defer p.drop(server)
	lost := &lostReplies{ids: map[uint32]*lossRule{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer client.Close()
		defer server.Close()
		_ = frames(server, client, func(f []byte) bool { return !lost.take(binary.BigEndian.Uint32(f)) })
	})
	_ = frames(client, server, func(f []byte) bool { return p.request(f, lost) })
	client.Close()
	server.Close()
	wg.Wait()
}

// request decides about a request: false breaks the connection.
func (p *KafkaProxy) request(f []byte, lost *lostReplies) bool {
	if len(f) < 8 {
		return false
	}
	id := binary.BigEndian.Uint32(f[4:])
	if h := p.holdOf(f); h != nil {
		close(h.held)
		<-h.released
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.rules {
		if r.left == 0 || !r.match(f) {
			continue
		}
		r.left--
		if r.loss == LoseRequest {
			r.hit <- struct{}{}
			return false
		}
		lost.add(id, r)
		return true
	}
	return true
}

// holdOf gives the hold that a request is for, or nil.
func (p *KafkaProxy) holdOf(f KafkaRequest) *KafkaHold {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.holds {
		if !h.took && !p.closed && h.match(f) {
			h.took = true
			return h
		}
	}
	return nil
}

type lostReplies struct {
	mu  sync.Mutex
	ids map[uint32]*lossRule
}

func (l *lostReplies) add(id uint32, r *lossRule) {
	l.mu.Lock()
	l.ids[id] = r
	l.mu.Unlock()
}

func (l *lostReplies) take(id uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.ids[id]
	if ok {
		delete(l.ids, id)
		r.hit <- struct{}{}
	}
	return ok
}

// frames copies frame by frame (four octets of length, then the frame) while
// pass says so.
func frames(from io.Reader, to io.Writer, pass func([]byte) bool) error {
	buf := make([]byte, 4, 64<<10)
	for {
		if _, err := io.ReadFull(from, buf[:4]); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint32(buf[:4]))
		if n < 4 || n > 128<<20 {
			return errors.New("not a frame of Kafka's protocol")
		}
		if cap(buf) < 4+n {
			buf = append(make([]byte, 0, 4+n), buf[:4]...)
		}
		frame := buf[:4+n]
		if _, err := io.ReadFull(from, frame[4:]); err != nil {
			return err
		}
		if !pass(frame[4:]) {
			return nil
		}
		if _, err := to.Write(frame); err != nil {
			return err
		}
		buf = buf[:4]
	}
}
