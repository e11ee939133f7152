package postgres

import (
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
)

// Lost if this fails: the capture itself, its initial load, its order.
func TestLoadThenStream(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE customer(id bigint PRIMARY KEY, name text, big text);
	       ALTER TABLE customer REPLICA IDENTITY FULL; ALTER TABLE customer ALTER big SET STORAGE EXTERNAL;
	       CREATE TABLE task(project_id bigint, number text, name text, PRIMARY KEY(project_id, number));
	       CREATE TABLE quiet(id int PRIMARY KEY);
	       INSERT INTO customer VALUES (1, 'a', repeat('x', 9000)), (2, NULL, NULL);
	       INSERT INTO task VALUES (7, 'T1', 'one')`)
	o := newOutlet()
	r := start(t, d.source(), o)
	o.until(t, "the load", func() bool { p := o.last(t); return p.LSN != 0 && p.State == "" })
	o.untilCount(t, 3)
	// Who reads the topic of an empty table would wait for its first row.
	if got := o.topics(); len(got) != 3 || !strings.HasSuffix(got[1], ".public.quiet") {
		t.Errorf("topics prepared: %v", got)
	}
	d.sql(`INSERT INTO customer VALUES (3, 'c', 'y')`)
	d.sql(`BEGIN; UPDATE customer SET name = 'b' WHERE id = 1; UPDATE task SET name = 'two'; UPDATE task SET number = 'T2'; DELETE FROM customer WHERE id = 2; COMMIT`)
	o.untilCount(t, 8)
	d.sql(`TRUNCATE task`)
	o.untilCount(t, 9)
	recs := o.records()
	rising(t, recs)
	big := ""
	for range 9000 {
		big += "x"
	}
	want := []struct {
		op            change.Op
		key, old, new string
	}{
		{'r', "1", "", "id=1|name=a|big=" + big},
		{'r', "2", "", "id=2|name=<null>|big=<null>"},
		{'r', "7\x1fT1", "", "project_id=7|number=T1|name=one"},
		{'c', "3", "", "id=3|name=c|big=y"},
		{'u', "1", "id=1|name=a|big=" + big, "id=1|name=b|big=" + big},
		{'u', "7\x1fT1", "", "project_id=7|number=T1|name=two"},
		{'u', "7\x1fT2", "project_id=7|number=T1|name=<unchanged>", "project_id=7|number=T2|name=two"},
		{'d', "2", "id=2|name=<null>|big=<null>", ""},
		{'t', "", "", ""},
	}
	for i, w := range want {
		g := recs[i]
		if g.op != w.op || g.key != w.key || g.old != w.old || g.new != w.new {
			t.Errorf("record %d is\n %.300s, want\n %c %q old(%.100s) new(%.100s)", i, g, w.op, w.key, w.old, w.new)
		}
	}
	for i, w := range []uint64{1, 1, 2, 3, 4, 1} {
		if g := recs[3+i].pos; g.Ordinal != w || g.Kind != change.PosCommit {
			t.Errorf("record %d has ordinal %d of kind %d, want %d", 3+i, g.Ordinal, g.Kind, w)
		}
	}
	if recs[4].pos.LSN != recs[7].pos.LSN || recs[4].xid == 0 || recs[4].time == 0 {
		t.Errorf("changes of one transaction: %v %v", recs[4], recs[7])
	}
	r.stop()
}

// Lost if this fails: a source that is told not to load would load, or would
// miss what was committed between the making of its slot and its first start.
func TestWithoutLoad(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(`CREATE TABLE item(id int PRIMARY KEY, name text); ALTER TABLE item REPLICA IDENTITY FULL; INSERT INTO item VALUES (1, 'before')`)
	s := d.source()
	s.cfg.Load = LoadNever
	o := newOutlet()
	r := start(t, s, o)
	o.until(t, "the first position", func() bool { return o.last(t).LSN != 0 })
	d.sql(`INSERT INTO item VALUES (2, 'after')`)
	d.sql(`ALTER TABLE item ADD note text; INSERT INTO item VALUES (3, 'wider', 'x')`)
	o.untilCount(t, 2)
	r.stop()
	recs := o.records()
	if len(recs) != 2 || recs[0].new != "id=2|name=after" || recs[1].new != "id=3|name=wider|note=x" {
		t.Errorf("got %v", recs)
	}
}
