#!/usr/bin/env bash
# Runs every fuzz target of the module for FUZZTIME each.
set -euo pipefail
time=${FUZZTIME:-10s}
n=0
while IFS=: read -r file _ line; do
  name=$(sed -E 's/^func (Fuzz[A-Za-z0-9_]+).*/\1/' <<<"$line")
  echo "fuzz $name in $(dirname "$file") for $time"
  go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 1s "./$(dirname "$file")"
  n=$((n + 1))
done < <(git grep -nE '^func Fuzz[A-Z]' -- '*_test.go')
[ "$n" -gt 0 ] || { echo "no fuzz target found"; exit 1; }
echo "$n fuzz targets ran"
