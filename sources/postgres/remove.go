// Remove: what a source keeps at its database, and how that is taken away when the
// source is given up: first the slot, for which the server keeps its log, then the
// publication. A slot without its publication could not be read any more; a
// publication without a slot costs nothing.

package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/removal"
	"github.com/tallywire/tallywire/pipeline"
)

// Remains lists what the source keeps at its database, in the order in which it is
// to go. inUse says who streams from the slot: nothing can be removed then. others
// are the other sources of the configuration: what they use stays.
func (s *Source) Remains(ctx context.Context, others []pipeline.Source) (things []removal.Thing, inUse, err error) {
	q, err := s.cfg.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer closeConn(q)
	slot, inUse, err := s.cfg.remainingSlot(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	pub, err := s.cfg.remainingPublication(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range others {
		if o, is := o.(*Source); is && !pub.Gone && o.cfg.Publication == s.cfg.Publication && s.cfg.sameDatabase(&o.cfg) {
			pub.Stays, pub.Run, pub.Remove = fmt.Sprintf("source %q captures through it", o.name), "", nil
		}
	}
	return []removal.Thing{slot, pub}, inUse, nil
}

// RemainsSQL is what somebody runs at the database to remove it all by hand.
func (s *Source) RemainsSQL() []string {
	return []string{s.cfg.dropSlotSQL() + ";", s.cfg.dropPublicationSQL() + ";"}
}

func (c *Config) dropSlotSQL() string {
	return "SELECT pg_drop_replication_slot('" + c.Slot + "')" // its name needs no quoting (Validate)
}

func (c *Config) dropPublicationSQL() string {
	return "DROP PUBLICATION " + pgx.Identifier{c.Publication}.Sanitize()
}

// sameDatabase tells whether both name one database, as far as names tell.
func (c *Config) sameDatabase(o *Config) bool {
	a, err := pgx.ParseConfig(c.DSN.Reveal())
	if err != nil {
		return false
	}
	b, err := pgx.ParseConfig(o.DSN.Reveal())
	return err == nil && a.Host == b.Host && a.Port == b.Port && a.Database == b.Database
}

// slotHoldsSQL is how many octets of its log the server keeps for a slot, -1: none any
// more; and who streams from it.
const slotHoldsSQL = `
SELECT COALESCE(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, s.restart_lsn)::bigint, -1),
       COALESCE(a.usename::text, ''), COALESCE(a.application_name, ''), COALESCE(host(a.client_addr), '')
  FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = $1`

func (c *Config) remainingSlot(ctx context.Context, q *pgx.Conn) (t removal.Thing, inUse, err error) {
	t.What = fmt.Sprintf("slot %q", c.Slot)
	slot, err := readSlot(ctx, q, c.Slot)
	switch {
	case err != nil:
		return t, nil, err
	case slot == nil:
		t.Gone = true
		return t, nil, nil
	case slot.kind != "logical" || slot.plugin != "pgoutput":
		t.Stays = fmt.Sprintf("it is %s (%s), and not one that this source made", slot.kind, slot.plugin)
		return t, nil, nil
	case !slot.ours:
		t.Stays = fmt.Sprintf("it belongs to database %q, which is not the one that this source captures", deref(slot.database))
		return t, nil, nil
	}
	var held int64
	var role, app, from string
	if err := q.QueryRow(ctx, slotHoldsSQL, c.Slot).Scan(&held, &role, &app, &from); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			t.Gone = true
			return t, nil, nil
		}
		return t, nil, classify(fmt.Sprintf("looking up slot %q", c.Slot), err)
	}
	switch {
	case deref(slot.walStatus) == "lost" || held < 0:
		t.Holds = "none of the server's log: it was invalidated"
	default:
		t.Holds = fmt.Sprintf("%.1f MB of the server's log", float64(held)/1e6)
	}
	if pid := deref(slot.activePID); pid != 0 {
		who := fmt.Sprintf("server process %d", pid)
		if role != "" {
			who += fmt.Sprintf(", role %q, application %q", role, app)
		}
		if from != "" {
			who += ", from " + from
		}
		inUse = ErrSlotInUse.New("slot %q is streamed from: %s", c.Slot, who).WithRemedy(
			"Stop the process that runs the source, or start it --without the source; then remove it. A reader that died frees the slot after wal_sender_timeout at the latest; SELECT pg_terminate_backend(%d) ends it at once.", pid)
	}
	t.Remove = c.removeSlot
	return t, inUse, nil
}

func (c *Config) removeSlot(ctx context.Context) error {
	return c.remove(ctx, fmt.Sprintf("dropping slot %q", c.Slot), c.dropSlotSQL())
}

// remainingSQL is the publication: whether it is ours, whose it is, whether the server
// takes no writes, and how many tables it has.
const remainingSQL = `
SELECT ` + ourPublicationSQL + `, pg_get_userbyid(p.pubowner)::text, p.puballtables, pg_is_in_recovery(), current_user::text,
       (SELECT count(*) FROM pg_publication_tables t WHERE t.pubname = p.pubname)
  FROM pg_publication p WHERE p.pubname = $1`

func (c *Config) remainingPublication(ctx context.Context, q *pgx.Conn) (t removal.Thing, err error) {
	t.What = fmt.Sprintf("publication %q", c.Publication)
	var ours, all, standby bool
	var owner, role string
	var tables int64
	err = q.QueryRow(ctx, remainingSQL, c.Publication).Scan(&ours, &owner, &all, &standby, &role, &tables)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		t.Gone = true
		return t, nil
	case err != nil:
		return t, classify("looking up the publication", err)
	}
	if t.Holds = fmt.Sprintf("%d tables", tables); tables == 1 {
		t.Holds = "1 table"
	}
	switch {
	case ours:
		t.Remove = c.removePublication
		return t, nil
	case owner != role:
		t.Stays = fmt.Sprintf("it belongs to role %q, and not to %q, which the source connects as", owner, role)
	case all:
		t.Stays = "it is FOR ALL TABLES, which tallywire does not make"
	case standby:
		t.Stays = "the server is a standby, and takes no writes; it is dropped at the primary"
	}
	t.Run = c.dropPublicationSQL() + ";"
	return t, nil
}

func (c *Config) removePublication(ctx context.Context) error {
	return c.remove(ctx, fmt.Sprintf("dropping publication %q", c.Publication), c.dropPublicationSQL())
}

// removeWithin bounds one statement: what it waits for is said, and it is tried again
// by whoever runs the command again.
const removeWithin = time.Minute

// remove runs a statement that drops something; it may be gone.
func (c *Config) remove(ctx context.Context, doing, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, removeWithin)
	defer cancel()
	q, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(q)
	_, err = q.Exec(ctx, sql)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42704" { // undefined_object
		return nil
	}
	err = classify(doing, err)
	switch e := problem.Of(err); {
	case problem.Has(err, ErrSlotInUse):
		return e.WithRemedy("Stop the process that runs the source, or start it --without the source; then remove it.")
	case problem.Has(err, ErrRefused):
		return e.WithRemedy("Who may runs, and then this is run again:\n%s;", sql)
	}
	return err
}
