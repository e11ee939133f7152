// Package postgres captures changes of a PostgreSQL database (15 to 18) by
// logical replication: an initial load under the slot's exported snapshot, then
// the stream of pgoutput. config.go is what a user sets.
package postgres

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/pipeline"
)

// Kind is the `type:` of this source in the configuration.
const Kind = "postgres"

// What a source without a position does first (Config.Load).
const (
	LoadInitial = "initial"
	LoadNever   = "never"
)

// Config is one Postgres source. A table's topic is change.TopicName.
type Config struct {
	Type         string            `yaml:"type" doc:"postgres"`
	DSN          secret.DSN        `yaml:"dsn" doc:"The database to capture, env:NAME or file:PATH when it holds a password. Its role needs LOGIN, REPLICATION, SELECT on the tables, and to create a publication CREATE on the database and ownership of the tables." example:"env:PSA_DSN"`
	Slot         string            `yaml:"slot" doc:"Replication slot: lower-case letters, digits, underscore, at most 63. Made at the first start. Default: tallywire_<name of the source>." example:"tallywire_psa"`
	Publication  string            `yaml:"publication" doc:"Publication. When there is none it is made, listing the tables; where it is the role's own, tables that are new and its own are added. Default: tallywire_<name of the source>." example:"tallywire_psa"`
	Tables       []string          `yaml:"tables" doc:"Tables to capture, as schema.table with * for any run of characters; a leading ! leaves out. A table without a key is left out with a warning, unless it is named without *: then the source does not start." example:"[public.*, \"!public.audit_*\"]"`
	Without      []string          `yaml:"without" doc:"Columns that are not captured, as schema.table.column with * for any run of characters; a leading ! takes in again what one before left out, or what is left out since it is called like a secret (docs/postgres.md): the last that matches counts. A publication that is made does not have them, except of tables with REPLICA IDENTITY FULL; of another they are passed over. Not of the key. A column that is added to a table of which the publication lists the columns is not captured before it is added there." example:"[public.users.phone, \"public.notes.*\", \"!public.notes.id\", \"!public.users.token_count\"]"`
	Mask         []string          `yaml:"mask" doc:"Columns of which *** is captured in the place of each value that is not null, as schema.table.column with * for any run of characters. Not of the key." example:"[public.employee.iban]"`
	Hash         HashConfig        `yaml:"hash" doc:"Columns of which a salted hash is captured."`
	Where        map[string]string `yaml:"where" doc:"By schema.table, a condition in SQL: rows that do not fulfil it are not captured, and one that comes to not fulfil it is deleted. It is the publication's, which judges changes by it, and may name columns of the replica identity only." example:"{public.time_entry: company_id = 1}"`
	Topics       map[string]string `yaml:"topics" doc:"Topics of tables, by schema.table, where another than <source>.<schema>.<table> is wanted: that one is too long, or Kafka does not take it beside another. It begins with the name of the source and a point. A table that is given another one is read anew into it." example:"{a_b.c: psa.a_b.c_2}"`
	Policy       map[string]string `yaml:"policy" doc:"What is done by itself when something became of a table that no change tells: heal reads it anew, beside the stream, and ends what of it is gone; ask says it and leaves it to you; halt halts the source. recreated (another table has its name), renamed, attached (a partition with rows), truncated (a partition by its own name; VACUUM FULL looks the same): heal, with load: never ask; detached (a partition, or dropped), missed (changes, while it was not published), filter (of the publication), column (added with a default), dropped (not heal): ask." example:"{detached: heal, dropped: halt}"`
	Load         string            `yaml:"load" doc:"initial: a source without a position first loads all rows of its tables; never: it starts with the changes that its slot holds, and rows that were there before are not captured until they change or are reloaded (tallywire reload)."`
	Delivery     string            `yaml:"delivery" doc:"exactly-once: a read-committed consumer sees each change once. at-least-once: records go out outside of Kafka transactions, so that they are seen some milliseconds earlier; after a crash, or an outage that ends the session, those since the last position (some tenths of a second, more when Kafka was away) come again."`
	IdleInterval time.Duration     `yaml:"idle_interval" doc:"How often, at most, the slot is moved on while none of the captured tables changes, so that it does not hold WAL of others. 100ms to 1h."`

	source string // its name
	claims *atomic.Pointer[claims]
}

// Default gives the configuration of a source of that name before the user's
// own settings.
func Default(name string) Config {
	id := "tallywire_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '_'
	}, name)
	return Config{source: name, Type: Kind, Slot: id, Publication: id, Tables: []string{"public.*"}, Load: LoadInitial, Delivery: string(pipeline.ExactlyOnce), IdleInterval: 5 * time.Second}
}

var errConfig = problem.Define("TW-PG-CONFIG", problem.Halt,
	"The configuration of a Postgres source is not usable.",
	"Correct the field that the message names.")

var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// Validate checks what can be checked without a connection.
func (c *Config) Validate() error {
	switch {
	case c.DSN.IsZero():
		return errConfig.New("dsn is missing")
	case !slotName.MatchString(c.Slot):
		return errConfig.New("slot: %q is not a name of lower-case letters, digits and underscores, at most 63", c.Slot)
	case c.Publication == "" || len(c.Publication) > 63:
		return errConfig.New("publication: want a name of 1 to 63 bytes")
	case len(c.Tables) == 0:
		return errConfig.New("tables: nothing is to be captured")
	case c.Load != LoadInitial && c.Load != LoadNever:
		return errConfig.New("load: %q is neither %s nor %s", c.Load, LoadInitial, LoadNever)
	case c.Delivery != string(pipeline.ExactlyOnce) && c.Delivery != string(pipeline.AtLeastOnce):
		return errConfig.New("delivery: %q is neither %s nor %s", c.Delivery, pipeline.ExactlyOnce, pipeline.AtLeastOnce)
	case c.IdleInterval < 100*time.Millisecond || c.IdleInterval > time.Hour:
		return errConfig.New("idle_interval: %s is not between 100ms and 1h", c.IdleInterval)
	}
	for i, t := range c.Tables {
		if schema, table, ok := strings.Cut(strings.TrimPrefix(t, "!"), "."); !ok || schema == "" || table == "" {
			return errConfig.New("tables[%d]: %q is not of the form schema.table", i, t)
		}
	}
	for _, list := range []struct {
		name     string
		patterns []string
	}{{"without", c.Without}, {"mask", c.Mask}, {"hash.columns", c.Hash.Columns}} {
		for i, p := range list.patterns {
			if strings.Count(p, ".") < 2 && !strings.Contains(p, "*") || strings.HasPrefix(p, "!") && list.name != "without" {
				return errConfig.New("%s[%d]: %q is not of the form schema.table.column", list.name, i, p)
			}
		}
	}
	if len(c.Hash.Columns) > 0 && c.Hash.Salt.IsZero() {
		return errConfig.New("hash.salt is missing")
	}
	for _, table := range slices.Sorted(maps.Keys(c.Where)) {
		if !strings.Contains(table, ".") || strings.Contains(table, "*") || strings.TrimSpace(c.Where[table]) == "" {
			return errConfig.New("where: %q: want schema.table and a condition", table)
		}
	}
	if err := c.checkPolicy(); err != nil {
		return err
	}
	return c.checkTopics()
}

// selects says whether a table is to be captured, and whether it was named
// without a wildcard.
func (c *Config) selects(schema, table string) (selected, named bool) {
	full := schema + "." + table
	for _, t := range c.Tables {
		pattern, out := strings.CutPrefix(t, "!")
		if !matches(pattern, full) {
			continue
		}
		if out {
			return false, false
		}
		selected = true
		named = named || !strings.Contains(pattern, "*")
	}
	return selected, named
}

// matches knows * for any run of characters.
func matches(pattern, s string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == s
	}
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for i := 0; i <= len(s); i++ {
		if matches(rest, s[i:]) || rest == "" {
			return true
		}
	}
	return false
}

// init enters the source into the engine.
func init() {
	pipeline.Sources.Register(Kind, func(env *pipeline.Env, name string, decode pipeline.Decode) (pipeline.IngestSpec, error) {
		cfg := Default(name)
		if err := decode(&cfg); err != nil {
			return pipeline.IngestSpec{}, err
		}
		src, err := New(cfg, name, env.Obs.Component("source", name))
		if err != nil {
			return pipeline.IngestSpec{}, fmt.Errorf("sources.%s: %w", name, err)
		}
		return pipeline.IngestSpec{
			Name: name, Source: src, IngestLimits: pipeline.IngestLimits{Delivery: pipeline.Delivery(cfg.Delivery)},
		}, nil
	})
}

// New makes a source; it connects to nothing yet.
func New(cfg Config, name string, comp *obs.Component) (*Source, error) {
	cfg.source, cfg.claims = name, new(atomic.Pointer[claims])
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Source{cfg: cfg, name: name, comp: comp, batchChanges: maxBatchChanges, slotPatience: slotPatience, ladderEvery: ladderInterval, keepEvery: keepInterval, compareEvery: memberEvery, askEvery: askEvery, chunkRows: firstChunk}, nil
}
