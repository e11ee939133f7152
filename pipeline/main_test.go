package pipeline

import (
	"fmt"
	"net/http"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/testkit"
)

// Every test of this package runs with released batches poisoned, and none may
// leave a goroutine behind.
func TestMain(m *testing.M) {
	change.PoisonOnRelease(true)
	code := m.Run()
	if err := testkit.StopSharedKafka(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the shared Kafka:", err)
		code = 1
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
