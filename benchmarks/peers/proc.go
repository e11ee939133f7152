// Proc: how a process is started so that it ends with us.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// child is a process that was started here.
type child struct {
	name  string
	pid   int
	log   string
	began time.Time
	cmd   *exec.Cmd
	done  chan struct{} // closed when it has ended
	err   error         // how; after done
}

// launch starts a program, its output in <tmp>/<name>.log.
func (w *world) launch(name string, env []string, args ...string) (*child, error) {
	c := &child{name: name, log: filepath.Join(w.tmp, name+".log"), done: make(chan struct{})}
	log, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	// No CommandContext: whoever launches it stops it, and measures first.
	c.cmd = exec.CommandContext(context.Background(), args[0], args[1:]...)
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Dir, c.cmd.Stdout, c.cmd.Stderr = w.tmp, log, log
	endWithUs(c.cmd)
	started := make(chan error, 1)
	go func() { // ends with the process; stop waits for it
		// The kernel ends the process when the thread that forked it ends, so
		// the thread waits with it.
		runtime.LockOSThread()
		defer close(c.done)
		defer log.Close()
		c.began = time.Now()
		err := c.cmd.Start()
		if err == nil {
			c.pid = c.cmd.Process.Pid
		}
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return c, nil
}

// ended says whether it has ended by itself, and with what in its log.
func (c *child) ended() error {
	select {
	case <-c.done:
		return fmt.Errorf("%s ended: %w\n%s", c.name, c.err, c.tail())
	default:
		return nil
	}
}

func (c *child) tail() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// stop ends it as an operator would: SIGTERM, and after ten seconds SIGKILL.
func (c *child) stop() error { return c.end(syscall.SIGTERM, syscall.SIGKILL) }

// kill ends it at once: there is nothing to save.
func (c *child) kill() error { return c.end(syscall.SIGKILL) }

func (c *child) end(signals ...syscall.Signal) error {
	for _, s := range signals {
		if err := c.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stopping %s: %w", c.name, err)
		}
		select {
		case <-c.done:
			return nil
		case <-time.After(10 * time.Second):
		}
	}
	<-c.done
	return nil
}
