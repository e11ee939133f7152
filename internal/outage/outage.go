// Package outage tells errors that pass by themselves from those that need a
// person, and so decides between retry, reject and halt.
package outage

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
)

// What errors without a code of their own are called.
var (
	ErrUnclassified = problem.Define("TW-INTERNAL", problem.Halt,
		"An error that nobody foresaw; going on could lose data.",
		"Report it with the log around it; a restart resumes at the last committed position.")
	ErrOutage = problem.Define("TW-OUTAGE", problem.Retry,
		"A server does not answer, or the connection to it broke.",
		"Nothing is lost: work goes on when it is back. `tallywire doctor` connects to everything and says what is wrong.")
)

// Classify is the one place where retry, reject or halt is decided (M6): an
// Error's own class; a broken connection or a server that says "later" is
// retried; what nobody classified halts, since skipping it could lose data.
// Cancellation is the caller's business and not classified.
func Classify(err error) problem.Class {
	if e := problem.Of(err); e != nil {
		return e.Class
	}
	if passes(err) {
		return problem.Retry
	}
	return problem.Halt
}

// passes reports whether err is of the passing kind.
func passes(err error) bool {
	var (
		netErr  net.Error
		connErr *pgconn.ConnectError
		pgErr   *pgconn.PgError
	)
	switch {
	case errors.As(err, &pgErr): // before ConnectError, which wraps it when the server refuses
		return SQLState(pgErr.Code)
	case kafka.Fenced(err):
		return false
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &connErr), errors.As(err, &netErr),
		pgconn.Timeout(err), pgconn.SafeToRetry(err),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, kgo.ErrRecordRetries), errors.Is(err, kgo.ErrClientClosed),
		kerr.IsRetriable(err):
		return true
	}
	for _, e := range []*kerr.Error{kerr.RebalanceInProgress, kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.OperationNotAttempted} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// SQLState tells SQLSTATEs that pass by themselves from those that need a
// person (PostgreSQL documentation, appendix A).
func SQLState(code string) bool {
	for _, passing := range []string{
		"08",    // connection exception
		"25006", // read only: connected to a standby, until the name leads to the new primary
		"25P03", // idle in a transaction for too long: the connection was ended
		"25P04", // a transaction for too long: the same
		"40",    // transaction rollback: serialisation failure, deadlock
		"53",    // insufficient resources: too many connections, disk full
		"55006", // object in use
		"55P03", // lock not available
		"57",    // operator intervention: cancelled, shutdown, crash, cannot connect now
		"58",    // system error outside of Postgres
		"XX000", // internal error, such as a cache lookup that met another session's DDL
	} {
		if strings.HasPrefix(code, passing) {
			return true
		}
	}
	return false
}

// CodeOf is the problem's code; an outage that no code names is TW-OUTAGE.
func CodeOf(err error) string {
	if e := problem.Of(err); e != nil {
		return e.ID
	}
	if Classify(err) == problem.Retry {
		return ErrOutage.ID
	}
	return ErrUnclassified.ID
}

// ReasonOf is what a person reads on the page: the error with its code.
func ReasonOf(err error) string {
	if e := problem.Of(err); e != nil {
		return err.Error()
	}
	return CodeOf(err) + ": " + err.Error()
}

// RemedyOf is what a person is told to do about err.
func RemedyOf(err error) string {
	if e := problem.Of(err); e != nil {
		return e.WhatToDo()
	}
	if Classify(err) == problem.Retry {
		return ErrOutage.Remedy
	}
	return ErrUnclassified.Remedy
}
