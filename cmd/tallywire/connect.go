// connect.go: what the commands that look at a running system connect to.

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
)

// quiet is an Obs for commands that are no components.
func quiet() *obs.Obs { return obs.New(slog.New(slog.NewTextHandler(io.Discard, nil))) }

// cluster connects to the broker that the configuration names, or to the place
// where a running process embeds it.
func cluster(ctx context.Context, cfg *config.Config) (*kafka.Cluster, error) {
	brokers := cfg.Kafka.Brokers
	if len(brokers) == 0 {
		brokers = []string{cfg.Kafka.Listen}
	}
	c, err := kafka.New(kafka.Config{Brokers: brokers, ClientID: "tallywire-cli"}, quiet())
	if err != nil {
		return nil, err
	}
	if _, err := c.ID(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func schemaRegistry(cfg *config.Config) (*avro.Registry, error) {
	url := cfg.Registry.URL.Reveal()
	if url == "" {
		url = "http://" + cfg.Registry.Listen
	}
	r, err := avro.NewRegistry(url)
	if err != nil {
		return nil, err
	}
	r.Contracts, err = avro.LoadCatalogue(cfg.ContractDirs()...)
	return r, err
}

func controlPool(ctx context.Context, cfg *config.Config) (*pgxpool.Pool, error) {
	dsn := cfg.Control.DSN.Reveal()
	if dsn == "" {
		dsn = "postgres://postgres@" + cfg.Control.Listen + "/control?sslmode=disable"
	}
	return control.Open(ctx, dsn)
}

// ended is the error of a command whose context was cancelled by a signal: it
// did what it could and is not a failure.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
