// Where the Postgres binaries come from: the artefacts of the embedded-postgres
// project (io.zonky.test.postgres on Maven Central), unpacked once per user.

package testkit

import (
	"archive/tar"
	"archive/zip"
	"bytes"
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
	"strings"

	"github.com/xi2/xz"
)

// The versions of Postgres that tallywire is tested with.
const (
	Postgres15 = "15.19.0"
	Postgres16 = "16.15.0"
	Postgres17 = "17.11.0"
	Postgres18 = "18.6.0"
)

const mavenCentral = "https://repo1.maven.org/maven2"

// maxJar bounds a download, in bytes; the artefacts are about 15 MB.
const maxJar = 128 << 20

// PostgresBinaries gives the folder that holds bin, lib and share of a Postgres
// version. It is unpacked under the user's cache folder at first use, from the
// local Maven repository or else from Maven Central, and shared by all runs.
func PostgresBinaries(ctx context.Context, version string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache folder: %w", err)
	}
	platform := postgresPlatform()
	dir := filepath.Join(cache, "tallywire", "postgres", version+"-"+platform)
	if _, err := os.Stat(filepath.Join(dir, "bin", "postgres")); err == nil {
		return dir, nil
	}
	jar, err := postgresJar(ctx, platform, version)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("unpacking Postgres %s: %w", version, err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "unpack-")
	if err != nil {
		return "", fmt.Errorf("unpacking Postgres %s: %w", version, err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	if err := unpackJar(jar, tmp); err != nil {
		return "", errors.Join(fmt.Errorf("unpacking Postgres %s: %w", version, err), os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, dir); err != nil {
		// Another process was faster; its files are the same.
		if _, there := os.Stat(filepath.Join(dir, "bin", "postgres")); there == nil {
			return dir, os.RemoveAll(tmp)
		}
		return "", errors.Join(fmt.Errorf("unpacking Postgres %s: %w", version, err), os.RemoveAll(tmp))
	}
	return dir, nil
}

// postgresPlatform is the artefacts' name of this machine.
func postgresPlatform() string {
	arch := runtime.GOARCH
	if arch == "arm64" {
		arch = "arm64v8"
	}
	if _, err := os.Stat("/etc/alpine-release"); err == nil && runtime.GOOS == "linux" {
		arch += "-alpine"
	}
	return runtime.GOOS + "-" + arch
}

func postgresJar(ctx context.Context, platform, version string) ([]byte, error) {
	artefact := "embedded-postgres-binaries-" + platform
	path := "io/zonky/test/postgres/" + artefact + "/" + version + "/" + artefact + "-" + version + ".jar"
	if home, err := os.UserHomeDir(); err == nil {
		if jar, err := os.ReadFile(filepath.Join(home, ".m2", "repository", filepath.FromSlash(path))); err == nil {
			return jar, nil
		}
	}
	url := mavenCentral + "/" + path
	jar, err := fetch(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("downloading Postgres %s for %s: %w", version, platform, err)
	}
	want, err := fetch(ctx, url+".sha256")
	if err != nil {
		return nil, fmt.Errorf("downloading the checksum of Postgres %s: %w", version, err)
	}
	sum := sha256.Sum256(jar)
	if got := hex.EncodeToString(sum[:]); got != strings.ToLower(strings.TrimSpace(string(want))) {
		return nil, fmt.Errorf("%s: checksum is %s, the repository says %s", url, got, bytes.TrimSpace(want))
	}
	return jar, nil
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxJar+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", url, err)
	}
	if len(b) > maxJar {
		return nil, fmt.Errorf("%s: more than %d bytes", url, maxJar)
	}
	return b, nil
}

// unpackJar unpacks the one .txz of the jar into dir.
func unpackJar(jar []byte, dir string) error {
	z, err := zip.NewReader(bytes.NewReader(jar), int64(len(jar)))
	if err != nil {
		return err
	}
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, ".txz") {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		return errors.Join(untarXZ(r, dir), r.Close())
	}
	return errors.New("no .txz in the artefact")
}

func untarXZ(r io.Reader, dir string) error {
	x, err := xz.NewReader(r, 0)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for t := tar.NewReader(x); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(filepath.FromSlash(h.Name))
		if name == "." {
			continue
		}
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, name)
		case tar.TypeReg:
			err = writeFile(root, name, os.FileMode(h.Mode).Perm(), t)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

func writeFile(root *os.Root, name string, mode os.FileMode, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
