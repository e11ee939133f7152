#!/usr/bin/env bash
# Lands the current branch on main: in a fresh clone it is merged, .ci/run runs
# there, and only when that is green does main move to the very commit that was
# tested. The tree that was green is recorded in .git/ci-green.
set -euo pipefail
top=$(git rev-parse --show-toplevel); cd "$top"
git=$(git rev-parse --path-format=absolute --git-common-dir)
branch=$(git symbolic-ref --short HEAD)
[ "$branch" != main ] || { echo "this is main: land from a branch (CONTRIBUTING.md)"; exit 1; }
[ -z "$(git status --porcelain)" ] || { echo "not everything is committed:"; git status --short; exit 1; }
[ -n "$(git log --oneline "main..$branch" | head -n 1)" ] || { echo "$branch holds nothing that main has not"; exit 0; }

place=$(mktemp -d)
trap 'chmod -R u+w "$place"; rm -rf "$place"' EXIT
[ ! -d "$top/../shared" ] || ln -s "$(cd "$top/../shared" && pwd)" "$place/shared"
git clone -q --branch main "$git" "$place/main"
cd "$place/main"
git merge -q --no-ff -m "${MESSAGE:-Merge $branch}" "origin/$branch"
echo "running .ci/run on $(git rev-parse --short HEAD), $branch merged into main ($(date +%T))"
if ! CI=true .ci/run </dev/null; then
  echo "red: main stays where it is"; exit 1
fi
[ -z "$(git status --porcelain --untracked-files=no)" ] || { echo "the run changed files:"; git status --short; exit 1; }
commit=$(git rev-parse HEAD)
git -C "$git" fetch -q "$place/main" "$commit"
git -C "$git" update-ref -m "land $branch" refs/heads/main "$commit" "$(git rev-parse origin/main)"
git rev-parse "$commit^{tree}" >"$git/ci-green"
echo "main is $(git rev-parse --short "$commit") (tree $(cat "$git/ci-green")), green"
