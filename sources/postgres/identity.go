// Identity: a table whose key went away while it is published makes the
// application's updates and deletes fail. It leaves the publication that
// tallywire made.

package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/obs"
)

// keepInterval is how often what is published is looked after: so long an
// application's updates may fail after it dropped a key.
const keepInterval = 20 * time.Second

// keep looks after the publication and what is in it.
func (se *session) keep(ctx context.Context, q *pgx.Conn) error {
	if err := se.keepPublication(ctx, q); err != nil {
		return err
	}
	if err := se.keepIdentities(ctx, q); err != nil {
		return err
	}
	return se.keepMembers(ctx, q)
}

const unidentifiedSQL = `
SELECT n.nspname, c.relname, ` + brokenSQL + `
  FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
  JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE p.pubname = $1 AND NOT pg_is_in_recovery() AND pg_has_role(p.pubowner, 'USAGE') AND ` + brokenSQL + ` IS NOT NULL`

// keepIdentities takes tables out of the publication that have no replica
// identity any more. A publication that belongs to others is theirs to keep.
func (se *session) keepIdentities(ctx context.Context, q *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	rows, err := q.Query(ctx, unidentifiedSQL, se.cfg.Publication)
	if err != nil {
		return classify("looking at the identities of what is published", err)
	}
	type gone struct {
		Schema, Name string
		Broken       []string
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[gone])
	if err != nil {
		return classify("looking at the identities of what is published", err)
	}
	for _, t := range all {
		name := pgx.Identifier{t.Schema, t.Name}.Sanitize()
		sql := "ALTER PUBLICATION " + pgx.Identifier{se.cfg.Publication}.Sanitize() + " DROP TABLE " + name
		if _, err := q.Exec(ctx, sql); err != nil {
			return classify(fmt.Sprintf("taking %s.%s out of the publication", t.Schema, t.Name), err)
		}
		e := ErrNoKey.New("%s.%s has left publication %q and is not captured any more: updates and deletes of %s failed, for want of a replica identity",
			t.Schema, t.Name, se.cfg.Publication, strings.Join(t.Broken, ", "))
		se.comp.Failed(e.Class.String(), e.ID)
		se.comp.Log.Error("a table lost its key", "err", e, "remedy", fmt.Sprintf("Give it a key again, and start the source over (docs/recovery.md): its changes since then are not in %s.", se.cfg.topicOf(t.Schema, t.Name)))
		if se.comp.View().State == obs.Running {
			se.comp.Is(obs.Running, e.Error())
		}
	}
	return nil
}
