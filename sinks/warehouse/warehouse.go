// Package warehouse delivers canonical entities into a Postgres database: a
// table per entity, the rows of a batch and the offsets that it covers in one
// transaction (invariant 10).
package warehouse

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/dial"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/pipeline"
)

// Config is what a warehouse sink is told.
type Config struct {
	DSN    secret.DSN `yaml:"dsn" doc:"The warehouse's database; env:NAME or file:PATH when it holds a password. Its login owns the schemas ps and _tallywire." example:"env:WAREHOUSE_DSN"`
	Topics []string   `yaml:"topics" doc:"Canonical topics to deliver; each becomes the table of its name. Default: every entity that has a contract." example:"[ps.project, ps.time_entry]"`
}

// Options is what the program adds to the configuration.
type Options struct {
	Name      string         // the sink's name: its offsets are stored under it
	Contracts avro.Catalogue // nil: the built-in pack
	Log       *slog.Logger   // nil: none
}

// Sink is one warehouse. It has one session, made when first needed and again
// after it broke; calls wait for each other. Close it when the deliver loop
// has ended.
type Sink struct {
	name     string
	topics   []string
	config   *pgx.ConnConfig
	entities []*entity
	byTopic  map[string]*entity
	log      *slog.Logger

	mu       sync.Mutex // guards what follows, and the entities' batches
	conn     *pgx.Conn
	staged   map[*entity]bool // whose stage this session has
	migrated bool
}

var (
	_ pipeline.Sink         = (*Sink)(nil)
	_ pipeline.OffsetKeeper = (*Sink)(nil)
)

// New checks the configuration; it connects to nothing.
func New(c Config, o Options) (*Sink, error) {
	contracts := o.Contracts
	if contracts == nil {
		var err error
		if contracts, err = avro.Pack(); err != nil {
			return nil, fmt.Errorf("reading the contracts: %w", err)
		}
	}
	s := &Sink{name: o.Name, topics: c.Topics, byTopic: map[string]*entity{}, log: o.Log, staged: map[*entity]bool{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if len(s.topics) == 0 {
		s.topics = contracts.Topics()
	}
	for _, t := range s.topics {
		contract := contracts[t]
		if contract == nil {
			return nil, ErrTopic.New("topic %q of sink %q has no contract", t, s.name)
		}
		if s.byTopic[t] != nil {
			continue
		}
		e, err := newEntity(contract)
		if err != nil {
			return nil, err
		}
		s.entities = append(s.entities, e)
		s.byTopic[t] = e
	}
	cfg, err := pgx.ParseConfig(c.DSN.Reveal())
	if err != nil { // its text quotes the DSN
		return nil, ErrDSN.New("the dsn of sink %q cannot be read", s.name)
	}
	dial.Postgres(&cfg.Config)
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	for k, v := range map[string]string{
		"application_name": "tallywire " + s.name,
		"TimeZone":         "UTC",
		// A process that froze in a transaction must not hold its successor
		// up for ever: the successor's claim waits for the offsets' locks.
		"idle_in_transaction_session_timeout": "60000",
		"plan_cache_mode":                     "force_generic_plan",
	} {
		if _, set := cfg.RuntimeParams[k]; !set {
			cfg.RuntimeParams[k] = v
		}
	}
	s.config = cfg
	return s, nil
}

// Topics lists the topics that the sink has tables for.
func (s *Sink) Topics() []string { return s.topics }

// Prepare connects, and makes or updates tables, view and roles. Every other
// method does so by itself; this is for a start that wants them to be there.
func (s *Sink) Prepare(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.session(ctx)
	return err
}

// Close ends the session.
func (s *Sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop()
	return nil
}

// drop gives the session up; s.mu is held.
func (s *Sink) drop() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.conn.Close(ctx); err != nil {
		s.log.Debug("closing the warehouse's session", "error", err)
	}
	s.conn = nil
	clear(s.staged)
}

// session gives the session, connecting when there is none; s.mu is held.
func (s *Sink) session(ctx context.Context) (*pgx.Conn, error) {
	if s.conn != nil && !s.conn.IsClosed() && s.conn.PgConn().TxStatus() == 'I' {
		return s.conn, nil
	}
	s.drop()
	conn, err := pgx.ConnectConfig(ctx, s.config)
	if err != nil {
		return nil, classify(fmt.Sprintf("connecting to the warehouse of sink %q", s.name), err)
	}
	s.conn = conn
	if !s.migrated {
		if err := s.migrate(ctx, conn); err != nil {
			s.drop()
			return nil, err
		}
		s.migrated = true
	}
	if err := s.prepare(ctx, conn.PgConn()); err != nil {
		s.drop()
		s.migrated = false // somebody may have dropped what was made
		return nil, err
	}
	return conn, nil
}

// inTx runs f in a transaction of the session.
func (s *Sink) inTx(ctx context.Context, doing string, f func(pgx.Tx) error) error {
	conn, err := s.session(ctx)
	if err != nil {
		return err
	}
	if err := pgx.BeginFunc(ctx, conn, f); err != nil {
		return classify(doing, err)
	}
	return nil
}

func topicID(t *change.Topic) string { return hex.EncodeToString(t.ID[:]) }

// Claim makes assignment the owner of the partitions: the offsets' rows are
// locked, so a predecessor's transaction in flight is waited for, and its next
// one finds another owner (invariant 10). A partition without a stored offset
// gives -1: it is to be read from its beginning, which SetOffsets must say
// before anything is written.
func (s *Sink) Claim(ctx context.Context, assignment string, parts []change.Coord) ([]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	offsets := make([]int64, len(parts))
	order := sorted(parts)
	err := s.inTx(ctx, fmt.Sprintf("claiming partitions for sink %q", s.name), func(tx pgx.Tx) error {
		for _, i := range order {
			p := &parts[i]
			e := s.byTopic[p.Topic.Name]
			if e == nil {
				return ErrTopic.New("sink %q has no table for topic %q", s.name, p.Topic.Name)
			}
			if err := s.forgetOldTopic(ctx, tx, e, p.Topic); err != nil {
				return err
			}
			err := tx.QueryRow(ctx, `INSERT INTO _tallywire.offsets AS o (sink, topic, partition, topic_id, next_offset, owner, read_at)
				VALUES ($1, $2, $3, $4::text::uuid, -1, $5, now())
				ON CONFLICT (sink, topic, partition) DO UPDATE SET owner = excluded.owner, updated_at = now(), read_at = COALESCE(o.read_at, o.updated_at)
				RETURNING next_offset`, s.name, p.Topic.Name, p.Partition, topicID(p.Topic), assignment).Scan(&offsets[i])
			if err == nil && offsets[i] < 0 {
				err = unread(ctx, tx, s.name, e, p)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return offsets, nil
}

// forgetOldTopic looks for offsets of another topic of this name. They go when
// the table is empty; else going on would leave rows that the new topic may
// not have, so it halts.
func (s *Sink) forgetOldTopic(ctx context.Context, tx pgx.Tx, e *entity, t *change.Topic) error {
	var stored bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM _tallywire.offsets WHERE sink = $1 AND topic = $2 AND topic_id <> $3::text::uuid AND next_offset >= 0)`,
		s.name, t.Name, topicID(t)).Scan(&stored)
	if err != nil {
		return err
	}
	if stored {
		var rows bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+e.table()+")").Scan(&rows); err != nil {
			return err
		}
		if rows {
			return ErrRecreated.New("topic %s was created again (its id is now %s); table %s holds rows of the old one", t.Name, topicID(t), e.topic).
				WithRemedy("Run this in the warehouse, then restart: BEGIN; TRUNCATE %s; DELETE FROM _tallywire.offsets WHERE sink = %s AND topic = %s; COMMIT;",
					e.table(), literal(s.name), literal(t.Name))
		}
	}
	_, err = tx.Exec(ctx, `DELETE FROM _tallywire.offsets WHERE sink = $1 AND topic = $2 AND topic_id <> $3::text::uuid`, s.name, t.Name, topicID(t))
	return err
}

// SetOffsets overrides stored offsets. Rows stay as they are: what is
// delivered again is recognised by its offset, and changes nothing.
func (s *Sink) SetOffsets(ctx context.Context, assignment string, parts []change.Coord) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inTx(ctx, fmt.Sprintf("setting the offsets of sink %q", s.name), func(tx pgx.Tx) error {
		for _, i := range sorted(parts) {
			p := &parts[i]
			tag, err := tx.Exec(ctx, `UPDATE _tallywire.offsets SET next_offset = $6, updated_at = now()
				WHERE sink = $1 AND topic = $2 AND partition = $3 AND topic_id = $4::text::uuid AND owner = $5`,
				s.name, p.Topic.Name, p.Partition, topicID(p.Topic), assignment, p.Offset)
			if err != nil {
				return err
			}
			if tag.RowsAffected() != 1 {
				return pipeline.ErrFenced.New("setting the offset of %s[%d]: sink %q does not own it any more", p.Topic.Name, p.Partition, s.name)
			}
		}
		return nil
	})
}

// sorted gives the indexes of parts in the order in which rows are locked.
func sorted(parts []change.Coord) []int {
	order := make([]int, len(parts))
	for i := range order {
		order[i] = i
	}
	sort.Slice(order, func(i, j int) bool {
		a, b := &parts[order[i]], &parts[order[j]]
		if a.Topic.Name != b.Topic.Name {
			return a.Topic.Name < b.Topic.Name
		}
		return a.Partition < b.Partition
	})
	return order
}

// Reset empties the sink's tables and forgets its offsets: for starting over
// from new topics. Stop delivery first.
func (s *Sink) Reset(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inTx(ctx, fmt.Sprintf("emptying the tables of sink %q", s.name), func(tx pgx.Tx) error {
		for _, e := range s.entities {
			if _, err := tx.Exec(ctx, "TRUNCATE "+e.table()); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, "DELETE FROM _tallywire.offsets WHERE sink = $1", s.name)
		return err
	})
}

// Write delivers the batch without offsets.
func (s *Sink) Write(ctx context.Context, b *change.Batch) ([]pipeline.Failure, error) {
	return s.deliver(ctx, nil, b)
}

// WriteWithOffsets delivers the batch and moves the offsets of its ranges, in
// one transaction, if they stand where the batch begins and assignment still
// owns them (invariant 10). When the outcome of a commit is unknown, the error
// is a Retry, and the stored offsets tell (Claim, invariant 14).
func (s *Sink) WriteWithOffsets(ctx context.Context, assignment string, b *change.Batch) ([]pipeline.Failure, error) {
	moves, err := s.moves(assignment, b.Ranges)
	if err != nil {
		return nil, err
	}
	return s.deliver(ctx, moves, b)
}

var errCommit = errors.New("the transaction was rolled back")
