package config

import (
	"os"
	"path/filepath"
	"testing"
)

// Lost if this fails: a kill in the middle leaves half of what somebody wrote.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	file, before, link := filepath.Join(dir, "x.yml"), filepath.Join(dir, "before.yml"), filepath.Join(dir, "link.yml")
	if err := os.WriteFile(file, []byte("old\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(file, before); err != nil { // another name of what must stay whole
		t.Fatal(err)
	}
	if err := os.Symlink("x.yml", link); err != nil {
		t.Fatal(err)
	}
	is := func(name, want string) {
		t.Helper()
		if text, err := os.ReadFile(name); string(text) != want {
			t.Errorf("%s holds %q, want %q (%v)", filepath.Base(name), text, want, err)
		}
	}
	if err := Replace(link, []byte("new\n")); err != nil {
		t.Fatal(err)
	}
	is(file, "new\n")
	is(before, "old\n")
	if to, err := os.Readlink(link); to != "x.yml" {
		t.Errorf("the link leads to %q (%v)", to, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 {
		t.Errorf("its mode is %v (%v)", info.Mode(), err)
	}

	// What cannot take the name leaves nothing beside it.
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(filepath.Join(dir, "dir"), nil); err == nil {
		t.Error("a folder is replaced")
	}
	if err := Replace(filepath.Join(dir, "none"), nil); !os.IsNotExist(err) {
		t.Errorf("a file that is not there: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left beside it: %q", left)
	}
}
