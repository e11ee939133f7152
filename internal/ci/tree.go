// What git knows: which commit this is, and what changed.

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func git(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "git", args...).Output()
	if err != nil {
		return "", fmt.Errorf("running git %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// tree is the id of what is in the working tree's tracked files, committed or
// not.
func tree(ctx context.Context) (string, error) {
	// A stash commit that nobody stores: its tree is that of the files.
	stash, err := git(ctx, "stash", "create")
	if err != nil {
		return "", err
	}
	if stash == "" {
		stash = "HEAD"
	}
	return git(ctx, "rev-parse", stash+"^{tree}")
}

// record is a file or folder that outlives checkouts of this clone.
func record(ctx context.Context, name string) (string, error) {
	dir, err := git(ctx, "rev-parse", "--path-format=absolute", "--git-common-dir")
	return filepath.Join(dir, name), err
}

// turn is a number that moves on with every commit, so that what CI runs a
// slice of has its turn.
func turn(ctx context.Context) (int, error) {
	n, err := git(ctx, "rev-list", "--count", "HEAD")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(n)
}

// changed are the folders of Go files that differ from a revision, with what is
// not committed or not tracked.
func changed(ctx context.Context, rev string) ([]string, error) {
	diff, err := git(ctx, "diff", "--name-only", "--diff-filter=d", rev, "--", "*.go")
	if err != nil {
		return nil, err
	}
	untracked, err := git(ctx, "ls-files", "--others", "--exclude-standard", "--", "*.go")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, f := range strings.Fields(diff + "\n" + untracked) {
		if _, err := os.Stat(f); err == nil && !strings.Contains(f, "testdata/") {
			dirs = append(dirs, path.Dir(f))
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs), nil
}

// base is where the work in hand began: main, or the commit before when this is
// main.
func base(ctx context.Context) string {
	if b, err := git(ctx, "merge-base", "HEAD", "main"); err == nil {
		if head, err := git(ctx, "rev-parse", "HEAD"); err == nil && head != b {
			return b
		}
	}
	if _, err := git(ctx, "rev-parse", "HEAD^1"); err == nil {
		return "HEAD^1"
	}
	return "HEAD"
}
