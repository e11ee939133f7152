// Doctor: what `tallywire doctor` says of a source.

package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

// Tables implements pipeline.Catalog: the tables that are selected, with the
// columns that the publication has of them, or all before there is one.
func (s *Source) Tables(ctx context.Context) ([]*change.Table, error) {
	q, err := s.cfg.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer closeConn(q)
	infos, _, err := s.cfg.selectTables(ctx, q)
	if err != nil {
		return nil, err
	}
	pub, err := readPublication(ctx, q, s.cfg.Publication)
	if err != nil {
		return nil, err
	}
	cuts, err := s.cfg.cuts(ctx, q, infos)
	if err != nil {
		return nil, err
	}
	var tables []*change.Table
	for _, t := range infos {
		p := pub[t.String()]
		if pub != nil && p == nil {
			continue
		}
		cols, notNull, err := columnsOf(ctx, q, t.id)
		if err != nil {
			return nil, err
		}
		if x := cuts[t.id]; p == nil && x != nil && x.whole == "" {
			p = &publishedTable{columns: x.keep, listed: true} // as it will be
		}
		if p != nil {
			cols = p.published(cols)
		}
		r, err := s.cfg.newRelation(ctx, q, t, cols, notNull)
		if err != nil {
			return nil, err
		}
		r.Table.Partial = p != nil && p.listed
		tables = append(tables, r.Table)
	}
	return tables, nil
}

// Doctor implements pipeline.Doctor: it connects and checks what capture needs.
func (s *Source) Doctor(ctx context.Context) []pipeline.Finding {
	var fs []pipeline.Finding
	note := func(err error, format string, args ...any) bool {
		if err != nil && problem.Of(err) == nil {
			err = ErrFailed.New("%w", err)
		}
		fs = append(fs, pipeline.Finding{What: fmt.Sprintf(format, args...), Err: err})
		return err == nil
	}
	q, err := s.cfg.connect(ctx)
	if !note(err, "connecting to the database") {
		return fs
	}
	defer closeConn(q)
	srv, err := readServer(ctx, q)
	if !note(err, "reading its settings") {
		return fs
	}
	note(srv.check(), "wal_level is logical")
	if srv.cachesPublished() {
		fs = append(fs, pipeline.Finding{What: "the server loses no changes of a table that is listed in a publication while transactions run", Advice: fmt.Sprintf(
			"%d.%d does; tallywire opens its stream anew then. Others that capture from it may miss changes in silence: 15.14, 16.10 and 17.6 mend it", srv.version/10000, srv.version%10000)})
	}
	r, err := s.cfg.connectReplication(ctx)
	if note(err, "role %q may replicate", srv.role) {
		r.close()
	}
	tables, left, err := s.cfg.selectTables(ctx, q)
	if !note(err, "listing the tables") {
		return fs
	}
	if len(tables) == 0 {
		err = ErrNoTables.New("no table with a key matches")
	}
	note(err, "%d tables to capture", len(tables))
	for _, e := range leftError(left) {
		what := "every table has a topic"
		if e.ID == ErrNoKey.ID {
			what = "every table has a key"
		}
		note(e, "%s", what)
	}
	for _, t := range tables {
		err := mayRead(ctx, q, srv, t)
		if err != nil {
			note(err, "reading %s is allowed", t)
		}
	}
	for _, t := range tables {
		if n := len(t.partly); n > 0 {
			fs = append(fs, pipeline.Finding{What: fmt.Sprintf("%s has REPLICA IDENTITY FULL", t), Advice: fmt.Sprintf(
				"%d of its partitions have not (%s): of a row of theirs before an update or a delete only the key is known. ALTER TABLE %s REPLICA IDENTITY FULL, and so for each", n, strings.Join(t.partly[:min(n, 5)], ", "), t.partly[0])})
		}
	}
	note(writesFail(ctx, q), "the application may write to all that publications of this database list")
	cuts, cutErr := s.cfg.cuts(ctx, q, tables)
	if len(s.cfg.Without)+len(s.cfg.Mask)+len(s.cfg.Hash.Columns)+len(s.cfg.Where) > 0 || cutErr != nil {
		note(cutErr, "what is to be left out, masked or hashed can be")
	}
	advise := func(what, text, advice string) {
		if text != "" {
			fs = append(fs, pipeline.Finding{What: what + text, Advice: advice})
		}
	}
	text, how := passed(tables, left)
	advise("what looks like a secret is not captured: ", text, how)
	slot, slotErr := readSlot(ctx, q, s.cfg.Slot)
	pub, err := readPublication(ctx, q, s.cfg.Publication)
	switch {
	case err != nil:
		note(err, "publication %q", s.cfg.Publication)
	case pub == nil && slot != nil:
		note(s.cfg.notThere("does not exist, and slot %q does", s.cfg.Slot), "publication %q is the one that slot %q was made for", s.cfg.Publication, s.cfg.Slot)
	case cutErr != nil || slotErr != nil || len(tables) == 0: // what it is to hold is not known yet
	default:
		what, err := s.cfg.published(ctx, q, pub, tables, cuts, slot == nil)
		note(err, "publication %q %s", s.cfg.Publication, what)
		if len(s.cfg.Where) > 0 {
			note(s.cfg.narrowed(pub, tables, cuts), "publication %q has the conditions of where", s.cfg.Publication)
		}
		text, how := s.cfg.sent(pub, tables, cuts)
		advise("passed over, though the publication has it: ", text, how)
	}
	switch {
	case slotErr != nil:
		note(slotErr, "slot %q", s.cfg.Slot)
	case slot == nil:
		note(nil, "slot %q does not exist yet and will be made", s.cfg.Slot)
	case slot.check(s.cfg.Slot) != nil:
		note(slot.check(s.cfg.Slot), "slot %q is usable", s.cfg.Slot)
	case slot.activePID != nil:
		note(nil, "slot %q is streamed by the server process %d", s.cfg.Slot, *slot.activePID)
	default:
		note(nil, "slot %q is free", s.cfg.Slot)
	}
	return fs
}

// published is whether the publication has the tables, or will: the first start,
// which makes the slot, sees to that.
func (c *Config) published(ctx context.Context, q *pgx.Conn, pub map[string]*publishedTable, tables []*tableInfo, cuts map[uint32]*cut, first bool) (what string, err error) {
	lacks, sql := c.lacking(pub, tables, cuts)
	switch {
	case pub == nil:
		return "does not exist yet and will be made", c.mayPublish(ctx, q, false, lacks, sql)
	case len(lacks) > 0 && first:
		return "will be given " + namesOf(lacks), c.mayPublish(ctx, q, true, lacks, sql)
	case len(lacks) > 0:
		return "holds all of them", c.notIn(lacks, sql)
	}
	return "holds all of them", nil
}

// mayRead says that the role may not read a table.
func mayRead(ctx context.Context, q *pgx.Conn, srv *server, t *tableInfo) error {
	grants, err := grantsFor(ctx, q, srv, t)
	if err != nil || len(grants) == 0 {
		return err
	}
	return mayNotRead(srv, t, grants)
}

func mayNotRead(srv *server, t *tableInfo, grants []string) *problem.Error {
	return ErrRefused.New("role %q may not read %s", srv.role, t).WithRemedy("%s", strings.Join(grants, "; "))
}

// grantsFor are the statements without which the role may not read a table: a
// right to it is of no use without one to its schema.
func grantsFor(ctx context.Context, q *pgx.Conn, srv *server, t *tableInfo) (grants []string, err error) {
	var schema, table bool
	err = q.QueryRow(ctx, "SELECT has_schema_privilege(relnamespace, 'USAGE'), has_table_privilege(oid, 'SELECT') FROM pg_class WHERE oid = $1", t.id).Scan(&schema, &table)
	if err != nil {
		return nil, classify("checking the grants on "+t.String(), err)
	}
	role := pgx.Identifier{srv.role}.Sanitize()
	if !schema {
		grants = append(grants, fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s", pgx.Identifier{t.schema}.Sanitize(), role))
	}
	if !table {
		grants = append(grants, fmt.Sprintf("GRANT SELECT ON %s TO %s", t.sql(), role))
	}
	return grants, nil
}

// failingSQL is the tables, or partitions, that publications list with their updates
// or deletes and that have no replica identity: of each the publications, and an
// index that could be it.
var failingSQL = `
SELECT k.oid::regclass::text, string_agg(DISTINCT p.pubname, ', ' ORDER BY p.pubname), bool_or(p.pubupdate), bool_or(p.pubdelete), ` + fmt.Sprintf(indexSQL, "k") + `
  FROM pg_publication p JOIN pg_publication_tables t ON t.pubname = p.pubname
  JOIN pg_namespace n ON n.nspname = t.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
 CROSS JOIN LATERAL (SELECT c.oid AS id WHERE c.relkind = 'r' UNION ALL SELECT l.relid FROM pg_partition_tree(c.oid) l WHERE c.relkind = 'p' AND l.isleaf) x
  JOIN pg_class k ON k.oid = x.id AND k.relkind = 'r'
 WHERE (p.pubupdate OR p.pubdelete) AND NOT ` + identitySQL + `
 GROUP BY k.oid, k.relname ORDER BY 1`

// writesFail says of which tables the application's writes fail because somebody
// publishes them.
func writesFail(ctx context.Context, q *pgx.Conn) error {
	rows, err := q.Query(ctx, failingSQL)
	if err != nil {
		return classify("looking for tables that may not be written", err)
	}
	var table, publications, index string
	var updates, deletes bool
	var texts, remedy []string
	if _, err := pgx.ForEachRow(rows, []any{&table, &publications, &updates, &deletes, &index}, func() error {
		var what, says []string
		if updates {
			what, says = append(what, "updates"), append(says, "cannot update table … because it does not have a replica identity and publishes updates")
		}
		if deletes {
			what, says = append(what, "deletes"), append(says, "cannot delete from table … because it does not have a replica identity and publishes deletes")
		}
		texts = append(texts, fmt.Sprintf("%s of %s, which %s lists, fail (%q)", strings.Join(what, " and "), table, publications, strings.Join(says, "; ")))
		if index == "" {
			remedy = append(remedy, fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL; -- or ADD PRIMARY KEY (…), which costs less", table))
		} else {
			remedy = append(remedy, fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s;", table, index))
		}
		return nil
	}); err != nil {
		return classify("looking for tables that may not be written", err)
	}
	if len(texts) == 0 {
		return nil
	}
	return ErrWritesFail.New("%s", strings.Join(texts, "; ")).WithRemedy("Who owns the tables runs:\n%s\nOr the publications are given tables by name, without these.", strings.Join(remedy, "\n"))
}
