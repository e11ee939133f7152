package firm_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/demo/firm"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/internal/testkit/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func ask[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// Would be lost: a demo whose numbers can be told to a colleague (the same at
// every start), and the cases that it is to show.
func TestSeed(t *testing.T) {
	dsn := testkit.NewDatabase(t)
	const fingerprint = `SELECT md5(string_agg(h, '' ORDER BY h)) FROM (
		SELECT md5(string_agg(x::text, '|' ORDER BY id)) h FROM time_entry x UNION ALL
		SELECT md5(string_agg(x::text, '|' ORDER BY id)) FROM cost_rate x UNION ALL
		SELECT md5(string_agg(x::text, '|' ORDER BY id)) FROM invoice x UNION ALL
		SELECT md5(string_agg(x::text, '|' ORDER BY id)) FROM invoice_line x UNION ALL
		SELECT md5(string_agg(x::text, '|' ORDER BY id)) FROM project x UNION ALL
		SELECT md5(string_agg(x::text, '|' ORDER BY id)) FROM employee x) f`
	var prints [2]string
	for i, dsn := range []string{dsn, testkit.NewDatabase(t)} {
		sum, err := firm.Seed(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d time entries in %s", sum.Rows["time_entry"], sum.Took)
		prints[i] = ask[string](t, connect(t, dsn), fingerprint)
	}
	if prints[0] != prints[1] {
		t.Error("two seeds differ")
	}
	again, err := firm.Seed(t.Context(), dsn)
	if err != nil || again.New {
		t.Errorf("a seeded database was not left alone: %+v, %v", again, err)
	}

	conn := connect(t, dsn)
	for what, c := range map[string]struct {
		sql      string
		min, max int64
	}{
		"time entries":                         {"SELECT count(*) FROM time_entry", 300_000, 400_000},
		"people":                               {"SELECT count(*) FROM employee", 240, 260},
		"people without a rate":                {"SELECT count(*) FROM employee e WHERE NOT EXISTS (SELECT FROM cost_rate r WHERE r.employee_id = e.id)", 2, 2},
		"their approved entries":               {"SELECT count(*) FROM time_entry e WHERE status = 'approved' AND NOT EXISTS (SELECT FROM cost_rate r WHERE r.employee_id = e.employee_id)", 1, 200},
		"entries without a rate in force":      {"SELECT count(*) FROM time_entry e JOIN (SELECT DISTINCT employee_id FROM cost_rate) k USING (employee_id) WHERE NOT EXISTS (SELECT FROM cost_rate r WHERE r.employee_id = e.employee_id AND valid_from <= work_date AND (valid_to IS NULL OR work_date < valid_to))", 0, 0},
		"entries outside the project's entity": {"SELECT count(*) FROM time_entry t JOIN employee e ON e.id = employee_id JOIN project p ON p.id = project_id WHERE e.legal_entity <> p.legal_entity", 0, 0},
		"rates in another currency":            {"SELECT count(*) FROM cost_rate r JOIN employee e ON e.id = employee_id JOIN legal_entity l ON l.code = e.legal_entity WHERE l.currency <> r.currency", 0, 0},
		"invoices whose lines differ":          {"SELECT count(*) FROM invoice i WHERE total <> (SELECT sum(amount) FROM invoice_line l WHERE l.invoice_id = i.id)", 0, 0},
		"credit notes":                         {"SELECT count(*) FROM invoice WHERE kind = 'credit_note' AND status = 'issued'", 20, 200},
		"tables without full old rows":         {"SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relreplident <> CASE relname WHEN 'cost_rate' THEN 'd' ELSE 'f' END", 0, 0},
		"approved since going live":            {"SELECT count(*) FROM time_entry WHERE status = 'approved' AND work_date >= '2026-06-24'", 500, 5000},
	} {
		if n := ask[int64](t, conn, c.sql); n < c.min || n > c.max {
			t.Errorf("%s: %d, want %d to %d", what, n, c.min, c.max)
		}
	}
}
