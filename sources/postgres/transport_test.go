package postgres

import (
	"fmt"
	"testing"

	"github.com/tallywire/tallywire/internal/secret"
)

// Lost if this fails: what is captured depends on how the server is reached.
func TestTransports(t *testing.T) {
	pg := shared(t)
	for name, dsn := range map[string]func(string) string{"tcp": pg.DSN, "unix": pg.UnixDSN, "tls": pg.TLSDSN} {
		t.Run(name, func(t *testing.T) {
			d := newDB(t, pg)
			d.sql("CREATE TABLE a(id int PRIMARY KEY, s text); INSERT INTO a SELECT i, 'loaded' FROM generate_series(1, 3000) i")
			s, o := d.source(func(c *Config) { c.DSN = secret.DSNOf(dsn(d.name)) }), newOutlet()
			r := loaded(t, s, o)
			o.untilCount(t, 3000)
			d.sql("INSERT INTO a SELECT i, repeat('streamed ', 20) FROM generate_series(3001, 20000) i")
			d.sql("UPDATE a SET s = repeat('wide ', 400000) WHERE id = 7")
			for i := range 200 {
				d.sql("UPDATE a SET s = 'alone %d' WHERE id = 8", i)
			}
			o.untilCount(t, 3000+17000+1+200)
			if s := state(o.records(), "psa.public.a"); len(s) != 20000 || s["8"] != "id=8|s=alone 199" || len(s["7"]) != len("id=7|s=")+5*400000 {
				t.Errorf("%d rows; row 8 is %q, row 7 has %d octets", len(s), s["8"], len(s["7"]))
			}
			rising(t, o.records()[3000:])
			// Dropped by the server, it reconnects and goes on.
			d.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '%s'", s.cfg.Slot)
			if err := r.fails(); err == nil {
				t.Fatal("no error")
			}
			o.end(nil)
			d.free(s.cfg.Slot)
			r = start(t, s, o)
			d.sql("DELETE FROM a WHERE id <= 10")
			o.untilCount(t, 3000+17000+1+200+10)
			r.stop()
			if got := fmt.Sprint(len(state(o.records(), "psa.public.a"))); got != d.one("SELECT count(*)::text FROM a") {
				t.Errorf("%s rows are left", got)
			}
		})
	}
}
