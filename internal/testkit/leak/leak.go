// Package leak is the end of a test process: the servers that its tests shared
// are stopped, and then no goroutine may be left.
package leak

import (
	"fmt"
	"net/http"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/internal/testkit"
)

// Main runs the tests of a package and ends the process; TestMain calls it
// last. stop are what else the package started for all its tests.
func Main(m *testing.M, stop ...func() error) {
	code := m.Run()
	fail := func(what string, err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, what+":", err)
			code = 1
		}
	}
	for _, s := range append(stop, testkit.StopShared) {
		fail("stopping a server of the tests", s())
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if code == 0 { // a test that failed leaves things behind
		fail("after the tests", goleak.Find())
	}
	os.Exit(code)
}
