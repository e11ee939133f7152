// Proc: what Linux says of a process, and how a process is started so that it
// ends with us.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cpu is the user and system time of a process so far (proc(5): fields 14 and
// 15 of stat, in ticks of 10 ms); 0 when it is gone.
func cpu(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 13 {
		return 0
	}
	user, err1 := strconv.ParseInt(string(f[11]), 10, 64)
	sys, err2 := strconv.ParseInt(string(f[12]), 10, 64)
	if err1 != nil || err2 != nil {
		return 0
	}
	return time.Duration(user+sys) * 10 * time.Millisecond
}

// busy is the CPU time that all processes of the machine have taken (proc(5):
// the first line of stat: user, nice, system, idle, iowait, irq, softirq).
func busy() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	var sum int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		if i >= len(f) {
			return 0
		}
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0
		}
		sum += n
	}
	return time.Duration(sum) * 10 * time.Millisecond
}

// children are the processes that a process has started.
func children(pid int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var out []int
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// field is a number of /proc/PID/<file>, 0 when there is none.
func field(pid int, file, name string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && k == name {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// peak is the largest resident set of a process, octets.
func peak(pid int) int64 { return field(pid, "status", "VmHWM") << 10 }

// written is how many octets a process has handed to write().
func written(pid int) int64 { return field(pid, "io", "wchar") }

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
