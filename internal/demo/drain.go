// drain.go: when everything that the PSA had committed has arrived.

package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/kafka"
)

// lsn is where the PSA's log ends now.
func (w *world) lsn(ctx context.Context) (string, error) {
	c, err := pgx.Connect(ctx, w.psaDSN())
	if err != nil {
		return "", fmt.Errorf("connecting to the PSA: %w", err)
	}
	defer c.Close(context.WithoutCancel(ctx))
	var lsn string
	if err := c.QueryRow(ctx, `select pg_current_wal_insert_lsn()::text`).Scan(&lsn); err != nil {
		return "", fmt.Errorf("reading the end of the PSA's log: %w", err)
	}
	return lsn, nil
}

// drain waits until the slot's acknowledged position, which is never past what
// is committed in Kafka (invariant 1), is at or past lsn, and then every group
// has no lag, in the order of the flow, twice over; what is parked or waits
// must not change in between.
func (w *world) drain(ctx context.Context, pipe *pipe, groups []string, lsn string) error {
	ctx, cancel := context.WithTimeout(ctx, w.o.Drain)
	defer cancel()
	psa, err := pgx.Connect(ctx, w.psaDSN())
	if err != nil {
		return fmt.Errorf("connecting to the PSA: %w", err)
	}
	defer psa.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	calm, last := 0, ""
	for {
		behind, err := w.behind(ctx, psa, groups, lsn)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if now := w.settled(); err != nil || behind != "" || now != last {
			calm, last = 0, now
		} else if calm++; calm >= 2 {
			return nil
		}
		if h := w.obs.Halted(); h != "" {
			return ErrDemo.New("a component halted: %s", h)
		}
		select {
		case <-ctx.Done():
			return ErrDrain.New("after %s: %s", w.o.Drain, behind)
		case <-pipe.done:
			return ErrDemo.New("the pipeline ended while draining")
		case <-tick.C:
		}
	}
}

// caughtUp waits until the initial load has gone through everything: no group
// is further behind than what the generator makes in about two seconds.
func (w *world) caughtUp(ctx context.Context, groups []string) bool {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	near := int64(2*w.o.Rate) + 100
	for {
		calm := true
		for _, g := range groups {
			if n, err := w.lag(ctx, g); err != nil || n > near {
				calm = false
				break
			}
		}
		if calm {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// behind says who is behind, "" when nobody is.
func (w *world) behind(ctx context.Context, psa *pgx.Conn, groups []string, lsn string) (string, error) {
	var (
		done bool
		at   *string
	)
	err := psa.QueryRow(ctx, `select coalesce(confirmed_flush_lsn >= $1::pg_lsn, false), confirmed_flush_lsn::text from pg_replication_slots where slot_name = 'tallywire_psa'`, lsn).Scan(&done, &at)
	if err != nil {
		return "the slot", fmt.Errorf("reading the slot's position: %w", err)
	}
	if !done {
		return fmt.Sprintf("the slot is at %s, not yet at %s", deref(at), lsn), nil
	}
	for _, g := range groups {
		n, err := w.lag(ctx, g)
		if err != nil {
			return "group " + g, err
		}
		if n > 0 {
			return fmt.Sprintf("group %s lags by %d records", g, n), nil
		}
	}
	return "", nil
}

// lag is how many records lie between a group's committed offsets and the
// committed ends of its partitions.
func (w *world) lag(ctx context.Context, group string) (int64, error) {
	lags, err := w.kc.Admin().Lag(ctx, group)
	if err != nil {
		return 0, kafka.Wrap(err, "reading the lag of %s", group)
	}
	l, ok := lags[group]
	if !ok {
		return 1, nil
	}
	if err := l.Error(); err != nil {
		return 0, kafka.Wrap(err, "reading the lag of %s", group)
	}
	if len(l.Lag) == 0 {
		return 1, nil // it has read nothing yet
	}
	var sum int64
	for _, parts := range l.Lag {
		for _, x := range parts {
			if x.Lag > 0 {
				sum += x.Lag
			}
		}
	}
	return sum, nil
}

// settled is what must stand still: what is parked, and what waits.
func (w *world) settled() string {
	s := ""
	for _, v := range w.obs.Views() {
		s += fmt.Sprintf("%s/%s %s %d %d;", v.Kind, v.Name, v.State, v.Parked, v.Waiting)
	}
	return s
}

func deref(s *string) string {
	if s == nil {
		return "nowhere"
	}
	return *s
}
