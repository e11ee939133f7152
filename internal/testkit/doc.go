// Package testkit runs the real servers that tallywire talks to: Postgres,
// Apache Kafka, redis-server, a schema registry. Each has a form for programs,
// Start…(ctx, Options), which `tallywire demo` uses too, and a form for tests,
// which stops the server when the test ends. A program that is not there is an
// error that names what to install.
package testkit

import (
	"os"
	"time"
)

// startWithin ends the wait for a server that does not answer. A start takes a
// second, or several on a machine that is busy with other things.
const startWithin = 4 * time.Minute

// Patience ends a test's wait for what never comes; what does come takes
// seconds at most, a minute on a busy machine. Whoever expects a test to be red
// says a shorter one in TALLYWIRE_PATIENCE (Go's notation).
var Patience = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("TALLYWIRE_PATIENCE")); err == nil && d > 0 {
		return d
	}
	return 4 * time.Minute
}()
