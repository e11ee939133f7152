// Where the servers and clients come from that are not ours: fetched once, into
// the user's cache, and shared by all tests, the demo and the benchmarks.

package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// PythonClient is the foreign Kafka client that the registry's tests read and
// write with, in pip's notation.
const PythonClient = "confluent-kafka[avro]==2.16.0"

// Artefacts fetches everything that the tests need, so that no test's deadline
// and no leak check has a download in it. What is there already costs nothing.
// All are tried; the error names each that failed.
func Artefacts(ctx context.Context) error {
	errs := []error{PostgresArtefacts(ctx)}
	_, err := kafkaLibs(ctx)
	errs = append(errs, err)
	_, err = apicurioHome(ctx)
	errs = append(errs, err)
	_, err = Python(ctx, PythonClient)
	return errors.Join(append(errs, err)...)
}

// PostgresArtefacts is Artefacts for the tests that need neither a JVM nor a
// foreign client.
func PostgresArtefacts(ctx context.Context) error {
	var errs []error
	for _, v := range []string{Postgres15, Postgres16, Postgres17, Postgres18} {
		_, err := PostgresBinaries(ctx, v)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// progress is where a fetch says what takes the time.
var progress io.Writer = os.Stderr

// cached gives a folder of the user's cache that fill has filled once; whoever
// comes meanwhile waits. what names the contents for people.
func cached(what, name string, fill func(into string) error) (string, error) {
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
