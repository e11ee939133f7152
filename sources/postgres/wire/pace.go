// Pace: how long octets are let to gather before the next read.

package wire

import (
	"math"
	"time"
)

// How long to let octets gather, from how fast they came.
const (
	// memory is over what time the flow is judged.
	memory = 4 * time.Millisecond
	// Below flowing octets in memory (about 2 MB/s) every read waits for the first
	// octet and is woken by it: no latency is added. Gathering 1 MB/s, 1,000
	// transactions of five rows a second, was measured to save no CPU, since the
	// rows of a transaction come together; at 5 MB/s it halves the reader's.
	flowing = 10 << 10
	// From bulk octets in memory on (about 20 MB/s) it is a backlog that is read.
	bulk = 128 << 10
)

// pace decides between reads. It keeps a sum of the octets that came, which
// fades with time.
type pace struct {
	// flow bounds what gathering adds to the latency of changes that are followed
	// live; bulk is for a backlog.
	flow, bulk time.Duration

	sum  float64
	last time.Time
	full bool // the last read took all that it had room for: there is more
}

// took notes a read of n octets.
func (p *pace) took(n int, full bool, now time.Time) {
	p.sum = p.sum*math.Exp(-float64(now.Sub(p.last))/float64(memory)) + float64(n)
	p.last, p.full = now, full
}

// pause is how long to wait before the next read. 0: until there is an octet.
func (p *pace) pause() time.Duration {
	switch {
	case p.full || p.sum < flowing:
		return 0
	case p.sum < bulk:
		return p.flow
	}
	return p.bulk
}
