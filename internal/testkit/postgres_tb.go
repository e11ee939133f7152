// The form of Postgres for tests.

package testkit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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
func NewPostgres(tb TB, version string) *Postgres {
	tb.Helper()
	p, err := StartPostgres(tb.Context(), PostgresOptions{Version: version})
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

const tempPrefix = "tallywire-postgres-"

var reapOnce sync.Once

// reap ends the temporary servers that killed or timed out test runs left
// behind, and removes their folders: those whose owner is gone.
func reap() {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), tempPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "owner"))
		if err != nil {
			continue
		}
		owner, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || owner <= 1 || alive(owner) {
			continue
		}
		p := &Postgres{Dir: dir}
		p.pid, _ = p.left()
		// Best effort: the next run tries again.
		_ = errors.Join(p.Kill(), os.RemoveAll(dir))
	}
}
