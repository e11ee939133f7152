// Where the Postgres binaries come from: the artefacts of the embedded-postgres
// project, unpacked once per user.

package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
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

	// Postgres17Stale caches in a session that a table is not published (rule C4).
	Postgres17Stale = "17.4.0"
)

// postgresSums are the SHA-256 of the archives, by version, system and
// processor. The library compares with a sum that lies beside the archive; these
// say that the archive is the one that was tested.
var postgresSums = map[string]string{
	"15.19.0-linux-amd64": "335beb3873692297bfa7712f09ef706114c28896e85ee83098f3aafaaa70b24a",
	"16.15.0-linux-amd64": "bda67fe32e23b049c25db4b98132d154a4fa824c44e1bd8fd01b0236f4676c24",
	"17.4.0-linux-amd64":  "4dee385e0e5ebae4467074a751bca4f88c214a6b533d4f0598f7837172be9587",
	"17.11.0-linux-amd64": "f044ba1009e9c7ed62a5a9a6f923ca6327fe4e80d8f6bf4f8887dbc59ac14bed",
	"18.6.0-linux-amd64":  "63999c2914366d62c68e51794e597588c336e75ed2958d53c558e8deca5e13fc",
}

// PostgresBinaries gives the folder that holds bin, lib and share of a Postgres
// version. It is fetched and unpacked under the user's cache folder at first
// use, and shared by all runs.
func PostgresBinaries(ctx context.Context, version string) (string, error) {
	name := version + "-" + runtime.GOOS + "-" + runtime.GOARCH
	dir, err := Cached("Postgres "+version+", 15 MB", filepath.Join("postgres", name), func(into string) error {
		return fetchPostgres(ctx, version, into, postgresSums[name])
	})
	if err != nil {
		return "", fmt.Errorf("fetching Postgres %s: %w", version, err)
	}
	return dir, nil
}

// fetchPostgres lets the library fetch, check and unpack a version into a
// folder. It has no call for that alone, and its server refuses root, so it is
// asked to start one where no data can be: below a file.
func fetchPostgres(ctx context.Context, version, into, sum string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "tallywire-unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	none := filepath.Join(tmp, "none")
	if err := os.WriteFile(none, nil, 0o600); err != nil {
		return err
	}
	ports, err := FreePorts(1)
	if err != nil {
		return err
	}
	server := embedded.NewDatabase(embedded.DefaultConfig().
		Version(embedded.PostgresVersion(version)).Port(uint32(ports[0])).Logger(io.Discard).
		CachePath(filepath.Join(tmp, "cache")).RuntimePath(filepath.Join(tmp, "run")).
		BinariesPath(into).DataPath(filepath.Join(none, "data")))
	err = server.Start()
	// The library asks with the default client, which would keep its connection
	// and the goroutines of it.
	http.DefaultClient.CloseIdleConnections()
	if err == nil {
		return errors.Join(errors.New("BUG: Postgres started below a file"), server.Stop())
	}
	if _, missing := os.Stat(filepath.Join(into, "bin", "postgres")); missing != nil {
		return err
	}
	return checkSum(filepath.Join(tmp, "cache"), sum)
}

// checkSum compares the archive in a folder with its SHA-256; "" is not
// compared.
func checkSum(dir, want string) error {
	archives, err := filepath.Glob(filepath.Join(dir, "*.txz"))
	if err != nil {
		return err
	}
	if len(archives) != 1 {
		return fmt.Errorf("looking for one archive in %s: found %d", dir, len(archives))
	}
	f, err := os.Open(archives[0])
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); want != "" && got != want {
		return fmt.Errorf("the archive has the SHA-256 %s, expected %s: it is not the one that was tested; fetch it again, or by another way to the registry", got, want)
	}
	return nil
}
