package testkit

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// Lost if this fails: what is measured through the forwarder is measured
// without its delay, or without some of its octets.
func TestDelay(t *testing.T) {
	ln, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const delay = 20 * time.Millisecond
	d, err := NewDelay(ln.Addr().String(), delay)
	if err != nil {
		t.Fatal(err)
	}
	near, err := net.Dial("tcp", d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	b := make([]byte, 1)
	began := time.Now()
	for _, c := range []struct{ from, to net.Conn }{{near, far}, {far, near}} {
		if _, err := c.from.Write([]byte{7}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.to, b); err != nil || b[0] != 7 {
			t.Fatal(b, err)
		}
	}
	if took := time.Since(began); took < 2*delay {
		t.Errorf("there and back in %v, want %v at least", took, 2*delay)
	}
	// Much under way at once: it arrives whole, and not one delay after another.
	sent := bytes.Repeat([]byte("under way "), 4<<20)
	began = time.Now()
	go func() {
		far.Write(sent)
		far.Close()
	}()
	got, err := io.ReadAll(near)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d octets of %d arrive: %v", len(got), len(sent), err)
	}
	if took := time.Since(began); took > 10*time.Second { // 640 reads of 64 KiB in turn take as long
		t.Errorf("40 MB take %v", took)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
