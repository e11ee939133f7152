package clock_test

import (
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/clock"
	"github.com/tallywire/tallywire/internal/testkit"
)

// Lost if this fails: a transaction that timed out while the machine slept is
// taken for one that another process ended.
func TestSinceCountsASuspension(t *testing.T) {
	began := testkit.Suspended(time.Now(), time.Hour)
	if d := time.Since(began); d > time.Minute {
		t.Fatalf("the test's premise does not hold: %v", d)
	}
	if d := clock.Since(began); d < time.Hour || d > time.Hour+time.Minute {
		t.Errorf("after an hour of sleep it says %v", d)
	}
	if d := clock.Since(testkit.Suspended(time.Now(), -time.Hour)); d < 0 || d > time.Minute {
		t.Errorf("with the wall clock set back by an hour it says %v", d)
	}
}
