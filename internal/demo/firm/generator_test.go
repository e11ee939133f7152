package firm_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/demo/firm"
	"github.com/tallywire/tallywire/internal/testkit"
)

// Would be lost: the generator as a witness. It must count what it does, keep
// the firm's rules (approved is final), go on where it stopped, and leave no
// project without a customer when it ends.
func TestGenerator(t *testing.T) {
	dsn := testkit.NewDatabase(t)
	if _, err := firm.Seed(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, dsn)
	if _, err := conn.Exec(t.Context(), `
		CREATE FUNCTION final() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''an approved entry was touched''; END';
		CREATE TRIGGER final BEFORE UPDATE OR DELETE ON time_entry FOR EACH ROW WHEN (OLD.status = 'approved') EXECUTE FUNCTION final()`); err != nil {
		t.Fatal(err)
	}
	ask[string](t, conn, "SELECT slot_name::text FROM pg_create_logical_replication_slot('witness', 'test_decoding')")
	const seen = "SELECT count(*) FROM pg_logical_slot_get_changes('witness', NULL, NULL) WHERE data LIKE 'table %'"

	// Some things happen a few times in 20,000 changes, or not: until all have.
	happened := map[string]int64{}
	for began := time.Now(); ; {
		stats, err := firm.Load(t.Context(), dsn, 20_000)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d changes in %d transactions, %.0f/s: %v", stats.Changes, stats.Transactions, stats.Reached, stats.ByKind)
		if n := ask[int64](t, conn, seen); n != stats.Changes || n < 20_000 {
			t.Errorf("counted %d changes, the WAL has %d", stats.Changes, n)
		}
		for k, n := range stats.ByKind {
			happened[k] += n
		}
		missing := slices.DeleteFunc([]firm.Kind{
			firm.Entered, firm.Edited, firm.Submitted, firm.Approved, firm.Rejected, firm.Reentered, firm.Deleted, firm.RateChanged,
			firm.ProjectSold, firm.CustomerAdded, firm.InvoiceIssued,
		}, func(k firm.Kind) bool { return happened[k.String()] > 0 })
		if len(missing) == 0 {
			break
		}
		if time.Since(began) > testkit.Patience {
			t.Fatalf("nothing was %v", missing)
		}
	}

	// Again, at a rate, until told to stop.
	g := firm.NewGenerator(dsn, firm.Options{Rate: 800, Day: time.Second})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := g.Run(ctx); err != nil {
		t.Fatal(err)
	}
	stats := g.Stats()
	if stats.Reached < 200 || stats.Reached > 1000 { // a machine with other things to do reaches less, never more
		t.Errorf("asked for 800 changes per second, reached %.0f", stats.Reached)
	}
	if !stats.Today.After(firm.Today) {
		t.Errorf("three days later it is %s", stats.Today)
	}
	if n := ask[int64](t, conn, seen); n != stats.Changes {
		t.Errorf("counted %d changes, the WAL has %d", stats.Changes, n)
	}
	if late := ask[bool](t, conn, "SELECT $1::text::pg_lsn > pg_current_wal_insert_lsn() OR $1::text::pg_lsn < (SELECT confirmed_flush_lsn - 1000000 FROM pg_replication_slots)", stats.LSN); late {
		t.Errorf("LSN %s is not that of the end", stats.LSN)
	}
	if n := ask[int64](t, conn, "SELECT count(*) FROM project p WHERE NOT EXISTS (SELECT FROM customer c WHERE c.id = p.customer_id)"); n != 0 {
		t.Errorf("%d projects were left without a customer", n)
	}
	if n := ask[int64](t, conn, "SELECT count(*) FROM invoice i WHERE total <> (SELECT sum(amount) FROM invoice_line l WHERE l.invoice_id = i.id)"); n != 0 {
		t.Errorf("%d invoices differ from their lines", n)
	}
}

// Would be lost: load during the tests in which the PSA restarts.
func TestGeneratorOutlivesThePSA(t *testing.T) {
	server := testkit.NewPostgres(t, "")
	if err := server.CreateDatabase(t.Context(), "psa"); err != nil {
		t.Fatal(err)
	}
	dsn := server.DSN("psa")
	if _, err := firm.Seed(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	g := firm.NewGenerator(dsn, firm.Options{Rate: 2000})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	progress := func(least int64) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for g.Stats().Changes < least {
			select {
			case <-tick.C:
			case err := <-done:
				t.Fatalf("the generator ended: %v", err)
			case <-t.Context().Done():
				t.Fatal("no progress")
			}
		}
	}
	progress(500)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	progress(g.Stats().Changes + 500)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
