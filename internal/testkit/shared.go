// Servers that several tests share, because a start costs more than most tests.

package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tallywire/tallywire/internal/embedded"
)

var shared struct {
	sync.Mutex
	kafka    *embedded.Kafka
	postgres *embedded.Postgres
}

// SharedKafka gives the one broker that all tests of this process share,
// started by the first; a test uses names of its own there and neither stops
// nor kills it. TestMain ends it with StopShared.
func SharedKafka(tb TB) *embedded.Kafka {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.kafka == nil {
		k, err := embedded.StartKafka(tb.Context(), embedded.KafkaOptions{})
		if err != nil {
			tb.Fatalf("starting Kafka: %v", err)
		}
		shared.kafka = k
		if err := k.Coordinate(tb.Context()); err != nil {
			tb.Fatalf("starting Kafka: %v", err)
		}
	}
	return shared.kafka
}

// sharedPostgres names, in the environment, a server that outlives this
// process: its port on 127.0.0.1 and its folder.
const sharedPostgres = "TALLYWIRE_TEST_POSTGRES"

// Environ tells the processes of a test run to use this server for
// NewDatabase.
func Environ(p *embedded.Postgres) string {
	return fmt.Sprintf("%s=%d %s", sharedPostgres, p.Port, p.Dir)
}

var databases atomic.Int64

// NewDatabase makes a database of its own for one test and gives its
// connection string. The server is shared: by all packages of a run that says so
// (Environ), else by this process, whose TestMain ends it with StopShared. A
// test neither stops it nor changes its settings.
func NewDatabase(tb TB) string {
	tb.Helper()
	p, err := sharedServer(tb.Context())
	if err != nil {
		tb.Fatalf("starting Postgres: %v", err)
	}
	name := fmt.Sprintf("t%d_%d", os.Getpid(), databases.Add(1))
	if err := p.CreateDatabase(tb.Context(), name); err != nil {
		tb.Fatalf("making database %s: %v", name, err)
	}
	tb.Cleanup(func() {
		slots := "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '" + name + "'"
		for _, sql := range []string{slots, "DROP DATABASE " + name + " WITH (FORCE)"} {
			if err := p.Exec(context.Background(), "postgres", sql); err != nil {
				tb.Errorf("dropping database %s: %v", name, err)
			}
		}
	})
	return p.DSN(name)
}

func sharedServer(ctx context.Context) (*embedded.Postgres, error) {
	shared.Lock()
	defer shared.Unlock()
	if text := os.Getenv(sharedPostgres); text != "" {
		p := &embedded.Postgres{Version: embedded.Postgres17}
		port, dir, _ := strings.Cut(text, " ")
		if _, err := fmt.Sscan(port, &p.Port); err != nil {
			return nil, fmt.Errorf("reading %s=%q: %w", sharedPostgres, text, err)
		}
		p.Dir = dir
		return p, nil
	}
	if shared.postgres == nil {
		p, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Params: SharedParams})
		if err != nil {
			return nil, err
		}
		shared.postgres = p
	}
	return shared.postgres, nil
}

// SharedParams are the settings of a server for NewDatabase: tests that crash
// a server have one of their own.
var SharedParams = map[string]string{"fsync": "off", "max_connections": "300"}

// StopShared ends the servers that this process started for its tests.
func StopShared() error {
	shared.Lock()
	defer shared.Unlock()
	var errs []error
	if shared.kafka != nil {
		errs = append(errs, shared.kafka.Stop())
		shared.kafka = nil
	}
	if shared.postgres != nil {
		errs = append(errs, shared.postgres.Stop())
		shared.postgres = nil
	}
	return errors.Join(errs...)
}
