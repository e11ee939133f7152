// Package truth compares the warehouse with what it should hold: every row and
// column of every entity, the costed entries and the margin, computed anew in
// SQL from the PSA. On a moving system, rows that differ are looked at again
// until they settle.
package truth

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Options of Compare; zero values give the defaults.
type Options struct {
	// Settle is for how long rows that differ are looked at again; 0: not at
	// all, for a system that stands still.
	Settle time.Duration
	// Every is the pause between two looks. Default 500 ms.
	Every time.Duration
	// Entities to compare; default all.
	Entities []string
	// Keep is how many differences the Report names. Default 100.
	Keep int
}

// Report of a comparison.
type Report struct {
	Entities    []EntityReport `json:"entities"`
	Rows        int64          `json:"rows_compared"`
	Count       int64          `json:"differences"`
	Settled     int64          `json:"settled"` // differed at first and were equal when looked at again
	Differences []Difference   `json:"details"` // the first of them
	Seconds     float64        `json:"seconds"`
}

// EntityReport is the part of one entity.
type EntityReport struct {
	Entity      string `json:"entity"`
	PSA         int64  `json:"psa_rows"`
	Warehouse   int64  `json:"warehouse_rows"`
	Differences int64  `json:"differences"` // rows, and of a row each column
	Settled     int64  `json:"settled"`
}

// Difference is one value, or one row, that differs.
type Difference struct {
	Entity    string `json:"entity"`
	Key       string `json:"key"`
	Column    string `json:"column,omitempty"` // "" : the whole row
	PSA       string `json:"psa"`              // "null", "no row", or "[restricted]"
	Warehouse string `json:"warehouse"`
}

func (d Difference) String() string {
	if d.Column == "" {
		return fmt.Sprintf("%s %s: PSA %s, warehouse %s", d.Entity, d.Key, d.PSA, d.Warehouse)
	}
	return fmt.Sprintf("%s %s, %s: PSA %s, warehouse %s", d.Entity, d.Key, d.Column, d.PSA, d.Warehouse)
}

// maxAgain is how many differing keys of an entity are remembered for another
// look; with more, the whole entity is looked at again.
const maxAgain = 20_000

// Compare compares. Both pools need two free connections at most, and a login
// that reads all columns. Memory does not grow with the tables.
func Compare(ctx context.Context, psa, warehouse *pgxpool.Pool, o Options) (*Report, error) {
	if o.Every <= 0 {
		o.Every = 500 * time.Millisecond
	}
	if o.Keep <= 0 {
		o.Keep = 100
	}
	if len(o.Entities) == 0 {
		o.Entities = Entities
	}
	began := time.Now()
	r := &Report{Differences: []Difference{}}
	c := &comparer{psa: psa, warehouse: warehouse, keep: o.Keep}
	var again []*look
	for _, e := range o.Entities {
		q, err := queryOf(e)
		if err != nil {
			return nil, err
		}
		l := &look{q: q}
		if err := c.look(ctx, l); err != nil {
			return nil, err
		}
		l.first = l.differing
		again = append(again, l)
		r.Rows += max(l.rows[0], l.rows[1])
	}
	deadline := began.Add(o.Settle)
	for time.Now().Before(deadline) && slices.ContainsFunc(again, func(l *look) bool { return l.differing > 0 }) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(o.Every):
		}
		for _, l := range again {
			if l.differing == 0 {
				continue
			}
			if err := c.look(ctx, l); err != nil {
				return nil, err
			}
		}
	}
	for _, l := range again {
		settled := max(0, l.first-l.differing)
		r.Entities = append(r.Entities, EntityReport{l.q.entity, l.rows[0], l.rows[1], l.count, settled})
		r.Count += l.count
		r.Settled += settled
		r.Differences = append(r.Differences, l.details[:min(len(l.details), o.Keep-len(r.Differences))]...)
	}
	r.Seconds = time.Since(began).Seconds()
	return r, nil
}

type comparer struct {
	psa, warehouse *pgxpool.Pool
	keep           int
}

// look is the state of one entity's comparison.
type look struct {
	q         *query
	rows      [2]int64 // of the first look
	first     int64    // keys that differed at the first look
	differing int64    // keys that differ now
	keys      []string // which, when they are few enough
	count     int64    // differences now
	details   []Difference
	whole     bool // looked at before
}

// look compares the entity: all of it at first, then the keys that differed.
func (c *comparer) look(ctx context.Context, l *look) error {
	where := ""
	if l.whole && int64(len(l.keys)) == l.differing {
		where = "WHERE " + l.q.columns[0] + " = ANY(" + textArray(l.keys) + ")"
	}
	a, err := open(ctx, c.psa, ordered(l.q, l.q.psa, where))
	if err != nil {
		return fmt.Errorf("reading %s from the PSA: %w", l.q.entity, err)
	}
	defer a.close()
	b, err := open(ctx, c.warehouse, ordered(l.q, l.q.warehouse, where))
	if err != nil {
		return fmt.Errorf("reading %s from the warehouse: %w", l.q.entity, err)
	}
	defer b.close()
	l.keys, l.details, l.count, l.differing = l.keys[:0], nil, 0, 0
	differ := func(key []byte) {
		l.differing++
		if len(l.keys) < maxAgain {
			l.keys = append(l.keys, string(key))
		}
	}
	note := func(d Difference) {
		l.count++
		if len(l.details) < c.keep {
			d.Entity = l.q.entity
			l.details = append(l.details, d)
		}
	}
	ra, rb := a.next(), b.next()
	for ra != nil || rb != nil {
		switch order := compareKeys(ra, rb); {
		case order < 0:
			differ(ra[0])
			note(Difference{Key: string(ra[0]), PSA: "a row", Warehouse: "no row"})
			ra = a.next()
		case order > 0:
			differ(rb[0])
			note(Difference{Key: string(rb[0]), PSA: "no row", Warehouse: "a row"})
			rb = b.next()
		default:
			same := true
			for i := range ra {
				if bytes.Equal(ra[i], rb[i]) && (ra[i] == nil) == (rb[i] == nil) {
					continue
				}
				same = false
				d := Difference{Key: string(ra[0]), Column: l.q.columns[i], PSA: show(ra[i]), Warehouse: show(rb[i])}
				if l.q.restricted[i] {
					d.PSA, d.Warehouse = "[restricted]", "[restricted]"
				}
				note(d)
			}
			if !same {
				differ(ra[0])
			}
			ra, rb = a.next(), b.next()
		}
	}
	if a.err != nil {
		return fmt.Errorf("reading %s from the PSA: %w", l.q.entity, a.err)
	}
	if b.err != nil {
		return fmt.Errorf("reading %s from the warehouse: %w", l.q.entity, b.err)
	}
	if !l.whole {
		l.rows = [2]int64{a.n, b.n}
	}
	l.whole = true
	return nil
}

func compareKeys(a, b [][]byte) int {
	switch {
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return bytes.Compare(a[0], b[0])
}

func show(v []byte) string {
	if v == nil {
		return "null"
	}
	const most = 80
	if len(v) > most {
		return fmt.Sprintf("%.80s… (%d octets)", v, len(v))
	}
	return string(v)
}

// textArray writes keys as an SQL literal; they are ids, but not taken on trust.
func textArray(keys []string) string {
	b := []byte("'{")
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		for _, c := range []byte(k) {
			switch c {
			case '"', '\\':
				b = append(b, '\\')
			case '\'':
				b = append(b, '\'')
			}
			b = append(b, c)
		}
		b = append(b, '"')
	}
	return string(append(b, "}'::text[]"...))
}

// stream is one side's rows, as text, read as they come.
type stream struct {
	ctx     context.Context
	pooled  *pgxpool.Conn
	results *pgconn.MultiResultReader
	err     error
	n       int64
	done    bool
}

// open begins a query. Both sides print values in the same form: text, in UTC.
func open(ctx context.Context, pool *pgxpool.Pool, sql string) (*stream, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	pg := conn.Conn().PgConn()
	if _, err := pg.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO';
		SET LOCAL standard_conforming_strings = on; SET LOCAL work_mem = '64MB'; SET LOCAL jit = off`).ReadAll(); err != nil {
		conn.Release()
		return nil, err
	}
	s := &stream{ctx: ctx, pooled: conn, results: pg.Exec(ctx, sql)}
	if !s.results.NextResult() {
		err := s.results.Close()
		s.results = nil
		s.close()
		return nil, err
	}
	return s, nil
}

// next gives the next row, valid until the call after, or nil at the end.
func (s *stream) next() [][]byte {
	if s.done {
		return nil
	}
	if r := s.results.ResultReader(); r.NextRow() {
		s.n++
		row := r.Values()
		for i, f := range r.FieldDescriptions() {
			if f.DataTypeOID == pgtype.NumericOID { // the sides may keep different numbers of decimals
				row[i] = trimmed(row[i])
			}
		}
		return row
	}
	s.done = true
	s.err = s.results.Close()
	s.results = nil
	return nil
}

// trimmed is a number without zeros at its end.
func trimmed(n []byte) []byte {
	if !bytes.ContainsRune(n, '.') {
		return n
	}
	return bytes.TrimSuffix(bytes.TrimRight(n, "0"), []byte("."))
}

// close ends the transaction and gives the connection back; a connection in
// the middle of a result is closed by the pool.
func (s *stream) close() {
	if s.results == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 5*time.Second)
		defer cancel()
		if _, err := s.pooled.Conn().PgConn().Exec(ctx, "ROLLBACK").ReadAll(); err == nil {
			s.pooled.Release()
			return
		}
	}
	conn := s.pooled.Hijack()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // its rows are not wanted any more
}
