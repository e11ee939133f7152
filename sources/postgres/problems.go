// What can go wrong between tallywire and a source database, and what to do
// about it.

package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

// The problems of a Postgres source.
var (
	ErrUnavailable = problem.Define("TW-PG-UNAVAILABLE", problem.Retry,
		"The source database cannot be reached, is starting or is shutting down.",
		"Nothing is lost: the slot keeps the changes, and capture goes on when the database answers. Watch the disk that holds its WAL.")
	ErrRefused = problem.Define("TW-PG-REFUSED", problem.Halt,
		"The source database refuses the login, the database, or a right that capture needs.",
		"Check dsn, pg_hba.conf and the grants of the role: it needs LOGIN, REPLICATION, CONNECT and SELECT on the captured tables. Then start again.")
	ErrFailed = problem.Define("TW-PG-ERROR", problem.Halt,
		"The source database answered with an error that is not an outage.",
		"Read the message, mend its cause and start again: capture resumes at the last committed position.")
	ErrWALLevel = problem.Define("TW-PG-WAL-LEVEL", problem.Halt,
		"The source database does not write what logical replication needs.",
		"Set wal_level = logical in postgresql.conf, restart Postgres, then start tallywire again.")
	ErrNoReplication = problem.Define("TW-PG-NO-REPLICATION", problem.Halt,
		"The role of the DSN may not replicate.",
		"ALTER ROLE … REPLICATION (on managed services: grant their replication role), then start again.")
	ErrSlotInUse = problem.Define("TW-PG-SLOT-IN-USE", problem.Retry,
		"Another connection streams from the slot.",
		"Stop the other reader, or give this source a slot of its own. A reader that died frees the slot after wal_sender_timeout at the latest.")
	ErrSlotMissing = problem.Define("TW-PG-SLOT-MISSING", problem.Halt,
		"Capture had begun, and its slot is gone: changes since the last position may be missing.",
		"Start the source over (docs/recovery.md), or under another name.")
	ErrSlotInvalid = problem.Define("TW-PG-SLOT-INVALID", problem.Halt,
		"The slot cannot be used: it was invalidated, or was made for something else.",
		"Start the source over (docs/recovery.md); raise max_slot_wal_keep_size if the slot was invalidated.")
	ErrGap = problem.Define("TW-PG-GAP", problem.Halt,
		"The slot has moved past the last position that reached Kafka: the changes between are missing.",
		"Find out who moved or made the slot anew; then start the source over (docs/recovery.md).")
	ErrOtherSystem = problem.Define("TW-PG-OTHER-SYSTEM", problem.Halt,
		"The position belongs to another Postgres cluster.",
		"Point dsn at the cluster that was captured, or start the source over under another name.")
	ErrTimeline = problem.Define("TW-PG-TIMELINE", problem.Halt,
		"The server's history does not contain the last position: it was promoted or restored from before it.",
		"Make sure that this is the right server; then start the source over (docs/recovery.md).")
	ErrAhead = problem.Define("TW-PG-AHEAD", problem.Halt,
		"The server has not written what was captured from it: it was set back, to a snapshot of its disk or to a copy that was behind.",
		"Make sure that this is the right server. Then start the source over (docs/recovery.md): what was captured beyond the server's end is in no table any more, and its next commits take the same LSNs.")
	ErrNoKey = problem.Define("TW-PG-NO-KEY", problem.Halt,
		"A table has no key that deletes and updates could be told by.",
		"Give the table a primary key, or ALTER TABLE … REPLICA IDENTITY USING INDEX on a unique index; or leave it out in `tables` (\"!schema.table\"). Then start again. A source that has its slot captures the table only when it is started over (docs/recovery.md).")
	ErrNoTables = problem.Define("TW-PG-NO-TABLES", problem.Halt,
		"No table is to be captured.",
		"Check `tables`: patterns such as public.* or public.time_entry, against the tables of the database. Then start again.")
	ErrPublication = problem.Define("TW-PG-PUBLICATION", problem.Halt,
		"The publication does not fit what is to be captured.",
		"Create or alter the publication as the message says, or let tallywire's role own the tables and have CREATE on the database. Then start again.")
	ErrWritesFail = problem.Define("TW-PG-WRITES-FAIL", problem.Halt,
		"A publication lists tables that have no replica identity: the application's updates and deletes of them fail.",
		"Give each table one, as the message says; or have the publication list others only.")
	ErrSplit = problem.Define("TW-PG-SPLIT", problem.Halt,
		"A transaction that was delivered in part does not come again as it was.",
		"Start the source over (docs/recovery.md), and report it: Postgres should repeat a transaction exactly.")
	ErrProtocol = problem.Define("TW-PG-PROTOCOL", problem.Halt,
		"The replication stream holds something that is not understood.",
		"Report it, with the versions of Postgres and tallywire; the slot keeps the changes.")
)

// classify turns an error of a connection into a problem; doing is a gerund.
func classify(doing string, err error) error {
	if err == nil || problem.Of(err) != nil || errors.Is(err, context.Canceled) {
		return err
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		msg := pg.Message
		switch {
		case strings.HasPrefix(pg.Code, "22"), strings.HasPrefix(pg.Code, "23"):
			msg = "an error in data" // the server's text quotes it (invariant 13)
		case pg.Detail != "":
			msg += " (" + pg.Detail + ")"
		}
		code := ErrFailed
		switch {
		case pg.Code == "55006": // object_in_use
			code = ErrSlotInUse
		case pg.Code == "55000" && strings.Contains(pg.Message, "slot"),
			pg.Code == "58P01" && strings.Contains(pg.Message, "WAL segment"):
			code = ErrSlotInvalid
		case strings.HasPrefix(pg.Code, "28"), pg.Code == "3D000", pg.Code == "42501":
			code = ErrRefused
		case outage.SQLState(pg.Code):
			code = ErrUnavailable
		}
		return &problem.Error{Code: code, Text: doing + ": " + msg + " (SQLSTATE " + pg.Code + ")", Err: err}
	}
	var op *net.OpError
	var ne net.Error
	if errors.As(err, &op) || errors.As(err, &ne) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err) || pgconn.SafeToRetry(err) {
		return &problem.Error{Code: ErrUnavailable, Text: doing + ": " + plain(err), Err: err}
	}
	var ce *pgconn.ConnectError
	if errors.As(err, &ce) {
		return &problem.Error{Code: ErrUnavailable, Text: doing + ": " + plain(err), Err: err}
	}
	return &problem.Error{Code: ErrFailed, Text: doing + ": " + plain(err), Err: err}
}

// plain is the innermost text of a connection error: pgconn's own repeats user,
// host and database, and what each address answered.
func plain(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Error()
	}
	return err.Error()
}
