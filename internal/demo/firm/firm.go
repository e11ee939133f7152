// Package firm is the demo's professional-services firm: the schema of its
// PSA, its seed, and a generator that works like its day. Everything about it
// is made up, and the seed is the same at every start.
package firm

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Today is the day on which the seed ends. The generator's day starts there.
var Today = time.Date(2026, time.June, 30, 0, 0, 0, 0, time.UTC)

// FirstDay is the first day with time entries: eighteen months up to Today.
var FirstDay = time.Date(2025, time.January, 1, 0, 0, 0, 0, time.UTC)

// GoLive is the day from which the demo posts approved time to the ERP: the
// seed's last week; what is older counts as history.
var GoLive = Today.AddDate(0, 0, -6)

// Tables lists the tables of the PSA, in an order in which what is referred to
// comes first.
var Tables = []string{"legal_entity", "customer", "project", "task", "employee", "cost_rate", "time_entry", "invoice", "invoice_line"}

//go:embed schema.sql
var schemaSQL string

//go:embed finish.sql
var finishSQL string

type entity struct {
	id       int
	code     string
	name     string
	currency string
	country  string
	people   int // of the seed
}

var entities = []entity{
	{1, "HM-DE", "Halden Moor GmbH", "EUR", "DE", 110},
	{2, "HM-UK", "Halden Moor Ltd", "GBP", "GB", 82},
	{3, "HM-US", "Halden Moor Inc", "USD", "US", 60},
}

// Summary says how many rows the seed has, by table, and how long it took.
type Summary struct {
	Rows map[string]int64
	Took time.Duration
	New  bool // false: the database was seeded before and was left alone
}

// Seed makes the tables and fills them, in one transaction: they are there
// whole or not at all. A database that has them is left alone.
func Seed(ctx context.Context, dsn string) (Summary, error) {
	began := time.Now()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return Summary{}, fmt.Errorf("connecting to the PSA to seed it: %w", err)
	}
	defer hangUp(ctx, conn)
	var there bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('public.invoice_line') IS NOT NULL").Scan(&there); err != nil {
		return Summary{}, fmt.Errorf("looking for the PSA's tables: %w", err)
	}
	if there {
		return Summary{Took: time.Since(began)}, nil
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return Summary{}, fmt.Errorf("seeding the PSA: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after Commit it has nothing to do; before, the first error is the one to tell
	// Building the keys in memory is a third of the time of the seed otherwise.
	if _, err := tx.Exec(ctx, "SET LOCAL maintenance_work_mem = '256MB'; SET LOCAL synchronous_commit = off; SET LOCAL TimeZone = 'UTC'"); err != nil {
		return Summary{}, fmt.Errorf("seeding the PSA: %w", err)
	}
	if _, err := tx.Exec(ctx, schemaSQL); err != nil {
		return Summary{}, fmt.Errorf("making the PSA's tables: %w", err)
	}
	rows, err := newSeed().fill(ctx, tx.Conn().PgConn())
	if err != nil {
		return Summary{}, err
	}
	if _, err := tx.Exec(ctx, finishSQL); err != nil {
		return Summary{}, fmt.Errorf("making the PSA's keys: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return Summary{}, fmt.Errorf("seeding the PSA: %w", err)
	}
	return Summary{Rows: rows, Took: time.Since(began), New: true}, nil
}

// hangUp closes a connection whose work is committed, or lost, by now: an
// error of closing tells nothing more.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
