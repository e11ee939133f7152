package retry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

var (
	errDown     = problem.Define("TW-TEST-DOWN", problem.Retry, "A test's server is down.", "Wait.")
	errBad      = problem.Define("TW-TEST-BAD", problem.Reject, "A test's record is bad.", "Correct it.")
	errReplaced = problem.Define("TW-TEST-REPLACED", problem.Halt, "A test's component was replaced.", "Leave it.")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testComponent() *obs.Component {
	return obs.New(slog.New(slog.DiscardHandler)).Component("sink", "x")
}

// An outage must never stop a component for good, nor be hammered.
func TestRunRetriesWithPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		comp := testComponent()
		var at []time.Duration
		began := time.Now()
		err := Run(t.Context(), comp, func(context.Context) error {
			at = append(at, time.Since(began))
			if len(at) > 1 && comp.View().State != obs.Retrying {
				t.Errorf("state %s during a pause", comp.View().State)
			}
			switch len(at) {
			case 3:
				return errDown.New("throttled").WithDelay(42 * time.Second)
			case 5: // Remedy: TW-OUTAGE
				return io.ErrUnexpectedEOF
			case 8:
				return nil
			}
			return errDown.New("down")
		})
		if err != nil || len(at) != 8 {
			t.Fatalf("%v after %d runs", err, len(at))
		}
		if d := at[3] - at[2]; d < 42*time.Second {
			t.Errorf("tried again after %v, though told to wait 42 s", d)
		}
		for i := 1; i < len(at); i++ {
			if d := at[i] - at[i-1]; d < First/2 || d > 45*time.Second {
				t.Errorf("pause %d is %v", i, d)
			}
		}
	})
}

// What cannot be mended by waiting must stop, and say so.
func TestRunHalts(t *testing.T) {
	for _, cause := range []error{errReplaced.New("replaced").WithRemedy("Leave this one."), errors.New("nobody foresaw this"), errBad.New("a reject that nobody parked")} {
		comp := testComponent()
		runs := 0
		err := Run(t.Context(), comp, func(context.Context) error { runs++; return cause })
		if !errors.Is(err, cause) || runs != 1 {
			t.Errorf("%v after %d runs", err, runs)
		}
		if v := comp.View(); v.State != obs.Halted || v.Reason == "" || v.Remedy != outage.RemedyOf(cause) {
			t.Errorf("state %s: %q, %q", v.State, v.Reason, v.Remedy)
		}
	}
}

// A shutdown is no failure, also in a pause.
func TestRunEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		comp := testComponent()
		done := make(chan error)
		go func() {
			done <- Run(ctx, comp, func(context.Context) error { return errDown.New("down").WithDelay(time.Hour) })
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

// A bug in one component must not take the process, and all others, with it;
// nor may it be tried again: it would be met again, for ever.
func TestRunOutlivesAPanic(t *testing.T) {
	comp := testComponent()
	runs := 0
	err := Run(t.Context(), comp, func(context.Context) error { runs++; panic("BUG: of a test") })
	if !problem.Has(err, outage.ErrPanic) || runs != 1 {
		t.Errorf("%v after %d runs", err, runs)
	}
	if v := comp.View(); v.State != obs.Failed || !strings.Contains(v.Reason, "BUG: of a test") {
		t.Errorf("state %s: %q", v.State, v.Reason)
	}
}
