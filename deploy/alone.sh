#!/usr/bin/env bash
# alone.sh NAME COMMAND…: runs a heavy command when no other heavy command of
# ours runs on this machine, whichever checkout it belongs to. Two test suites
# at once make each other red, and two benchmarks measure each other.
#
# The lock is an flock on a file: it ends with this process, however that ends.
# What the file says is for people: who holds it. A target that a holder runs
# has the lock already.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 NAME COMMAND…" >&2; exit 2; }
name=$1; shift
file=${TALLYWIRE_LOCK:-/tmp/tallywire.lock}

command -v flock >/dev/null || { echo "the program flock is missing (package util-linux): install it and run this again" >&2; exit 1; }
[ -e "$file" ] || (umask 0; : >>"$file")
exec 9<"$file"
if [ "${TALLYWIRE_ALONE:-}" = "$file" ] && ! flock -n 9; then
  exec 9<&-
  exec "$@" # whoever runs us holds it
fi
if ! flock -n 9; then
  echo "$name waits for $(cat "$file")" >&2
  flock 9
fi
echo "\"$name\" in $PWD (process $$, since $(date +%T))" >"$file" || true # another user's file: the lock holds all the same
export TALLYWIRE_ALONE=$file
# What the command leaves behind must not keep the lock: it does not inherit it.
"$@" 9<&-
