// Without: columns that are not captured, or not as they are, and rows that are not.
// A publication that is made here does not have what is named to be left out, so that
// this does not leave the server; whatever else is sent is passed over as it is read.

package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/draft"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// HashConfig is of columns that are hashed.
type HashConfig struct {
	Salt    secret.Value `yaml:"salt" doc:"What the hashes are made with, at least 16 octets, as 'openssl rand -hex 32' makes: with another one all are others." example:"env:PSA_SALT"`
	Columns []string     `yaml:"columns" doc:"Columns of which the HMAC-SHA-256 under salt is captured, in hexadecimal digits, as schema.table.column with * for any run of characters: equal values stay equal, in all tables, and nobody reads them. Of a key, too." example:"[public.employee.tax_id]"`
}

// treatment is what becomes of a column.
type treatment uint8

const (
	asIs      treatment = iota
	leftOut             // by `without`
	secretive           // left out, since it is called like a secret
	masked
	hashed
)

// noted is how a treatment is noted of a table, for whoever compares.
func (h treatment) noted() string {
	return [...]string{asIs: "", leftOut: "out", secretive: "out", masked: "mask", hashed: "hash"}[h]
}

// matchesAny reports whether one of patterns matches.
func matchesAny(patterns []string, full string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, full) })
}

// treats says what becomes of a column of t. Of `without`, the last that matches
// counts. What looks like a secret is left out, unless it is of the key, or something
// is said of it.
func (c *Config) treats(t *tableInfo, col *change.Column) treatment {
	full := t.String() + "." + col.Name
	how, said := asIs, false
	for _, w := range c.Without {
		if p, back := strings.CutPrefix(w, "!"); matches(p, full) {
			if how, said = leftOut, true; back {
				how = asIs
			}
		}
	}
	switch {
	case how == leftOut:
	case matchesAny(c.Mask, full):
		how = masked
	case matchesAny(c.Hash.Columns, full):
		how = hashed
	case !said && !slices.Contains(t.key, col.Name) && draft.IsSecret(col):
		how = secretive
	}
	return how
}

// hide takes out of a relation of t what is not captured, and changes what is not
// captured as it is.
func (c *Config) hide(t *tableInfo, r *pgoutput.Relation) error {
	cols, key := r.Table.Columns, r.Table.Key
	at := make([]int, len(cols))
	r.Table.Columns, r.Table.Key = make([]change.Column, 0, len(cols)), nil
	for i := range cols {
		how := c.treats(t, &cols[i])
		if slices.Contains(key, i) && (how == leftOut || how == masked) {
			return c.keyHidden(t, cols[i].Name)
		}
		at[i] = len(r.Table.Columns)
		switch how {
		case leftOut, secretive:
			r.Cells[i], at[i] = pgoutput.Nothing(), -1
			continue
		case masked:
			cols[i], r.Cells[i] = pgoutput.HiddenColumn(cols[i]), pgoutput.Masked()
		case hashed:
			cols[i], r.Cells[i] = pgoutput.HiddenColumn(cols[i]), pgoutput.Hashed(r.Cells[i], []byte(c.Hash.Salt.Reveal()))
		}
		r.Table.Columns = append(r.Table.Columns, cols[i])
	}
	for _, k := range key {
		r.Table.Key = append(r.Table.Key, at[k])
	}
	if len(r.Table.Columns) < len(cols) {
		r.At = at
	}
	r.Table.Index()
	return nil
}

func (c *Config) keyHidden(t *tableInfo, column string) error {
	return errConfig.New("column %s of %s is of its key, and cannot be left out or masked", column, t).
		WithRemedy("Have it hashed (`hash`), or leave the table out: \"!%s\" in `tables`.", t)
}

// cellSQL is what a SELECT reads for a cell of a relation.
func cellSQL(r *pgoutput.Relation, cell int) string {
	if name := r.Name(cell); name != "" {
		return pgx.Identifier{name}.Sanitize()
	}
	return "NULL"
}

// tableColumn is a column as the catalogue has it.
type tableColumn struct {
	change.Column      // its name and, of built-in types and domains over them, its kind
	computed      bool // no publication lists it, up to version 17
}

const tableColumnsSQL = `
SELECT a.attrelid, a.attname::text, a.attgenerated <> '', CASE WHEN y.typtype <> 'd' THEN y.oid ELSE (
       WITH RECURSIVE b(id, base) AS (SELECT y.oid, y.typbasetype UNION ALL SELECT z.oid, z.typbasetype FROM pg_type z JOIN b ON z.oid = b.base)
       SELECT id FROM b WHERE base = 0) END
  FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
 WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum`

// judge reads the columns of tables, and says which of them are left out since they,
// or their columns, look like secrets.
func (c *Config) judge(ctx context.Context, q *pgx.Conn, tables ...*tableInfo) error {
	of, ids := map[uint32]*tableInfo{}, []uint32{}
	for _, t := range tables {
		of[t.id], ids = t, append(ids, t.id)
	}
	rows, err := q.Query(ctx, tableColumnsSQL, ids)
	if err != nil {
		return classify("reading the columns", err)
	}
	var id, typ uint32
	var x tableColumn
	if _, err := pgx.ForEachRow(rows, []any{&id, &x.Name, &x.computed, &typ}, func() error {
		x.Kind = pgoutput.BuiltinKind(typ)
		of[id].columns = append(of[id].columns, x)
		return nil
	}); err != nil {
		return classify("reading the columns", err)
	}
	for _, t := range tables {
		looks := &draft.Table{Table: &change.Table{Schema: t.schema, Name: t.name}}
		for i := range t.columns {
			looks.Columns = append(looks.Columns, t.columns[i].Column)
			if c.treats(t, &t.columns[i].Column) == secretive {
				t.secrets = append(t.secrets, t.columns[i].Name)
			}
		}
		if !t.named {
			t.secret = draft.HoldsSecrets(looks)
		}
	}
	return nil
}

// passed says what looks like a secret and is not captured, "": nothing, and how it is.
func passed(tables, out []*tableInfo) (text, remedy string) {
	var of []string
	for _, t := range out {
		if t.secret != "" {
			of = append(of, fmt.Sprintf("table %s (%s)", t, t.secret))
		}
	}
	for _, t := range tables {
		for _, name := range t.secrets {
			of = append(of, fmt.Sprintf("column %s.%s", t, name))
		}
	}
	return strings.Join(of, ", "), "To capture a table, name it without * in `tables`; a column, write \"!schema.table.column\" in `without`, or have it hashed or masked (docs/postgres.md)."
}

// seen gives the columns of a table that are published and captured, and what becomes
// of those that are not captured as they are.
func (c *Config) seen(t *tableInfo, p *publishedTable) (columns []string, hidden map[string]string) {
	hidden = map[string]string{}
	for i := range t.columns {
		name := t.columns[i].Name
		if !slices.Contains(p.columns, name) {
			continue
		}
		as := c.treats(t, &t.columns[i].Column).noted()
		if as != "" {
			hidden[name] = as
		}
		if as != leftOut.noted() {
			columns = append(columns, name)
		}
	}
	return columns, hidden
}

// cut is the columns of a table some of which are left out by name. Computed ones are
// not kept: up to version 17 no publication may list them.
type cut struct {
	keep, left []string
	whole      string // has REPLICA IDENTITY FULL, so that all must be published; "": none has
}

// cuts gives the tables of which columns are left out by name, by id. It is an error
// when one cannot be, or when one that is named without * is not there: a name that is
// misspelt would let through what it is to hold back.
func (c *Config) cuts(ctx context.Context, q *pgx.Conn, tables []*tableInfo) (map[uint32]*cut, error) {
	cuts, used := map[uint32]*cut{}, map[string]bool{}
	var all []string
	named := slices.Concat(c.Without, c.Mask, c.Hash.Columns)
	for _, t := range tables {
		x := &cut{}
		for i := range t.columns {
			col := &t.columns[i]
			full, how := t.String()+"."+col.Name, c.treats(t, &col.Column)
			all = append(all, full)
			for _, p := range named {
				used[p] = used[p] || matches(strings.TrimPrefix(p, "!"), full)
			}
			switch {
			case (how == leftOut || how == masked) && slices.Contains(t.key, col.Name):
				return nil, c.keyHidden(t, col.Name)
			case how == leftOut:
				x.left = append(x.left, col.Name)
			case !col.computed:
				x.keep = append(x.keep, col.Name)
			}
		}
		if len(x.left) == 0 {
			continue
		}
		var err error
		if x.whole, err = t.whole(ctx, q); err != nil {
			return nil, err
		}
		cuts[t.id] = x
	}
	for _, p := range named {
		if !used[p] && !strings.Contains(p, "*") {
			e := errConfig.New("without, mask and hash: no table that is captured has a column %s", strings.TrimPrefix(p, "!"))
			if near := config.Nearest(p, all); near != "" {
				e.WithRemedy("Did you mean %s? One that was dropped need not be named any more.", near)
			}
			return nil, e
		}
	}
	if len(c.Hash.Columns) > 0 && len(c.Hash.Salt.Reveal()) < 16 {
		return nil, errConfig.New("hash.salt has %d octets, want 16 at least", len(c.Hash.Salt.Reveal()))
	}
	return cuts, c.filters(ctx, q, tables)
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

// filters checks the conditions of `where`. The server judges the row before an update
// too, of which it has no more than the replica identity: of another column it takes
// the condition, and refuses each update and delete from then on (PostgreSQL
// documentation, "Row Filters").
func (c *Config) filters(ctx context.Context, q *pgx.Conn, tables []*tableInfo) error {
	of := map[string]*tableInfo{}
	for _, t := range tables {
		of[t.String()] = t
	}
	for _, name := range slices.Sorted(maps.Keys(c.Where)) {
		t := of[name]
		if t == nil {
			e := errConfig.New("where: no table that is captured is called %s", name)
			if near := config.Nearest(name, slices.Collect(maps.Keys(of))); near != "" {
				e.WithRemedy("Did you mean %s?", near)
			}
			return e
		}
		of := func(columns string) error {
			_, err := q.Prepare(ctx, "", fmt.Sprintf("SELECT FROM (SELECT %s FROM %s) AS %s WHERE (%s)", columns, t.sql(), pgx.Identifier{t.name}.Sanitize(), c.Where[name]))
			var pg *pgconn.PgError
			if err == nil || !errors.As(err, &pg) || !strings.HasPrefix(pg.Code, "42") {
				return classify("checking the condition of "+name, err)
			}
			return errConfig.New("where: %s: %s", name, pg.Message)
		}
		if err := of("*"); err != nil {
			return err
		}
		if t.full() {
			continue
		}
		key := make([]string, len(t.key))
		for i, k := range t.key {
			key[i] = pgx.Identifier{k}.Sanitize()
		}
		if err := of(strings.Join(key, ", ")); problem.Has(err, errConfig) {
			return errConfig.New("%w; it is not of the replica identity (%s): the server would refuse the updates and deletes of %s", err, strings.Join(t.key, ", "), t).
				WithRemedy("A condition of the key's columns alone; or who owns the table runs ALTER TABLE %s REPLICA IDENTITY FULL, which sends old rows whole.", t.sql())
		} else if err != nil {
			return err
		}
	}
	return nil
}

// item is the table as a publication is to have it: with all columns, or in brackets
// those that are not left out by name, and with its condition.
func (c *Config) item(t *tableInfo, x *cut) string {
	sql := t.sql()
	if x != nil && x.whole == "" {
		keep := make([]string, len(x.keep))
		for i, name := range x.keep {
			keep[i] = pgx.Identifier{name}.Sanitize()
		}
		sql += " (" + strings.Join(keep, ", ") + ")"
	}
	if where := c.Where[t.String()]; where != "" {
		sql += " WHERE (" + where + ")"
	}
	return sql
}

// anew is the statement that has a publication list a table as it is to be.
func (c *Config) anew(t *tableInfo, x *cut) string {
	return fmt.Sprintf("BEGIN; ALTER PUBLICATION %[1]s DROP TABLE %[2]s; ALTER PUBLICATION %[1]s ADD TABLE %[3]s; COMMIT", pgx.Identifier{c.Publication}.Sanitize(), t.sql(), c.item(t, x))
}

// narrowed checks that a publication has conditions where they are to be: the server
// alone can judge them.
func (c *Config) narrowed(pub map[string]*publishedTable, tables []*tableInfo, cuts map[uint32]*cut) error {
	for _, t := range tables {
		if p := pub[t.String()]; p != nil && p.filter == nil && c.Where[t.String()] != "" {
			return ErrPublication.New("publication %q has all rows of %s, of which those are to be captured where %s", c.Publication, t, c.Where[t.String()]).
				WithRemedy("%s\nThen tallywire reload %s %s --sweep deletes what was made of others. Of a publication FOR ALL TABLES or IN SCHEMA no table has a condition: give the source one of its own.", c.anew(t, cuts[t.id]), c.source, t)
		}
	}
	return nil
}

// sent says which columns, that are left out by name, a publication has: they leave the
// server, and are passed over. "": none.
func (c *Config) sent(pub map[string]*publishedTable, tables []*tableInfo, cuts map[uint32]*cut) (text, remedy string) {
	var of, how []string
	for _, t := range tables {
		p, x := pub[t.String()], cuts[t.id]
		if p == nil || x == nil {
			continue
		}
		is := slices.DeleteFunc(slices.Clone(x.left), func(name string) bool { return !slices.Contains(p.columns, name) })
		for _, name := range is {
			of = append(of, t.String()+"."+name)
		}
		switch {
		case len(is) == 0:
		case x.whole != "":
			how = append(how, fmt.Sprintf("%s has REPLICA IDENTITY FULL, which needs all columns", x.whole))
		default:
			how = append(how, c.anew(t, x))
		}
	}
	return strings.Join(of, ", "), "They stay in the server by: " + strings.Join(how, "\n")
}
