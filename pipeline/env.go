// Env: what every component of one process shares.

package pipeline

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/seal"
)

// Env is borrowed by all components and closed by who made it, after they have
// ended.
type Env struct {
	Kafka    *kafka.Cluster
	Registry *avro.Registry
	Redis    *redis.Client // nil when no transform keeps state
	Control  *pgxpool.Pool // nil when no sink parks
	Obs      *obs.Obs
	// Codes are the code lists of the configuration.
	Codes codes.Lists
	// Contracts are those of the configuration; nil: the built-in pack.
	Contracts avro.Catalogue
	// Restricted are the topics whose records hold values that their contract
	// restricts, or that become such: by contract, and raw ones by the mappings of
	// this configuration.
	Restricted map[string]bool
	// Seal seals copies of their records; nil: they are not copied.
	Seal *seal.Ring
	// Instance is this process's stable id, part of the transactional ids of
	// transforms and of its place in consumer groups: the same after a
	// restart, another in every other process.
	Instance string
	// Partitions is how many partitions a topic gets when we create it.
	Partitions int32
	// Retention is how long raw records stay in topics that we create; 0: for
	// ever.
	Retention time.Duration
	// Tables tells a Doctor what the records of a topic are, or would be, as
	// far as that can be known: from its source, else from the registry. A
	// Table of nil: not known. It is nil outside of doctor.
	Tables func(ctx context.Context, topic string) (*change.Table, error)
}

// Catalogue gives Contracts, or the pack.
func (e *Env) Catalogue() (avro.Catalogue, error) {
	if e.Contracts != nil {
		return e.Contracts, nil
	}
	return avro.Pack()
}
