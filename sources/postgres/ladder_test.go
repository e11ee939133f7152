package postgres

import (
	"context"
	"testing"
)

// Lost if this fails: nobody sees which step of the way is behind.
func TestLadder(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE item(id int PRIMARY KEY, name text)`)
	s := d.source()
	o := newOutlet()
	r := start(t, s, o)
	o.until(t, "the load", func() bool { p := o.last(t); return p.LSN != 0 && p.State == "" })
	d.sql(`INSERT INTO item VALUES (1, 'a')`)
	o.untilCount(t, 1)
	want := []string{"head", "sent", "received", "kafka", "acknowledged"}
	o.until(t, "a ladder that stands on the ground", func() bool {
		v := s.comp.View().Ladder
		if len(v) != len(want) {
			return false
		}
		for i, rung := range v {
			if rung.Name != want[i] || i > 0 && rung.At > v[i-1].At {
				t.Fatalf("rungs %v", v)
			}
		}
		return v[0].At > 0 && v[4].At > 0 && v[0].At-v[4].At < 1<<20
	})
	r.stop()
}

// If this failed, a source that halted would show that it is 0 bytes behind, as
// when it halted, while its slot keeps ever more of the server's log.
func TestHaltedSourceShowsWhatGrows(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE a(id int PRIMARY KEY, v text)`)
	s, o := d.source(), newOutlet()
	loaded(t, s, o).stop()
	d.free(s.cfg.Slot)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.ShowBehind(ctx) }()
	defer func() { cancel(); <-done }()
	behind := func() uint64 {
		v := s.comp.View().Ladder
		if len(v) != 5 || v[4].Name != "acknowledged" {
			return 0
		}
		return v[0].At - v[4].At
	}
	d.sql(`INSERT INTO a SELECT g, repeat('x', 1000) FROM generate_series(1, 2000) g`)
	o.until(t, "2 MB of log to be shown", func() bool { return behind() > 2_000_000 })
	d.sql("SELECT pg_drop_replication_slot('%s')", s.cfg.Slot)
	o.until(t, "that no slot keeps it any more", func() bool { return len(s.comp.View().Ladder) == 0 })
}
