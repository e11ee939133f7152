// The warehouse sink's problems, and how Postgres' own errors become them.

package warehouse

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

var (
	ErrUnavailable = problem.Define("TW-WAREHOUSE-UNAVAILABLE", problem.Retry,
		"The warehouse cannot be reached, or broke off in the middle of a transaction.",
		"Nothing is lost: delivery goes on from the offsets that are stored in the warehouse as soon as it answers. Check that it runs and has disk space.")
	ErrDenied = problem.Define("TW-WAREHOUSE-DENIED", problem.Halt,
		"The warehouse refuses the login, or the login lacks a right.",
		"Give the login of the sink's dsn CREATE on the database and CREATEROLE, or create schemas ps and _tallywire owned by it and the roles tallywire_reader and tallywire_cost, granted to it, yourself; then start again.")
	ErrDSN = problem.Define("TW-WAREHOUSE-DSN", problem.Halt,
		"The sink's dsn cannot be read.",
		"Write it as postgres://user@host:port/database; keep the password in env:NAME or file:PATH.")
	ErrTopic = problem.Define("TW-WAREHOUSE-TOPIC", problem.Halt,
		"A topic of the sink has no contract, so its table is not known.",
		"List only topics that have a contract: `tallywire contracts list`.")
	ErrTable = problem.Define("TW-WAREHOUSE-TABLE", problem.Halt,
		"A table, column or view of the warehouse is not as its contract says.",
		"Undo the change made to it by hand, or drop the table (CASCADE: views on it are made again), delete its rows in _tallywire.offsets, and restart to have it made and filled again.")
	ErrField = problem.Define("TW-WAREHOUSE-FIELD", problem.Halt,
		"Records have a field that this version's contract does not know.",
		"Upgrade this process to the version whose contract has the field; delivery goes on where it stopped.")
	ErrRecreated = problem.Define("TW-WAREHOUSE-TOPIC-RECREATED", problem.Halt,
		"A topic was deleted and created again: the stored offsets mean records that are gone, and the table may hold rows that the new topic does not.",
		"Empty the table and delete its rows in _tallywire.offsets, then restart: it is filled from the new topic.")
	ErrLostTable = problem.Define("TW-WAREHOUSE-TABLE-LOST", problem.Halt,
		"A table is gone, but its offsets say that it was filled.",
		"Delete its rows in _tallywire.offsets, then restart: the table is made and filled again.")
	ErrValue = problem.Define("TW-WAREHOUSE-VALUE", problem.Reject,
		"A value does not fit its column.",
		"Correct the record at its source; the corrected version replaces the parked one.")
	ErrRow = problem.Define("TW-WAREHOUSE-ROW", problem.Reject,
		"The warehouse refused a row.",
		"A constraint that was added by hand says no: remove it, or correct the record at its source.")
)

// dataError reports whether the server blames the data: SQLSTATE class 22
// (data exception) or 23 (integrity constraint violation).
func dataError(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (strings.HasPrefix(pe.Code, "22") || strings.HasPrefix(pe.Code, "23"))
}

// classify makes a problem of an error from Postgres. The text of a server
// error can quote values, and DETAIL does: neither is passed on for class 22
// and 23 (invariant 13).
func classify(doing string, err error) error {
	if err == nil {
		return nil
	}
	if problem.Of(err) != nil {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return ErrUnavailable.New("%s: %w", doing, err)
	}
	if outage.SQLState(pe.Code) {
		return ErrUnavailable.New("%s: %s (SQLSTATE %s)", doing, pe.Message, pe.Code)
	}
	switch class := pe.Code[:min(2, len(pe.Code))]; class {
	case "28", "3D":
		return ErrDenied.New("%s: %s (SQLSTATE %s)", doing, pe.Message, pe.Code)
	case "22", "23":
		return ErrRow.New("%s: SQLSTATE %s%s", doing, pe.Code, where(pe))
	}
	if pe.Code == "42501" {
		return ErrDenied.New("%s: %s (SQLSTATE %s)", doing, pe.Message, pe.Code)
	}
	return ErrTable.New("%s: %s (SQLSTATE %s)", doing, pe.Message, pe.Code)
}

func where(pe *pgconn.PgError) string {
	var b strings.Builder
	for _, p := range []struct{ what, name string }{{"table", pe.TableName}, {"column", pe.ColumnName}, {"constraint", pe.ConstraintName}} {
		if p.name != "" {
			fmt.Fprintf(&b, ", %s %q", p.what, p.name)
		}
	}
	return b.String()
}
