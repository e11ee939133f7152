// Acknowledgements: standby status updates, sent on time whatever the decoder
// waits for, and never beyond what is durable in Kafka (invariant 1).

package postgres

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// acker owns the goroutine that answers the server.
type acker struct {
	sock    *socket
	flushed atomic.Uint64 // what may be acknowledged
	told    atomic.Uint64 // what was
	latest  atomic.Value  // string: the last durable Resume
	asked   chan struct{} // the server wants an answer now
	err     chan error    // one, when the goroutine ends by itself
	stop    context.CancelFunc
	done    chan struct{}
}

// startAcker sends a status at least every interval, and one that asks for the
// server's position every idle.
func startAcker(sock *socket, durable <-chan pipeline.Resume, interval, idle time.Duration) *acker {
	ctx, stop := context.WithCancel(context.Background())
	a := &acker{sock: sock, asked: make(chan struct{}, 1), err: make(chan error, 1), stop: stop, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		if err := outage.Guard(func() error { return a.run(ctx, durable, interval, idle) }); err != nil {
			a.err <- err
		}
	}()
	return a
}

func (a *acker) close() {
	a.stop()
	<-a.done
}

func (a *acker) run(ctx context.Context, durable <-chan pipeline.Resume, interval, idle time.Duration) error {
	tick, poke := time.NewTicker(interval), time.NewTicker(idle)
	defer tick.Stop()
	defer poke.Stop()
	for {
		ask := false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-poke.C:
			ask = true
		case <-a.asked:
		case r := <-durable:
			p, err := parsePosition(r)
			if err != nil {
				return err
			}
			a.latest.Store(string(r))
			if p == nil || !a.advance(p.LSN) {
				continue
			}
		}
		if err := a.send(ask); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return classify("acknowledging to the source database", err)
		}
	}
}

// advance lets everything before at be acknowledged; at must be in a committed
// position (invariant 1).
func (a *acker) advance(at lsn) bool {
	for {
		was := a.flushed.Load()
		if uint64(at) <= was {
			return false
		}
		if a.flushed.CompareAndSwap(was, uint64(at)) {
			return true
		}
	}
}

// isDurable reports whether r is the last Resume known to be committed.
func (a *acker) isDurable(r []byte) bool {
	s, ok := a.latest.Load().(string)
	return ok && s == string(r)
}

// send writes a standby status update (PostgreSQL documentation, "Streaming
// Replication Protocol"): written, flushed and applied are the same to us.
func (a *acker) send(ask bool) error {
	var m [34]byte
	m[0] = 'r'
	at := a.flushed.Load()
	binary.BigEndian.PutUint64(m[1:], at)
	binary.BigEndian.PutUint64(m[9:], at)
	binary.BigEndian.PutUint64(m[17:], at)
	binary.BigEndian.PutUint64(m[25:], uint64(time.Now().UnixMicro()-pgoutput.EpochUS))
	if ask {
		m[33] = 1
	}
	if err := a.sock.send(m[:]); err != nil {
		return err
	}
	a.told.Store(at)
	return nil
}

// answer is called when the server asks for a status.
func (a *acker) answer() {
	select {
	case a.asked <- struct{}{}:
	default:
	}
}
