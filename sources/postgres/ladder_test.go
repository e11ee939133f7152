package postgres

import (
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
