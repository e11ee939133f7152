package pipeline

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

// The engine's own problems.
var (
	ErrFenced = problem.Define("TW-FENCED", problem.Halt,
		"Another process took over this source, transform or sink.",
		"Run one process per instance id, or let this one stay stopped; see `tallywire status`.")
	ErrUnclassified = problem.Define("TW-INTERNAL", problem.Halt,
		"An error that nobody foresaw; going on could lose data.",
		"Report it with the log around it; a restart resumes at the last committed position.")
	ErrOutage = problem.Define("TW-OUTAGE", problem.Retry,
		"A server does not answer, or the connection to it broke.",
		"Nothing is lost: work goes on when it is back. `tallywire doctor` connects to everything and says what is wrong.")
	ErrTxnUnknown = problem.Define("TW-TRANSACTION-UNKNOWN", problem.Retry,
		"A Kafka transaction was aborted, or its end was not confirmed.",
		"Nothing to do: the work goes on from the offsets that Kafka has committed.")
	ErrTopicRecreated = problem.Define("TW-TOPIC-RECREATED", problem.Halt,
		"A topic was deleted and created again: committed offsets mean other records now.",
		"Decide where to go on and say so with kafka-consumer-groups --reset-offsets (--to-earliest reads all of the new topic).")
	ErrCoPartition = problem.Define("TW-CO-PARTITION", problem.Halt,
		"Topics that are read together do not lie together: another number of partitions, or a partition that was given to another process.",
		"Give the topics the same number of partitions, and run the same configuration in every process of the group.")
	ErrNoControl = problem.Define("TW-CONTROL-MISSING", problem.Halt,
		"A record must be parked and there is no control database to park it in.",
		"Set control.dsn.")
)

// Classify is the one place where retry, reject or halt is decided (M6):
// an Error's own class; a broken connection or a server that says "later"
// is retried; what nobody classified halts, since skipping it could lose data.
// Cancellation is the caller's business and not classified.
func Classify(err error) problem.Class {
	if e := problem.Of(err); e != nil {
		return e.Class
	}
	if outage(err) {
		return problem.Retry
	}
	return problem.Halt
}

// outage reports whether err is of the passing kind.
func outage(err error) bool {
	var (
		netErr  net.Error
		connErr *pgconn.ConnectError
		pgErr   *pgconn.PgError
	)
	switch {
	case errors.As(err, &pgErr): // before ConnectError, which wraps it when the server refuses
		return pgOutage(pgErr.Code)
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

// pgOutage tells SQLSTATE classes that pass by themselves from those that need
// a person (PostgreSQL documentation, appendix A).
func pgOutage(code string) bool {
	for _, class := range []string{
		"08",    // connection exception
		"40",    // transaction rollback: serialisation failure, deadlock
		"53",    // insufficient resources: too many connections, disk full
		"55P03", // lock not available
		"57P",   // operator intervention: shutdown, crash, cannot connect now
		"58",    // system error outside of Postgres
	} {
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return false
}
