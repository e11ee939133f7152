package embedded

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func startPostgres(t *testing.T, version string) *Postgres {
	t.Helper()
	p, err := StartPostgres(t.Context(), PostgresOptions{Version: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// Lost if this fails: no version of Postgres that we promise to capture from
// can be tried at all.
func TestPostgresVersions(t *testing.T) {
	for _, v := range []string{Postgres15, Postgres16, Postgres17, Postgres18} {
		t.Run(v, func(t *testing.T) {
			t.Parallel()
			p := startPostgres(t, v)
			got, err := p.ask(t.Context(), "SELECT current_setting('server_version') || ' ' || current_setting('wal_level')")
			if err != nil {
				t.Fatal(err)
			}
			want := v[:len(v)-2] + " logical"
			if got != want {
				t.Errorf("server says %q, want %q", got, want)
			}
		})
	}
}

// Lost if this fails: a demo that was killed cannot be started again, its
// Postgres holds the port and the data.
func TestPostgresLeftBehindIsAdopted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "psa")
	first, err := StartPostgres(t.Context(), PostgresOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Stop()
	if err := first.CreateDatabase(t.Context(), "psa"); err != nil {
		t.Fatal(err)
	}
	if _, err := StartPostgres(t.Context(), PostgresOptions{Dir: dir}); err == nil {
		t.Fatal("a second start on the same folder without Adopt succeeded")
	}
	second, err := StartPostgres(t.Context(), PostgresOptions{Dir: dir, Port: first.Port, Adopt: true})
	if err != nil {
		t.Fatal(err)
	}
	if !second.Adopted || second.PID() != first.PID() || second.Port != first.Port {
		t.Fatalf("adopted=%v pid %d port %d, want the server of pid %d port %d", second.Adopted, second.PID(), second.Port, first.PID(), first.Port)
	}
	if err := second.Exec(t.Context(), "psa", "CREATE TABLE kept(id int)"); err != nil {
		t.Fatal(err)
	}

	// On another port it is stopped and started again, data kept.
	third, err := StartPostgres(t.Context(), PostgresOptions{Dir: dir, Port: must(FreePorts(1))[0], Adopt: true})
	if err != nil {
		t.Fatal(err)
	}
	defer third.Stop()
	if third.Adopted || third.Port == first.Port {
		t.Fatalf("asked for another port, got adopted=%v port %d", third.Adopted, third.Port)
	}
	if err := third.Exec(t.Context(), "psa", "INSERT INTO kept VALUES (1)"); err != nil {
		t.Fatal(err)
	}
}

// Lost if this fails: crash tests of Postgres test nothing, or hang.
func TestPostgresKillAndRestart(t *testing.T) {
	p := startPostgres(t, Postgres17)
	if err := p.Exec(t.Context(), "postgres", "CREATE TABLE t(id int); INSERT INTO t VALUES (7)"); err != nil {
		t.Fatal(err)
	}
	port := p.Port
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if p.PID() != 0 {
		t.Fatal("killed, and still has a pid")
	}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := p.ask(t.Context(), "SELECT id FROM t")
	if err != nil || got != "7" || p.Port != port {
		t.Fatalf("after a crash: %q on port %d (%v), want 7 on port %d", got, p.Port, err, port)
	}
	ctx, cancel := context.WithTimeout(t.Context(), StartWithin)
	defer cancel()
	if err := p.Down(ctx); err != nil {
		t.Fatal(err)
	}
	if pid, _ := p.left(); pid != 0 {
		t.Fatalf("down, and process %d runs", pid)
	}
}

// Lost if this fails: a crash test is red because a child of the killed server
// had no time to notice.
func TestPostgresStartsWhenOrphansAreGone(t *testing.T) {
	p := startPostgres(t, Postgres17)
	c, err := pgconn.Connect(t.Context(), p.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	child := int(c.PID())
	if err := syscall.Kill(child, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- p.Start(t.Context()) }()
	refused := func() (bool, error) {
		log, err := os.ReadFile(p.LogFile())
		select {
		case err := <-started:
			return true, fmt.Errorf("it started, or gave up: %w", err)
		default:
			return bytes.Count(log, []byte("shared memory block")) >= 8, err
		}
	}
	err = poll(t.Context(), 10*time.Millisecond, refused)
	if err := syscall.Kill(child, syscall.SIGCONT); err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
}

func TestTemporaryFolderIsRemoved(t *testing.T) {
	p, err := StartPostgres(t.Context(), PostgresOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.Dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", p.Dir, err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Lost if this fails: what is tested over a Unix socket or TLS goes by plain TCP.
func TestPostgresTransports(t *testing.T) {
	p, err := StartPostgres(t.Context(), PostgresOptions{Unix: true, TLS: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	for name, c := range map[string]struct{ dsn, local, encrypted string }{
		"tcp": {p.DSN("postgres"), "f", "f"}, "unix": {p.UnixDSN("postgres"), "t", "f"}, "tls": {p.TLSDSN("postgres"), "f", "t"},
	} {
		got, err := askAt(t.Context(), c.dsn, "SELECT (inet_server_addr() IS NULL)::char || (SELECT ssl::char FROM pg_stat_ssl WHERE pid = pg_backend_pid())")
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got != c.local+c.encrypted {
			t.Errorf("%s: local and encrypted are %s, want %s", name, got, c.local+c.encrypted)
		}
	}
	// The certificate counts: another name, or another certificate, is refused.
	other, err := StartPostgres(t.Context(), PostgresOptions{TLS: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := other.Stop(); err != nil {
			t.Error(err)
		}
	})
	swapped := strings.Replace(other.TLSDSN("postgres"), other.Dir, p.Dir, 1)
	swapped = strings.Replace(swapped, url.QueryEscape(other.Dir), url.QueryEscape(p.Dir), 1)
	if _, err := askAt(t.Context(), swapped, "SELECT 1"); err == nil {
		t.Error("a server with another certificate is trusted")
	}
}
