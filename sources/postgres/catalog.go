// What the catalog says: which tables are captured, with what key, and how the
// cells of their columns are read.

package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/build"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// tableInfo is a table that the patterns select.
type tableInfo struct {
	id           uint32
	schema, name string
	partitioned  bool
	identity     byte           // replica identity: d, f, i or n
	key          []string       // nil: none
	rows         int64          // estimate, -1: unknown
	named        bool           // selected by its very name
	partly       []string       // of a partitioned table of identity f: partitions of another
	broken       []string       // tables, it or its partitions, whose updates and deletes fail once it is published
	deferrable   bool           // it has a primary key, which is no replica identity
	index        string         // quoted: the one that could be its replica identity, "": none
	noTopic      *problem.Error // why it can have no topic (nameTopics)
	columns      []tableColumn  // (judge)
	secrets      []string       // of them those that are left out, since they look like secrets
	secret       string         // why it is left out itself; "": it is not
}

// captured reports whether it is: its changes can be told by a key and have a topic,
// the application's go on, and it does not look like secrets.
func (t *tableInfo) captured() bool {
	return t.key != nil && len(t.broken) == 0 && t.noTopic == nil && t.secret == ""
}

// full reports whether the rows before an update or delete are whole. pgoutput
// marks those of a partition by the identity of the table that it is published
// as; what is in them follows the partition's own.
func (t *tableInfo) full() bool { return t.identity == 'f' && len(t.partly) == 0 }

func (t *tableInfo) String() string { return t.schema + "." + t.name }

func (t *tableInfo) sql() string { return pgx.Identifier{t.schema, t.name}.Sanitize() }

// identitySQL is whether table k has a replica identity, as Postgres judges it:
// without, its updates and deletes fail while it is published (RelationGetReplicaIndex
// and CheckCmdReplicaIdentity in its source). A deferrable key is none: two rows
// may have it until the commit.
const identitySQL = `CASE k.relreplident WHEN 'f' THEN true WHEN 'n' THEN false ELSE EXISTS (
         SELECT FROM pg_index i WHERE i.indrelid = k.oid AND i.indisvalid AND i.indimmediate
            AND CASE k.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END) END`

// brokenSQL lists the tables of which c is made that have no replica identity:
// for a partitioned table, the partitions'.
const brokenSQL = `(SELECT array_agg(k.oid::regclass::text ORDER BY 1) FROM pg_class k
         WHERE k.relkind = 'r' AND (k.oid = c.oid OR k.oid IN (SELECT l.relid FROM pg_partition_tree(c.oid) l WHERE l.isleaf)) AND NOT ` + identitySQL + `)`

// indexSQL is the name of an index that could be the replica identity of table %s:
// unique, of columns that are never null, of all rows, at once (PostgreSQL
// documentation, ALTER TABLE, "REPLICA IDENTITY").
const indexSQL = `COALESCE((SELECT quote_ident(x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
         WHERE i.indrelid = %s.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
           AND NOT EXISTS (SELECT FROM unnest(i.indkey) WITH ORDINALITY u(num, ord), pg_attribute a
                WHERE u.ord <= i.indnkeyatts AND a.attrelid = i.indrelid AND a.attnum = u.num AND NOT a.attnotnull)
         ORDER BY i.indnkeyatts, x.relname LIMIT 1), '')`

// The key is that of the replica identity's index, or the primary key; of an
// index with INCLUDE only the key columns.
var tablesSQL = `
SELECT c.oid, n.nspname, c.relname, c.relkind = 'p', c.relreplident, c.reltuples::bigint,
       (SELECT array_agg(a.attname::text ORDER BY k.ord)
          FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(num, ord), pg_attribute a
         WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate AND k.ord <= i.indnkeyatts
           AND a.attrelid = c.oid AND a.attnum = k.num
           AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END),
       CASE WHEN c.relkind = 'p' AND c.relreplident = 'f' THEN
       (SELECT array_agg(l.relid::regclass::text ORDER BY 1)
          FROM pg_partition_tree(c.oid) l JOIN pg_class k ON k.oid = l.relid
         WHERE l.isleaf AND k.relreplident <> 'f') END,
       ` + brokenSQL + `,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate), ` + fmt.Sprintf(indexSQL, "c") + `
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_'`

func scanTables(rows pgx.Rows, err error) ([]*tableInfo, error) {
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (*tableInfo, error) {
		var t tableInfo
		var identity rune
		err := r.Scan(&t.id, &t.schema, &t.name, &t.partitioned, &identity, &t.rows, &t.key, &t.partly, &t.broken, &t.deferrable, &t.index)
		t.identity = byte(identity)
		return &t, err
	})
}

// selectTables lists what the patterns select, in order of name; left are
// those that are not captured, for want of a key or of a topic, or for their secrets.
func (c *Config) selectTables(ctx context.Context, q *pgx.Conn) (tables, left []*tableInfo, err error) {
	all, err := scanTables(q.Query(ctx, tablesSQL+` AND NOT c.relispartition ORDER BY 2, 3`))
	if err != nil {
		return nil, nil, classify("listing the tables", err)
	}
	all = slices.DeleteFunc(all, func(t *tableInfo) bool {
		selected, named := c.selects(t.schema, t.name)
		t.named = named
		return !selected
	})
	if err := c.judge(ctx, q, all...); err != nil {
		return nil, nil, err
	}
	c.nameTopics(all)
	for _, t := range all {
		if t.captured() {
			tables = append(tables, t)
		} else {
			left = append(left, t)
		}
	}
	return tables, left, nil
}

// tableByID gives nil when the table is gone.
func tableByID(ctx context.Context, q *pgx.Conn, id uint32) (*tableInfo, error) {
	ts, err := scanTables(q.Query(ctx, tablesSQL+` AND c.oid = $1`, id))
	if err != nil {
		return nil, classify(fmt.Sprintf("looking up relation %d", id), err)
	}
	if len(ts) == 0 {
		return nil, nil
	}
	return ts[0], nil
}

// noKey says why a table cannot be captured, and how that is mended.
func (t *tableInfo) noKey() (why, how string) {
	sql, index := t.sql(), cmp.Or(t.index, "…")
	switch {
	case t.key != nil && len(t.broken) > 0:
		return fmt.Sprintf("its partitions %s have no replica identity, and their updates and deletes would fail", strings.Join(t.broken, ", ")),
			fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY DEFAULT (or FULL), and so for each", t.broken[0])
	case t.identity != 'n' && t.deferrable:
		return "its primary key is DEFERRABLE, which is no replica identity: two rows may have it until the commit",
			fmt.Sprintf("Make the key NOT DEFERRABLE, or ALTER TABLE %s REPLICA IDENTITY USING INDEX %s on another unique index", sql, index)
	case t.identity == 'n':
		why = "REPLICA IDENTITY NOTHING"
	default:
		why = "no primary key and no replica identity index"
	}
	if t.index != "" {
		return why, fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s", sql, index)
	}
	return why, fmt.Sprintf("ALTER TABLE %s ADD PRIMARY KEY (…), or ALTER TABLE %s REPLICA IDENTITY USING INDEX …", sql, sql)
}

// noKeyError lists tables that cannot be captured.
func noKeyError(ts []*tableInfo) *problem.Error {
	why, how := ts[0].noKey()
	if len(ts) > 1 {
		why = "no primary key and no replica identity index"
	}
	return ErrNoKey.New("%s: %s", namesOf(ts), why).
		WithRemedy("%s; or leave it out: add \"!%s\" to `tables`.", how, ts[0])
}

// wireColumn is a column as the stream or the load has it.
type wireColumn struct {
	name     string
	typ      uint32
	mod      int32
	identity bool // part of the replica identity
}

const columnsSQL = `
SELECT a.attname::text, a.atttypid, a.atttypmod, a.attnotnull
  FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`

// columnsOf gives the columns of a table as they are now: all, with their not
// null constraints.
func columnsOf(ctx context.Context, q *pgx.Conn, id uint32) (cols []wireColumn, notNull map[string]bool, err error) {
	rows, err := q.Query(ctx, columnsSQL, id)
	if err != nil {
		return nil, nil, classify(fmt.Sprintf("reading the columns of relation %d", id), err)
	}
	notNull = map[string]bool{}
	cols, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (wireColumn, error) {
		var c wireColumn
		var nn bool
		err := r.Scan(&c.name, &c.typ, &c.mod, &nn)
		notNull[c.name] = nn
		return c, err
	})
	if err != nil {
		return nil, nil, classify(fmt.Sprintf("reading the columns of relation %d", id), err)
	}
	return cols, notNull, nil
}

// connector is what the envelopes say of this source: as Debezium's connector
// of this name, so that its readers find what they expect.
var connector = &change.Connector{
	Name: "postgresql", Version: build.Version(),
	Fields: []change.SourceField{{Name: "txId", Of: change.SourceXID}, {Name: "lsn", Of: change.SourceLSN}, {Name: "xmin", Of: change.SourceNothing}},
}

// newRelation describes a table whose rows have these columns.
func (c *Config) newRelation(ctx context.Context, q *pgx.Conn, t *tableInfo, cols []wireColumn, notNull map[string]bool) (*pgoutput.Relation, error) {
	types, err := loadTypes(ctx, q, cols)
	if err != nil {
		return nil, err
	}
	r := &pgoutput.Relation{
		Table: &change.Table{
			Source: c.source, Connector: connector, Database: q.Config().Database, Schema: t.schema, Name: t.name, Topic: c.topicOf(t.schema, t.name),
			ID: t.id, OldFull: t.full(), Columns: make([]change.Column, len(cols)),
		},
		Cells: make([]pgoutput.Coder, len(cols)), Identity: make([]bool, len(cols)),
	}
	for i, w := range cols {
		col, cell := types.Column(w.typ, w.mod)
		col.Name, col.Nullable = w.name, !notNull[w.name]
		r.Table.Columns[i], r.Cells[i], r.Identity[i] = col, cell, w.identity
	}
	r.Table.Index()
	for _, k := range t.key {
		at := r.Table.Column(k)
		if at < 0 {
			return nil, ErrNoKey.New("%s: the key's column %s is not published", t, k).
				WithRemedy("Publish all columns of the key of %s.", t)
		}
		r.Table.Key = append(r.Table.Key, at)
		r.Table.Columns[at].Nullable = false
	}
	if len(t.partly) > 0 { // the stream says that all columns are of the identity
		for i := range r.Identity {
			r.Identity[i] = slices.Contains(r.Table.Key, i)
		}
	}
	return r, c.hide(t, r)
}

const typesSQL = `
SELECT t.oid, t.typname::text, t.typtype, t.typbasetype, t.typtypmod, t.typelem, COALESCE(e.typarray = t.oid, false),
       (SELECT array_agg(l.enumlabel::text ORDER BY l.enumsortorder) FROM pg_enum l WHERE l.enumtypid = t.oid)
  FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typelem <> 0
 WHERE t.oid = ANY($1)`

const typeNamesSQL = `
SELECT x.id, x.mod, format_type(x.id, x.mod) FROM unnest($1::oid[], $2::int4[]) x(id, mod)`

// loadTypes looks up the types of columns, and what those are made of.
func loadTypes(ctx context.Context, q *pgx.Conn, cols []wireColumn) (*pgoutput.Types, error) {
	t := new(pgoutput.Types)
	var want, ids []uint32
	var mods []int32
	for _, c := range cols {
		ids, mods = append(ids, c.typ), append(mods, c.mod)
		want = append(want, c.typ)
	}
	for len(want) > 0 {
		rows, err := q.Query(ctx, typesSQL, want)
		if err != nil {
			return nil, classify("looking up types", err)
		}
		found, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (*pgoutput.Type, error) {
			var i pgoutput.Type
			return &i, r.Scan(&i.ID, &i.Name, &i.Class, &i.Base, &i.Mod, &i.Elem, &i.Array, &i.Labels)
		})
		if err != nil {
			return nil, classify("looking up types", err)
		}
		want = nil
		for _, i := range found {
			t.Add(i)
			for _, next := range []uint32{i.Base, i.Elem} {
				if next != 0 && !t.Has(next) && !slices.Contains(want, next) {
					want = append(want, next)
				}
			}
			if i.Base != 0 {
				ids, mods = append(ids, i.Base), append(mods, i.Mod)
			}
			for _, c := range cols {
				if i.Array && c.typ == i.ID { // an element has the modifier of its array
					ids, mods = append(ids, i.Elem), append(mods, c.mod)
				}
			}
		}
	}
	rows, err := q.Query(ctx, typeNamesSQL, ids, mods)
	if err != nil {
		return nil, classify("looking up types", err)
	}
	var id uint32
	var mod int32
	var name *string
	if _, err := pgx.ForEachRow(rows, []any{&id, &mod, &name}, func() error {
		if name != nil {
			t.SetName(id, mod, *name)
		}
		return nil
	}); err != nil {
		return nil, classify("looking up types", err)
	}
	return t, nil
}
