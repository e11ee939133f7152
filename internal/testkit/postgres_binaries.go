// Where the Postgres binaries come from: the artefacts of the embedded-postgres
// project, unpacked once per user.

package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// The versions of Postgres that tallywire is tested with.
const (
	Postgres15 = "15.19.0"
	Postgres16 = "16.15.0"
	Postgres17 = "17.11.0"
	Postgres18 = "18.6.0"
)

// PostgresBinaries gives the folder that holds bin, lib and share of a Postgres
// version. It is fetched and unpacked under the user's cache folder at first
// use, and shared by all runs.
func PostgresBinaries(ctx context.Context, version string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache folder: %w", err)
	}
	parent := filepath.Join(cache, "tallywire", "postgres")
	dir := filepath.Join(parent, version+"-"+runtime.GOOS+"-"+runtime.GOARCH)
	if hasPostgres(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", fmt.Errorf("unpacking Postgres %s: %w", version, err)
	}
	tmp, err := os.MkdirTemp(parent, "unpack-")
	if err != nil {
		return "", fmt.Errorf("unpacking Postgres %s: %w", version, err)
	}
	defer os.RemoveAll(tmp)
	if err := fetchPostgres(ctx, version, tmp); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(tmp, "postgres"), dir); err != nil && !hasPostgres(dir) { // another process may have been faster
		return "", fmt.Errorf("unpacking Postgres %s: %w", version, err)
	}
	return dir, nil
}

func hasPostgres(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "bin", "postgres"))
	return err == nil
}

// fetchPostgres lets the library fetch, check and unpack a version into
// dir/postgres. It has no call for that alone, and its server refuses root, so
// it is asked to start one where no data can be: below a file.
func fetchPostgres(ctx context.Context, version, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	none := filepath.Join(dir, "none")
	if err := os.WriteFile(none, nil, 0o600); err != nil {
		return fmt.Errorf("unpacking Postgres %s: %w", version, err)
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	bin := filepath.Join(dir, "postgres")
	server := embedded.NewDatabase(embedded.DefaultConfig().
		Version(embedded.PostgresVersion(version)).Port(uint32(ports[0])).Logger(io.Discard).
		CachePath(filepath.Join(dir, "cache")).RuntimePath(filepath.Join(dir, "run")).
		BinariesPath(bin).DataPath(filepath.Join(none, "data")))
	switch err := server.Start(); {
	case err == nil:
		return errors.Join(errors.New("BUG: Postgres started below a file"), server.Stop())
	case !hasPostgres(bin):
		return fmt.Errorf("fetching Postgres %s: %w", version, err)
	}
	return nil
}
