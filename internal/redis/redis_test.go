package redis_test

import (
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// An evicting Redis loses state without a sign: margins would be wrong and
// nobody would know.
func TestOpenRefusesEviction(t *testing.T) {
	srv := testkit.NewRedis(t, "--maxmemory-policy", "allkeys-lru")
	_, err := redis.Open(t.Context(), srv.Addr)
	if !problem.Has(err, redis.ErrEvicts) {
		t.Fatalf("Open: %v, want TW-REDIS-EVICTION", err)
	}
	configSet(t, srv.Addr, "maxmemory-policy", "noeviction") // Remedy: TW-REDIS-EVICTION
	opens(t, srv.Addr)
}

// A mistake in the address, or in the password, must not be waited out.
func TestOpenAddress(t *testing.T) {
	srv := testkit.NewRedis(t)
	if _, err := redis.Open(t.Context(), "redis://[::1"); !problem.Has(err, redis.ErrAddr) {
		t.Fatalf("Open: %v, want TW-REDIS-ADDR", err)
	}
	opens(t, "redis://"+srv.Addr+"/0") // Remedy: TW-REDIS-ADDR
	configSet(t, srv.Addr, "requirepass", "open sesame")
	if _, err := redis.Open(t.Context(), srv.Addr); !problem.Has(err, redis.ErrAuth) {
		t.Fatalf("Open: %v, want TW-REDIS-AUTH", err)
	}
	opens(t, "redis://:open%20sesame@"+srv.Addr) // Remedy: TW-REDIS-AUTH
}

func opens(t *testing.T, addr string) {
	t.Helper()
	c, err := redis.Open(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func configSet(t *testing.T, addr, name, value string) {
	t.Helper()
	c := goredis.NewClient(&goredis.Options{Addr: addr})
	if err := c.ConfigSet(t.Context(), name, value).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A server that is down is waited for, not given up.
func TestOpenDownIsRetry(t *testing.T) {
	srv := testkit.NewRedis(t)
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	_, err := redis.Open(t.Context(), srv.Addr)
	if !problem.Has(err, redis.ErrDown) {
		t.Fatalf("Open: %v, want TW-REDIS-DOWN", err)
	}
	// Remedy: TW-REDIS-DOWN
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := redis.Open(t.Context(), srv.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Set(t.Context(), "a", "b", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := srv.FlushAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := c.Exists(t.Context(), "a").Val(); n != 0 {
		t.Fatal("FlushAll left a key")
	}
}

func TestEmbedded(t *testing.T) {
	e, err := embedded.StartMiniRedis("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	c, err := redis.Open(t.Context(), e.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	info, err := c.Info(t.Context(), "server").Result()
	if err != nil || len(redis.Field(info, "run_id")) != 40 {
		t.Fatalf("INFO server: %q, %v", info, err)
	}
	if err := c.Set(t.Context(), "a", "b", time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
}
