// Package control is the control database: what people search and edit, kept
// in Postgres. control.go opens it and brings its schema up to date.
package control

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"

	"github.com/tallywire/tallywire/internal/dial"
	"github.com/tallywire/tallywire/internal/problem"
)

// The control database's problems.
var (
	ErrDSN = problem.Define("TW-CONTROL-DSN", problem.Halt,
		"control.dsn is not a connection string of Postgres.",
		"Write it as postgres://user@host:5432/control; a password comes by env:NAME or file:PATH.")
	ErrMigrate = problem.Define("TW-CONTROL-MIGRATE", problem.Halt,
		"The schema of the control database could not be brought up to date.",
		"Give the user the right to create schemas and tables in it, then start again.")
	ErrMissing = problem.Define("TW-CONTROL-MISSING", problem.Halt,
		"Parked records are listed in the control database, and there is none.",
		"Set control.dsn.")
	ErrUnavailable = problem.Define("TW-CONTROL-UNAVAILABLE", problem.Retry,
		"The control database does not answer.",
		"Nothing is lost: work goes on when it is back.")
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is where our tables are, so that the control database may share a
// database with others.
const Schema = "tallywire"

// Open connects to the control database and brings its schema up to date; two
// processes may do so at once. The caller closes the pool. A server that does
// not answer is a Retry error (TW-CONTROL-UNAVAILABLE).
func Open(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		// pgx takes the password out of the message.
		return nil, ErrDSN.New("control.dsn: %w", err)
	}
	dial.Postgres(&cfg.ConnConfig.Config)
	cfg.ConnConfig.RuntimeParams["application_name"] = "tallywire control"
	cfg.ConnConfig.RuntimeParams["search_path"] = Schema
	if err := migrate(ctx, cfg.ConnConfig); err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, wrap(err, "connecting to the control database")
	}
	return pool, nil
}

func migrate(ctx context.Context, cfg *pgx.ConnConfig) error {
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	if err := db.PingContext(ctx); err != nil {
		return wrap(err, "connecting to the control database")
	}
	// Not by IF NOT EXISTS, which takes the right to make one all the same. Two at
	// once: one of them sees the other's.
	is := func() (is bool) {
		err := db.QueryRowContext(ctx, "select exists (select from pg_namespace where nspname = $1)", Schema).Scan(&is)
		return err == nil && is
	}
	if !is() {
		if _, err := db.ExecContext(ctx, "create schema "+Schema); err != nil && !is() {
			return ErrMigrate.New("creating schema %s: %w", Schema, err)
		}
	}
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("BUG: embedded migrations: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return fmt.Errorf("BUG: session locker: %w", err)
	}
	p, err := goose.NewProvider(database.DialectPostgres, db, dir,
		goose.WithSessionLocker(locker), goose.WithTableName(Schema+".schema_version"))
	if err != nil {
		return ErrMigrate.New("preparing migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return ErrMigrate.New("migrating the control database: %w", err)
	}
	return nil
}
