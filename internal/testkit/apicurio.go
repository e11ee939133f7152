// Apicurio: a real schema registry of another maker, run from its Maven
// artefact, for its Confluent-compatible API.

package testkit

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tallywire/tallywire/internal/embedded"
)

// ApicurioVersion is the Apicurio Registry that StartApicurio runs.
const ApicurioVersion = "2.6.13.Final"

// Apicurio is a registry that was started here; it keeps its schemas in memory
// and does not outlive this process.
type Apicurio struct {
	Port int
	dir  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the JVM has ended
}

// URL is the address of its Confluent-compatible API, for registry.url.
func (a *Apicurio) URL() string { return a.base() + "/apis/ccompat/v7" }

// CoreURL is the address of its own API, for its own converters.
func (a *Apicurio) CoreURL() string { return a.base() + "/apis/registry/v2" }

func (a *Apicurio) base() string {
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(a.Port))
}

// StartApicurio starts a registry on a free port of 127.0.0.1 and returns when
// it answers; ctx bounds the start only. The caller stops it. The first start
// on a machine fetches the program (142 MB).
func StartApicurio(ctx context.Context) (*Apicurio, error) {
	if _, err := exec.LookPath("java"); err != nil {
		return nil, errors.New("Apicurio needs the program java, version 17 or newer: install openjdk-17-jre-headless")
	}
	home, err := apicurioHome(ctx)
	if err != nil {
		return nil, err
	}
	ports, err := embedded.FreePorts(1)
	if err != nil {
		return nil, err
	}
	a := &Apicurio{Port: ports[0], done: make(chan struct{})}
	if a.dir, err = os.MkdirTemp("", "tallywire-apicurio-"); err != nil {
		return nil, fmt.Errorf("making a folder for Apicurio: %w", err)
	}
	if err := a.start(ctx, home); err != nil {
		return nil, errors.Join(err, os.RemoveAll(a.dir))
	}
	return a, nil
}

func (a *Apicurio) start(ctx context.Context, home string) error {
	log, err := os.OpenFile(filepath.Join(a.dir, "apicurio.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	a.cmd = exec.Command("java", "-Xms256m", "-Xmx512m",
		"-Dquarkus.http.host=127.0.0.1", "-Dquarkus.http.port="+strconv.Itoa(a.Port),
		"-jar", filepath.Join(home, "apicurio-registry-app-"+ApicurioVersion+"-runner.jar"))
	a.cmd.Stdout, a.cmd.Stderr, a.cmd.Dir = log, log, a.dir
	// How it ended is of no interest: it is only ever killed.
	err = embedded.StartChild(a.cmd, func(error) {
		defer close(a.done)
		defer log.Close()
	})
	if err != nil {
		return errors.Join(fmt.Errorf("starting Apicurio: %w", err), log.Close())
	}
	if err := a.awaitReady(ctx); err != nil {
		return errors.Join(err, a.kill())
	}
	return nil
}

func (a *Apicurio) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, embedded.StartWithin)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL()+"/subjects", nil)
		if err != nil {
			return err
		}
		if res, err := client.Do(r); err == nil {
			if err := res.Body.Close(); err != nil {
				return err
			}
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-a.done:
			return fmt.Errorf("Apicurio ended while starting: %s", a.tail())
		case <-ctx.Done():
			return fmt.Errorf("Apicurio does not answer at %s: %w: %s", a.URL(), ctx.Err(), a.tail())
		case <-tick.C:
		}
	}
}

func (a *Apicurio) tail() string {
	text, err := os.ReadFile(filepath.Join(a.dir, "apicurio.log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// Stop ends the registry and removes its folder.
func (a *Apicurio) Stop() error { return errors.Join(a.kill(), os.RemoveAll(a.dir)) }

func (a *Apicurio) kill() error {
	select {
	case <-a.done: // its id may be another's by now
		return nil
	default:
	}
	if err := a.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping Apicurio: %w", err)
	}
	<-a.done
	return nil
}

// NewApicurio gives a registry to one test and stops it with the test.
func NewApicurio(tb TB) *Apicurio {
	tb.Helper()
	a, err := StartApicurio(tb.Context())
	if err != nil {
		tb.Fatalf("starting Apicurio: %v", err)
	}
	tb.Cleanup(func() {
		if err := a.Stop(); err != nil {
			tb.Errorf("stopping Apicurio: %v", err)
		}
	})
	return a
}

// apicurioHome gives the unpacked program, in the user's cache. Maven fetches
// it once; processes that come meanwhile wait.
func apicurioHome(ctx context.Context) (string, error) {
	return embedded.Cached("Apicurio "+ApicurioVersion+", 142 MB", "apicurio-"+ApicurioVersion, func(into string) error {
		mvn, err := exec.LookPath("mvn")
		if err != nil {
			return errors.New("Apicurio is fetched with the program mvn: install maven")
		}
		cmd := exec.CommandContext(ctx, mvn, "-q", "-B", "-C",
			"org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy",
			"-Dartifact=io.apicurio:apicurio-registry-app:"+ApicurioVersion+":tar.gz:all", "-DoutputDirectory="+into)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("fetching Apicurio with Maven: %w\n%s", err, strings.TrimSpace(string(out)))
		}
		archive := filepath.Join(into, "apicurio-registry-app-"+ApicurioVersion+"-all.tar.gz")
		if err := unpackGzip(archive, into); err != nil {
			return fmt.Errorf("unpacking Apicurio: %w", err)
		}
		return os.Remove(archive)
	})
}

func unpackGzip(archive, into string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(into)
	if err != nil {
		return err
	}
	defer root.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(filepath.Clean(h.Name), 0o755)
		case tar.TypeReg:
			err = unpackFile(root, filepath.Clean(h.Name), r)
		}
		if err != nil {
			return err
		}
	}
}

func unpackFile(root *os.Root, name string, from io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.Create(name)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, from); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}
