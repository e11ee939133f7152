// Doctor: whether the warehouse could take what it is sent.

package warehouse

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/pipeline"
)

// oldest is the first version of Postgres that has what we use, as
// server_version_num.
const oldest = 150000

// Doctor implements pipeline.Doctor. It makes a connection of its own.
func (s *Sink) Doctor(ctx context.Context) []pipeline.Finding {
	var fs []pipeline.Finding
	note := func(err error, format string, args ...any) bool {
		fs = append(fs, pipeline.Finding{What: fmt.Sprintf(format, args...), Err: err})
		return err == nil
	}
	conn, err := pgx.ConnectConfig(ctx, s.config)
	if !note(classify(fmt.Sprintf("connecting to the warehouse of sink %q", s.name), err), "connecting to the database") {
		return fs
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := conn.Close(ctx); err != nil {
			s.log.Debug("closing the doctor's session", "error", err)
		}
	}()
	var database, version, login string
	var number int
	var create, createRole bool
	err = conn.QueryRow(ctx, `SELECT current_database(), current_setting('server_version'), current_setting('server_version_num')::int, current_user,
  has_database_privilege(current_database(), 'CREATE'), (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user)`).
		Scan(&database, &version, &number, &login, &create, &createRole)
	if !note(classify("reading what the warehouse is", err), "reading what it is") {
		return fs
	}
	fs[len(fs)-1].What = fmt.Sprintf("database %s of Postgres %s", database, version)
	if number < oldest {
		note(ErrTable.New("the warehouse is Postgres %s", version).WithRemedy("Move it to Postgres 15 or newer."), "its version is 15 or newer")
	}
	schemas, roles, apart, err := s.missing(ctx, conn, number)
	if !note(classify("looking for the schemas and roles of the warehouse", err), "looking for its schemas and roles") {
		return fs
	}
	fs = fs[:len(fs)-1]
	switch {
	case len(schemas) == 0:
		note(nil, "its schemas are there")
	case create:
		note(nil, "login %q may create %s", login, strings.Join(schemas, " and "))
	default:
		note(ErrDenied.New("login %q may not create schemas in database %s, and there is no %s", login, database, strings.Join(schemas, " and no ")).
			WithRemedy("GRANT CREATE ON DATABASE %s TO %s;", quote(database), quote(login)), "its schemas can be made")
	}
	if number < 160000 && createRole { // it may make itself a member of any, and does
		apart = nil
	}
	switch {
	case len(roles) > 0 && !createRole, len(apart) > 0:
		note(lacksRoles(login, roles, apart, createRole), "the roles of its readers can be made and taken")
	case len(roles) > 0:
		note(nil, "login %q may create the roles %s", login, strings.Join(roles, " and "))
	default:
		note(nil, "the roles of its readers are there")
	}
	rows, err := conn.Query(ctx, `SELECT 'SCHEMA', nspname, '' FROM pg_namespace WHERE nspname = ANY($1) AND NOT pg_has_role(nspowner, 'USAGE')
UNION ALL SELECT 'TABLE', nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE nspname || '.' || relname = ANY($2) AND relkind = 'r' AND NOT pg_has_role(relowner, 'USAGE') ORDER BY 1, 2, 3`, s.schemas(), s.topics)
	type thing struct{ Kind, Schema, Table string }
	var others []thing
	if err == nil {
		others, err = pgx.CollectRows(rows, pgx.RowToStructByPos[thing])
	}
	if !note(classify("looking at who owns the warehouse's tables", err), "its schemas and tables are ours") {
		return fs
	}
	if len(others) > 0 {
		fs = fs[:len(fs)-1]
	}
	for _, o := range others {
		name := pgx.Identifier{o.Schema}
		if o.Table != "" {
			name = append(name, o.Table)
		}
		kind := strings.ToLower(o.Kind)
		note(ErrDenied.New("%s %s belongs to another role than login %q", kind, name.Sanitize(), login).
			WithRemedy("ALTER %s %s OWNER TO %s;", o.Kind, name.Sanitize(), quote(login)), "%s %s is ours", kind, name.Sanitize())
	}
	return fs
}

// lacksRoles says which roles login can neither make, if they are missing, nor
// take, and has both mended at once.
func lacksRoles(login string, missing, apart []string, create bool) error {
	var lacks, grant []string
	sql := ""
	if len(missing) > 0 && !create {
		lacks, grant = append(lacks, "may not create roles, and there is no "+strings.Join(missing, " and no ")), missing
		sql = "CREATE ROLE " + strings.Join(missing, "; CREATE ROLE ") + "; "
	}
	if len(apart) > 0 {
		lacks, grant = append(lacks, "may not SET ROLE to "+strings.Join(apart, " and ")+", as which the page reads the margin"), slices.Concat(grant, apart)
	}
	return ErrDenied.New("login %q %s", login, strings.Join(lacks, "; it ")).
		WithRemedy("Let a superuser run:\n%sGRANT %s TO %s;", sql, strings.Join(grant, ", "), quote(login))
}

// missing lists the schemas and roles that are not there yet, and the roles that
// are and that the login may neither take nor make itself a member of; these only
// if there will be a margin, which is read as one of them.
func (s *Sink) missing(ctx context.Context, conn *pgx.Conn, version int) (schemas, roles, apart []string, err error) {
	list := func(q string, args ...any) (out []string, err error) {
		rows, err := conn.Query(ctx, q, args...)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if schemas, err = list("SELECT n FROM unnest($1::text[]) n WHERE NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = n) ORDER BY n", s.schemas()); err != nil {
		return nil, nil, nil, err
	}
	readers := []string{RoleReader, RoleCost}
	if roles, err = list("SELECT n FROM unnest($1::text[]) n WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = n) ORDER BY n", readers); err != nil || !s.hasMargin() {
		return schemas, roles, nil, err
	}
	take := "SET"
	if version < 160000 { // which has no such privilege: a member may
		take = "MEMBER"
	}
	apart, err = list("SELECT rolname::text FROM pg_roles WHERE rolname = ANY($1) AND NOT pg_has_role(oid, $2) AND NOT pg_has_role(oid, 'MEMBER WITH ADMIN OPTION') ORDER BY 1", readers, take)
	return schemas, roles, apart, err
}

// schemas lists those that the sink's tables are in, and its own.
func (s *Sink) schemas() []string {
	names := []string{"_tallywire"}
	for _, e := range s.entities {
		if !slices.Contains(names, e.schema) {
			names = append(names, e.schema)
		}
	}
	return names
}
