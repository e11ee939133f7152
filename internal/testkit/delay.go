// A forwarder that delays: what a network with distance does to a connection on
// the loopback. It keeps the bandwidth: octets wait in a line, not one another.

package testkit

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// lineSize bounds the octets under way in one direction of one connection:
// twice the product of 10 Gbit/s and 1 ms is 2.5 MB.
const lineSize = 8 << 20

// Delay forwards TCP connections to one address; each octet arrives a fixed
// time after it was sent, in both directions.
type Delay struct {
	target string
	delay  time.Duration
	ln     net.Listener
	wg     sync.WaitGroup
	ctx    context.Context // ends with Close
	stop   context.CancelFunc
}

// NewDelay starts a forwarder on a free port; Close it.
func NewDelay(target string, delay time.Duration) (*Delay, error) {
	ln, err := listen()
	if err != nil {
		return nil, fmt.Errorf("starting a forwarder: %w", err)
	}
	d := &Delay{target: target, delay: delay, ln: ln}
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.wg.Go(d.accept)
	return d, nil
}

// Addr is where the forwarder listens.
func (d *Delay) Addr() string { return d.ln.Addr().String() }

// Close ends the forwarder and its connections.
func (d *Delay) Close() error {
	err := d.ln.Close()
	d.stop()
	d.wg.Wait()
	return err
}

func (d *Delay) accept() {
	for {
		c, err := d.ln.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() { d.serve(c) })
	}
}

func (d *Delay) serve(client net.Conn) {
	defer client.Close()
	var dialer net.Dialer
	server, err := dialer.DialContext(d.ctx, "tcp", d.target)
	if err != nil {
		return
	}
	defer server.Close()
	// Close ends both directions; the end of one, after its line is empty, too.
	ctx, end := context.WithCancel(d.ctx)
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { defer end(); d.line(ctx, client, server) })
	wg.Go(func() { defer end(); d.line(ctx, server, client) })
	wg.Wait()
}

// parcel is what was read at once.
type parcel struct {
	octets []byte
	due    time.Time
}

// line copies from one connection to the other, late, until either ends.
func (d *Delay) line(ctx context.Context, from, to net.Conn) {
	const size = 64 << 10
	ctx, stop := context.WithCancel(ctx)
	line := make(chan parcel, lineSize/size)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(line)
		for {
			p := parcel{octets: make([]byte, size)}
			n, err := from.Read(p.octets)
			if p.octets, p.due = p.octets[:n], time.Now().Add(d.delay); n > 0 {
				select {
				case line <- p:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	timer := time.NewTimer(0)
	for p := range line {
		timer.Reset(time.Until(p.due))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		if _, err := to.Write(p.octets); err != nil {
			from.Close() // ends the reader
			break
		}
	}
	timer.Stop()
	stop()
	wg.Wait()
}

// listen takes a free port of 127.0.0.1.
func listen() (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
}
