// Without: columns that are not captured. The publication does not have them, so
// that they do not leave the server.

package postgres

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/config"
)

// cut is the columns of a table some of which are left out. Computed ones are not
// kept: up to version 17 no publication may list them.
type cut struct{ keep, left []string }

const publishableSQL = `
SELECT a.attrelid, a.attname::text, a.attgenerated <> '' FROM pg_attribute a
 WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum`

// cuts gives the tables of which columns are left out, by id. It is an error when
// one cannot be, or when one that is named without * is not there: a name that is
// misspelt would let through what it is to hold back.
func (c *Config) cuts(ctx context.Context, q *pgx.Conn, tables []*tableInfo) (map[uint32]*cut, error) {
	if len(c.Without) == 0 {
		return nil, nil
	}
	of, ids := map[uint32]*tableInfo{}, []uint32{}
	for _, t := range tables {
		of[t.id], ids = t, append(ids, t.id)
	}
	rows, err := q.Query(ctx, publishableSQL, ids)
	if err != nil {
		return nil, classify("reading the columns", err)
	}
	cuts, used := map[uint32]*cut{}, map[string]bool{}
	var all []string
	var id uint32
	var column string
	var computed bool
	if _, err := pgx.ForEachRow(rows, []any{&id, &column, &computed}, func() error {
		x := cuts[id]
		if x == nil {
			x = &cut{}
			cuts[id] = x
		}
		full, left := of[id].String()+"."+column, false
		for _, p := range c.Without {
			if matches(p, full) {
				used[p], left = true, true
			}
		}
		all = append(all, full)
		switch {
		case left:
			x.left = append(x.left, column)
		case !computed:
			x.keep = append(x.keep, column)
		}
		return nil
	}); err != nil {
		return nil, classify("reading the columns", err)
	}
	for _, p := range c.Without {
		if !used[p] && !strings.Contains(p, "*") {
			e := errConfig.New("without: no table that is captured has a column %s", p)
			if near := config.Nearest(p, all); near != "" {
				e.WithRemedy("Did you mean %s? One that was dropped need not be named any more.", near)
			}
			return nil, e
		}
	}
	for _, t := range tables {
		x := cuts[t.id]
		if x == nil || len(x.left) == 0 {
			delete(cuts, t.id)
			continue
		}
		if err := t.spare(ctx, q, x); err != nil {
			return nil, err
		}
	}
	return cuts, nil
}

// wholeSQL is the table, or the first of its partitions, whose old rows are sent
// with all columns.
const wholeSQL = `
SELECT COALESCE((SELECT k.oid::regclass::text FROM pg_class k
  WHERE k.relreplident = 'f' AND k.relkind = 'r' AND (k.oid = $1 OR k.oid IN (SELECT l.relid FROM pg_partition_tree($1) l WHERE l.isleaf)) ORDER BY 1 LIMIT 1), '')`

// whole names the table, of which t is made, that has REPLICA IDENTITY FULL; "":
// none.
func (t *tableInfo) whole(ctx context.Context, q *pgx.Conn) (name string, err error) {
	err = q.QueryRow(ctx, wholeSQL, t.id).Scan(&name)
	return name, classify("reading the replica identity of "+t.String(), err)
}

// spare says why columns of a table cannot be left out.
func (t *tableInfo) spare(ctx context.Context, q *pgx.Conn, x *cut) error {
	for _, k := range t.key {
		if slices.Contains(x.left, k) {
			return errConfig.New("without: column %s of %s is of its key, and cannot be left out", k, t)
		}
	}
	whole, err := t.whole(ctx, q)
	if err == nil && whole != "" {
		return errConfig.New("without: %s has REPLICA IDENTITY FULL, which sends all columns: with one left out the server refuses its updates and deletes", whole).
			WithRemedy("ALTER TABLE %s REPLICA IDENTITY DEFAULT; or capture all of its columns.", whole)
	}
	return err
}

// item is the table as a publication is to have it: with all columns, or in
// brackets those that are not left out.
func (t *tableInfo) item(x *cut) string {
	if x == nil {
		return t.sql()
	}
	keep := make([]string, len(x.keep))
	for i, name := range x.keep {
		keep[i] = pgx.Identifier{name}.Sanitize()
	}
	return t.sql() + " (" + strings.Join(keep, ", ") + ")"
}

// withholds checks that a publication does not have what is left out.
func (c *Config) withholds(pub map[string]*publishedTable, tables []*tableInfo, cuts map[uint32]*cut) error {
	for _, t := range tables {
		p, x := pub[t.String()], cuts[t.id]
		if p == nil || x == nil {
			continue
		}
		for _, column := range x.left {
			if slices.Contains(p.columns, column) {
				name := pgx.Identifier{c.Publication}.Sanitize()
				return ErrPublication.New("publication %q has column %s of %s, which is to be left out", c.Publication, column, t).
					WithRemedy("BEGIN; ALTER PUBLICATION %[1]s DROP TABLE %[2]s; ALTER PUBLICATION %[1]s ADD TABLE %[3]s; COMMIT", name, t.sql(), t.item(x))
			}
		}
	}
	return nil
}
