// The form of Postgres for tests.

package testkit

import (
	"context"

	"github.com/tallywire/tallywire/internal/embedded"
)

// TB is what a test gives; testing.TB satisfies it. It keeps package testing
// and its flags out of programs that import this package.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// NewPostgres gives a fresh server of a version ("" is Postgres17) for one
// test, and stops it when the test ends.
func NewPostgres(tb TB, version string) *embedded.Postgres {
	tb.Helper()
	p, err := embedded.StartPostgres(tb.Context(), embedded.PostgresOptions{Version: version})
	if err != nil {
		tb.Fatalf("starting Postgres %s: %v", version, err)
	}
	tb.Cleanup(func() {
		if err := p.Stop(); err != nil {
			tb.Errorf("stopping Postgres: %v", err)
		}
	})
	return p
}
