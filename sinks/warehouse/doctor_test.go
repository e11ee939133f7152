package warehouse

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
)

// bad gives the codes of what a doctor finds wrong, and the remedies.
func bad(fs []pipeline.Finding) (codes, remedies string) {
	for _, f := range fs {
		if e := problem.Of(f.Err); e != nil {
			codes += e.ID + " "
			remedies += e.WhatToDo() + "\n"
		}
	}
	return strings.TrimSpace(codes), remedies
}

// mend runs what remedies say, each on a line of its own.
func mend(t *testing.T, conn *pgx.Conn, remedies string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(remedies), "\n") {
		if line != "Let a superuser run:" {
			exec(t, conn, line)
		}
	}
}

// Would be lost: a warehouse that cannot work is found out one mistake per
// start; or the doctor, who is to change nothing, makes something.
func TestDoctor(t *testing.T) {
	dsn, conn := fresh(t)
	db := conn.Config().Database
	if codes, _ := bad(open(t, dsn).Doctor(t.Context())); codes != "" {
		t.Errorf("a fresh database: %s", codes)
	}
	want(t, conn, "SELECT count(*)::text FROM pg_namespace WHERE nspname IN ('ps', '_tallywire')", "0")

	role := "clerk_" + db
	exec(t, conn, "CREATE ROLE "+role+" LOGIN; CREATE SCHEMA ps; CREATE TABLE ps.customer (x int); CREATE TABLE ps.project (x int)")
	clerk := open(t, server.DSNAs(role, db))
	codes, remedies := bad(clerk.Doctor(t.Context()))
	if strings.ReplaceAll(codes, "TW-WAREHOUSE-DENIED", "x") != "x x x x x" {
		t.Errorf("a login without rights: %s\n%s", codes, remedies)
	}
	mend(t, conn, remedies)
	if codes, remedies := bad(clerk.Doctor(t.Context())); codes != "" {
		t.Errorf("after its remedies: %s\n%s", codes, remedies)
	}
	exec(t, conn, "DROP TABLE ps.customer, ps.project") // they were no tables of ours
	if err := clerk.Prepare(t.Context()); err != nil {  // Remedy: TW-WAREHOUSE-DENIED
		t.Errorf("after its remedies: %v", err)
	}
	want(t, conn, "SELECT count(*)::text FROM ps.customer", "0")
	codes, _ = bad(open(t, "postgres://postgres@127.0.0.1:1/x?connect_timeout=2").Doctor(t.Context()))
	if codes != "TW-WAREHOUSE-UNAVAILABLE" {
		t.Errorf("a warehouse that is down: %s", codes)
	}
}

// Would be lost: the margin on the page, of a warehouse whose roles are there and
// whose login is no member of them; doctor found it well.
func TestRolesCanBeTaken(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			pg := testkit.NewPostgres(t, version)
			connect := func(dsn string) *pgx.Conn {
				t.Helper()
				conn, err := pgx.Connect(t.Context(), dsn)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close(context.Background()) })
				return conn
			}
			// of makes a login with a warehouse of its own.
			of := func(login, rights string) (super, own *pgx.Conn, s *Sink) {
				t.Helper()
				if err := pg.CreateDatabase(t.Context(), login); err != nil {
					t.Fatal(err)
				}
				super = connect(pg.DSN(login))
				exec(t, super, fmt.Sprintf("CREATE ROLE %[1]s LOGIN %[2]s; GRANT CREATE ON DATABASE %[1]s TO %[1]s", login, rights))
				return super, connect(pg.DSNAs(login, login)), open(t, pg.DSNAs(login, login))
			}
			takes := func(own *pgx.Conn, s *Sink) {
				t.Helper()
				if codes, remedies := bad(s.Doctor(t.Context())); codes != "" {
					t.Errorf("doctor finds %s: %s", codes, remedies)
				}
				if err := s.Prepare(t.Context()); err != nil {
					t.Fatal(err)
				}
				for _, role := range []string{RoleReader, RoleCost} {
					exec(t, own, "BEGIN; SET LOCAL ROLE "+role+"; SELECT project_id, revenue FROM ps.margin_by_project_month; COMMIT")
				}
			}
			has := func(s *Sink, sql string) (remedies string) {
				t.Helper()
				codes, remedies := bad(s.Doctor(t.Context()))
				if codes != "TW-WAREHOUSE-DENIED" || strings.TrimSpace(remedies) != "Let a superuser run:\n"+sql {
					t.Errorf("doctor finds %s: %s", codes, remedies)
				}
				return remedies
			}
			super, plain, s := of("plain", "")
			has(s, `CREATE ROLE tallywire_cost; CREATE ROLE tallywire_reader; GRANT tallywire_cost, tallywire_reader TO "plain";`)
			exec(t, super, "CREATE ROLE tallywire_cost")
			has(s, `CREATE ROLE tallywire_reader; GRANT tallywire_reader, tallywire_cost TO "plain";`)
			exec(t, super, "DROP ROLE tallywire_cost")

			_, maker, its := of("maker", "CREATEROLE") // makes the roles, and may take them
			takes(maker, its)

			if err := s.Prepare(t.Context()); err != nil { // delivery does not wait for it
				t.Fatal(err)
			}
			if _, err := plain.Exec(t.Context(), "SET ROLE tallywire_reader"); err == nil {
				t.Fatal("a login takes a role of which it is no member: the test shows nothing")
			}
			mend(t, super, has(s, `GRANT tallywire_cost, tallywire_reader TO "plain";`)) // Remedy: TW-WAREHOUSE-DENIED
			takes(plain, s)

			// Without the margin nothing is read as one of them.
			_, _, few := of("few", "")
			if codes, _ := bad(few.Doctor(t.Context())); codes != "TW-WAREHOUSE-DENIED" {
				t.Errorf("doctor finds %q", codes)
			}
			if codes, remedies := bad(open(t, pg.DSNAs("few", "few"), "ps.customer").Doctor(t.Context())); codes != "" {
				t.Errorf("doctor finds %s: %s", codes, remedies)
			}
		})
	}
}
