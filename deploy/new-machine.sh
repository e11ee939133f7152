#!/usr/bin/env bash
# make test as on a machine that has never run this project: every cache of ours
# is empty. Go's own module and build caches stay.
set -euo pipefail
cd "$(dirname "$0")/.."
GOMODCACHE=$(go env GOMODCACHE) GOCACHE=$(go env GOCACHE) GOPATH=$(go env GOPATH)
export GOMODCACHE GOCACHE GOPATH
home=$(mktemp -d)
trap 'chmod -R u+w "$home"; rm -rf "$home"' EXIT
export HOME=$home XDG_CACHE_HOME=$home/.cache
# Maven does not heed HOME.
export MAVEN_OPTS="${MAVEN_OPTS:-} -Dmaven.repo.local=$home/.m2/repository"
make test
