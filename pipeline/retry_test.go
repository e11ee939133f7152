package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

func testComponent() *obs.Component {
	return obs.New(slog.New(slog.DiscardHandler)).Component("sink", "x")
}

// An outage must never stop a component for good, nor be hammered.
func TestKeepRetriesWithPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		comp := testComponent()
		var at []time.Duration
		began := time.Now()
		err := Keep(t.Context(), comp, func(context.Context) error {
			at = append(at, time.Since(began))
			if len(at) > 1 && comp.View().State != obs.Retrying {
				t.Errorf("state %s during a pause", comp.View().State)
			}
			switch len(at) {
			case 3:
				return errSinkDown.New("throttled").WithDelay(42 * time.Second)
			case 8:
				return nil
			}
			return errSinkDown.New("down")
		})
		if err != nil || len(at) != 8 {
			t.Fatalf("%v after %d runs", err, len(at))
		}
		if d := at[3] - at[2]; d < 42*time.Second {
			t.Errorf("tried again after %v, though told to wait 42 s", d)
		}
		for i := 1; i < len(at); i++ {
			if d := at[i] - at[i-1]; d < firstRetry/2 || d > 45*time.Second {
				t.Errorf("pause %d is %v", i, d)
			}
		}
	})
}

// What cannot be mended by waiting must stop, and say so.
func TestKeepHalts(t *testing.T) {
	for _, cause := range []error{ErrFenced.New("replaced"), errors.New("nobody foresaw this"), errNotTaken.New("a reject that nobody parked")} {
		comp := testComponent()
		runs := 0
		err := Keep(t.Context(), comp, func(context.Context) error { runs++; return cause })
		if !errors.Is(err, cause) || runs != 1 {
			t.Errorf("%v after %d runs", err, runs)
		}
		if v := comp.View(); v.State != obs.Halted || v.Reason == "" {
			t.Errorf("state %s: %q", v.State, v.Reason)
		}
	}
}

// A shutdown is no failure, also in a pause.
func TestKeepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		comp := testComponent()
		done := make(chan error)
		go func() {
			done <- Keep(ctx, comp, func(context.Context) error { return errSinkDown.New("down").WithDelay(time.Hour) })
		}()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if s := comp.View().State; s != obs.Stopped {
			t.Errorf("state %s", s)
		}
	})
}

// The one decision of rule M6.
func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		want problem.Class
	}{
		{errNotTaken.New("x"), problem.Reject},
		{fmt.Errorf("around: %w", errSinkDown.New("x")), problem.Retry},
		{ErrFenced.New("%w", kerr.ProducerFenced), problem.Halt},
		{io.ErrUnexpectedEOF, problem.Retry},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, problem.Retry},
		{context.DeadlineExceeded, problem.Retry},
		{kerr.NotLeaderForPartition, problem.Retry},
		{kerr.RebalanceInProgress, problem.Retry},
		{kerr.ProducerFenced, problem.Halt},
		{kerr.TopicAuthorizationFailed, problem.Halt},
		{&pgconn.PgError{Code: "57P01"}, problem.Retry},
		{&pgconn.PgError{Code: "40001"}, problem.Retry},
		{&pgconn.PgError{Code: "42P01"}, problem.Halt},
		{&pgconn.PgError{Code: "28P01"}, problem.Halt},
		{errors.New("anything else"), problem.Halt},
	} {
		if got := Classify(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}
