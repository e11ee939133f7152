package records_test

import (
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/testkit/leak"
)

// Every test of this package runs with released batches poisoned, and none may
// leave a goroutine behind.
func TestMain(m *testing.M) {
	change.PoisonOnRelease(true)
	leak.Main(m)
}
