// Ports for servers that are started here and cannot say which port they took.

package embedded

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Free ports are drawn from below those that systems give to a socket that
// asks for any port (Linux: 32768 to 60999, net.ipv4.ip_local_port_range;
// others: from 49152). Within that range whatever dials or listens on port 0
// in this moment may be given the port before its server binds it, and again
// while the server is down between two runs of it.
const (
	lowestPort  = 20000
	highestPort = 32767
)

// FreePorts draws n ports of 127.0.0.1 that nobody listens on now.
func FreePorts(n int) ([]int, error) {
	var out []int
	var last error
	for range 100 * n {
		port := lowestPort + rand.IntN(highestPort-lowestPort+1)
		ln, err := listenTCP(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		defer ln.Close() // each is held until all are found: none is drawn twice
		if out = append(out, port); len(out) == n {
			return out, nil
		}
	}
	return nil, fmt.Errorf("finding %d free ports from %d to %d: %w", n, lowestPort, highestPort, last)
}

// FreeAddr draws a host:port of 127.0.0.1 that nobody listens on now.
func FreeAddr() (string, error) {
	ports, err := FreePorts(1)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])), nil
}

func listenTCP(addr string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(context.Background(), "tcp", addr)
}
