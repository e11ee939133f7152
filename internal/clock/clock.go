// Package clock measures time that others measure too.
package clock

import "time"

// Since is how long ago t was, which time.Now gave, by whichever clock says
// more. The one that time.Since reads stands still while the machine is
// suspended (CLOCK_MONOTONIC, clock_gettime(2)), and others' timeouts do not;
// the wall clock may be set back. Use it for what somebody else gives up
// meanwhile: a transaction, a place in a group.
func Since(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}
