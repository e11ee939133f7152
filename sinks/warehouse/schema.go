// The warehouse's tables: made from the contracts, followed when a contract
// grows, and granted by the sensitivity of its fields.

package warehouse

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
)

// The roles that read the warehouse. Reader sees everything but restricted
// columns (cost rates and what lets them be computed); Cost sees all.
const (
	RoleReader = "tallywire_reader"
	RoleCost   = "tallywire_cost"
)

// entity is one table of the warehouse.
type entity struct {
	topic   string
	schema  string
	name    string
	doc     string
	columns []column
	key     []int
	stage   string // the temporary table's name

	// What a transaction says of it, by the names of prepared statements.
	upsert, remove string // one row
	stmtUpsert     string
	stmtRemove     string
	merge, purge   string // all rows of the stage

	shapes map[*change.Table][]int // for a writer's table: where each column comes from, -1 nowhere
	batch  rows
	fields [][]byte // scratch of add
}

func newEntity(c *avro.Contract) (*entity, error) {
	schema, name, ok := strings.Cut(c.Topic, ".")
	if !ok {
		return nil, ErrTopic.New("topic %q: want schema.entity", c.Topic)
	}
	e := &entity{
		topic: c.Topic, schema: schema, name: name, doc: c.Doc, key: c.Table.Key,
		stage: "_stage_" + schema + "_" + name, shapes: map[*change.Table][]int{},
	}
	for i, col := range c.Table.Columns {
		f := c.Fields[i]
		e.columns = append(e.columns, column{
			name: col.Name, kind: columnKind(col.Kind), precision: col.Precision, scale: col.Scale,
			width: col.Width, nullable: col.Nullable, restricted: f.Sensitivity == avro.Restricted, doc: f.Doc,
		})
	}
	e.statements()
	return e, nil
}

// ownColumns say which record a row is of.
var ownColumns = []string{"_topic_id", "_partition", "_offset"}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

func (e *entity) table() string { return pgx.Identifier{e.schema, e.name}.Sanitize() }

// statements composes the SQL of the write path. A row is only replaced or
// removed by a later record of its topic, or by one of another topic of the
// same name: delivering a record twice, or an old one again, changes nothing.
func (e *entity) statements() {
	var names, params, sets, keys []string
	for i, c := range e.columns {
		names = append(names, quote(c.name))
		params = append(params, c.param(i+1))
		if !slices.Contains(e.key, i) {
			sets = append(sets, quote(c.name)+" = excluded."+quote(c.name))
		}
	}
	for _, k := range e.key {
		keys = append(keys, quote(e.columns[k].name))
	}
	for i, own := range ownColumns {
		names = append(names, own)
		params = append(params, fmt.Sprintf("$%d", len(e.columns)+i+1))
		sets = append(sets, own+" = excluded."+own)
	}
	conflict := fmt.Sprintf(" ON CONFLICT (%s) DO UPDATE SET %s WHERE t._topic_id <> excluded._topic_id OR t._offset < excluded._offset",
		strings.Join(keys, ", "), strings.Join(sets, ", "))
	into := fmt.Sprintf("INSERT INTO %s AS t (%s) ", e.table(), strings.Join(names, ", "))
	e.upsert = into + "VALUES (" + strings.Join(params, ", ") + ")" + conflict
	e.merge = into + "SELECT " + strings.Join(names, ", ") + " FROM pg_temp." + quote(e.stage) + " WHERE NOT _deleted" + conflict

	var one, all []string
	for i, k := range keys {
		one = append(one, fmt.Sprintf("t.%s = %s", k, e.columns[e.key[i]].param(i+1)))
		all = append(all, fmt.Sprintf("t.%s = s.%s", k, k))
	}
	n := len(keys)
	e.remove = fmt.Sprintf("DELETE FROM %s t WHERE %s AND (t._topic_id <> $%d OR t._offset < $%d)", e.table(), strings.Join(one, " AND "), n+1, n+2)
	e.purge = fmt.Sprintf("DELETE FROM %s t USING pg_temp.%s s WHERE s._deleted AND %s AND (t._topic_id <> s._topic_id OR t._offset < s._offset)",
		e.table(), quote(e.stage), strings.Join(all, " AND "))
	e.stmtUpsert, e.stmtRemove = "upsert "+e.name, "remove "+e.name
}

// stageSQL makes the table that COPY fills: one per session and entity.
func (e *entity) stageSQL() string {
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE TEMP TABLE %s (", quote(e.stage))
	for _, c := range e.columns {
		fmt.Fprintf(&b, "%s %s, ", quote(c.name), c.typeName())
	}
	b.WriteString("_topic_id uuid, _partition int, _offset bigint, _deleted boolean) ON COMMIT DELETE ROWS")
	return b.String()
}

const offsetsSQL = `CREATE TABLE IF NOT EXISTS _tallywire.offsets (
    sink        text        NOT NULL,
    topic       text        NOT NULL,
    partition   int         NOT NULL,
    topic_id    uuid        NOT NULL,
    next_offset bigint      NOT NULL,
    owner       text        NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, topic, partition)
);
COMMENT ON TABLE _tallywire.offsets IS 'How far each partition is in the tables beside it; written in the transaction of the rows. Deleting rows here makes the sink read the topic from its beginning.';
COMMENT ON COLUMN _tallywire.offsets.next_offset IS 'Offset of the first record that is not in the tables; -1: none was written yet.';
COMMENT ON COLUMN _tallywire.offsets.owner IS 'The assignment that may write; a later one takes over.';
`

//go:embed margin.sql
var marginSQL string

// marginNeeds are the tables under the margin view; marginOpen are the view's
// columns that do not let a cost be computed.
var (
	marginNeeds = []string{"ps.time_entry_costed", "ps.project", "ps.invoice", "ps.invoice_line"}
	marginView  = "ps.margin_by_project_month"
	marginOpen  = "legal_entity, currency, project_id, project_number, project_name, customer_id, month, approved_hours, waiting_entries, waiting_hours, revenue"
)

const rolesSQL = `DO $$
DECLARE r text;
BEGIN
    FOREACH r IN ARRAY ARRAY['` + RoleReader + `', '` + RoleCost + `'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', r);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- another database of the cluster was faster
            END;
        END IF;
        -- The page reads as one of them. Who makes a role is no member of it before
        -- version 16, and since then may not SET ROLE to it.
        IF NOT pg_has_role(r::name, CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN
            BEGIN
                EXECUTE format('GRANT %I TO CURRENT_USER', r);
            EXCEPTION WHEN insufficient_privilege THEN
                NULL; -- delivery needs it not; doctor and the page say what is to be done
            END;
        END IF;
    END LOOP;
END $$;
`

// migrate brings schema, tables, view, comments and grants to what the
// contracts say, in one transaction under a lock: several processes may start
// at once.
func (s *Sink) migrate(ctx context.Context, conn *pgx.Conn) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return classify("preparing the warehouse's tables", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after Commit it has nothing to do; before, the first error is the one to tell
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('tallywire.warehouse', 0))"); err != nil {
		return classify("waiting for another process that prepares the warehouse", err)
	}
	for _, name := range s.schemas() {
		if err := createSchema(ctx, tx, name); err != nil {
			return classify("making schema "+name, err)
		}
	}
	if _, err := tx.Exec(ctx, offsetsSQL+rolesSQL); err != nil {
		return classify("making _tallywire.offsets and the roles of the warehouse", err)
	}
	if err := s.migrateReadAt(ctx, tx); err != nil {
		return classify("preparing _tallywire.offsets", err)
	}
	for _, e := range s.entities {
		if err := s.migrateTable(ctx, tx, e); err != nil {
			return classify("preparing table "+e.topic, err)
		}
	}
	if s.hasMargin() {
		if err := makeMargin(ctx, tx); err != nil {
			return classify("making the view "+marginView, err)
		}
	}
	return classify("preparing the warehouse's tables", tx.Commit(ctx))
}

// createSchema makes a schema unless it is there: IF NOT EXISTS takes the right to
// make one all the same.
func createSchema(ctx context.Context, tx pgx.Tx, name string) error {
	var is bool
	if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", name).Scan(&is); err != nil || is {
		return err
	}
	_, err := tx.Exec(ctx, "CREATE SCHEMA "+quote(name))
	return err
}

func (s *Sink) hasMargin() bool {
	for _, t := range marginNeeds {
		if s.byTopic[t] == nil {
			return false
		}
	}
	return true
}

// makeMargin makes the view, or makes it anew where its columns have other types
// than those of an earlier version.
func makeMargin(ctx context.Context, tx pgx.Tx) error {
	sql := marginSQL + fmt.Sprintf("REVOKE ALL ON %[4]s FROM %[1]s; GRANT SELECT (%[3]s) ON %[4]s TO %[1]s; GRANT SELECT ON %[4]s TO %[2]s;",
		RoleReader, RoleCost, marginOpen, marginView)
	replace, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err = replace.Exec(ctx, sql); err == nil {
		return replace.Commit(ctx)
	}
	if pe := (*pgconn.PgError)(nil); !errors.As(err, &pe) || pe.Code != "42P16" { // invalid_table_definition
		return err
	}
	if err := replace.Rollback(ctx); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "DROP VIEW "+marginView+";"+sql)
	return err
}

// migrateTable makes a table, or brings it to what its contract says.
func (s *Sink) migrateTable(ctx context.Context, tx pgx.Tx, e *entity) error {
	there, err := existing(ctx, tx, e)
	if err != nil {
		return err
	}
	if len(there) == 0 {
		return s.createTable(ctx, tx, e)
	}
	sql, widened, err := e.plan(there)
	if err != nil {
		return err
	}
	if widened && s.hasMargin() && slices.Contains(marginNeeds, e.topic) { // another sink would not make it again
		sql = "DROP VIEW IF EXISTS " + marginView + ";\n" + sql // a column under a view keeps its type
	}
	_, err = tx.Exec(ctx, sql+e.dressing())
	if pe := (*pgconn.PgError)(nil); widened && errors.As(err, &pe) && (pe.Code == "0A000" || pe.Code == "2BP01") {
		return ErrTable.New("a column of table %s must be widened, and a view depends on it: %s", e.topic, strings.TrimSpace(pe.Message+" "+pe.Detail)).
			WithRemedy("Drop that view, start again, and make the view anew: its columns have other types then.")
	}
	return err
}

// had is a column that a table has.
type had struct {
	typ             string
	notNull, unsaid bool // unsaid: it has no default
}

// existing are the columns of a table, none when it is not there.
func existing(ctx context.Context, tx pgx.Tx, e *entity) (map[string]had, error) {
	rows, err := tx.Query(ctx, `SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, NOT a.atthasdef AND a.attidentity = '' FROM pg_attribute a
		WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped`, e.table())
	if err != nil {
		return nil, err
	}
	there := map[string]had{}
	var name, typ string
	var notNull, unsaid bool
	_, err = pgx.ForEachRow(rows, []any{&name, &typ, &notNull, &unsaid}, func() error { there[name] = had{typ, notNull, unsaid}; return nil })
	return there, err
}

// plan says how the columns there become those of the contract: what is missing
// is added, what is too narrow widened, what may be null is let be null. Nothing
// is taken away.
func (e *entity) plan(there map[string]had) (sql string, widened bool, err error) {
	var b strings.Builder
	alter := func(column, format string, args ...any) {
		fmt.Fprintf(&b, "ALTER TABLE %s ALTER COLUMN %s %s;\n", e.table(), quote(column), fmt.Sprintf(format, args...))
	}
	for i := range e.columns {
		c := &e.columns[i]
		has, ok := there[c.name]
		switch {
		case !ok && !c.nullable:
			return "", false, ErrTable.New("table %s has no column %q, which is never null, so its rows cannot be completed", e.topic, c.name)
		case !ok:
			fmt.Fprintf(&b, "ALTER TABLE %s ADD COLUMN %s %s;\n", e.table(), quote(c.name), c.typeName())
			continue
		case c.fits(has.typ):
		case c.widens(has.typ):
			alter(c.name, "TYPE %s", c.typeName())
			widened = true
		default:
			return "", false, ErrTable.New("column %q of table %s is %s, its contract says %s", c.name, e.topic, has.typ, c.typeName())
		}
		if has.notNull && c.nullable {
			alter(c.name, "DROP NOT NULL")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(there)) { // what no contract has, nobody fills
		if there[name].notNull && there[name].unsaid && !slices.Contains(ownColumns, name) && e.column(name) == nil {
			alter(name, "DROP NOT NULL")
		}
	}
	return b.String(), widened, nil
}

// column is that of a name; nil: the contract has none.
func (e *entity) column(name string) *column {
	for i := range e.columns {
		if e.columns[i].name == name {
			return &e.columns[i]
		}
	}
	return nil
}

func (s *Sink) createTable(ctx context.Context, tx pgx.Tx, e *entity) error {
	var filled bool
	err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM _tallywire.offsets WHERE sink = $1 AND topic = $2 AND next_offset > 0)", s.name, e.topic).Scan(&filled)
	if err != nil {
		return err
	}
	if filled {
		return ErrLostTable.New("table %s does not exist, but offsets of sink %q for it are stored", e.topic, s.name).
			WithRemedy("Run this in the warehouse, then restart: DELETE FROM _tallywire.offsets WHERE sink = %s AND topic = %s;", literal(s.name), literal(e.topic))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE TABLE %s (\n", e.table())
	for _, c := range e.columns {
		null := " NOT NULL"
		if c.nullable {
			null = ""
		}
		fmt.Fprintf(&b, "    %s %s%s,\n", quote(c.name), c.typeName(), null)
	}
	var keys []string
	for _, k := range e.key {
		keys = append(keys, quote(e.columns[k].name))
	}
	fmt.Fprintf(&b, "    _topic_id uuid NOT NULL,\n    _partition int NOT NULL,\n    _offset bigint NOT NULL,\n    PRIMARY KEY (%s)\n) WITH (fillfactor = 85);\n", strings.Join(keys, ", "))
	_, err = tx.Exec(ctx, b.String()+e.dressing())
	return err
}

// dressing is comments, indexes and grants: what can be said again at any time.
func (e *entity) dressing() string {
	var b strings.Builder
	fmt.Fprintf(&b, "COMMENT ON TABLE %s IS %s;\n", e.table(), literal(e.doc))
	var open []string
	hidden := false
	for _, c := range e.columns {
		fmt.Fprintf(&b, "COMMENT ON COLUMN %s.%s IS %s;\n", e.table(), quote(c.name), literal(c.doc))
		if c.restricted {
			hidden = true
		} else {
			open = append(open, quote(c.name))
		}
	}
	for _, c := range []struct{ name, doc string }{
		{"_topic_id", "Id of the topic that the row comes from."},
		{"_partition", "Its partition."},
		{"_offset", "The offset of the record: the row's version."},
	} {
		fmt.Fprintf(&b, "COMMENT ON COLUMN %s.%s IS %s;\n", e.table(), c.name, literal(c.doc))
		open = append(open, c.name)
	}
	// What waits is few among many, and asked for often.
	for _, c := range e.columns {
		if c.name == "waiting_for" {
			fmt.Fprintf(&b, "CREATE INDEX IF NOT EXISTS %s ON %s (waiting_for) WHERE waiting_for IS NOT NULL;\n", quote(e.name+"_waiting_for"), e.table())
		}
	}
	columns := ""
	if hidden {
		columns = " (" + strings.Join(open, ", ") + ")"
	}
	fmt.Fprintf(&b, "GRANT USAGE ON SCHEMA %s TO %s, %s;\n", quote(e.schema), RoleReader, RoleCost)
	// The table's privilege first: it would hide that a column's was taken back.
	fmt.Fprintf(&b, "REVOKE ALL ON %s FROM %s;\nGRANT SELECT%s ON %s TO %s;\nGRANT SELECT ON %s TO %s;\n",
		e.table(), RoleReader, columns, e.table(), RoleReader, e.table(), RoleCost)
	return b.String()
}

// prepare makes the session's statements.
func (s *Sink) prepare(ctx context.Context, conn *pgconn.PgConn) error {
	var errs []error
	do := func(name, sql string) {
		if len(errs) > 0 {
			return
		}
		if _, err := conn.Prepare(ctx, name, sql, nil); err != nil {
			errs = append(errs, classify(fmt.Sprintf("preparing the statement %q", name), err))
		}
	}
	do(stmtAdvance, sqlAdvance)
	for _, e := range s.entities {
		do(e.stmtUpsert, e.upsert)
		do(e.stmtRemove, e.remove)
	}
	return errors.Join(errs...)
}
