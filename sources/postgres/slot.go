// The slot: making it, and making sure that a stored position still belongs to
// it (invariant 3).

package postgres

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/tallywire/tallywire/internal/dial"
	"github.com/tallywire/tallywire/sources/postgres/wire"
)

// Every session prints text in one and the same way, so that a cell of the load
// equals the cell of the stream, whatever the database's or the role's defaults.
var sessionParams = map[string]string{
	"application_name": "tallywire", "client_encoding": "UTF8", "datestyle": "ISO", "intervalstyle": "postgres",
	"timezone": "UTC", "extra_float_digits": "1", "bytea_output": "hex", "search_path": "pg_catalog", "xmloption": "content", "row_security": "off",
}

// endlessSQL takes off every time limit that database or role set for sessions:
// a load is one long transaction, and the connection beside the stream is idle
// for hours. Which there are depends on the version (transaction_timeout: 17),
// and a parameter that the server does not know would refuse the connection.
const endlessSQL = `SELECT set_config(name, '0', false) FROM pg_settings
 WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout')`

const connectTimeout = 15 * time.Second

// connect opens a plain connection.
func (c *Config) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(c.DSN.Reveal())
	if err != nil {
		return nil, errConfig.New("dsn: it is not a DSN of Postgres") // the text of err may quote it
	}
	for k, v := range sessionParams {
		cfg.RuntimeParams[k] = v
	}
	cfg.ConnectTimeout = connectTimeout
	dial.Postgres(&cfg.Config)
	q, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, classify("connecting to the source database", err)
	}
	if _, err := q.Exec(ctx, endlessSQL); err != nil {
		closeConn(q)
		return nil, classify("connecting to the source database", err)
	}
	return q, nil
}

// replication is a connection that speaks the replication protocol. in is what
// its messages are read from, under what lies below that and below TLS.
type replication struct {
	*pgconn.PgConn
	in    io.Reader
	under *wire.Conn
}

func (c *Config) connectReplication(ctx context.Context) (*replication, error) {
	cfg, err := pgconn.ParseConfig(c.DSN.Reveal())
	if err != nil {
		return nil, errConfig.New("dsn: it is not a DSN of Postgres")
	}
	for k, v := range sessionParams {
		cfg.RuntimeParams[k] = v
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.ConnectTimeout = connectTimeout
	r := &replication{}
	dial.Postgres(cfg)
	dialInto(cfg, &r.under)
	cfg.BuildFrontend = func(in io.Reader, out io.Writer) *pgproto3.Frontend {
		r.in = in
		return pgproto3.NewFrontend(in, out)
	}
	if r.PgConn, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "42501" {
			return nil, ErrNoReplication.New("role %q: %s", cfg.User, pg.Message).
				WithRemedy("ALTER ROLE %s REPLICATION", pgx.Identifier{cfg.User}.Sanitize())
		}
		return nil, classify("opening a replication connection", err)
	}
	if err := r.Exec(ctx, endlessSQL).Close(); err != nil {
		r.close()
		return nil, classify("opening a replication connection", err)
	}
	return r, nil
}

// server is what a session must know of the server.
type server struct {
	walLevel      string
	role          string
	mayReplicate  bool
	senderTimeout time.Duration // 0: none
	nextXID       decimal       // that it would give out, about
	version       int           // 170004 is 17.4
}

// cachesPublished reports whether the server may go on for the rest of a session as
// if a table were not published: it cached so when it decoded a transaction that had
// changed the table before it was listed, and nothing tells it better (rule C4). Seen
// with 15.10 and 17.4, not with 15.13, 16.9 and 17.5; those break otherwise, which
// 15.14, 16.10 and 17.6 mend (release notes, "logical decoding", "invalidation").
func (s *server) cachesPublished() bool {
	minor := s.version % 10000
	switch s.version / 10000 {
	case 15:
		return minor < 14
	case 16:
		return minor < 10
	case 17:
		return minor < 6
	}
	return false
}

func readServer(ctx context.Context, q *pgx.Conn) (*server, error) {
	var s server
	var ms int64
	var xid string
	err := q.QueryRow(ctx, `
SELECT current_setting('wal_level'), current_user::text, (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout'), pg_snapshot_xmax(pg_current_snapshot())::text,
       current_setting('server_version_num')::int`).
		Scan(&s.walLevel, &s.role, &s.mayReplicate, &ms, &xid, &s.version)
	if err != nil {
		return nil, classify("reading the server's settings", err)
	}
	s.senderTimeout = time.Duration(ms) * time.Millisecond
	if err := s.nextXID.UnmarshalText([]byte(xid)); err != nil {
		return nil, ErrProtocol.New("transaction id %q: %w", xid, err)
	}
	return &s, nil
}

func (s *server) check() error {
	if s.walLevel != "logical" {
		return ErrWALLevel.New("wal_level is %s", s.walLevel)
	}
	return nil
}

// slotInfo is a row of pg_replication_slots.
type slotInfo struct {
	plugin, kind string
	database     *string
	activePID    *int32
	confirmed    *string
	walStatus    *string
	twoPhase     bool
	temporary    bool
	ours         bool // of the database we are connected to
}

// readSlot gives nil when there is no such slot.
func readSlot(ctx context.Context, q *pgx.Conn, name string) (*slotInfo, error) {
	var s slotInfo
	err := q.QueryRow(ctx, `
SELECT COALESCE(plugin, ''), slot_type, database::text, active_pid, confirmed_flush_lsn::text, wal_status, two_phase, temporary, COALESCE(database = current_database(), false)
  FROM pg_replication_slots WHERE slot_name = $1`, name).
		Scan(&s.plugin, &s.kind, &s.database, &s.activePID, &s.confirmed, &s.walStatus, &s.twoPhase, &s.temporary, &s.ours)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return &s, classify(fmt.Sprintf("looking up slot %q", name), err)
}

func (s *slotInfo) confirmedLSN() (lsn, error) {
	if s.confirmed == nil {
		return 0, ErrSlotInvalid.New("the slot has no confirmed position")
	}
	v, err := pglogrepl.ParseLSN(*s.confirmed)
	if err != nil {
		return 0, ErrProtocol.New("confirmed_flush_lsn %q: %w", *s.confirmed, err)
	}
	return lsn(v), nil
}

// check says whether the slot can be streamed from.
func (s *slotInfo) check(name string) error {
	drop := fmt.Sprintf("SELECT pg_drop_replication_slot('%s'), or name another slot", name)
	switch {
	case s.kind != "logical" || s.plugin != "pgoutput":
		return ErrSlotInvalid.New("slot %q is %s (%s), wanted is logical (pgoutput)", name, s.kind, s.plugin).WithRemedy("Name another slot.")
	case !s.ours:
		return ErrSlotInvalid.New("slot %q belongs to database %q", name, deref(s.database)).WithRemedy("Name another slot.")
	case s.temporary:
		return ErrSlotInvalid.New("slot %q is temporary: it would not survive its session", name).WithRemedy("%s", drop)
	case s.twoPhase:
		return ErrSlotInvalid.New("slot %q decodes prepared transactions (two_phase)", name).WithRemedy("%s", drop)
	case deref(s.walStatus) == "lost":
		return ErrSlotInvalid.New("slot %q was invalidated: WAL that it needs is gone", name)
	}
	return nil
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// system is what IDENTIFY_SYSTEM says.
type system struct {
	id       decimal
	timeline int32
	flushed  lsn
}

func identify(ctx context.Context, r *replication) (*system, error) {
	i, err := pglogrepl.IdentifySystem(ctx, r.PgConn)
	if err != nil {
		return nil, classify("identifying the server", err)
	}
	id, err := strconv.ParseUint(i.SystemID, 10, 64)
	if err != nil {
		return nil, ErrProtocol.New("system identifier %q: %w", i.SystemID, err)
	}
	return &system{id: decimal(id), timeline: i.Timeline, flushed: lsn(i.XLogPos)}, nil
}

// checkPosition makes sure that everything after p is still to come from this
// slot of this server (invariant 3). history is that of the server's timeline.
func checkPosition(p *position, sys *system, slot string, confirmed lsn, history []byte) error {
	switch {
	case p.System != sys.id:
		return ErrOtherSystem.New("the last position is of cluster %d, the server is cluster %d", p.System, sys.id)
	case p.Slot != slot:
		return ErrGap.New("the last position is of slot %q, configured is slot %q: changes after %s may be missing from it", p.Slot, slot, p.LSN).
			WithRemedy("Set slot back to %q, or start the source over (docs/recovery.md).", p.Slot)
	case p.Timeline > sys.timeline:
		return ErrTimeline.New("the last position is on timeline %d, the server is on %d", p.Timeline, sys.timeline)
	case p.Timeline < sys.timeline:
		left, ok := switchPoint(history, p.Timeline)
		if !ok {
			return ErrTimeline.New("the server is on timeline %d, whose history does not know timeline %d", sys.timeline, p.Timeline)
		}
		if left < p.LSN {
			return ErrTimeline.New("the server left timeline %d at %s, before the last position %s: changes that were captured from %s to %s are not in it", p.Timeline, left, p.LSN, left, p.LSN)
		}
	}
	if confirmed > p.LSN {
		return ErrGap.New("slot %q has confirmed %s, the last position in Kafka is %s: the changes committed from %s to %s are missing", slot, confirmed, p.LSN, p.LSN, confirmed)
	}
	return nil
}

// readHead is how far the server has written, or replayed.
func readHead(ctx context.Context, q *pgx.Conn) (end lsn, err error) {
	var text string
	err = q.QueryRow(ctx, `SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text`).Scan(&text)
	if err != nil {
		return 0, classify("asking how far the server has written", err)
	}
	if err := end.UnmarshalText([]byte(text)); err != nil {
		return 0, ErrProtocol.New("LSN %q: %w", text, err)
	}
	return end, nil
}

// checkWritten makes sure that the server has written all that p counts as
// delivered: one that was set back on the same timeline is behind it, and would
// be taken to have nothing new until it has passed it again (rule B7).
func (se *session) checkWritten(ctx context.Context, p *position) error {
	end, err := readHead(ctx, se.q)
	if err != nil {
		return err
	}
	at := p.LSN
	if p.Tx != nil {
		at = max(at, p.Tx.Final)
	}
	if at > end {
		return ErrAhead.New("the last position is %s, the server has written up to %s: changes that were captured from %s to %s are not in it", at, end, end, at)
	}
	if p.XID == 0 {
		return nil
	}
	// In progress is one that is in the log and waits for a standby (C1); nothing
	// is one that the server does not know any more.
	var became *string
	err = se.q.QueryRow(ctx, "SELECT pg_xact_status($1::text::xid8)", strconv.FormatUint(uint64(p.XID), 10)).Scan(&became)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "22023": // invalid_parameter_value: it is in the future
		return ErrAhead.New("the server has not given out the id %d of the last transaction that was captured: what was captured since, up to %s, is not in it", p.XID, at)
	case err != nil:
		return classify("asking what became of the last transaction", err)
	case deref(became) == "aborted":
		return ErrAhead.New("the last transaction that was captured, %d, up to %s, is aborted on the server: it has given the id to another", p.XID, at)
	}
	return nil
}

// fullXID is a transaction id of 32 bits in 64: the one that is nearest to near.
func fullXID(xid uint32, near decimal) decimal {
	const epoch = 1 << 32
	full := uint64(near)&^(epoch-1) | uint64(xid)
	switch d := int64(full - uint64(near)); {
	case d > epoch/2 && full >= epoch:
		full -= epoch
	case d < -epoch/2:
		full += epoch
	}
	return decimal(full)
}

// switchPoint reads a timeline history file: lines of timeline, LSN at which it
// was left, reason.
func switchPoint(history []byte, timeline int32) (lsn, bool) {
	for sc := bufio.NewScanner(bytes.NewReader(history)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) < 2 {
			continue
		}
		if n, err := strconv.ParseInt(f[0], 10, 32); err != nil || int32(n) != timeline {
			continue
		}
		v, err := pglogrepl.ParseLSN(f[1])
		return lsn(v), err == nil
	}
	return 0, false
}
