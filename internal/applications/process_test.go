package applications

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/console"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

// process is tallywire as a firm runs it, which can be killed and started again.
type process struct {
	config, http, log string
	env               []string      // NAME=value
	binary            string        // built by the first start
	pid               int           // 0: not running
	done              chan struct{} // closed when it is gone
}

func (p *process) start(t *testing.T) {
	t.Helper()
	if p.binary == "" {
		p.binary = filepath.Join(filepath.Dir(p.log), "tallywire")
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", p.binary, "github.com/tallywire/tallywire/cmd/tallywire").CombinedOutput(); err != nil {
			t.Fatalf("building tallywire: %v\n%s", err, out)
		}
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(log, "---- a run")
	cmd := exec.Command(p.binary, "run", "-c", p.config)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	done := make(chan struct{})
	if err := embedded.StartChild(cmd, func(error) { log.Close(); close(done) }); err != nil {
		t.Fatal(err)
	}
	p.pid, p.done = cmd.Process.Pid, done
}

// end sends a signal and waits until the process is gone.
func (p *process) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if p.pid == 0 {
		return
	}
	syscall.Kill(-p.pid, signal) // it may have ended by itself, which until tells
	select {
	case <-p.done:
	case <-time.After(testkit.Patience):
		syscall.Kill(-p.pid, syscall.SIGKILL)
		<-p.done
		t.Errorf("tallywire did not end within %v of %v\n%s", testkit.Patience, signal, p.tail())
	}
	p.pid = 0
}

// status is what `tallywire status` shows.
func (p *process) status(ctx context.Context) (st console.Status, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.http+"/api/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return st, fmt.Errorf("tallywire answers %s", resp.Status)
	}
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

// tail is the end of the log, for a failure's message.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-6000):])
}

// trouble is what tells, in SQL over the application's tables, how far its second
// script has come.
type trouble struct {
	kill  string // it is in the midst of its first part
	flush string // it has begun with the second
}

// through runs the second script, while tallywire is killed, started again, and
// loses all that Redis holds. The script stops after its first part until
// tallywire has caught up after the kill, and after its second until Redis is
// empty: both happen while it is at work, however fast it is.
func (w *world) through(t *testing.T, tr trouble, script func() error) {
	t.Helper()
	gates, err := pgx.Connect(t.Context(), w.pg.DSN("application"))
	if err != nil {
		t.Fatal(err)
	}
	gate := func(sql string) {
		t.Helper()
		if _, err := gates.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	seen := func(conn *pgx.Conn, sql string) func() (bool, string) {
		return func() (is bool, not string) {
			if err := conn.QueryRow(t.Context(), sql).Scan(&is); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
			return is, sql
		}
	}
	gate("SELECT pg_advisory_lock(1), pg_advisory_lock(2)")
	ended := make(chan error, 1)
	go func() { ended <- script() }()
	defer func() {
		gates.Close(context.WithoutCancel(t.Context())) // opens the gates also when the test fails
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	w.until(t, "the script is at work", seen(w.from, tr.kill))
	w.tallywire.end(t, syscall.SIGKILL)
	w.tallywire.start(t)
	w.until(t, "the script stops for the first time", seen(w.from, "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND NOT granted)"))
	w.until(t, "tallywire has caught up after it was killed", func() (bool, string) {
		_, differ := w.compare(t)
		return len(differ) == 0, fmt.Sprintf("%d places differ", len(differ))
	})
	gate("SELECT pg_advisory_unlock(1)")
	w.until(t, "the script goes on", seen(w.from, tr.flush))
	if err := w.redis.FlushAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	gate("SELECT pg_advisory_unlock(2)")
}
