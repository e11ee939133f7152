// Which mutants a run is about.

package main

import (
	"context"
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
)

// others is how many mutants come along that the change is not about.
const others = 3

// named picks mutants by name, in the order they are asked for.
func named(all []*mutant, names []string) ([]*mutant, error) {
	var out []*mutant
	for _, n := range names {
		i := slices.IndexFunc(all, func(m *mutant) bool { return m.name == n })
		if i < 0 {
			return nil, fmt.Errorf("there is no mutant %s in %s", n, folder)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// changedSince picks the mutants that what changed since a revision is about,
// and some others, which change with each commit.
func changedSince(ctx context.Context, root, rev string, all []*mutant) ([]*mutant, error) {
	files, err := git(ctx, root, "diff", "--name-only", rev, "--")
	if err != nil {
		return nil, fmt.Errorf("listing what changed since %s: %w", rev, err)
	}
	count, err := git(ctx, root, "rev-list", "--count", "HEAD")
	if err != nil {
		return nil, fmt.Errorf("counting commits: %w", err)
	}
	commits, err := strconv.Atoi(strings.TrimSpace(count))
	if err != nil {
		return nil, fmt.Errorf("counting commits: %w", err)
	}
	picks := choose(all, strings.Split(strings.TrimSpace(files), "\n"), commits)
	// A run that is bounded in time begins with another one each time.
	at := commits % max(1, len(picks))
	return slices.Concat(picks[at:], picks[:at]), nil
}

// choose picks the mutants whose own file, package or test package has a changed
// file, and others from a place that moves on with each commit, so that
// successive commits come past all of them.
func choose(all []*mutant, files []string, commits int) []*mutant {
	touched := map[string]bool{}
	for _, f := range files {
		touched[f], touched["./"+path.Dir(f)] = true, true
	}
	picked := map[*mutant]bool{}
	for _, m := range all {
		picked[m] = touched[path.Join(folder, m.name+suffix)] || touched[m.pkg] || touched[m.testPackage]
	}
	more := others
	for i := range all {
		m := all[(commits*others+i)%len(all)]
		if more > 0 && !picked[m] {
			picked[m] = true
			more--
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(m *mutant) bool { return !picked[m] })
}

func git(ctx context.Context, root string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = root
	out, err := cmd.Output()
	return string(out), err
}
