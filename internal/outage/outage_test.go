package outage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tallywire/tallywire/internal/problem"
)

var (
	errDown     = problem.Define("TW-TEST-DOWN", problem.Retry, "A test's server is down.", "Wait.")
	errBad      = problem.Define("TW-TEST-BAD", problem.Reject, "A test's record is bad.", "Correct it.")
	errReplaced = problem.Define("TW-TEST-REPLACED", problem.Halt, "A test's component was replaced.", "Leave it.")
)

// The one decision of rule M6.
func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		want problem.Class
	}{
		{errBad.New("x"), problem.Reject},
		{fmt.Errorf("around: %w", errDown.New("x")), problem.Retry},
		{errReplaced.New("%w", kerr.ProducerFenced), problem.Halt},
		{io.ErrUnexpectedEOF, problem.Retry},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, problem.Retry},
		{context.DeadlineExceeded, problem.Retry},
		{kerr.NotLeaderForPartition, problem.Retry},
		{kerr.RebalanceInProgress, problem.Retry},
		{kerr.ProducerFenced, problem.Halt},
		{kerr.TopicAuthorizationFailed, problem.Halt},
		{&pgconn.PgError{Code: "57P01"}, problem.Retry},
		{&pgconn.PgError{Code: "40001"}, problem.Retry},
		{&pgconn.PgError{Code: "25006"}, problem.Retry},
		{&pgconn.PgError{Code: "25P02"}, problem.Halt},
		{&pgconn.PgError{Code: "XX001"}, problem.Halt},
		{&pgconn.PgError{Code: ""}, problem.Halt},
		{&pgconn.PgError{Code: "42P01"}, problem.Halt},
		{&pgconn.PgError{Code: "28P01"}, problem.Halt},
		{errors.New("anything else"), problem.Halt},
	} {
		if got := Classify(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
	if got := RemedyOf(io.EOF); got != ErrOutage.Remedy {
		t.Errorf("of an outage a person is told %q", got)
	}
}
