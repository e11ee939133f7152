// Survey: what a database holds that no configuration describes yet. It reads
// the catalog and the planner's statistics, never a row.

package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/internal/draft"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

// surveyTimeout bounds each statement of a survey, so that it is in nobody's way.
const surveyTimeout = 15 * time.Second

// notOfExtensionsSQL leaves out the tables that belong to an extension.
const notOfExtensionsSQL = ` AND NOT EXISTS (SELECT FROM pg_depend d
   WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')`

// Survey looks at a database in a transaction that reads only; schemas, none:
// all but the server's own. The source would be called so.
func Survey(ctx context.Context, dsn secret.DSN, source string, schemas []string) (*draft.Database, error) {
	cfg := Default(source)
	cfg.Without = []string{"!*"} // nothing is hidden: what looks like a secret is named
	cfg.DSN = dsn
	q, err := cfg.connect(ctx)
	if err != nil {
		return nil, surveyError(err)
	}
	defer closeConn(q)
	tx, err := q.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, surveyError(classify("beginning to read", err))
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := q.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", surveyTimeout.Milliseconds())); err != nil {
		return nil, surveyError(classify("beginning to read", err))
	}
	s := survey{cfg: &cfg, q: q, source: source, of: map[uint32]*draft.Table{}, db: &draft.Database{Source: source, Name: q.Config().Database}}
	for _, step := range []func(context.Context) error{
		s.settings, func(ctx context.Context) error { return s.others(ctx, schemas) }, func(ctx context.Context) error { return s.tables(ctx, schemas) }, s.facts, s.publication, s.any,
	} {
		if err := step(ctx); err != nil {
			return nil, surveyError(err)
		}
	}
	return s.db, nil
}

// surveyError gives remedies that fit where nothing is captured yet.
func surveyError(err error) error {
	var pg *pgconn.PgError
	switch e := problem.Of(err); {
	case e == nil:
		return err
	case errors.As(err, &pg) && pg.Code == "57014": // query_canceled
		e.WithRemedy("The server is busy, or another session holds a lock on a partitioned table: try again.")
	case e.ID == ErrUnavailable.ID:
		e.WithRemedy("Check host and port of the DSN, and that Postgres runs and can be reached from here.")
	case e.ID == ErrRefused.ID && e.Fix == "":
		e.WithRemedy("Check user, password and database of the DSN, and pg_hba.conf.")
	case e.ID == errConfig.ID:
		e.WithRemedy("Write postgres://user@host:5432/database, or env:NAME with that in the variable.")
	}
	return err
}

type survey struct {
	cfg    *Config
	q      *pgx.Conn
	source string
	srv    *server
	db     *draft.Database
	of     map[uint32]*draft.Table
	infos  []*tableInfo
}

// settings finds what the server and the role lack for capture.
func (s *survey) settings(ctx context.Context) error {
	var err error
	if s.srv, err = readServer(ctx, s.q); err != nil {
		return err
	}
	if err := s.q.QueryRow(ctx, "SELECT 'PostgreSQL ' || split_part(current_setting('server_version'), ' ', 1)").Scan(&s.db.Server); err != nil {
		return classify("asking for the server's version", err)
	}
	if p := problem.Of(s.srv.check()); p != nil {
		s.db.Problems = append(s.db.Problems, p)
	}
	r, err := s.cfg.connectReplication(ctx)
	if err == nil {
		r.close()
		return nil
	}
	p := problem.Of(err)
	if p == nil {
		return err
	}
	s.db.Problems = append(s.db.Problems, p)
	return nil
}

// othersSQL lists what is called like a table and has no changes to capture. A
// partition is one of them where it is not kept as its table is.
const othersSQL = `
SELECT n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relispartition
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE (c.relkind IN ('v', 'm', 'f') OR c.relkind IN ('r', 'p') AND c.relpersistence <> 'p')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND (n.nspname !~ '^pg_' OR c.relpersistence = 't')` + notOfExtensionsSQL + `
 ORDER BY 1, 2`

// others finds what cannot be captured since it is no table, or none that stays.
func (s *survey) others(ctx context.Context, schemas []string) error {
	rows, err := s.q.Query(ctx, othersSQL)
	if err != nil {
		return classify("listing what is no table", err)
	}
	var schema, name, kind, stays string
	var partition bool
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &kind, &stays, &partition}, func() error {
		if len(schemas) > 0 && !slices.Contains(schemas, schema) {
			return nil
		}
		o := draft.Other{Name: schema + "." + name}
		switch {
		case stays == "t": // a view may be one
			o.Why, o.Remedy = "it is temporary, and its session's own", "Capture a table that stays."
		case kind == "v":
			o.Why, o.Remedy = "it is a view", "Capture the tables that it is made of."
		case kind == "m":
			o.Why, o.Remedy = "it is a materialized view", "Capture the tables that it is made of."
		case kind == "f":
			o.Why, o.Remedy = "it is a foreign table, whose changes are in another server's WAL", "Capture it there, as another source."
		default:
			o.Why, o.Remedy = "it is unlogged: its changes are not in the WAL", fmt.Sprintf("ALTER TABLE %s SET LOGGED", pgx.Identifier{schema, name}.Sanitize())
		}
		if partition {
			o.Why = "of a partitioned table, and " + o.Why
		}
		s.db.Others = append(s.db.Others, o)
		return nil
	})
	return classify("listing what is no table", err)
}

// tables reads them with their columns.
func (s *survey) tables(ctx context.Context, schemas []string) error {
	infos, err := scanTables(s.q.Query(ctx, tablesSQL+` AND NOT c.relispartition`+notOfExtensionsSQL+` ORDER BY 2, 3`))
	if err != nil {
		return classify("listing the tables", err)
	}
	infos = slices.DeleteFunc(infos, func(t *tableInfo) bool { return len(schemas) > 0 && !slices.Contains(schemas, t.schema) })
	s.cfg.nameTopics(infos)
	for _, t := range infos {
		cols, notNull, err := columnsOf(ctx, s.q, t.id)
		if err != nil {
			return err
		}
		r, err := s.cfg.newRelation(ctx, s.q, t, cols, notNull)
		if err != nil {
			return err
		}
		d := &draft.Table{Table: r.Table, Rows: t.rows, Partitioned: t.partitioned, Hidden: map[string]bool{}, References: map[string]string{}, Distinct: map[string]int64{}}
		if t.noTopic != nil {
			d.Left = t.noTopic
		} else if !t.captured() {
			why, how := t.noKey()
			d.Left = ErrNoKey.New("%s", why).WithRemedy("%s", how)
		} else if d.Grants, err = grantsFor(ctx, s.q, s.srv, t); err != nil {
			return err
		} else if len(d.Grants) > 0 {
			d.Left = mayNotRead(s.srv, t, d.Grants)
		}
		s.of[t.id], s.infos = d, append(s.infos, t)
		s.db.Tables = append(s.db.Tables, d)
	}
	if len(s.db.Tables) == 0 {
		e := ErrNoTables.New("database %q has no table of its own that role %q may see", s.db.Name, s.srv.role)
		if len(schemas) > 0 {
			e = ErrNoTables.New("schema %s of database %q has no table", strings.Join(schemas, ", "), s.db.Name)
		}
		if len(s.db.Others) > 0 {
			o := s.db.Others[0]
			e.Text += fmt.Sprintf("; %s cannot be captured: %s", o.Name, o.Why)
			return e.WithRemedy("%s", o.Remedy)
		}
		return e.WithRemedy("Check the database of the DSN, and --schema: names with commas between, as they are spelt in the database.")
	}
	return nil
}

const referencesSQL = `
SELECT c.conrelid, a.attname::text, n.nspname || '.' || k.relname
  FROM pg_constraint c JOIN pg_class k ON k.oid = c.confrelid JOIN pg_namespace n ON n.oid = k.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
 WHERE c.contype = 'f' AND cardinality(c.conkey) = 1 AND c.conparentid = 0`

// Columns that are computed are published by version 18, if asked for: they are
// left alone.
const generatedSQL = `SELECT attrelid, attname::text, '' FROM pg_attribute WHERE attgenerated <> '' AND attnum > 0 AND NOT attisdropped`

// Of what may be a status, how many values there are: a number, no value.
const distinctSQL = `
SELECT c.oid, s.attname::text, round(s.n_distinct)::text
  FROM pg_stats s JOIN pg_namespace n ON n.nspname = s.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.tablename
 WHERE s.n_distinct >= 1 AND s.attname ~* '(status|state|stage|phase|type|kind)' AND (NOT s.inherited OR c.relkind = 'p')`

// Unique indexes that would do as a replica identity.
const uniqueSQL = `
SELECT i.indrelid, min(k.relname::text), ''
  FROM pg_index i JOIN pg_class k ON k.oid = i.indexrelid
 WHERE i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
   AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) AND NOT a.attnotnull)
 GROUP BY 1`

// facts adds what is known of columns.
func (s *survey) facts(ctx context.Context) error {
	for _, f := range []struct {
		doing, sql string
		add        func(t *draft.Table, column, value string)
	}{
		{"reading the foreign keys", referencesSQL, func(t *draft.Table, column, value string) { t.References[column] = value }},
		{"looking for generated columns", generatedSQL, func(t *draft.Table, column, _ string) { t.Hidden[column] = true }},
		{"looking for unique indexes", uniqueSQL, func(t *draft.Table, index, _ string) {
			if t.Left != nil && t.Left.ID == ErrNoKey.ID && !t.Partitioned {
				t.Left.WithRemedy("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s", pgx.Identifier{t.Schema, t.Name}.Sanitize(), pgx.Identifier{index}.Sanitize())
			}
		}},
		{"reading the statistics", distinctSQL, func(t *draft.Table, column, value string) {
			var n int64
			if _, err := fmt.Sscan(value, &n); err == nil {
				t.Distinct[column] = n
			}
		}},
	} {
		rows, err := s.q.Query(ctx, f.sql)
		if err != nil {
			return classify(f.doing, err)
		}
		var id uint32
		var column, value string
		if _, err := pgx.ForEachRow(rows, []any{&id, &column, &value}, func() error {
			if t := s.of[id]; t != nil {
				f.add(t, column, value)
			}
			return nil
		}); err != nil {
			return classify(f.doing, err)
		}
	}
	return nil
}

// publication finds the columns that look like secrets, and that a publication
// which is there does not leave out.
func (s *survey) publication(ctx context.Context) error {
	pub, err := readPublication(ctx, s.q, s.cfg.Publication)
	if err != nil {
		p := problem.Of(err)
		if p == nil {
			return err
		}
		s.db.Problems = append(s.db.Problems, p)
	}
	for i, t := range s.infos {
		d := s.db.Tables[i]
		p := pub[t.String()]
		d.Partial = p != nil && p.listed
		for j := range d.Columns {
			name := d.Columns[j].Name
			switch {
			case p != nil && !slices.Contains(p.columns, name):
				if !d.Hidden[name] { // nor would it have a generated one
					d.Without = append(d.Without, name)
				}
				d.Hidden[name] = true
			case draft.IsSecret(&d.Columns[j]):
				d.Secrets = append(d.Secrets, name)
				d.Hidden[name] = true
				if slices.Contains(d.Key, j) {
					d.Bound = "a secret that is of the key cannot be left out"
				}
			}
		}
		if why := draft.HoldsSecrets(d); why != "" && p == nil {
			d.Bound = why
		}
	}
	return nil
}

// any makes sure that there is something to capture.
func (s *survey) any(context.Context) error {
	for _, t := range s.db.Tables {
		if t.Left == nil && t.Bound == "" {
			return nil
		}
	}
	if grants := draft.Grants(s.db.Tables); len(grants) > 0 {
		return ErrNoTables.New("none of the %d tables of database %q can be captured, of which role %q may not read %d",
			len(s.db.Tables), s.db.Name, s.srv.role, draft.Refused(s.db.Tables)).WithRemedy("%s", strings.Join(grants, "; "))
	}
	first := s.db.Tables[0]
	why, how := first.Bound, "Give tables a key, or look at another schema."
	if first.Left != nil {
		why, how = first.Left.Text, first.Left.WhatToDo()
	}
	return ErrNoTables.New("none of the %d tables of database %q can be captured; %s: %s", len(s.db.Tables), s.db.Name, first.Full(), why).WithRemedy("%s", how)
}

// SourceName is what a source may be called, after its database.
func SourceName(dsn secret.DSN) string {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return "psa" // the connection will say what is wrong
	}
	name := strings.TrimLeft(strings.TrimPrefix(Default(cfg.Database).Slot, "tallywire_"), "_0123456789")
	if name = name[:min(len(name), 40)]; name == "" {
		return "psa"
	}
	return name
}
