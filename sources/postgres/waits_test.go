package postgres

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
)

// Lost if this fails: capture does not begin because somebody left a transaction
// open, and nobody can tell whose; or a slot that is not made in time stays, and the
// server keeps its log for it.
func TestSlotWaitsForSomebody(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql(`CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)`)
			other := newDBConn(t, d)
			pid := other.one("SELECT pg_backend_pid()::text")
			other.sql("SET application_name = 'nightly'; BEGIN; INSERT INTO a VALUES (2)")
			s, o := d.source(), newOutlet()
			s.ladderEvery = 20 * time.Millisecond
			s.slotPatience = time.Second
			who := fmt.Sprintf(`the transaction of server process %s (role "*", "nightly", idle in transaction, open for *s)`, pid)
			r := start(t, s, o)
			o.until(t, "whose transaction it is", func() bool {
				return matches("making the slot: waiting for "+who+" to end", s.comp.View().Reason)
			})
			err := r.fails()
			if !problem.Has(err, ErrSlotWait) || !matches("*could not be made within 1s: it waited for "+who+" to end", err.Error()) {
				t.Fatalf("%v, want TW-PG-SLOT-WAIT that names process %s", err, pid)
			}
			o.ended = nil
			o.until(t, "the slot to go", func() bool { return d.one("SELECT count(*)::text FROM pg_replication_slots") == "0" })
			d.sql("SELECT pg_terminate_backend(%s)", pid) // Remedy: TW-PG-SLOT-WAIT
			r = loaded(t, s, o)
			if got := len(state(o.records(), "psa.public.a")); got != 1 {
				t.Errorf("%d rows were loaded, want 1", got)
			}
			if text := s.comp.View().Reason; strings.Contains(text, "waiting") {
				t.Errorf("it still says that it waits: %s", text)
			}
			r.stop()
		})
	}
}
