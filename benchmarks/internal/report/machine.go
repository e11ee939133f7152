package report

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Processor is the model of this machine's processor as Linux names it; empty
// where it does not.
func Processor() string { return value("/proc/cpuinfo", "model name") }

// Machine says what something was measured on: system, cores, processor and
// memory, the last two where Linux tells them.
func Machine() string {
	s := fmt.Sprintf("%s/%s, %d cores", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	if m := Processor(); m != "" {
		s += " (" + m + ")"
	}
	if kb, err := strconv.Atoi(strings.TrimSuffix(value("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		s += fmt.Sprintf(", %d GiB", (kb+1<<19)>>20)
	}
	return s
}

// value is the first one of a key in a file of "key: value" lines.
func value(file, key string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
