// Redis: a real redis-server on a free port.

package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisOptions are how a Redis server is started.
type RedisOptions struct {
	Addr string   // "host:port"; "" is a free port of 127.0.0.1
	Dir  string   // its working directory, kept; "" is a temporary one, removed by Stop
	Args []string // further arguments, e.g. "--appendonly", "yes"
}

// Redis is a running redis-server. It keeps nothing on disk unless Args say so.
// Not safe for concurrent use.
type Redis struct {
	Addr string
	Dir  string

	opt  RedisOptions
	temp bool
	cmd  *exec.Cmd
	done chan error // gives the end of the process once
}

// PID is the server's process id, 0 when it was never started.
func (r *Redis) PID() int {
	if r.cmd == nil || r.cmd.Process == nil {
		return 0
	}
	return r.cmd.Process.Pid
}

// StartRedis starts redis-server and returns when it answers. A program that is
// not installed is an error that says what to install.
func StartRedis(ctx context.Context, opt RedisOptions) (*Redis, error) {
	r := &Redis{Addr: opt.Addr, Dir: opt.Dir, opt: opt}
	if r.Dir == "" {
		dir, err := os.MkdirTemp("", "tallywire-redis-")
		if err != nil {
			return nil, fmt.Errorf("making a folder for Redis: %w", err)
		}
		r.Dir, r.temp = dir, true
	}
	if err := r.Start(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

// Start starts the server again after Kill or Stop, on the same port and with
// the same folder.
func (r *Redis) Start(ctx context.Context) error {
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		return errors.New("redis-server is not installed: install it (Debian, Ubuntu: apt-get install redis-server; macOS: brew install redis), or leave redis.addr out for the embedded one")
	}
	// Between finding a free port and its use another process may take it:
	// then the server ends at once, and another port is tried.
	for try := 0; ; try++ {
		addr := r.Addr
		if addr == "" {
			if addr, err = FreeAddr(); err != nil {
				return err
			}
		}
		err = r.launch(ctx, bin, addr)
		if err == nil {
			r.Addr = addr
			return nil
		}
		if r.Addr != "" || try == 4 || ctx.Err() != nil {
			return err
		}
	}
}

func (r *Redis) launch(ctx context.Context, bin, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("reading the address of Redis %q: %w", addr, err)
	}
	dir, err := filepath.Abs(r.Dir)
	if err != nil {
		return fmt.Errorf("finding the folder of Redis: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the folder of Redis: %w", err)
	}
	args := append([]string{
		"--bind", host, "--port", port, "--dir", dir, "--save", "", "--maxmemory-policy", "noeviction",
		"--daemonize", "no", "--logfile", filepath.Join(dir, "redis.log"),
	}, r.opt.Args...)
	if _, err := EndLeftBehind(ctx, dir); err != nil {
		return err
	}
	cmd := exec.Command(bin, args...)
	cmd.Dir = dir
	done := make(chan error, 1)
	if err := StartChild(cmd, func(err error) { done <- err }); err != nil {
		return fmt.Errorf("starting redis-server: %w", err)
	}
	if err := noteServer(dir, cmd.Process.Pid, os.Getpid()); err != nil {
		kill := cmd.Process.Kill()
		<-done
		return errors.Join(err, kill)
	}

	c := redis.NewClient(&redis.Options{Addr: addr, Protocol: 2, DisableIdentity: true, MaxRetries: -1})
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, StartWithin)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		// Whoever answers must be the process that we started.
		info, err := c.Info(ctx, "server").Result()
		if err == nil && strings.Contains(info, "process_id:"+strconv.Itoa(cmd.Process.Pid)+"\r\n") {
			r.cmd, r.done = cmd, done
			return nil
		}
		select {
		case end := <-done:
			log, _ := os.ReadFile(filepath.Join(dir, "redis.log")) // for the message only
			return fmt.Errorf("redis-server on %s ended at once (%w): %s", addr, end, lastLines(string(log), 3))
		case <-ctx.Done():
			kill := cmd.Process.Kill()
			<-done
			return errors.Join(fmt.Errorf("waiting for redis-server on %s: %w", addr, ctx.Err()), kill)
		case <-tick.C:
		}
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// Kill ends the server as kill -9 does.
func (r *Redis) Kill() error { return r.end(syscall.SIGKILL) }

// Stop ends the server in order and removes a temporary folder.
func (r *Redis) Stop() error {
	err := r.end(syscall.SIGTERM)
	if r.temp {
		err = errors.Join(err, os.RemoveAll(r.Dir))
	}
	return err
}

func (r *Redis) end(sig syscall.Signal) error {
	if r.cmd == nil {
		return nil
	}
	cmd, done := r.cmd, r.done
	r.cmd = nil
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending redis-server: %w", err)
	}
	late := time.NewTimer(10 * time.Second)
	defer late.Stop()
	select {
	case <-done:
		return nil
	case <-late.C:
		err := cmd.Process.Kill()
		<-done
		return errors.Join(errors.New("redis-server did not stop within 10 s and was killed"), err)
	}
}

// FlushAll makes it forget everything, as an operator's mistake would.
func (r *Redis) FlushAll(ctx context.Context) error {
	c := redis.NewClient(&redis.Options{Addr: r.Addr, Protocol: 2, DisableIdentity: true})
	defer c.Close()
	if err := c.FlushAll(ctx).Err(); err != nil {
		return fmt.Errorf("flushing Redis at %s: %w", r.Addr, err)
	}
	return nil
}
