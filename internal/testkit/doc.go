// Package testkit gives tests the real servers that tallywire talks to, each
// stopped when the test ends (those of package embedded, and a schema registry
// of another maker), and what stands between: proxies that cut, delay and lose.
package testkit

import (
	"os"
	"time"
)

// KafkaAlone is set in the environment beside a run with -short: what that one
// does on kfake is not done again.
const KafkaAlone = "TALLYWIRE_KAFKA_ALONE"

// Patience ends a test's wait for what never comes; what does come takes
// seconds at most, a minute on a busy machine. Whoever expects a test to be red
// says a shorter one in TALLYWIRE_PATIENCE (Go's notation).
var Patience = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("TALLYWIRE_PATIENCE")); err == nil && d > 0 {
		return d
	}
	return 4 * time.Minute
}()
