// Waits: whose transactions a slot or a load waits for, by name: an idle transaction
// that somebody forgot holds them up for as long as it is open.

package postgres

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

// ErrSlotWait says that a slot could not be made in time.
var ErrSlotWait = problem.Define("TW-PG-SLOT-WAIT", problem.Retry,
	"A slot cannot be made while a transaction is open that was when it was begun; it was given up, so that the server need not keep its log, and is tried again.",
	"End the transaction that the message names: have its client commit, or SELECT pg_terminate_backend(PID); a prepared one by COMMIT PREPARED or ROLLBACK PREPARED.")

// slotPatience is how long the transactions are waited for that were open when a slot
// was begun: the server keeps its log meanwhile, and vacuum keeps dead rows of the
// catalogue.
const slotPatience = time.Hour

// holdersSQL is who has the transactions that %s selects of pg_locks w: of each the
// pid, 0 for a prepared one, which has a name. What another role does may be hidden.
const holdersSQL = `
SELECT COALESCE(g.pid, 0), COALESCE(a.usename::text, ''), COALESCE(a.application_name, ''), COALESCE(a.state, ''),
       COALESCE(extract(epoch FROM clock_timestamp() - a.xact_start)::bigint, -1),
       COALESCE((SELECT x.gid FROM pg_prepared_xacts x WHERE x.transaction = g.transactionid), '')
  FROM pg_locks g LEFT JOIN pg_stat_activity a ON a.pid = g.pid
 WHERE g.locktype = 'transactionid' AND g.mode = 'ExclusiveLock' AND g.granted AND %s
 ORDER BY a.xact_start NULLS LAST, 1`

var (
	slotHoldersSQL = fmt.Sprintf(holdersSQL, "g.transactionid IN (SELECT w.transactionid FROM pg_locks w WHERE w.pid = $1 AND w.locktype = 'transactionid' AND NOT w.granted)")
	oldHoldersSQL  = fmt.Sprintf(holdersSQL, "g.transactionid::text = ANY($1)")
)

// holders says whose transactions those are; "": nobody's that can be seen.
func holders(ctx context.Context, q *pgx.Conn, sql string, arg any) (text string, err error) {
	rows, err := q.Query(ctx, sql, arg)
	if err != nil {
		return "", classify("looking for open transactions", err)
	}
	var pid, seconds int64
	var user, app, state, gid string
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&pid, &user, &app, &state, &seconds, &gid}, func() error {
		if n++; n > 1 {
			return nil
		}
		switch {
		case pid == 0:
			text = fmt.Sprintf("the prepared transaction %q", gid)
			return nil
		case app != "":
			app = fmt.Sprintf(", %q", app)
		}
		text = fmt.Sprintf("the transaction of server process %d (role %q%s", pid, user, app)
		if state != "" {
			text += ", " + state
		}
		if seconds >= 0 {
			text += fmt.Sprintf(", open for %s", time.Duration(seconds)*time.Second)
		}
		text += ")"
		return nil
	})
	if n > 1 {
		text += fmt.Sprintf(", and %d more,", n-1)
	}
	return text, classify("looking for open transactions", err)
}

// whileSlotIsMade shows whom the server process waits for that makes a slot, until
// stop, which gives the last that was seen.
func (se *session) whileSlotIsMade(ctx context.Context, pid uint32, doing string) (stop func() string) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		done sync.WaitGroup
		last string
	)
	done.Go(func() {
		q, err := se.cfg.connect(ctx)
		if err != nil {
			return // it is said of the connection that matters
		}
		defer closeConn(q)
		tick := time.NewTicker(se.ladderEvery / 2)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			who, err := holders(ctx, q, slotHoldersSQL, pid)
			if err != nil {
				return
			}
			if who != "" && ctx.Err() == nil {
				last = who
				se.comp.Is(obs.Starting, doing+": waiting for "+who+" to end")
			}
		}
	})
	return func() string {
		cancel()
		done.Wait()
		return last
	}
}
