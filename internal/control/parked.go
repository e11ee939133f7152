// The parked store: records that a stage or a sink could not take, one per
// key, with the record itself, so that it can be tried again.

package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/internal/outage"
)

// Kinds of stages that park.
const (
	KindTransform = "transform" // the truth is a topic, this is a projection of it
	KindSink      = "sink"      // the truth is here
)

// Header is a header of the record, as Kafka has it.
type Header struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Parked is one parked record. Its identity is (Stage, Topic, RecordKey).
type Parked struct {
	Stage     string
	Kind      string
	Topic     string
	TopicID   [16]byte
	Partition int32
	Offset    int64
	// Key is for people; RecordKey are the octets. A record without a key has
	// Keyless set and "@partition/offset" as both.
	Key        string
	RecordKey  []byte
	Keyless    bool
	Value      []byte // nil: a tombstone
	Headers    []Header
	Millis     int64 // the record's timestamp, ms since 1970
	Code       string
	Reason     string
	Remedy     string
	WaitsFor   string // "entity/key" that must be delivered first, or ""
	Attempts   int
	FirstAt    time.Time
	LastAt     time.Time
	RetryAsked bool
}

// KeylessKey is the RecordKey of a record without one.
func KeylessKey(partition int32, offset int64) []byte {
	return fmt.Appendf(nil, "@%d/%d", partition, offset)
}

// PartID names a partition of a topic.
type PartID struct {
	Topic     string
	Partition int32
}

// Ref names a parked record.
type Ref struct {
	Topic     string
	RecordKey []byte
}

// ParkedStore reads and writes the table. Safe for concurrent use.
type ParkedStore struct{ pool *pgxpool.Pool }

// NewParked makes a store on a pool from Open.
func NewParked(pool *pgxpool.Pool) *ParkedStore { return &ParkedStore{pool} }

const putColumns = `insert into tallywire.parked as p (stage, kind, topic, record_key, key, topic_id, "partition", record_offset, record_keyless,
  record_value, record_headers, record_millis, code, reason, remedy, waits_for`

const putUpdates = `on conflict (stage, topic, record_key) do update set
  kind = excluded.kind, key = excluded.key, topic_id = excluded.topic_id, "partition" = excluded."partition",
  record_offset = excluded.record_offset, record_keyless = excluded.record_keyless, record_value = excluded.record_value,
  record_headers = excluded.record_headers, record_millis = excluded.record_millis, code = excluded.code,
  reason = excluded.reason, remedy = excluded.remedy, waits_for = excluded.waits_for, retry_requested = false, `

// A sink's rows are the truth: attempts are counted here.
const sinkPut = putColumns + `)
values ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16) ` + putUpdates + `
  attempts = case when p.topic_id = excluded.topic_id and p.record_offset = excluded.record_offset then p.attempts + 1 else 1 end,
  first_at = case when p.topic_id = excluded.topic_id and p.record_offset = excluded.record_offset then p.first_at else now() end,
  last_at = now()
where p.topic_id <> excluded.topic_id or p.record_offset <= excluded.record_offset`

// A transform's are a copy, made as often as it likes: what is the same stays
// as it is, and so does a request to try it again.
const transformPut = putColumns + `, attempts, first_at, last_at)
values ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19) ` + putUpdates + `
  attempts = excluded.attempts, first_at = excluded.first_at, last_at = excluded.last_at
where (p.topic_id, p.record_offset, p.attempts, p.code) is distinct from (excluded.topic_id, excluded.record_offset, excluded.attempts, excluded.code)`

// Put parks records, all or none, durably when it returns nil. A newer record
// replaces the one of the same identity, an older one does not; the same one
// again counts one more attempt. It clears the request to try again. Records
// of a transform are copied as they are, with their counts.
func (s *ParkedStore) Put(ctx context.Context, ps []Parked) error {
	if len(ps) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for i := range ps {
		p := &ps[i]
		if p.RecordKey == nil || p.Stage == "" || p.Topic == "" || (p.Kind != KindSink && p.Kind != KindTransform) {
			panic("BUG: parked record without identity")
		}
		hs := p.Headers
		if hs == nil {
			hs = []Header{}
		}
		sql, args := sinkPut, []any{
			p.Stage, p.Kind, p.Topic, p.RecordKey, printable(p.Key), p.TopicID, p.Partition, p.Offset, p.Keyless,
			p.Value, hs, p.Millis, p.Code, printable(p.Reason), p.Remedy, printable(p.WaitsFor),
		}
		if p.Kind == KindTransform {
			sql, args = transformPut, append(args, p.Attempts, p.FirstAt, p.LastAt)
		}
		b.Queue(sql, args...)
	}
	return s.exec(ctx, b, "parking %d records of %s", len(ps), ps[0].Stage)
}

// Delete takes records out: they were delivered, or a newer version was.
func (s *ParkedStore) Delete(ctx context.Context, stage string, refs []Ref) error {
	if len(refs) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for _, r := range refs {
		b.Queue(`delete from tallywire.parked where stage = $1 and topic = $2 and record_key = $3`, stage, r.Topic, r.RecordKey)
	}
	return s.exec(ctx, b, "taking %d parked records of %s out", len(refs), stage)
}

// Replace makes what is parked of one stage and some partitions exactly ps:
// the projection of a transform's parked topic.
func (s *ParkedStore) Replace(ctx context.Context, stage string, parts []PartID, ps []Parked) error {
	topics, numbers := columns(parts)
	keepTopics, keepKeys := make([]string, len(ps)), make([][]byte, len(ps))
	for i := range ps {
		keepTopics[i], keepKeys[i] = ps[i].Topic, ps[i].RecordKey
	}
	_, err := s.pool.Exec(ctx, `
delete from tallywire.parked p using unnest($2::text[], $3::int[]) as o(topic, part)
where p.stage = $1 and p.topic = o.topic and p."partition" = o.part
  and not exists (select from unnest($4::text[], $5::bytea[]) as k(topic, record_key) where k.topic = p.topic and k.record_key = p.record_key)`,
		stage, topics, numbers, keepTopics, keepKeys)
	if err != nil {
		return wrap(err, "clearing parked records of %s", stage)
	}
	return s.Put(ctx, ps)
}

const columnsOfParked = `stage, kind, topic, record_key, key, topic_id, "partition", record_offset, record_keyless,
  record_value, record_headers, record_millis, code, reason, remedy, waits_for, attempts, first_at, last_at, retry_requested`

// Filter narrows List; empty fields match all.
type Filter struct {
	Stage string
	Topic string
	Key   string
	Limit int // 0: 1000
}

// List gives parked records, those that others may wait for first, then by age.
func (s *ParkedStore) List(ctx context.Context, f Filter) ([]Parked, error) {
	if f.Limit <= 0 {
		f.Limit = 1000
	}
	return s.query(ctx, `select `+columnsOfParked+` from tallywire.parked
where ($1 = '' or stage = $1) and ($2 = '' or topic = $2) and ($3 = '' or key = $3)
order by stage, waits_for <> '', first_at, topic, key limit $4`, f.Stage, f.Topic, f.Key, f.Limit)
}

// Index gives the parked records of a stage's partitions without their values:
// enough to know what is parked.
func (s *ParkedStore) Index(ctx context.Context, stage string, parts []PartID) ([]Parked, error) {
	topics, numbers := columns(parts)
	return s.query(ctx, `select stage, kind, topic, record_key, key, topic_id, "partition", record_offset, record_keyless,
  null::bytea, '[]'::jsonb, record_millis, code, reason, remedy, waits_for, attempts, first_at, last_at, retry_requested
from tallywire.parked where stage = $1 and (topic, "partition") in (select * from unnest($2::text[], $3::int[]))`, stage, topics, numbers)
}

// RequestRetry marks records of a stage to be tried again (empty topic or key:
// all) and says how many.
func (s *ParkedStore) RequestRetry(ctx context.Context, stage, topic, key string) (int, error) {
	tag, err := s.pool.Exec(ctx, `update tallywire.parked set retry_requested = true
where stage = $1 and ($2 = '' or topic = $2) and ($3 = '' or key = $3)`, stage, topic, key)
	if err != nil {
		return 0, wrap(err, "asking to try parked records of %s again", stage)
	}
	return int(tag.RowsAffected()), nil
}

// AskRetry marks the records named to be tried again.
func (s *ParkedStore) AskRetry(ctx context.Context, stage string, refs []Ref) error {
	b := &pgx.Batch{}
	for _, r := range refs {
		b.Queue(`update tallywire.parked set retry_requested = true where stage = $1 and topic = $2 and record_key = $3`, stage, r.Topic, r.RecordKey)
	}
	return s.exec(ctx, b, "asking to try %d parked records of %s again", len(refs), stage)
}

// ClearRetry takes the marks of AskRetry back.
func (s *ParkedStore) ClearRetry(ctx context.Context, stage string, refs []Ref) error {
	if len(refs) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for _, r := range refs {
		b.Queue(`update tallywire.parked set retry_requested = false where stage = $1 and topic = $2 and record_key = $3`, stage, r.Topic, r.RecordKey)
	}
	return s.exec(ctx, b, "noting that %d parked records of %s are tried again", len(refs), stage)
}

// Release marks the records that wait for one of names to be tried again, and
// says how many.
func (s *ParkedStore) Release(ctx context.Context, stage string, names []string) (int, error) {
	if len(names) == 0 {
		return 0, nil
	}
	tag, err := s.pool.Exec(ctx, `update tallywire.parked set retry_requested = true
where stage = $1 and waits_for <> '' and waits_for = any($2) and not retry_requested`, stage, names)
	if err != nil {
		return 0, wrap(err, "releasing what waits in %s", stage)
	}
	return int(tag.RowsAffected()), nil
}

// Due gives records of the partitions to be tried now: those asked for, and
// those waiting that were last tried more than patience ago (a release can be
// missed when it came between the try and the parking). Oldest first.
func (s *ParkedStore) Due(ctx context.Context, stage string, parts []PartID, patience time.Duration, limit int) ([]Parked, error) {
	topics, numbers := columns(parts)
	return s.query(ctx, `select `+columnsOfParked+` from tallywire.parked
where stage = $1 and (topic, "partition") in (select * from unnest($2::text[], $3::int[]))
  and (retry_requested or (waits_for <> '' and last_at < now() - $4::interval))
order by topic, first_at, record_offset limit $5`, stage, topics, numbers, patience, limit)
}

// Count says how many records of a stage are parked because they are bad, and
// how many wait for another.
func (s *ParkedStore) Count(ctx context.Context, stage string) (parked, waiting int64, err error) {
	err = s.pool.QueryRow(ctx, `select count(*) filter (where waits_for = ''), count(*) filter (where waits_for <> '')
from tallywire.parked where stage = $1`, stage).Scan(&parked, &waiting)
	return parked, waiting, wrap(err, "counting parked records of %s", stage)
}

func (s *ParkedStore) query(ctx context.Context, sql string, args ...any) ([]Parked, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, wrap(err, "reading parked records")
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (Parked, error) {
		var p Parked
		err := r.Scan(&p.Stage, &p.Kind, &p.Topic, &p.RecordKey, &p.Key, &p.TopicID, &p.Partition, &p.Offset, &p.Keyless,
			&p.Value, &p.Headers, &p.Millis, &p.Code, &p.Reason, &p.Remedy, &p.WaitsFor, &p.Attempts, &p.FirstAt, &p.LastAt, &p.RetryAsked)
		return p, err
	})
	return out, wrap(err, "reading parked records")
}

func (s *ParkedStore) exec(ctx context.Context, b *pgx.Batch, format string, args ...any) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return tx.SendBatch(ctx, b).Close() })
	return wrap(err, format, args...)
}

func columns(parts []PartID) ([]string, []int32) {
	topics, numbers := make([]string, len(parts)), make([]int32, len(parts))
	for i, p := range parts {
		topics[i], numbers[i] = p.Topic, p.Partition
	}
	return topics, numbers
}

// printable makes s acceptable to Postgres, which takes neither NUL nor
// invalid UTF-8 in text.
func printable(s string) string {
	ok := true
	for _, r := range s {
		if r == 0 || r == '\uFFFD' {
			ok = false
			break
		}
	}
	if ok {
		return s
	}
	out := make([]rune, 0, len(s))
	for _, r := range s {
		if r == 0 {
			r = '\uFFFD'
		}
		out = append(out, r)
	}
	return string(out)
}

// wrap says what was being done; what only time mends is a Retry error.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	doing := fmt.Sprintf(format, args...)
	var pg *pgconn.PgError
	if errors.Is(err, context.Canceled) || (errors.As(err, &pg) && !outage.SQLState(pg.Code)) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return ErrUnavailable.New("%s: %w", doing, err)
}
