package warehouse

import (
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/problem"
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
	// Roles belong to the whole server: another test may have made them.
	if got := strings.ReplaceAll(codes, "TW-WAREHOUSE-DENIED", "x"); got != "x x x x" && got != "x x x x x" {
		t.Errorf("a login without rights: %s\n%s", codes, remedies)
	}
	for _, line := range strings.Split(strings.TrimSpace(remedies), "\n") {
		exec(t, conn, strings.TrimPrefix(line, "Let a superuser run: "))
	}
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
