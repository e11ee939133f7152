// The parked store: what people see of records that a stage or a sink could
// not take, one per key. The truth is each stage's parked topic (G1); this is a
// projection of it that catches up.

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
	KindTransform = "transform" // and sources
	KindSink      = "sink"
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
	// Key is for people; RecordKey are the octets, or, of what List gives, what
	// tells it in the parked topic. A record without a key has
	// Keyless set and "@partition/offset" as both.
	Key        string
	RecordKey  []byte
	Keyless    bool
	Value      []byte // nil: a tombstone, unless Omitted
	Omitted    bool   // value and headers are not kept; they lie where they came from
	Sealed     string // the id of the key that Value is sealed with, and holds all; "": none
	Size       int    // of the value, in octets, where it is omitted; 0: not known
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
	// Held are the records that lie beside it in the parked topic, in their
	// order: of a source, whose own topic never had them. Not in the table.
	Held []Held
}

// Held is one record that is kept whole.
type Held struct {
	Parts     int    `json:"parts"`               // that it is cut into
	Unchanged string `json:"unchanged,omitempty"` // columns that it does not tell, joined by commas
}

// KeylessKey is the RecordKey of a record without one.
func KeylessKey(partition int32, offset int64) []byte {
	return fmt.Appendf(nil, "@%d/%d", partition, offset)
}

// Ref names a parked record: its topic, and what follows that in its key in the
// parked topic (parked.AppendKey).
type Ref struct {
	Topic     string
	RecordKey []byte
}

// ParkedStore reads and writes the table. Safe for concurrent use.
type ParkedStore struct{ pool *pgxpool.Pool }

// NewParked makes a store on a pool from Open.
func NewParked(pool *pgxpool.Pool) *ParkedStore { return &ParkedStore{pool} }

// Event is what one record of a parked topic says of one original: it is
// parked, or it is not any more.
type Event struct {
	Ref
	Parked *Parked  // nil: released
	Topic  [16]byte // the parked topic's id
	Offset int64    // the event's, in its partition there
}

const upsert = `insert into tallywire.parked as p (stage, kind, topic, record_key, key, topic_id, "partition", record_offset, record_keyless,
  record_value, record_headers, record_millis, code, reason, remedy, waits_for, attempts, first_at, last_at, at_topic, at_offset, at_record)
values ($1,$2,$3,$4,$5,$6,$7,$8,$9,null,'[]',$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$8)
on conflict (stage, topic, record_key) do update set
  kind = excluded.kind, key = excluded.key, topic_id = excluded.topic_id, "partition" = excluded."partition",
  record_offset = excluded.record_offset, record_keyless = excluded.record_keyless, record_value = excluded.record_value,
  record_headers = excluded.record_headers, record_millis = excluded.record_millis, code = excluded.code,
  reason = excluded.reason, remedy = excluded.remedy, waits_for = excluded.waits_for, attempts = excluded.attempts,
  first_at = excluded.first_at, last_at = excluded.last_at, retry_requested = false,
  at_topic = excluded.at_topic, at_offset = excluded.at_offset, at_record = excluded.at_record
where case when p.at_record is distinct from p.record_offset -- not of this topic
  then p.topic_id <> excluded.topic_id or p.record_offset <= excluded.record_offset
  else p.at_topic <> excluded.at_topic or p.at_offset < excluded.at_offset end`

const remove = `delete from tallywire.parked
where stage = $1 and topic = $2 and record_key = $3 and case when at_record is distinct from record_offset
  then kind <> 'sink' else at_topic <> $4 or at_offset < $5 end`

// Apply brings the rows of a stage to what events say, all or none. An event
// older than what the row shows changes nothing, so that the same ones may come
// again, and from several processes.
func (s *ParkedStore) Apply(ctx context.Context, stage string, events []Event) error {
	if len(events) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for i := range events {
		e := &events[i]
		p := e.Parked
		if p == nil {
			b.Queue(remove, stage, e.Ref.Topic, e.RecordKey, e.Topic, e.Offset)
			continue
		}
		if e.RecordKey == nil || p.Topic == "" || (p.Kind != KindSink && p.Kind != KindTransform) {
			panic("BUG: parked record without identity")
		}
		b.Queue(upsert,
			stage, p.Kind, p.Topic, e.RecordKey, printable(p.Key), p.TopicID, p.Partition, p.Offset, p.Keyless,
			p.Millis, p.Code, printable(p.Reason), p.Remedy, printable(p.WaitsFor),
			p.Attempts, p.FirstAt, p.LastAt, e.Topic, e.Offset)
	}
	return s.exec(ctx, b, "showing %d changes of what %s has parked", len(events), stage)
}

// Scrub takes the originals out of the rows that a stage's parked topic has too:
// a version before this one copied them, rates among them.
func (s *ParkedStore) Scrub(ctx context.Context, stage string) error {
	_, err := s.pool.Exec(ctx, `update tallywire.parked set record_value = null, record_headers = '[]'
where stage = $1 and at_record is not distinct from record_offset and (record_value is not null or record_headers <> '[]')`, stage)
	return wrap(err, "clearing originals of parked records of %s", stage)
}

// Prune takes out the rows of a stage that its parked topic, of the id given
// and read up to ends (by partition), does not hold: all but live. Rows that
// another process read further on stay; so does what Foreign gives.
func (s *ParkedStore) Prune(ctx context.Context, stage string, topic [16]byte, ends []int64, live []Ref) error {
	topics, keys := make([]string, len(live)), make([][]byte, len(live))
	for i, r := range live {
		topics[i], keys[i] = r.Topic, r.RecordKey
	}
	_, err := s.pool.Exec(ctx, `
delete from tallywire.parked p
where stage = $1 and case when at_record is distinct from record_offset
    then kind <> 'sink' else at_topic <> $2 or at_offset < ($3::bigint[])["partition" % cardinality($3::bigint[]) + 1] end
  and not exists (select from unnest($4::text[], $5::bytea[]) as k(topic, record_key) where k.topic = p.topic and k.record_key = p.record_key)`,
		stage, topic, ends, topics, keys)
	return wrap(err, "clearing parked records of %s", stage)
}

// Foreign gives rows that a sink wrote by itself, as versions did before a
// sink's parked records were in a topic.
func (s *ParkedStore) Foreign(ctx context.Context, stage string, limit int) ([]Parked, error) {
	return s.query(ctx, `select `+columnsOfParked+` from tallywire.parked
where stage = $1 and kind = 'sink' and at_record is distinct from record_offset order by topic, record_offset limit $2`, stage, limit)
}

// Adopted notes that what Foreign gave is in the parked topic now, as ref, at
// offset or further on.
func (s *ParkedStore) Adopted(ctx context.Context, stage string, p *Parked, ref Ref, topic [16]byte, offset int64) error {
	b := &pgx.Batch{}
	b.Queue(`update tallywire.parked set record_key = $7, at_topic = $5, at_offset = $6, at_record = record_offset
where stage = $1 and topic = $2 and record_key = $3 and record_offset = $4
  and ($3 = $7 or not exists (select from tallywire.parked k where k.stage = $1 and k.topic = $2 and k.record_key = $7))`,
		stage, p.Topic, p.RecordKey, p.Offset, topic, offset, ref.RecordKey)
	b.Queue(`delete from tallywire.parked where stage = $1 and topic = $2 and record_key = $3 and record_offset = $4 and $3 <> $5::bytea`,
		stage, p.Topic, p.RecordKey, p.Offset, ref.RecordKey) // another process shows it already
	return s.exec(ctx, b, "noting what of %s is in its parked topic", stage)
}

const columnsOfParked = `stage, kind, topic, record_key, key, topic_id, "partition", record_offset, record_keyless,
  record_value, record_headers, record_millis, code, reason, remedy, waits_for, attempts, first_at, last_at, retry_requested`

// Without what may be large.
const columnsOfList = `stage, kind, topic, record_key, key, topic_id, "partition", record_offset, record_keyless,
  null::bytea, '[]'::jsonb, record_millis, code, reason, remedy, waits_for, attempts, first_at, last_at, retry_requested`

// Filter narrows List; empty fields match all.
type Filter struct {
	Stage string
	Topic string
	Key   string
	Limit int // 0: 1000
}

// List gives parked records, those that others may wait for first, then by age:
// all but their values and headers.
func (s *ParkedStore) List(ctx context.Context, f Filter) ([]Parked, error) {
	if f.Limit <= 0 {
		f.Limit = 1000
	}
	return s.query(ctx, `select `+columnsOfList+` from tallywire.parked
where ($1 = '' or stage = $1) and ($2 = '' or topic = $2) and ($3 = '' or key = $3)
order by stage, waits_for <> '', first_at, topic, key limit $4`, f.Stage, f.Topic, f.Key, f.Limit)
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

// Requested gives records of a stage that RequestRetry marked, without their
// values, oldest first.
func (s *ParkedStore) Requested(ctx context.Context, stage string, limit int) ([]Parked, error) {
	return s.query(ctx, `select `+columnsOfList+` from tallywire.parked where stage = $1 and retry_requested
order by topic, first_at, record_offset limit $2`, stage, limit)
}

// ClearRetry takes the marks of RequestRetry back.
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
