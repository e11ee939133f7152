// The ladder: how far the server's log is, and what of it was sent, received, is
// in Kafka, and was acknowledged. The rung that stands behind the one above it
// names what is slow: the walsender, the network or ourselves, Kafka.

package postgres

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
)

const ladderInterval = 2 * time.Second

// ladder owns a goroutine that asks the server where it is.
type ladder struct {
	comp *obs.Component
	pid  uint32 // of the walsender
	ack  *acker

	received atomic.Uint64 // end of the last transaction that was read whole
	sent     uint64        // as last seen

	also      func(context.Context, *pgx.Conn) error // is done every alsoEvery
	alsoEvery time.Duration
	alsoAt    time.Time
	tick      time.Duration

	stop context.CancelFunc
	done sync.WaitGroup
}

// startLadder asks every tick, on a connection of its own: the other
// one serves the stream, which must not wait. Not being able to ask is no
// failure of the capture. What is to be looked after beside the stream is done
// here too.
func startLadder(cfg *Config, comp *obs.Component, pid uint32, ack *acker, also func(context.Context, *pgx.Conn) error, every, tick time.Duration) *ladder {
	ctx, stop := context.WithCancel(context.Background())
	l := &ladder{comp: comp, pid: pid, ack: ack, stop: stop, tick: tick, also: also, alsoEvery: every, alsoAt: time.Now()}
	l.done.Go(func() {
		if err := outage.Guard(func() error { return l.run(ctx, cfg) }); err != nil {
			comp.Log.Error("the source database is not asked any more how far it is", "err", err)
		}
	})
	return l
}

// run asks until ctx ends.
func (l *ladder) run(ctx context.Context, cfg *Config) error {
	var q *pgx.Conn
	defer func() {
		if q != nil {
			closeConn(q)
		}
	}()
	tick := time.NewTicker(l.tick)
	defer tick.Stop()
	for {
		err := errors.New("not connected")
		if q != nil {
			if err = l.look(ctx, q); err == nil && time.Since(l.alsoAt) >= l.alsoEvery {
				l.alsoAt = time.Now()
				err = l.also(ctx, q)
			}
		}
		if err != nil && ctx.Err() == nil {
			if q != nil {
				l.comp.Log.Debug("asking the source database how far it is", "err", err)
				closeConn(q)
			}
			if q, err = cfg.connect(ctx); err == nil {
				continue
			}
			q = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look reads the upper rungs from the server and sets them all.
func (l *ladder) look(ctx context.Context, q *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The lower rungs first, so that none seems to be ahead of an upper one.
	acked, kafka, received := l.ack.told.Load(), l.ack.flushed.Load(), l.received.Load()
	var head, sent *int64
	err := q.QueryRow(ctx, `SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint,
  (SELECT sent_lsn - '0/0' FROM pg_stat_replication WHERE pid = $1)::bigint`, l.pid).Scan(&head, &sent)
	if err != nil || head == nil {
		return err
	}
	if sent != nil { // without the right to see it, or after its end: as it was
		l.sent = uint64(*sent)
	}
	received = max(received, kafka)
	at := max(uint64(*head), received)
	l.comp.Ladder(obs.Rung{Name: "head", At: at}, obs.Rung{Name: "sent", At: min(at, max(l.sent, received))},
		obs.Rung{Name: "received", At: received}, obs.Rung{Name: "kafka", At: kafka}, obs.Rung{Name: "acknowledged", At: acked})
	return nil
}

func (l *ladder) close() {
	l.stop()
	l.done.Wait()
}

// ShowBehind implements pipeline.Laggard: while capture stands still the server
// writes on, and keeps its log from what was acknowledged.
func (s *Source) ShowBehind(ctx context.Context) {
	tick := time.NewTicker(ladderInterval)
	defer tick.Stop()
	for {
		if err := s.lookAside(ctx); err != nil && ctx.Err() == nil {
			s.comp.Log.Debug("asking the source database how far it is", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lookAside sets the ladder from what the server knows of the slot.
func (s *Source) lookAside(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	q, err := s.cfg.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(q)
	head, err := readHead(ctx, q)
	if err != nil {
		return err
	}
	slot, err := readSlot(ctx, q, s.cfg.Slot)
	if err != nil || slot == nil || slot.activePID != nil { // gone; or another process captures, and tells
		s.comp.Ladder()
		return err
	}
	at, err := slot.confirmedLSN()
	if err != nil {
		return err
	}
	var rungs []obs.Rung
	for _, name := range []string{"sent", "received", "kafka", "acknowledged"} {
		rungs = append(rungs, obs.Rung{Name: name, At: min(uint64(at), uint64(head))})
	}
	s.comp.Ladder(append([]obs.Rung{{Name: "head", At: uint64(head)}}, rungs...)...)
	return nil
}
