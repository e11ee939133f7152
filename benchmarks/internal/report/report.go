// Package report keeps the file of results in sections, each of which one
// benchmark writes and no other touches. A section stands between two comments
// of Markdown that bear its name:
//
//	<!-- drain -->
//	…
//	<!-- /drain -->
package report

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const title = "# Results\n\nEach section is written by the benchmark that it names. Read the figures of a shared machine as ratios.\n"

// Replace puts text into a section of the file at path, in the place of what
// the section held; a section that is not there yet is added at the end, a file
// that is not there is made. What lies outside the section stays as it is. The
// file is replaced whole, so that a reader never sees half of one; two writers
// at the same time are not guarded against each other. Errors: those of the
// file system, and one for a section that is opened but not closed, or twice
// there.
func Replace(path, section, text string) error {
	have, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		have = []byte(title)
	case err != nil:
		return err
	}
	all, err := replace(string(have), section, text)
	if err != nil {
		return fmt.Errorf("writing section %q of %s: %w", section, path, err)
	}
	if all == string(have) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(all)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func replace(have, section, text string) (string, error) {
	open, end := "<!-- "+section+" -->\n", "<!-- /"+section+" -->\n"
	body := open + "\n" + strings.Trim(text, "\n") + "\n\n" + end
	if n := strings.Count(have, open); n != strings.Count(have, end) || n > 1 {
		return "", errors.New("its two comments are not both there, once")
	} else if n == 0 {
		return strings.TrimRight(have, "\n") + "\n\n" + body, nil
	}
	before, rest, _ := strings.Cut(have, open)
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		return "", errors.New("it is closed before it is opened")
	}
	return before + body + after, nil
}
