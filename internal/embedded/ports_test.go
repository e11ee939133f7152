package embedded

import (
	"net"
	"slices"
	"strconv"
	"testing"
)

// If this failed, a server would be given a port that somebody has, or one
// that any dialling program may be given before the server binds it.
func TestFreePorts(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	given := ln.Addr().(*net.TCPAddr).Port
	ports, err := FreePorts(200)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ports)
	if n := len(slices.Compact(slices.Clone(ports))); n != 200 {
		t.Fatalf("%d different ports of 200", n)
	}
	if first, last := ports[0], ports[len(ports)-1]; first < lowestPort || last > highestPort || last >= given {
		t.Fatalf("ports from %d to %d; the system gives %d", first, last, given)
	}
	for _, p := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err != nil {
			t.Fatalf("a free port: %v", err)
		}
		l.Close()
	}
}
