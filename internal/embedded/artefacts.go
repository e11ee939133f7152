// Where the servers come from that are not ours: fetched once, into the user's
// cache, and shared by the program, its tests and the benchmarks.

package embedded

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// progress is where a fetch says what takes the time.
var progress io.Writer = os.Stderr

// Cached gives a folder of the user's cache that fill has filled once; whoever
// comes meanwhile waits. what names the contents for people.
func Cached(what, name string, fill func(into string) error) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding a cache folder for %s: %w", what, err)
	}
	parent := filepath.Join(cache, "tallywire")
	dir := filepath.Join(parent, name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("making a cache folder for %s: %w", what, err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("locking %s: %w", dir, err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking %s: %w", dir, err)
	}
	if _, err := os.Stat(dir); err == nil { // another process was first
		return dir, nil
	}
	fetched, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(name)+"-fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fetched)
	done := report(what)
	if err := fill(fetched); err != nil {
		return "", err
	}
	if err := os.Rename(fetched, dir); err != nil {
		return "", fmt.Errorf("keeping %s: %w", dir, err)
	}
	done()
	return dir, nil
}

// report says that something is fetched, and how long it took once it is.
func report(what string) (done func()) {
	began := time.Now()
	fmt.Fprintf(progress, "fetching %s (once; it stays in the user's cache)\n", what)
	return func() { fmt.Fprintf(progress, "fetched %s in %.0f s\n", what, time.Since(began).Seconds()) }
}
