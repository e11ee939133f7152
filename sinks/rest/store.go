// store: what the sink keeps in the control database.

package rest

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ident names a record on our side.
type ident struct{ entity, key string }

func (i ident) String() string { return i.entity + "/" + i.key }

// version orders the records of one key within one topic. Versions of topics
// with different ids have no order: the one that comes later is the newer.
type version struct {
	topic     [16]byte
	partition int32
	offset    int64
}

// covers reports whether w is this version or an older one of the same topic.
func (v version) covers(w version) bool { return v.topic == w.topic && v.offset >= w.offset }

// delivered is what the far side has of a record.
type delivered struct {
	version
	digest     []byte
	externalID string
	number     string
	etag       string
}

// intent is a create that was begun.
type intent struct {
	version
	digest []byte
	ref    string
	// safeFrom is when, by this process's clock, the far side cannot be
	// working on it any more.
	safeFrom time.Time
}

type store struct {
	pool  *pgxpool.Pool
	sink  string
	owner string
	// settleAfter is the longest time that the far side works on a request.
	settleAfter time.Duration
}

// migrate brings the tables up to date; several processes may do so at once.
func (s *store) migrate(ctx context.Context) (err error) {
	fail := func(err error) error { return ErrControl.New("preparing the tables of sink %q: %w", s.sink, err) }
	db := stdlib.OpenDBFromPool(s.pool)
	defer func() { err = errors.Join(err, db.Close()) }() // the pool stays
	if _, err := db.ExecContext(ctx, "create schema if not exists tallywire"); err != nil {
		// Two at once: one of them sees the other's name in the catalogue.
		if _, again := db.ExecContext(ctx, "create schema if not exists tallywire"); again != nil {
			return fail(again)
		}
	}
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fail(err)
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return fail(err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, dir, goose.WithSessionLocker(locker), goose.WithTableName("tallywire.rest_version"))
	if err != nil {
		return fail(err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fail(err)
	}
	return nil
}

// load reads what is on record of these, and their open intents.
func (s *store) load(ctx context.Context, ids []ident) (map[ident]*delivered, map[ident]*intent, error) {
	done, open := map[ident]*delivered{}, map[ident]*intent{}
	if len(ids) == 0 {
		return done, open, nil
	}
	entities, keys := make([]string, len(ids)), make([]string, len(ids))
	for i, id := range ids {
		entities[i], keys[i] = id.entity, id.key
	}
	b := &pgx.Batch{}
	b.Queue(`select d.entity, d.key, d.topic_id, d."partition", d.record_offset, d.digest, d.external_id, d.number, d.etag
from unnest($2::text[], $3::text[]) k(entity, key) join tallywire.delivered d on d.sink = $1 and d.entity = k.entity and d.key = k.key`,
		s.sink, entities, keys).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var id ident
			d := new(delivered)
			if err := rows.Scan(&id.entity, &id.key, &d.topic, &d.partition, &d.offset, &d.digest, &d.externalID, &d.number, &d.etag); err != nil {
				return err
			}
			done[id] = d
		}
		return rows.Err()
	})
	b.Queue(`select i.entity, i.key, i.topic_id, i."partition", i.record_offset, i.digest, i.ref,
  extract(epoch from i.not_after - clock_timestamp())::float8
from unnest($2::text[], $3::text[]) k(entity, key) join tallywire.intents i on i.sink = $1 and i.entity = k.entity and i.key = k.key`,
		s.sink, entities, keys).Query(func(rows pgx.Rows) error { return s.scanIntents(rows, open) })
	if err := s.pool.SendBatch(ctx, b).Close(); err != nil {
		return nil, nil, ErrControl.New("reading what sink %q has delivered: %w", s.sink, err)
	}
	return done, open, nil
}

func (s *store) scanIntents(rows pgx.Rows, into map[ident]*intent) error {
	for rows.Next() {
		var id ident
		var left float64
		i := new(intent)
		if err := rows.Scan(&id.entity, &id.key, &i.topic, &i.partition, &i.offset, &i.digest, &i.ref, &left); err != nil {
			return err
		}
		// Rounded away from danger by the time that the answer took.
		i.safeFrom = time.Now().Add(time.Duration(left*float64(time.Second)) + s.settleAfter)
		into[id] = i
	}
	return rows.Err()
}

// left gives the intents that this instance, or one that must be dead by now,
// left open, the oldest first.
func (s *store) left(ctx context.Context, limit int) (map[ident]*intent, error) {
	open := map[ident]*intent{}
	rows, err := s.pool.Query(ctx, `select entity, key, topic_id, "partition", record_offset, digest, ref,
  extract(epoch from not_after - clock_timestamp())::float8
from tallywire.intents where sink = $1 and (owner = $2 or not_after < clock_timestamp()) order by started_at limit $3`, s.sink, s.owner, limit)
	if err == nil {
		err = s.scanIntents(rows, open)
		rows.Close()
	}
	if err != nil {
		return nil, ErrControl.New("reading the open intents of sink %q: %w", s.sink, err)
	}
	return open, nil
}

// begin commits the intents of some creates, in one transaction. They may be
// sent until window from before the call.
func (s *store) begin(ctx context.Context, calls []*call, window time.Duration) error {
	if len(calls) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for _, c := range calls {
		it := c.item
		b.Queue(`insert into tallywire.intents (sink, entity, key, topic_id, "partition", record_offset, digest, ref, owner, not_after)
values ($1,$2,$3,$4,$5,$6,$7,$8,$9, clock_timestamp() + $10 * interval '1 second')
on conflict (sink, entity, key) do update set topic_id = excluded.topic_id, "partition" = excluded."partition", record_offset = excluded.record_offset,
  digest = excluded.digest, ref = excluded.ref, owner = excluded.owner, started_at = clock_timestamp(), not_after = excluded.not_after`,
			s.sink, it.id.entity, it.id.key, it.version.topic, it.version.partition, it.version.offset, it.want.digest, it.want.ref, s.owner, window.Seconds())
	}
	return s.commit(ctx, b, "committing intents")
}

// outcome is what is to be recorded of one key.
type outcome struct {
	id      ident
	deliver *delivered // nil: leave
	settled bool       // the intent is to go
	unknown bool       // the intent stays; its request is not on its way any more
}

// finish records outcomes, in one transaction. A delivery never takes the place
// of a later one of the same topic.
func (s *store) finish(ctx context.Context, outs []outcome) error {
	b := &pgx.Batch{}
	for _, o := range outs {
		if d := o.deliver; d != nil {
			b.Queue(`insert into tallywire.delivered as d (sink, entity, key, topic_id, "partition", record_offset, digest, external_id, number, etag)
values ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10)
on conflict (sink, entity, key) do update set topic_id = excluded.topic_id, "partition" = excluded."partition", record_offset = excluded.record_offset,
  digest = excluded.digest, external_id = excluded.external_id, number = excluded.number, etag = excluded.etag, at = now()
where d.topic_id <> excluded.topic_id or d.record_offset < excluded.record_offset`,
				s.sink, o.id.entity, o.id.key, d.topic, d.partition, d.offset, d.digest, d.externalID, d.number, d.etag)
		}
		if o.settled {
			b.Queue(`delete from tallywire.intents where sink = $1 and entity = $2 and key = $3`, s.sink, o.id.entity, o.id.key)
		}
		if o.unknown {
			b.Queue(`update tallywire.intents set not_after = least(not_after, clock_timestamp()) where sink = $1 and entity = $2 and key = $3`, s.sink, o.id.entity, o.id.key)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return s.commit(ctx, b, "recording deliveries")
}

// commit runs a batch as one transaction. It is not cut off by the end of ctx:
// what the far side did is recorded if there is any way to.
func (s *store) commit(ctx context.Context, b *pgx.Batch, what string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return tx.SendBatch(ctx, b).Close() })
	if err != nil {
		return ErrControl.New("%s of sink %q: %w", what, s.sink, err)
	}
	return nil
}

// holder gives the key that an external id belongs to, or "".
func (s *store) holder(ctx context.Context, entity, externalID string) (string, error) {
	var key string
	err := s.pool.QueryRow(ctx, `select key from tallywire.delivered where sink = $1 and entity = $2 and external_id = $3`, s.sink, entity, externalID).Scan(&key)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", ErrControl.New("looking up %s of sink %q: %w", fmt.Sprintf("%s %s", entity, externalID), s.sink, err)
	}
	return key, nil
}
