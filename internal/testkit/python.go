// Python: an interpreter with packages from PyPI, for foreign clients.

package testkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tallywire/tallywire/internal/embedded"
)

// Python gives the path of an interpreter that has the packages (pip's
// notation, with their versions). They are installed once, into the user's
// cache.
func Python(ctx context.Context, packages ...string) (string, error) {
	python, err := exec.LookPath("python3")
	if err != nil {
		return "", errors.New("a foreign client needs the program python3: install python3 and python3-venv")
	}
	sum := sha256.Sum256([]byte(strings.Join(packages, "\n")))
	// A virtual environment knows its own place, so it is made where it stays
	// and the folder that cached moves holds only the mark that it is whole.
	name := "python-" + hex.EncodeToString(sum[:4])
	mark, err := embedded.Cached("Python's "+strings.Join(packages, ", "), name, func(into string) error {
		venv := filepath.Join(filepath.Dir(into), name+"-venv")
		if out, err := exec.CommandContext(ctx, python, "-m", "venv", "--clear", venv).CombinedOutput(); err != nil {
			return fmt.Errorf("making a virtual environment: %w\n%s", err, out)
		}
		args := append([]string{"-m", "pip", "install", "-q", "--disable-pip-version-check"}, packages...)
		if out, err := exec.CommandContext(ctx, filepath.Join(venv, "bin", "python"), args...).CombinedOutput(); err != nil {
			return fmt.Errorf("installing %v: %w\n%s", packages, err, out)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(mark+"-venv", "bin", "python"), nil
}
