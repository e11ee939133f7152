// Package redis connects to the Redis that keeps the state of transforms. Redis
// is never the only place where something is (invariant 6), but it must not drop
// part of the state by itself: eviction is refused.
package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/tallywire/tallywire/internal/problem"
)

// What can be wrong with Redis itself.
var (
	ErrDown = problem.Define("TW-REDIS-DOWN", problem.Retry,
		"Redis does not answer.",
		"Check redis.addr and that the server runs; tallywire goes on by itself when it is back.")
	ErrFull = problem.Define("TW-REDIS-FULL", problem.Retry,
		"Redis refuses writes because its memory is used up.",
		"Raise maxmemory (never the eviction policy); tallywire goes on by itself.")
	ErrEvicts = problem.Define("TW-REDIS-EVICTION", problem.Halt,
		"Redis is configured to drop keys when memory is short; state with holes gives wrong results without a sign.",
		"Set maxmemory-policy noeviction on the server, then start tallywire again.")
	ErrEvicted = problem.Define("TW-REDIS-EVICTED", problem.Halt,
		"Redis dropped keys to save memory (evicted_keys grew); state may have holes.",
		"Set maxmemory-policy noeviction, run FLUSHALL on that Redis, then start tallywire again: the state is rebuilt from Kafka.")
	ErrAddr = problem.Define("TW-REDIS-ADDR", problem.Halt,
		"redis.addr cannot be read.",
		"Write host:port, or redis://user@host:port/db (rediss:// for TLS); with a password, name the whole as env:NAME or file:PATH.")
	ErrAuth = problem.Define("TW-REDIS-AUTH", problem.Halt,
		"Redis refuses the user or the password.",
		"Check the credentials in redis.addr and the ACL of that user.")
)

// silent: what go-redis would print, it also returns as an error.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(silent{}) }

// Open connects to addr, "host:port" or a redis:// or rediss:// URL, and checks
// that the server never evicts. An unreachable server is ErrDown, one that may
// evict ErrEvicts. The caller closes the client.
func Open(ctx context.Context, addr string) (*redis.Client, error) {
	opt := &redis.Options{Addr: addr}
	if strings.Contains(addr, "://") {
		var err error
		// The error of ParseURL may quote the password: not passed on.
		if opt, err = redis.ParseURL(addr); err != nil {
			return nil, ErrAddr.New("redis.addr is not a Redis URL")
		}
	}
	opt.ContextTimeoutEnabled = true // else a cancelled context waits for ReadTimeout
	opt.Protocol = 2
	opt.DisableIdentity = true
	opt.DialTimeout = 3 * time.Second
	opt.ReadTimeout = 30 * time.Second // a pipeline of a large batch; contexts are what ends calls
	opt.WriteTimeout = 30 * time.Second
	// A command that may have been executed is not sent again behind our back
	// (invariant 14); the engine tries again with a look at what is there.
	opt.MaxRetries = -1
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	c := redis.NewClient(opt)
	if err := check(ctx, c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func check(ctx context.Context, c *redis.Client) error {
	policy, err := c.ConfigGet(ctx, "maxmemory-policy").Result()
	if err != nil {
		var re redis.Error
		if errors.As(err, &re) && !isAuth(err) {
			// Managed servers hide CONFIG; INFO tells the policy as well.
			info, err := c.Info(ctx, "memory").Result()
			if err != nil {
				return Classify("reading the eviction policy of Redis", err)
			}
			policy = map[string]string{"maxmemory-policy": Field(info, "maxmemory_policy")}
		} else {
			return Classify("connecting to Redis at "+c.Options().Addr, err)
		}
	}
	if p := policy["maxmemory-policy"]; p != "noeviction" {
		return ErrEvicts.New("Redis at %s has maxmemory-policy %q, not noeviction", c.Options().Addr, p)
	}
	return nil
}

// Field is the value of one field of what INFO answers, or "".
func Field(info, name string) string {
	for len(info) > 0 {
		line, rest, _ := strings.Cut(info, "\n")
		if v, ok := strings.CutPrefix(line, name); ok && strings.HasPrefix(v, ":") {
			return strings.TrimSpace(v[1:])
		}
		info = rest
	}
	return ""
}

// Evicted is evicted_keys of what INFO stats answers.
func Evicted(info string) int64 {
	n, err := strconv.ParseInt(Field(info, "evicted_keys"), 10, 64)
	if err != nil {
		return 0 // absent: a server that knows no eviction
	}
	return n
}

// Refused says why the server voided a transaction (EXECABORT): the reply to
// the refused command itself is not handed on by the client.
func Refused(ctx context.Context, c *redis.Client, doing string, err error) error {
	info, ierr := c.Info(ctx, "memory").Result()
	if ierr != nil {
		return Classify(doing, errors.Join(err, ierr))
	}
	used, _ := strconv.ParseInt(Field(info, "used_memory"), 10, 64) // absent counts as 0
	most, _ := strconv.ParseInt(Field(info, "maxmemory"), 10, 64)
	// A command is refused when it would not fit, so a little below is full too.
	if most > 0 && used > most-most/16 {
		return ErrFull.New("%s: Redis uses %d of %d octets: %w", doing, used, most, err)
	}
	return ErrDown.New("%s: %w", doing, err)
}

func isAuth(err error) bool {
	return strings.HasPrefix(err.Error(), "NOAUTH") || strings.HasPrefix(err.Error(), "WRONGPASS") || strings.HasPrefix(err.Error(), "NOPERM")
}

// Classify turns an error of go-redis into a problem, doing says what was
// tried. Problems stay as they are; the end of a context stays recognisable.
func Classify(doing string, err error) error {
	if err == nil {
		return nil
	}
	if problem.Of(err) != nil || errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	var re redis.Error
	if errors.As(err, &re) {
		switch {
		case isAuth(err):
			return ErrAuth.New("%s: %w", doing, err)
		case strings.HasPrefix(err.Error(), "OOM"), strings.Contains(err.Error(), "OOM command not allowed"):
			return ErrFull.New("%s: %w", doing, err)
		case strings.HasPrefix(err.Error(), "WRONGTYPE"):
			return fmt.Errorf("%s: %w", doing, err) // unclassified: halts, and says so
		}
		// LOADING, READONLY, MASTERDOWN, EXECABORT, a script cache lost: they pass.
		return ErrDown.New("%s: %w", doing, err)
	}
	return ErrDown.New("%s: %w", doing, err)
}
