// The write path: one transaction per batch. Few rows go as prepared single
// statements in one round trip; many go by COPY into a temporary table and
// from there in one statement.

package warehouse

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
)

// few is up to how many rows of an entity single statements are the faster way.
const few = 64

const (
	stmtAdvance = "advance"
	sqlAdvance  = `UPDATE _tallywire.offsets SET next_offset = $7, updated_at = now()
		WHERE sink = $1 AND topic = $2 AND partition = $3 AND topic_id = $4 AND owner = $5 AND next_offset = $6`
)

// move is what happens to one stored offset; params are stmtAdvance's, as text.
type move struct {
	params [][]byte
	r      change.Range
}

// moves makes the moves of the ranges: one per partition, in the order in
// which rows are locked.
func (s *Sink) moves(assignment string, ranges []change.Range) ([]move, error) {
	rs := append([]change.Range(nil), ranges...)
	sort.Slice(rs, func(i, j int) bool {
		switch a, b := &rs[i], &rs[j]; {
		case a.Topic.Name != b.Topic.Name:
			return a.Topic.Name < b.Topic.Name
		case a.Partition != b.Partition:
			return a.Partition < b.Partition
		default:
			return a.From < b.From
		}
	})
	ms := make([]move, 0, len(rs))
	for _, r := range rs {
		if n := len(ms); n > 0 && ms[n-1].r.Topic.Name == r.Topic.Name && ms[n-1].r.Partition == r.Partition {
			last := &ms[n-1].r
			if last.To != r.From || last.Topic.ID != r.Topic.ID {
				panic(fmt.Sprintf("BUG: a batch covers %s[%d] up to %d and goes on at %d", r.Topic.Name, r.Partition, last.To, r.From))
			}
			last.To = r.To
			continue
		}
		if s.byTopic[r.Topic.Name] == nil {
			return nil, ErrTopic.New("sink %q has no table for topic %q", s.name, r.Topic.Name)
		}
		ms = append(ms, move{r: r})
	}
	for i := range ms {
		r := &ms[i].r
		ms[i].params = [][]byte{
			[]byte(s.name), []byte(r.Topic.Name), strconv.AppendInt(nil, int64(r.Partition), 10), []byte(topicID(r.Topic)),
			[]byte(assignment), strconv.AppendInt(nil, r.From, 10), strconv.AppendInt(nil, r.To, 10),
		}
	}
	return ms, nil
}

// deliver writes the batch. A row that the server refuses is searched for,
// taken out, and the rest tried again; each turn takes out at least one.
func (s *Sink) deliver(ctx context.Context, moves []move, b *change.Batch) ([]pipeline.Failure, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var refused map[int]error
	for turn := 0; ; turn++ {
		failures, err := s.plan(b, refused)
		if err != nil {
			return nil, err
		}
		err = s.try(ctx, moves)
		if err == nil {
			sort.Slice(failures, func(i, j int) bool { return failures[i].Index < failures[j].Index })
			return failures, nil
		}
		if !dataError(err) || turn > len(b.Changes) {
			return nil, classify(fmt.Sprintf("writing %d changes to the warehouse of sink %q", len(b.Changes), s.name), err)
		}
		found, err := s.search(ctx)
		if err != nil {
			return nil, classify(fmt.Sprintf("searching for the row that the warehouse of sink %q refused", s.name), err)
		}
		if len(found) == 0 && turn > 0 {
			return nil, ErrTable.New("the warehouse of sink %q refuses a batch, but none of its rows alone", s.name).
				WithRemedy("Look for deferred constraints and triggers on the tables of schema ps.")
		}
		if refused == nil {
			refused = map[int]error{}
		}
		for i, err := range found {
			refused[i] = err
		}
	}
}

// try writes what is planned and moves the offsets, all or nothing.
func (s *Sink) try(ctx context.Context, moves []move) (err error) {
	conn, err := s.session(ctx)
	if err != nil {
		return err
	}
	many, err := s.stage(ctx, conn)
	if err != nil {
		return err
	}
	pg := conn.PgConn()
	defer func() {
		if err != nil {
			s.rollback(pg)
		}
	}()
	if err := s.begin(ctx, pg, moves); err != nil {
		return err
	}
	for _, e := range many {
		if _, err := pg.CopyFrom(ctx, bytes.NewReader(e.batch.end()), e.copySQL()); err != nil {
			return err
		}
	}
	return commit(ctx, pg, many)
}

// stage gives the entities that go by COPY; their temporary tables are there.
func (s *Sink) stage(ctx context.Context, conn *pgx.Conn) (many []*entity, err error) {
	for _, e := range s.entities {
		if len(e.batch.start) <= few {
			continue
		}
		many = append(many, e)
		if !s.staged[e] {
			if _, err := conn.Exec(ctx, e.stageSQL()); err != nil {
				return nil, err
			}
			s.staged[e] = true
		}
	}
	return many, nil
}

// begin begins the transaction, moves the offsets and writes the entities with
// few rows.
func (s *Sink) begin(ctx context.Context, pg *pgconn.PgConn, moves []move) error {
	// The offsets come first: they are the fence, and whoever does not hold
	// them any more shall not lock rows of the tables (invariant 10).
	batch := &pgconn.Batch{}
	batch.ExecParams("BEGIN", nil, nil, nil, nil)
	for i := range moves {
		batch.ExecPrepared(stmtAdvance, moves[i].params, nil, nil)
	}
	for _, e := range s.entities {
		if n := len(e.batch.start); n <= few {
			for i := range n {
				e.add(batch, i)
			}
		}
	}
	results := pg.ExecBatch(ctx, batch)
	at := -1
	for results.NextResult() {
		tag, err := results.ResultReader().Close()
		if err != nil {
			break // Close tells it
		}
		if at >= 0 && at < len(moves) && tag.RowsAffected() != 1 {
			if err := results.Close(); err != nil {
				return err
			}
			r := &moves[at].r
			return pipeline.ErrFenced.New("writing %s[%d] from offset %d for sink %q: the stored offset is another, or another process owns it", r.Topic.Name, r.Partition, r.From, s.name)
		}
		at++
	}
	return results.Close()
}

// commit merges what went by COPY into the tables and ends the transaction.
func commit(ctx context.Context, pg *pgconn.PgConn, many []*entity) error {
	last := &pgconn.Batch{}
	for _, e := range many {
		if len(e.batch.deleted) < len(e.batch.start) {
			last.ExecParams(e.merge, nil, nil, nil, nil)
		}
		if len(e.batch.deleted) > few {
			last.ExecParams(e.purge, nil, nil, nil, nil)
			continue
		}
		for _, i := range e.batch.deleted { // a few of many: purge would read the whole table
			e.add(last, i)
		}
	}
	last.ExecParams("COMMIT", nil, nil, nil, nil)
	results := pg.ExecBatch(ctx, last)
	var tag pgconn.CommandTag
	for results.NextResult() {
		var err error
		if tag, err = results.ResultReader().Close(); err != nil {
			break // Close tells it
		}
	}
	if err := results.Close(); err != nil {
		return err
	}
	if tag.String() != "COMMIT" { // a failed transaction answers COMMIT with ROLLBACK
		return fmt.Errorf("committing: %w", errCommit)
	}
	return nil
}

func (e *entity) copySQL() string {
	return "COPY pg_temp." + quote(e.stage) + " FROM STDIN BINARY"
}

// add enters row i into a pipeline as a single statement.
func (e *entity) add(batch *pgconn.Batch, i int) {
	e.fields = e.batch.row(i, e.fields)
	f := e.fields
	n := len(e.columns)
	if !isDeleted(f) {
		batch.ExecPrepared(e.stmtUpsert, f[:n+3], binaryFormat, nil)
		return
	}
	params := make([][]byte, 0, len(e.key)+2)
	for _, k := range e.key {
		params = append(params, f[k])
	}
	batch.ExecPrepared(e.stmtRemove, append(params, f[n], f[n+2]), binaryFormat, nil)
}

var binaryFormat = []int16{1}

// rollback ends what is left of a transaction; when that fails the session is
// given up. It does not depend on the caller's context, which may have ended.
func (s *Sink) rollback(pg *pgconn.PgConn) {
	if pg.IsClosed() || pg.TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := pg.Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
		s.log.Debug("rolling back in the warehouse", "error", classify("rolling back", err))
		s.drop()
	}
}

// search finds the planned rows that the server refuses, by halves, in a
// transaction that is rolled back.
func (s *Sink) search(ctx context.Context) (map[int]error, error) {
	conn, err := s.session(ctx)
	if err != nil {
		return nil, err
	}
	pg := conn.PgConn()
	defer s.rollback(pg)
	if _, err := pg.Exec(ctx, "BEGIN; SET CONSTRAINTS ALL IMMEDIATE").ReadAll(); err != nil {
		return nil, err
	}
	found := map[int]error{}
	for _, e := range s.entities {
		if err := e.halves(ctx, pg, 0, len(e.batch.start), found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (e *entity) halves(ctx context.Context, pg *pgconn.PgConn, lo, hi int, found map[int]error) error {
	if lo == hi {
		return nil
	}
	batch := &pgconn.Batch{}
	batch.ExecParams("SAVEPOINT half", nil, nil, nil, nil)
	for i := lo; i < hi; i++ {
		e.add(batch, i)
	}
	_, err := pg.ExecBatch(ctx, batch).ReadAll()
	if err == nil {
		_, err = pg.Exec(ctx, "RELEASE SAVEPOINT half").ReadAll()
		return err
	}
	if !dataError(err) {
		return err
	}
	if _, rerr := pg.Exec(ctx, "ROLLBACK TO SAVEPOINT half; RELEASE SAVEPOINT half").ReadAll(); rerr != nil {
		return rerr
	}
	if hi-lo == 1 {
		found[e.batch.index[lo]] = classify("writing a row of "+e.topic, err)
		return nil
	}
	mid := lo + (hi-lo)/2
	if err := e.halves(ctx, pg, lo, mid, found); err != nil {
		return err
	}
	return e.halves(ctx, pg, mid, hi, found)
}
