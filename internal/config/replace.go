// Replace: a file whose text is exchanged as a whole, or not at all.

package config

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace gives the file at path, which is there, another text. Whoever is killed
// in the middle leaves the old one: the new one is written beside it and takes its
// name once it is complete, with its mode. A link leads where it led before.
func Replace(path string, text []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	was, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	// Without the sync the name may outlive a power failure, and the text not.
	err = errors.Join(err, f.Chmod(was.Mode().Perm()), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
