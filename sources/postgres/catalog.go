// What the catalog says: which tables are captured, with what key, and how the
// cells of their columns are read.

package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
)

// tableInfo is a table that the patterns select.
type tableInfo struct {
	id           uint32
	schema, name string
	partitioned  bool
	identity     byte     // replica identity: d, f, i or n
	key          []string // nil: none
	rows         int64    // estimate, -1: unknown
	named        bool     // selected by its very name
}

func (t *tableInfo) String() string { return t.schema + "." + t.name }

func (t *tableInfo) sql() string { return pgx.Identifier{t.schema, t.name}.Sanitize() }

// The key is that of the replica identity's index, or the primary key; of an
// index with INCLUDE only the key columns.
const tablesSQL = `
SELECT c.oid, n.nspname, c.relname, c.relkind = 'p', c.relreplident, c.reltuples::bigint,
       (SELECT array_agg(a.attname::text ORDER BY k.ord)
          FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(num, ord), pg_attribute a
         WHERE i.indrelid = c.oid AND i.indisvalid AND k.ord <= i.indnkeyatts
           AND a.attrelid = c.oid AND a.attnum = k.num
           AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END)
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
		err := r.Scan(&t.id, &t.schema, &t.name, &t.partitioned, &identity, &t.rows, &t.key)
		t.identity = byte(identity)
		return &t, err
	})
}

// selectTables lists what the patterns select, in order of name; noKey are
// those that cannot be captured.
func (c *Config) selectTables(ctx context.Context, q *pgx.Conn) (tables, noKey []*tableInfo, err error) {
	all, err := scanTables(q.Query(ctx, tablesSQL+` AND NOT c.relispartition ORDER BY 2, 3`))
	if err != nil {
		return nil, nil, classify("listing the tables", err)
	}
	for _, t := range all {
		selected, named := c.selects(t.schema, t.name)
		if !selected {
			continue
		}
		t.named = named
		if t.key == nil {
			noKey = append(noKey, t)
		} else {
			tables = append(tables, t)
		}
	}
	return tables, noKey, nil
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

// noKeyError lists tables that cannot be captured.
func noKeyError(ts []*tableInfo) error {
	var names []string
	for _, t := range ts {
		names = append(names, t.String())
	}
	why := "no primary key and no replica identity index"
	if len(ts) == 1 && ts[0].identity == 'n' {
		why = "REPLICA IDENTITY NOTHING"
	}
	first := ts[0].sql()
	return ErrNoKey.New("%s: %s", strings.Join(names, ", "), why).
		WithRemedy("ALTER TABLE %s ADD PRIMARY KEY (…), or ALTER TABLE %s REPLICA IDENTITY USING INDEX …; or leave it out: add \"!%s\" to `tables`.", first, first, ts[0])
}

// wireColumn is a column as the stream or the load has it.
type wireColumn struct {
	name     string
	typ      uint32
	mod      int32
	identity bool // part of the replica identity
}

// relation reads the rows of one table shape.
type relation struct {
	table    *change.Table
	cols     []coder
	identity []bool // columns that an old tuple of kind 'K' carries
	text     bool   // a column has no binary decoder
	skip     bool   // published, but not to be captured
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

// newRelation describes a table whose rows have these columns.
func newRelation(ctx context.Context, q *pgx.Conn, source string, t *tableInfo, cols []wireColumn, notNull map[string]bool) (*relation, error) {
	types, err := loadTypes(ctx, q, cols)
	if err != nil {
		return nil, err
	}
	r := &relation{
		table: &change.Table{Source: source, Schema: t.schema, Name: t.name, Topic: source + "." + t.schema + "." + t.name,
			ID: t.id, OldFull: t.identity == 'f', Columns: make([]change.Column, len(cols))},
		cols: make([]coder, len(cols)), identity: make([]bool, len(cols)),
	}
	for i, w := range cols {
		col, cd := types.column(w.typ, w.mod)
		col.Name, col.Nullable = w.name, !notNull[w.name]
		col.Type = types.name(w.typ, w.mod)
		r.table.Columns[i], r.cols[i], r.identity[i] = col, cd, w.identity
		r.text = r.text || !cd.binary()
	}
	r.table.Index()
	for _, k := range t.key {
		at := r.table.Column(k)
		if at < 0 {
			return nil, ErrNoKey.New("%s: the key's column %s is not published", t, k).
				WithRemedy("Publish all columns of the key of %s.", t)
		}
		r.table.Key = append(r.table.Key, at)
		r.table.Columns[at].Nullable = false
	}
	return r, nil
}

// typeInfo is a row of pg_type.
type typeInfo struct {
	id, base, elem uint32
	name           string
	class          rune // b, c, d, e, m, p, r
	mod            int32
	array          bool // a true array type of elem
	labels         []string
}

type typeMap struct {
	m     map[uint32]*typeInfo
	names map[typeMod]string
}

type typeMod struct {
	id  uint32
	mod int32
}

const typesSQL = `
SELECT t.oid, t.typname::text, t.typtype, t.typbasetype, t.typtypmod, t.typelem, COALESCE(e.typarray = t.oid, false),
       (SELECT array_agg(l.enumlabel::text ORDER BY l.enumsortorder) FROM pg_enum l WHERE l.enumtypid = t.oid)
  FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typelem <> 0
 WHERE t.oid = ANY($1)`

const typeNamesSQL = `
SELECT x.id, x.mod, format_type(x.id, x.mod) FROM unnest($1::oid[], $2::int4[]) x(id, mod)`

// loadTypes looks up the types of columns, and what those are made of.
func loadTypes(ctx context.Context, q *pgx.Conn, cols []wireColumn) (*typeMap, error) {
	t := &typeMap{m: map[uint32]*typeInfo{}, names: map[typeMod]string{}}
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
		found, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (*typeInfo, error) {
			var i typeInfo
			return &i, r.Scan(&i.id, &i.name, &i.class, &i.base, &i.mod, &i.elem, &i.array, &i.labels)
		})
		if err != nil {
			return nil, classify("looking up types", err)
		}
		want = nil
		for _, i := range found {
			t.m[i.id] = i
			for _, next := range []uint32{i.base, i.elem} {
				if next != 0 && t.m[next] == nil && !slices.Contains(want, next) {
					want = append(want, next)
				}
			}
			if i.base != 0 {
				ids, mods = append(ids, i.base), append(mods, i.mod)
			}
			for _, c := range cols {
				if i.array && c.typ == i.id { // an element has the modifier of its array
					ids, mods = append(ids, i.elem), append(mods, c.mod)
				}
			}
		}
	}
	rows, err := q.Query(ctx, typeNamesSQL, ids, mods)
	if err != nil {
		return nil, classify("looking up types", err)
	}
	var k typeMod
	var name *string
	if _, err := pgx.ForEachRow(rows, []any{&k.id, &k.mod, &name}, func() error {
		if name != nil {
			t.names[k] = *name
		}
		return nil
	}); err != nil {
		return nil, classify("looking up types", err)
	}
	return t, nil
}

func (t *typeMap) name(id uint32, mod int32) string {
	if n, ok := t.names[typeMod{id, mod}]; ok {
		return n
	}
	if i := t.m[id]; i != nil {
		return i.name
	}
	return fmt.Sprintf("type %d", id)
}

// The OIDs of built-in types that have a decoder (src/include/catalog/pg_type.dat).
var builtin = map[uint32]struct {
	code  code
	kind  change.Kind
	width int8
}{
	16: {asBool, change.Bool, 0}, 17: {asBytes, change.Bytes, 0}, 18: {asChar, change.String, 0}, 19: {asString, change.String, 0},
	20: {asInt8, change.Int, 8}, 21: {asInt2, change.Int, 2}, 23: {asInt4, change.Int, 4}, 25: {asString, change.String, 0},
	26: {asOID, change.Int, 8}, 114: {asJSON, change.JSON, 0}, 700: {asFloat4, change.Float32, 0}, 701: {asFloat8, change.Float64, 0},
	1042: {asString, change.String, 0}, 1043: {asString, change.String, 0}, 1082: {asDate, change.Date, 0}, 1083: {asTime, change.Time, 0},
	1114: {asTimestamp, change.Timestamp, 0}, 1184: {asTimestampTZ, change.TimestampTZ, 0}, 1186: {asInterval, change.Interval, 0},
	1266: {asTimeTZ, change.TimeTZ, 0}, 1700: {asNumeric, change.Decimal, 0}, 2950: {asUUID, change.UUID, 0}, 3802: {asJSONB, change.JSON, 0},
}

// column describes a type with its modifier; a domain is its base type.
func (t *typeMap) column(id uint32, mod int32) (change.Column, coder) {
	c := change.Column{Type: t.name(id, mod), TypeID: id, Precision: -1, Scale: -1, Kind: change.Text}
	i := t.m[id]
	if i == nil {
		return c, coder{}
	}
	if i.class == 'd' {
		base, cd := t.column(i.base, i.mod)
		base.Type, base.TypeID = c.Type, id
		return base, cd
	}
	if i.class == 'e' {
		c.Kind, c.Labels = change.Enum, i.labels
		return c, coder{code: asEnum}
	}
	if i.array {
		elem, cd := t.column(i.elem, mod)
		elem.Nullable = true
		if cd.code == asText || cd.code == asArray { // an array over a domain over an array: as text
			return c, coder{}
		}
		c.Kind, c.Elem = change.Array, &elem
		return c, coder{code: asArray, elem: &cd}
	}
	known, ok := builtin[id]
	if !ok {
		return c, coder{}
	}
	c.Kind, c.Width = known.kind, known.width
	if mod >= 0 {
		switch known.code {
		case asNumeric: // ((precision << 16) | (scale & 0x7ff)) + 4, the scale signed
			m := mod - 4
			c.Precision, c.Scale = int16(m>>16), int16((m&0x7ff)^1024-1024)
		case asTime, asTimeTZ, asTimestamp, asTimestampTZ:
			c.Precision = int16(mod)
		case asInterval:
			if p := mod & 0xFFFF; p != 0xFFFF {
				c.Precision = int16(p)
			}
		}
	}
	return c, coder{code: known.code}
}
