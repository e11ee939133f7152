// A real Postgres server: started, stopped, killed, and found again after the
// program that started it was killed.

package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// PostgresOptions say which Postgres to run.
type PostgresOptions struct {
	// Version is that of the artefact, e.g. Postgres17 ("17.11.0"), which is
	// also the default.
	Version string
	// Dir holds the folder data and the file postgres.log. It is made when it
	// does not exist. Empty: a temporary folder, which Stop removes.
	Dir string
	// Port on 127.0.0.1; 0: a free one.
	Port int
	// Params are server settings beyond (or instead of) ours: wal_level is
	// logical, with room for 20 slots and walsenders.
	Params map[string]string
	// Unix lets the server listen on a Unix socket too; UnixDSN names it.
	Unix bool
	// TLS makes a certificate and lets the server speak TLS; TLSDSN asks for it.
	TLS bool
	// Listen are addresses beside 127.0.0.1 that the server listens on; it trusts
	// whoever comes from their networks.
	Listen []string
	// Adopt takes over a server that runs on Dir already, left behind by a run
	// that was killed. Without it such a server is an error, and what is
	// started ends with this process (StartChild).
	Adopt bool
}

// Postgres is a running server. Its superuser is postgres, without a password,
// reachable from 127.0.0.1 only.
type Postgres struct {
	Port    int
	Version string
	Dir     string
	Adopted bool // it was running already

	bin      string
	params   map[string]string
	temp     bool
	sockets  string // folder of the Unix socket; empty: none
	outlives bool   // this process: for the next one to adopt

	killed atomic.Bool // since it last started

	mu   sync.Mutex
	pid  int           // of the postmaster; 0: not running
	done chan struct{} // closed when our child has been waited for; nil when adopted
}

// StartPostgres starts a server and returns when it answers; ctx bounds the
// start only. The caller stops it.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	if o.Version == "" {
		o.Version = Postgres17
	}
	bin, err := PostgresBinaries(ctx, o.Version)
	if err != nil {
		return nil, err
	}
	p := &Postgres{Port: o.Port, Version: o.Version, Dir: o.Dir, bin: bin, params: o.Params, outlives: o.Adopt}
	if p.Dir == "" {
		reapOnce.Do(reap)
		if p.Dir, err = os.MkdirTemp("", tempPrefix); err != nil {
			return nil, fmt.Errorf("making a folder for Postgres: %w", err)
		}
		p.temp = true
		if err := os.WriteFile(filepath.Join(p.Dir, "owner"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
			return nil, fmt.Errorf("marking the folder of Postgres: %w", err)
		}
	}
	if p.Dir, err = filepath.Abs(p.Dir); err != nil {
		return nil, err
	}
	fail := func(err error) (*Postgres, error) {
		if p.temp {
			err = errors.Join(err, os.RemoveAll(p.Dir))
		}
		return nil, err
	}
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return fail(fmt.Errorf("making a folder for Postgres: %w", err))
	}
	if pid, port := p.left(); pid != 0 {
		if !o.Adopt {
			return fail(fmt.Errorf("a Postgres (process %d, port %d) runs on %s already", pid, port, p.data()))
		}
		if err := p.adopt(ctx, pid, port, o.Port); err == nil {
			return p, nil
		} else if ctx.Err() != nil {
			return fail(err)
		}
		// It runs on another port than asked, or does not answer: it is ours
		// (our data folder), so it is stopped and started again.
		p.pid = pid
		if err := p.Down(ctx); err != nil {
			return fail(err)
		}
	}
	if err := p.init(ctx); err != nil {
		return fail(err)
	}
	if err := p.listen(&o); err != nil {
		return fail(err)
	}
	if err := p.Start(ctx); err != nil {
		return fail(err)
	}
	return p, nil
}

func (p *Postgres) data() string { return filepath.Join(p.Dir, "data") }

// LogFile is where the server writes its log.
func (p *Postgres) LogFile() string { return filepath.Join(p.Dir, "postgres.log") }

// DSN is the connection string of a database, as the superuser postgres.
func (p *Postgres) DSN(db string) string { return p.DSNAs("postgres", db) }

// DSNAs is the connection string of a database as another user.
func (p *Postgres) DSNAs(user, db string) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", user, p.Port, db)
}

// PID is the postmaster's process id, 0 when it is down.
func (p *Postgres) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Exec runs SQL (several statements if need be) on a database.
func (p *Postgres) Exec(ctx context.Context, db, sql string) error {
	c, err := pgconn.Connect(ctx, p.DSN(db))
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, sql).ReadAll()
	return errors.Join(err, c.Close(context.WithoutCancel(ctx)))
}

// CreateDatabase makes a database unless it exists.
func (p *Postgres) CreateDatabase(ctx context.Context, db string) error {
	err := p.Exec(ctx, "postgres", `CREATE DATABASE "`+strings.ReplaceAll(db, `"`, `""`)+`"`)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42P04" { // duplicate_database
		return nil
	}
	return err
}

// left finds a postmaster that is alive on our data folder.
func (p *Postgres) left() (pid, port int) {
	b, err := os.ReadFile(filepath.Join(p.data(), "postmaster.pid"))
	if err != nil {
		return 0, 0
	}
	// Lines: process id, data folder, start time, port, … (Postgres:
	// src/include/utils/pidfile.h).
	lines := strings.Split(string(b), "\n")
	if pid, err = strconv.Atoi(strings.TrimSpace(lines[0])); err != nil || pid <= 1 || !alive(pid) {
		return 0, 0
	}
	// The number may be that of another process by now.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil && !bytes.Contains(cmdline, []byte(p.data())) {
		return 0, 0
	}
	if len(lines) > 3 {
		if n, err := strconv.Atoi(strings.TrimSpace(lines[3])); err == nil {
			port = n
		}
	}
	return pid, port
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// adopt takes over a running server if it answers and is on the port asked for.
func (p *Postgres) adopt(ctx context.Context, pid, port, want int) error {
	if want != 0 && want != port {
		return fmt.Errorf("the Postgres left behind listens on port %d, not %d", port, want)
	}
	p.Port = port
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second) // it may be in recovery
	defer cancel()
	err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		dir, err := p.ask(ctx, "SHOW data_directory")
		if err == nil && dir != p.data() {
			return false, fmt.Errorf("the server on port %d keeps its data in %s", port, dir)
		}
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	p.pid, p.Adopted = pid, true
	return nil
}

// ask gives the first column of the first row.
func (p *Postgres) ask(ctx context.Context, sql string) (string, error) {
	return askAt(ctx, p.DSN("postgres"), sql)
}

func askAt(ctx context.Context, dsn, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer c.Close(ctx)
	rs, err := c.Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	if len(rs) == 0 || len(rs[0].Rows) == 0 {
		return "", nil
	}
	return string(rs[0].Rows[0][0]), nil
}

// init makes the cluster unless there is one.
func (p *Postgres) init(ctx context.Context) error {
	version, err := os.ReadFile(filepath.Join(p.data(), "PG_VERSION"))
	if err == nil {
		major, _, _ := strings.Cut(p.Version, ".")
		if got := strings.TrimSpace(string(version)); got != major {
			return fmt.Errorf("%s holds the data of Postgres %s, asked for %s", p.data(), got, p.Version)
		}
		return nil
	}
	// Half a cluster (killed during initdb) has no PG_VERSION or is not
	// complete: initdb works beside it and the result is moved into place.
	tmp := p.data() + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "bin", "initdb"), "-D", tmp, "-U", "postgres",
		"--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
	cmd.SysProcAttr = postgresProcess()
	cmd.Env = p.env()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running initdb of Postgres %s: %w\n%s", p.Version, err, bytes.TrimSpace(out))
	}
	return os.Rename(tmp, p.data())
}

func (p *Postgres) env() []string {
	env := []string{"TZ=UTC", "LC_ALL=C", "PATH=" + os.Getenv("PATH"), "HOME=" + p.Dir}
	return append(env, "LD_LIBRARY_PATH="+filepath.Join(p.bin, "lib"))
}

// Start starts a server that was stopped or killed, on the port it had.
func (p *Postgres) Start(ctx context.Context) error {
	fixed := p.Port != 0
	var err error
	for try, began := 1, time.Now(); ; try++ {
		if !fixed {
			ports, err := FreePorts(1)
			if err != nil {
				return err
			}
			p.Port = ports[0]
		}
		err = p.start(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case (errors.Is(err, errTaken) && p.killed.Load() || strings.Contains(err.Error(), "shared memory block")) && time.Since(began) < orphansLive:
			// Children of a killed postmaster are not gone yet, and one may have
			// been forked so late that it still has its parent's sockets.
		case fixed || try == 5:
			return err
		default:
			continue // the port was taken between our looking and its binding
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// orphansLive is how long a killed postmaster's children may live on: each ends
// when it next looks whether its parent is there.
const orphansLive = time.Minute

var errTaken = errors.New("is taken by another program")

func (p *Postgres) start(ctx context.Context) error {
	if other, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", p.Port), time.Second); err == nil {
		return errors.Join(fmt.Errorf("starting Postgres %s: port %d %w", p.Version, p.Port, errTaken), other.Close())
	}
	log, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	from, err := log.Seek(0, 2)
	if err != nil {
		return err
	}
	params := map[string]string{
		"port": strconv.Itoa(p.Port), "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
		"wal_level": "logical", "max_wal_senders": "20", "max_replication_slots": "20", "max_connections": "100",
		"timezone": "UTC", "log_timezone": "UTC", "shared_buffers": "128MB", "logging_collector": "off",
	}
	for k, v := range p.params {
		params[k] = v
	}
	args := append([]string{"-D", p.data()}, settings(params)...)
	// No CommandContext: ctx bounds the start, not the server's life.
	cmd := exec.Command(filepath.Join(p.bin, "bin", "postgres"), args...)
	cmd.SysProcAttr = postgresProcess()
	cmd.Env = p.env()
	cmd.Stdout, cmd.Stderr = log, log
	done := make(chan struct{})          // closed with the server; Stop and Kill wait for it
	ended := func(error) { close(done) } // how it ended shows in its log
	if p.outlives {
		if err = cmd.Start(); err == nil {
			go func() { ended(cmd.Wait()) }()
		}
	} else {
		err = StartChild(cmd, ended)
	}
	if err != nil {
		return fmt.Errorf("starting Postgres %s: %w", p.Version, err)
	}
	p.mu.Lock()
	p.pid, p.done, p.Adopted = cmd.Process.Pid, done, false
	p.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, StartWithin)
	defer cancel()
	err = poll(ctx, 10*time.Millisecond, func() (bool, error) {
		select {
		case <-done:
			return false, errors.New("it ended")
		default:
		}
		_, err := p.ask(ctx, "SELECT 1")
		return err == nil, nil
	})
	if err != nil {
		kill := p.kill()
		return errors.Join(fmt.Errorf("starting Postgres %s: %w; its log ends: %s", p.Version, err, p.logSince(from)), kill)
	}
	p.killed.Store(false)
	return nil
}

func settings(params map[string]string) []string {
	names := make([]string, 0, len(params))
	for k := range params {
		names = append(names, k)
	}
	sort.Strings(names)
	var args []string
	for _, k := range names {
		args = append(args, "-c", k+"="+params[k])
	}
	return args
}

func (p *Postgres) logSince(from int64) string {
	b, err := os.ReadFile(p.LogFile())
	if err != nil || int64(len(b)) <= from {
		return "(empty)"
	}
	b = bytes.TrimSpace(b[from:])
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return string(b)
}

// Down stops the server (fast shutdown: sessions are ended, data is safe) and
// keeps its data; Start brings it up again. A server that is not down after 10
// seconds, a walsender with a stuck client for example, is ended at once and
// recovers at its next start.
func (p *Postgres) Down(ctx context.Context) error {
	if err := p.signal(syscall.SIGINT); err != nil {
		return err
	}
	fast, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if p.wait(fast) == nil {
		return nil
	}
	if err := p.signal(syscall.SIGQUIT); err != nil {
		return err
	}
	quick, cancel2 := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel2()
	if p.wait(quick) == nil {
		return nil
	}
	return p.Kill()
}

// Stop is Down, and removes a temporary folder.
func (p *Postgres) Stop() error {
	err := p.Down(context.Background())
	if p.sockets != "" && p.sockets != p.Dir && err == nil {
		err = os.RemoveAll(p.sockets)
	}
	if p.temp && err == nil {
		err = os.RemoveAll(p.Dir)
	}
	return err
}

// Kill ends the server as a crash does (SIGKILL); Start recovers it.
func (p *Postgres) Kill() error {
	p.killed.Store(true)
	return p.kill()
}

func (p *Postgres) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return p.wait(ctx)
}

func (p *Postgres) signal(s syscall.Signal) error {
	pid := p.PID()
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("sending %s to Postgres (process %d): %w", s, pid, err)
	}
	return nil
}

// wait returns when the postmaster is gone.
func (p *Postgres) wait(ctx context.Context) error {
	p.mu.Lock()
	pid, done := p.pid, p.done
	p.mu.Unlock()
	if pid == 0 {
		return nil
	}
	var err error
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			err = ctx.Err()
		}
	} else {
		err = poll(ctx, 20*time.Millisecond, func() (bool, error) { return !alive(pid), nil })
	}
	if err != nil {
		return fmt.Errorf("waiting for Postgres (process %d) to end: %w", pid, err)
	}
	p.mu.Lock()
	p.pid, p.done = 0, nil
	p.mu.Unlock()
	return nil
}

// poll asks until the answer is yes, an error, or ctx ends.
func poll(ctx context.Context, every time.Duration, ask func() (bool, error)) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		yes, err := ask()
		if yes || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
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
