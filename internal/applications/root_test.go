package applications

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/embedded"
)

var (
	//go:embed testdata/root.sh
	makeRoot string
	//go:embed testdata/enter.sh
	enterRoot string
)

// root is a Debian system with one application in it, in the user's cache: it is
// made once, and never written to afterwards.
type root struct {
	name    string // with the application's version
	suite   string // of Debian
	install string // a shell script that is run in it
}

// open gives its folder, which is made when it is not there.
func (r *root) open(ctx context.Context) (string, error) {
	if err := needs(); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(makeRoot + r.suite + r.install))
	name := filepath.Join("roots", r.name+"-"+hex.EncodeToString(sum[:4]))
	return embedded.Cached("a Debian root with "+r.name, name, func(into string) error {
		// We have the lock: what others began, they do not go on with.
		old, err := filepath.Glob(into[:strings.LastIndex(into, "-")] + "-*")
		if err != nil {
			return err
		}
		for _, dir := range old {
			if dir != into {
				if err := os.RemoveAll(dir); err != nil {
					return fmt.Errorf("removing a root that was not finished: %w", err)
				}
			}
		}
		_, err = apart(ctx, r.install, makeRoot, into, r.suite)
		return err
	})
}

// needs names what is missing on this machine.
func needs() error {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		return errors.New("an application is installed in a Debian root, which needs Linux and root")
	}
	var missing []string
	for _, p := range [][2]string{{"apt-get", "apt, on Debian"}, {"debootstrap", "debootstrap"}, {"unshare", "util-linux"}} {
		if _, err := exec.LookPath(p[0]); err != nil {
			missing = append(missing, p[1])
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing: %s (Debian package names); deploy/needs.sh applications installs them", strings.Join(missing, ", "))
	}
	return nil
}

// apart runs a shell script with arguments and a standard input, in namespaces
// of its own, so that what it mounts and what it starts ends with it; and it
// ends with ctx and with this process, even when that is killed.
func apart(ctx context.Context, stdin, script string, args ...string) (string, error) {
	argv := append([]string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh"}, args...)
	cmd := exec.CommandContext(ctx, "unshare", argv...)
	cmd.WaitDelay = time.Minute
	var out, log bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &log
	ended := make(chan error, 1)
	if err := embedded.StartChild(cmd, func(err error) { ended <- err }); err != nil {
		return "", fmt.Errorf("starting unshare: %w", err)
	}
	if err := <-ended; err != nil {
		return "", fmt.Errorf("%w\n%s\n%s", err, ends(out.String()), ends(log.String()))
	}
	return out.String(), nil
}

// ends are a text's beginning and its end: some say first what is wrong, some
// last.
func ends(s string) string {
	const each = 2000
	if len(s) <= 2*each {
		return s
	}
	return s[:each] + "\n…\n" + s[len(s)-each:]
}

// application is an installed one at work on a database of the test's.
type application struct {
	dir string
	env []string // NAME=value
}

// enter runs a command in the root with a file of testdata as its standard input.
func (a *application) enter(t *testing.T, file string, command ...string) error {
	script, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		return err
	}
	began := time.Now()
	env := append([]string{a.dir, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/tmp"}, a.env...)
	if _, err := apart(t.Context(), string(script), enterRoot, append(env, command...)...); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	t.Logf("%s took %.0f s", file, time.Since(began).Seconds())
	return nil
}

// run is enter, which must succeed.
func (a *application) run(t *testing.T, file string, command ...string) {
	t.Helper()
	if err := a.enter(t, file, command...); err != nil {
		t.Fatal(err)
	}
}
