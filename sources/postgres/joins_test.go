package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
)

// awaitLoads waits until nothing is noted to be read, of n tables.
func (o *outlet) awaitLoads(t *testing.T, n int) {
	t.Helper()
	o.until(t, fmt.Sprintf("the rows of %d tables", n), func() bool {
		ms, err := parseMembers(o.Notes())
		if err != nil {
			t.Fatal(err)
		}
		return ms != nil && len(ms.of) == n && len(ms.loading()) == 0
	})
}

// Lost if this fails: the rows that an upgrade of an application wrote into the tables
// that it made, before they were published or while they are read, or when the process
// dies then.
func TestTablesThatAnUpgradeMakes(t *testing.T) {
	const tables = 35
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql("CREATE TABLE other(id int PRIMARY KEY)")
			s, o := d.source(), newOutlet()
			looksOften(s)
			s.askEvery, s.chunkRows = time.Millisecond, 20
			r := loaded(t, s, o)
			// One transaction, as many upgrades are, and changes from then on.
			var upgrade strings.Builder
			for i := range tables {
				fmt.Fprintf(&upgrade, "CREATE TABLE m%[1]d(id int PRIMARY KEY, v int); INSERT INTO m%[1]d SELECT g, 0 FROM generate_series(1, 50) g;", i)
			}
			d.sql("%s", upgrade.String())
			var writers sync.WaitGroup
			writing, stop := context.WithCancel(t.Context())
			defer writers.Wait()
			defer stop()
			var wrote atomic.Int64
			for w := range 2 {
				c := newDBConn(t, d)
				writers.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(w), 3))
					for writing.Err() == nil {
						table, key := rnd.IntN(tables), 1+rnd.IntN(60)
						if _, err := c.Conn.PgConn().Exec(t.Context(), fmt.Sprintf("BEGIN; INSERT INTO m%[1]d VALUES (%[2]d, 1) ON CONFLICT (id) DO UPDATE SET v = m%[1]d.v + 1; DELETE FROM m%[1]d WHERE id = %[3]d; SELECT pg_sleep(%[4]f); COMMIT",
							table, key, 1+rnd.IntN(60), rnd.Float64()/200)).ReadAll(); err != nil {
							t.Error(err)
							return
						}
						wrote.Add(1)
					}
				})
			}
			died := errors.New("it dies")
			for _, at := range []int64{1, 4} {
				o.besideOnce(at, func() error { return died })
				if err := r.fails(); !errors.Is(err, died) {
					t.Fatal(err)
				}
				o.ended = nil
				d.free(s.cfg.Slot)
				r = start(t, s, o)
			}
			o.awaitLoads(t, tables+1)
			says(t, s)
			stop()
			writers.Wait()
			d.sql("INSERT INTO other VALUES (1)")
			o.until(t, "the last change", func() bool { return len(state(o.records(), "psa.public.other")) == 1 })
			r.stop()
			rising(t, o.records())
			for i := range tables {
				table := fmt.Sprintf("m%d", i)
				sameState(t, state(o.records(), "psa.public."+table), rows(d, table, "id", "id", "v"))
			}
			t.Logf("%d transactions", wrote.Load())
		})
	}
}

// runs is a Run that is begun again when the stream is to be opened anew; reopened
// counts that.
func runs(t *testing.T, d *db, s *Source, o *outlet, reopened *atomic.Int32) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		for {
			err := s.Run(ctx, o)
			if !problem.Has(err, ErrReopen) { // Remedy: TW-PG-REOPEN
				o.end(err)
				ended <- err
				return
			}
			reopened.Add(1)
			d2, err := d.connect()
			if err == nil { // its walsender may take a moment to end
				for free := false; err == nil && !free; {
					err = d2.QueryRow(ctx, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1", s.cfg.Slot).Scan(&free)
				}
				d2.Close(context.Background())
			}
		}
	}()
	t.Cleanup(cancel)
	return func() {
		t.Helper()
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("Run does not end")
		}
	}
}

// Lost if this fails: what a transaction wrote that had changed a table before it was
// listed, and with some servers all that comes to that table until the next restart
// (C4).
func TestListedWhileATransactionRuns(t *testing.T) {
	for version, stale := range map[string]bool{embedded.Postgres17Stale: true, embedded.Postgres18: false} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql("CREATE TABLE other(id int PRIMARY KEY); CREATE ROLE dba")
			s, o := d.source(), newOutlet()
			looksOften(s)
			s.askEvery = time.Millisecond
			// Not ours: who owns it lists the table when it suits.
			d.sql("CREATE PUBLICATION %[1]s FOR TABLE other WITH (publish_via_partition_root = true); ALTER PUBLICATION %[1]s OWNER TO dba", s.cfg.Publication)
			var reopened atomic.Int32
			stop := runs(t, d, s, o, &reopened)
			o.awaitLoads(t, 1)
			d.sql("CREATE TABLE a(id int PRIMARY KEY, v int)")
			says(t, s, `public.a: is not in publication "*"`)
			running := newDBConn(t, d)
			running.sql("BEGIN; INSERT INTO a VALUES (1, 1)")
			d.sql("ALTER PUBLICATION %s ADD TABLE a", s.cfg.Publication)
			running.sql("INSERT INTO a VALUES (2, 1)")
			o.until(t, "the transaction to be waited for", func() bool {
				return strings.Contains(s.comp.View().Progress, "waiting for the transaction of server process")
			})
			if n := len(state(o.records(), "psa.public.a")); n != 0 {
				t.Errorf("%d rows came before the transaction ended", n)
			}
			running.sql("COMMIT")
			d.sql("INSERT INTO a VALUES (3, 1); UPDATE a SET v = 2 WHERE id = 1")
			o.awaitLoads(t, 2)
			d.sql("INSERT INTO a VALUES (4, 1); UPDATE a SET v = 2 WHERE id = 2")
			o.until(t, "the last row", func() bool { return state(o.records(), "psa.public.a")["2"] == "id=2|v=2" })
			stop()
			rising(t, o.records())
			sameState(t, state(o.records(), "psa.public.a"), rows(d, "a", "id", "id", "v"))
			if got := reopened.Load(); (got == 1) != stale || got > 1 {
				t.Errorf("the stream was opened anew %d times", got)
			}
			var advice []string
			for _, f := range s.Doctor(t.Context()) {
				if strings.HasPrefix(f.What, "the server loses no changes") {
					advice = append(advice, f.Advice)
				}
			}
			if (len(advice) == 1) != stale || stale && !strings.HasPrefix(advice[0], "17.4 does") {
				t.Errorf("the doctor says %q", advice)
			}
		})
	}
}

// A new table that somebody has locked keeps no other waiting.
func TestListingThatWaits(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql("CREATE TABLE other(id int PRIMARY KEY)")
	s, o := d.source(), newOutlet()
	looksOften(s)
	s.askEvery = time.Millisecond
	r := loaded(t, s, o)
	holder := newDBConn(t, d)
	// As VACUUM does. It may be listed before.
	holder.sql("BEGIN; CREATE TABLE held(id int PRIMARY KEY); INSERT INTO held VALUES (1); COMMIT; BEGIN; LOCK TABLE held IN SHARE UPDATE EXCLUSIVE MODE")
	d.sql("CREATE TABLE fresh(id int PRIMARY KEY); INSERT INTO fresh VALUES (1)")
	o.until(t, "the one that nobody has", func() bool { return len(state(o.records(), "psa.public.fresh")) == 1 })
	holder.sql("COMMIT")
	o.until(t, "the other", func() bool { return len(state(o.records(), "psa.public.held")) == 1 })
	says(t, s)
	r.stop()
}
