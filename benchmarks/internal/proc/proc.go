// Package proc is what Linux says of processes (proc(5)).
package proc

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// CPU is the user and system time of a process so far (fields 14 and 15 of its stat,
// in ticks of 10 ms); 0 when it is gone.
func CPU(pid int) time.Duration { return ticks(pid, 11, 12) }

// Family is the CPU time of a process, of its children that are there, and of those
// that have ended (fields 16 and 17): a server with a process per connection.
func Family(pid int) time.Duration {
	sum := ticks(pid, 11, 12, 13, 14)
	for _, c := range Children(pid) {
		sum += CPU(c)
	}
	return sum
}

// ticks sums fields of a process' stat, counted from that behind its name.
func ticks(pid int, fields ...int) (sum time.Duration) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	for _, i := range fields {
		if i >= len(f) {
			return 0
		}
		n, err := strconv.ParseInt(string(f[i]), 10, 64)
		if err != nil {
			return 0
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}

// Busy is the CPU time that all processes of the machine have taken (the first line
// of stat: user, nice, system, idle, iowait, irq, softirq).
func Busy() time.Duration {
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

// Children are the processes that a process has started.
func Children(pid int) []int {
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

// Peak is the largest resident set of a process, octets.
func Peak(pid int) int64 { return field(pid, "status", "VmHWM") << 10 }

// Written is how many octets a process has handed to write().
func Written(pid int) int64 { return field(pid, "io", "wchar") }
