package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/removal"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
)

// remains gives the slot and the publication as Remains lists them.
func remains(t *testing.T, s *Source, others ...pipeline.Source) (slot, pub removal.Thing, inUse error) {
	t.Helper()
	things, inUse, err := s.Remains(t.Context(), others)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	if len(things) != 2 || !strings.HasPrefix(things[0].What, "slot ") || !strings.HasPrefix(things[1].What, "publication ") {
		t.Fatalf("there remain %v: want the slot first, then the publication", things)
	}
	return things[0], things[1], inUse
}

// Lost if this fails: the disk of a customer's server fills with the log that it keeps
// for a source that nobody has any more; or a source that runs loses its slot.
func TestRemove(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			d := newDB(t, testkit.NewPostgres(t, version))
			d.sql("CREATE TABLE a(id int PRIMARY KEY, v text); CREATE TABLE b(id int PRIMARY KEY)")
			s := d.source()
			if slot, pub, inUse := remains(t, s); !slot.Gone || !pub.Gone || inUse != nil {
				t.Fatalf("of a source that never ran: %v, %v, %v", slot, pub, inUse)
			}
			r := loaded(t, s, newOutlet())
			pid := d.one("SELECT active_pid::text FROM pg_replication_slots")
			running, _, inUse := remains(t, s)
			want(t, inUse, ErrSlotInUse, s.cfg.Slot, "server process "+pid, `role "postgres"`, `application "tallywire"`)
			if err := running.Remove(t.Context()); !problem.Has(err, ErrSlotInUse) || d.one("SELECT count(*)::text FROM pg_replication_slots") != "1" {
				t.Errorf("the slot of a source that runs: %v", err)
			}
			r.stop()
			d.free(s.cfg.Slot)

			d.sql("INSERT INTO a SELECT i, repeat('x', 1000) FROM generate_series(1, 5000) i")
			slot, pub, inUse := remains(t, s)
			if inUse != nil || slot.Gone || pub.Gone || slot.Stays+pub.Stays != "" {
				t.Fatalf("%v, %v, %v", slot, pub, inUse)
			}
			if !strings.Contains(slot.Holds, " MB of the server's log") || strings.HasPrefix(slot.Holds, "0") || pub.Holds != "2 tables" {
				t.Errorf("slot and publication hold %q, %q", slot.Holds, pub.Holds)
			}
			if err := slot.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			slotNow, pubNow, _ := remains(t, s) // as after a kill in between
			if !slotNow.Gone || pubNow.Gone {
				t.Errorf("in between: %v, %v", slotNow, pubNow)
			}
			for range 2 { // what is gone is no error
				for _, thing := range []removal.Thing{slot, pub} {
					if err := thing.Remove(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if n := d.one("SELECT ((SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication))::text"); n != "0" {
				t.Errorf("%s are left", n)
			}
			if slot, pub, inUse = remains(t, s); !slot.Gone || !pub.Gone || inUse != nil {
				t.Errorf("afterwards: %v, %v, %v", slot, pub, inUse)
			}

			// The source begins anew, and is removed by hand.
			loaded(t, s, newOutlet()).stop()
			d.free(s.cfg.Slot)
			for _, sql := range s.RemainsSQL() {
				d.sql("%s", sql)
			}
			if slot, pub, _ = remains(t, s); !slot.Gone || !pub.Gone {
				t.Errorf("by hand: %v, %v", slot, pub)
			}
		})
	}
}

// Lost if this fails: what another made, or another source needs, is dropped.
func TestRemoveLeavesWhatIsNotOurs(t *testing.T) {
	d := newDB(t, shared(t))
	role := "reader_" + d.name
	d.sql(`CREATE TABLE a(id int PRIMARY KEY); CREATE ROLE %[1]s LOGIN; CREATE PUBLICATION "Theirs" FOR TABLE a; CREATE PUBLICATION whole FOR ALL TABLES;
		CREATE PUBLICATION own FOR TABLE a; ALTER PUBLICATION own OWNER TO postgres`, role)
	as := func(user, slot, publication string) *Source {
		return d.source(func(c *Config) {
			c.DSN, c.Slot, c.Publication = secret.DSNOf(d.pg.DSNAs(user, d.name)), slot, publication
		})
	}
	stays := func(what string, th removal.Thing, why, run string) {
		t.Helper()
		if !strings.Contains(th.Stays, why) || th.Remove != nil || th.Run != run || th.Gone {
			t.Errorf("%s: %+v, want it to stay: %s", what, th, why)
		}
	}
	_, pub, _ := remains(t, as(role, "none", "Theirs"))
	stays("another's publication", pub, `belongs to role "postgres", and not to "`+role+`"`, `DROP PUBLICATION "Theirs";`)
	_, pub, _ = remains(t, as("postgres", "none", "whole"))
	stays("one of all tables", pub, "FOR ALL TABLES", `DROP PUBLICATION "whole";`)
	other := as("postgres", "other", "own")
	_, pub, _ = remains(t, as("postgres", "none", "own"), other)
	stays("one that two sources share", pub, `source "psa" captures through it`, "")
	elsewhere := newDB(t, d.pg).source(func(c *Config) { c.Publication = "own" })
	if _, pub, _ = remains(t, as("postgres", "none", "own"), elsewhere); pub.Remove == nil {
		t.Errorf("one of the same name in another database: %+v", pub)
	}

	slot := "slot_" + d.name
	d.sql("SELECT pg_create_physical_replication_slot('%s')", slot)
	th, _, _ := remains(t, as("postgres", slot, "own"))
	stays("a physical slot", th, "it is physical", "")
	want(t, start(t, as("postgres", slot, "own"), newOutlet()).fails(), ErrSlotInvalid, slot, "is physical")
	d.sql("SELECT pg_drop_replication_slot('%s')", slot)
	e := newDB(t, d.pg)
	e.sql("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", slot)
	th, _, _ = remains(t, as("postgres", slot, "own"))
	stays("a slot of another database", th, `belongs to database "`+e.name+`"`, "")
	e.sql("SELECT pg_drop_replication_slot('%s')", slot)

	// A role that lost its right is told what somebody else runs.
	d.sql("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", slot)
	th, _, _ = remains(t, as(role, slot, "own"))
	err := th.Remove(t.Context())
	want(t, err, ErrRefused, slot)
	lines := strings.Split(problem.Of(err).WhatToDo(), "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "SELECT pg_drop_replication_slot") })
	if i < 0 {
		t.Fatalf("the remedy has no statement: %q", lines)
	}
	d.sql("%s", lines[i])
	if th, _, _ = remains(t, as(role, slot, "own")); !th.Gone {
		t.Errorf("after its remedy: %+v", th)
	}
}
