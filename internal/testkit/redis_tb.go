// The form of Redis for tests.

package testkit

import "github.com/tallywire/tallywire/internal/embedded"

// NewRedis is StartRedis for a test: it is stopped when the test ends.
func NewRedis(tb TB, args ...string) *embedded.Redis {
	tb.Helper()
	r, err := embedded.StartRedis(tb.Context(), embedded.RedisOptions{Args: args})
	if err != nil {
		tb.Fatalf("starting Redis: %v", err)
	}
	tb.Cleanup(func() {
		if err := r.Stop(); err != nil {
			tb.Errorf("stopping Redis: %v", err)
		}
	})
	return r
}
