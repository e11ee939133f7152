// The publication: making it, and making sure that it is the one that capture
// began with (invariant 3). What was committed while there was none is decoded as
// of then: an error up to version 17, and nothing at all in 18.

package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// publishedTable is a table as a publication has it.
type publishedTable struct {
	schema, name string
	columns      []string
	filter       *string
	listed       bool // its columns are listed: others are left out, and those that will be added
}

// published cuts cols, in place, to those that the publication has.
func (p *publishedTable) published(cols []wireColumn) []wireColumn {
	return slices.DeleteFunc(cols, func(c wireColumn) bool { return !slices.Contains(p.columns, c.name) })
}

const publishedSQL = `
SELECT t.schemaname::text, t.tablename::text, t.attnames::text[], t.rowfilter, EXISTS (
       SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE p.pubname = t.pubname AND n.nspname = t.schemaname AND c.relname = t.tablename AND r.prattrs IS NOT NULL)
  FROM pg_publication_tables t WHERE t.pubname = $1`

// readPublication gives the tables of a publication with their columns and
// filters, by schema.table; nil when there is no such publication.
func readPublication(ctx context.Context, q *pgx.Conn, name string) (map[string]*publishedTable, error) {
	var all bool
	err := q.QueryRow(ctx, `SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND (pubviaroot OR NOT EXISTS (SELECT FROM pg_partitioned_table)) FROM pg_publication WHERE pubname = $1`, name).Scan(&all)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, classify("looking up the publication", err)
	}
	if !all { // what it leaves out would be lost in silence
		return nil, ErrPublication.New("publication %q does not publish all operations, or partitions by themselves", name).
			WithRemedy("ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)", pgx.Identifier{name}.Sanitize())
	}
	rows, err := q.Query(ctx, publishedSQL, name)
	if err != nil {
		return nil, classify("reading the publication", err)
	}
	m := map[string]*publishedTable{}
	_, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (struct{}, error) {
		var t publishedTable
		err := r.Scan(&t.schema, &t.name, &t.columns, &t.filter, &t.listed)
		m[t.schema+"."+t.name] = &t
		return struct{}{}, err
	})
	return m, classify("reading the publication", err)
}

// ensurePublication makes the publication, or adds what it lacks when nothing
// has been captured yet. It gives what is published.
func (c *Config) ensurePublication(ctx context.Context, q *pgx.Conn, tables []*tableInfo, cuts map[uint32]*cut, fresh bool) (map[string]*publishedTable, error) {
	pub, err := readPublication(ctx, q, c.Publication)
	if err != nil {
		return nil, err
	}
	lacks, sql := c.lacking(pub, tables, cuts)
	if pub != nil && (len(lacks) == 0 || !fresh) {
		return pub, nil
	}
	if pub == nil && !fresh {
		return nil, c.notThere("does not exist, and slot %q does", c.Slot)
	}
	if _, err := q.Exec(ctx, sql); err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "42501" {
			if err := c.mayPublish(ctx, q, pub != nil, lacks, sql); err != nil {
				return nil, err
			}
			return nil, ErrPublication.New("publication %q: %s", c.Publication, pg.Message).WithRemedy("%s", othersRun(pub != nil, sql))
		}
		return nil, classify(fmt.Sprintf("making publication %q", c.Publication), err)
	}
	return readPublication(ctx, q, c.Publication)
}

// lacking gives the tables that the publication does not have, and the statement
// that makes it, or adds them to the one that is there.
func (c *Config) lacking(pub map[string]*publishedTable, tables []*tableInfo, cuts map[uint32]*cut) (lacks []*tableInfo, sql string) {
	var items []string
	for _, t := range tables {
		if pub[t.String()] == nil {
			lacks, items = append(lacks, t), append(items, c.item(t, cuts[t.id]))
		}
	}
	if pub == nil {
		return lacks, c.publicationSQL(items)
	}
	return lacks, "ALTER PUBLICATION " + pgx.Identifier{c.Publication}.Sanitize() + " ADD TABLE " + strings.Join(items, ", ")
}

// CREATE PUBLICATION takes CREATE on the database, ALTER PUBLICATION to own the
// publication; both to own each table that they name (PostgreSQL documentation,
// "Logical replication", section "Security").
const mayPublishSQL = `
SELECT current_user::text, current_database()::text, has_database_privilege(current_database(), 'CREATE'),
       COALESCE((SELECT pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = $1), true),
       ARRAY(SELECT oid FROM pg_class WHERE oid = ANY($2) AND NOT pg_has_role(relowner, 'USAGE'))`

// mayPublish says all that the role lacks to run sql, which makes the publication
// of tables or, if it is there, adds them.
func (c *Config) mayPublish(ctx context.Context, q *pgx.Conn, there bool, tables []*tableInfo, sql string) error {
	ids := make([]uint32, len(tables))
	for i, t := range tables {
		ids[i] = t.id
	}
	var role, database string
	var create, owner bool
	var others []uint32
	if err := q.QueryRow(ctx, mayPublishSQL, c.Publication, ids).Scan(&role, &database, &create, &owner, &others); err != nil {
		return classify("asking who may publish", err)
	}
	doing := fmt.Sprintf("make publication %q", c.Publication)
	var lacks []string
	switch {
	case there:
		doing = fmt.Sprintf("add tables to publication %q", c.Publication)
		if !owner {
			lacks = append(lacks, "does not own the publication")
		}
	case !create:
		lacks = append(lacks, fmt.Sprintf("does not have CREATE on database %q", database))
	}
	if len(others) > 0 {
		of := slices.DeleteFunc(slices.Clone(tables), func(t *tableInfo) bool { return !slices.Contains(others, t.id) })
		lacks = append(lacks, "does not own "+namesOf(of))
	}
	if len(lacks) == 0 {
		return nil
	}
	return ErrPublication.New("role %q may not %s: it %s", role, doing, strings.Join(lacks, ", and ")).WithRemedy("%s", othersRun(there, sql))
}

// othersRun is the remedy where tallywire's role may not run sql, which has a line
// of its own: it is copied.
func othersRun(there bool, sql string) string {
	if there {
		return "A superuser runs, or who owns the publication and the tables:\n" + sql + ";"
	}
	return "A superuser runs, or who owns the tables and has CREATE on the database:\n" + sql + ";"
}

// notIn says that the publication does not have tables, and capture had begun
// without them; sql adds them.
func (c *Config) notIn(lacks []*tableInfo, sql string) error {
	remedy := othersRun(true, sql) + "\nTheir changes come from then on, and the rows that they have by then, of tables that are new; of one that was captured before, or with load: never, tallywire reload reads them. Where publication and tables are the role's own, a running source lists those that are new by itself."
	return ErrPublication.New("publication %q does not have %s", c.Publication, namesOf(lacks)).
		WithRemedy("%s\nOr leave them out: \"!%s\" in `tables`, and so for each.", remedy, lacks[0])
}

// ourPublicationSQL is whether publication p is one that the role alters, or drops,
// without asking anybody: it is of a kind that we make, and its own.
const ourPublicationSQL = `NOT p.puballtables AND NOT pg_is_in_recovery() AND p.pubowner = (SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user)`

// ownSQL is those of tables that the role may list in the publication without asking
// anybody: both are its own.
const ownSQL = `
SELECT c.oid FROM pg_class c JOIN pg_publication p ON p.pubname = $1
 WHERE c.oid = ANY($2) AND pg_has_role(c.relowner, 'USAGE') AND ` + ourPublicationSQL

// list has the publication list tables that are new, where it is ours; of the others
// it is said who runs what. Each by itself, so that one that somebody has locked keeps
// none waiting.
func (se *session) list(ctx context.Context, q *pgx.Conn, ms *members) error {
	ms.mu.Lock()
	items := map[uint32]string{}
	for id, m := range ms.of {
		if m.New && m.has(whyOut) && ms.items[id] != "" {
			items[id] = ms.items[id]
		}
	}
	ms.mu.Unlock()
	if len(items) == 0 {
		return nil
	}
	rows, err := q.Query(ctx, ownSQL, se.cfg.Publication, slices.Sorted(maps.Keys(items)))
	if err != nil {
		return classify("asking which tables may be listed", err)
	}
	own, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return classify("asking which tables may be listed", err)
	}
	for _, id := range own {
		sql := "ALTER PUBLICATION " + pgx.Identifier{se.cfg.Publication}.Sanitize() + " ADD TABLE " + items[id]
		_, err := q.PgConn().Exec(ctx, "SET LOCAL lock_timeout = '"+lockWait+"'; "+sql).ReadAll()
		var pg *pgconn.PgError
		switch {
		case errors.As(err, &pg): // it is locked, or gone, or another way is needed
			se.comp.Log.Warn("a new table could not be listed in the publication; it is tried again", "sql", sql, "err", pg.Message)
		case err != nil:
			return classify("listing a table in the publication", err)
		default:
			se.comp.Log.Info("a new table is listed in the publication", "publication", se.cfg.Publication, "table", items[id])
			se.unknown.Store(true) // its rows are to be read
		}
	}
	return nil
}

func namesOf(tables []*tableInfo) string {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.String()
	}
	return strings.Join(names, ", ")
}

// publicationSQL makes the publication of tables, each with its columns in
// brackets if it is not to have all.
func (c *Config) publicationSQL(tables []string) string {
	return "CREATE PUBLICATION " + pgx.Identifier{c.Publication}.Sanitize() + " FOR TABLE " + strings.Join(tables, ", ") +
		" WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"
}

// notThere says of the publication that it was missing while the slot was there.
func (c *Config) notThere(how string, args ...any) error {
	return ErrPublication.New("publication %q %s: changes that were committed without it cannot be captured", c.Publication, fmt.Sprintf(how, args...)).
		WithRemedy("Start the source over (docs/recovery.md); or set publication back to the one that it had.")
}

// publicationID is the OID of the publication; 0: there is none of its name. One
// that is dropped and made anew has another.
func (c *Config) publicationID(ctx context.Context, q *pgx.Conn) (decimal, error) {
	var id int64
	err := q.QueryRow(ctx, "SELECT COALESCE((SELECT oid::bigint FROM pg_publication WHERE pubname = $1), 0)", c.Publication).Scan(&id)
	return decimal(id), classify("looking up the publication", err)
}

// keepPublication ends the session when its publication is gone, or another took
// its name: the server may have left something out.
func (se *session) keepPublication(ctx context.Context, q *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	head, err := readHead(ctx, q)
	if err != nil {
		return err
	}
	id, err := se.cfg.publicationID(ctx, q)
	if err != nil {
		return err
	}
	if id == se.publication {
		se.published = head
		return nil
	}
	err = se.cfg.notThere("was made anew after %s", se.published)
	if id == 0 {
		err = se.cfg.notThere("was dropped or renamed after %s", se.published)
	}
	se.lose(err)
	return nil
}

// lose ends the session because of its publication.
func (se *session) lose(err error) {
	select {
	case se.lost <- err:
	default: // it was told
	}
}
