#!/usr/bin/env bash
# Sees to what a target needs beyond Go, git and make. On Debian as root it
# installs the packages; elsewhere it names what is missing and stops.
set -euo pipefail
what=${1:-test}; shift || true
want=()
case "$what" in
check) want=(redis-server:redis-server) ;;
test) want=(redis-server:redis-server java:default-jre-headless mvn:maven python3:python3) ;;
applications) want=(debootstrap:debootstrap unshare:util-linux redis-server:redis-server java:default-jre-headless mvn:maven) ;;
lookups) want=(redis-server:redis-server javac:default-jdk-headless mvn:maven) ;;
peers) want=(java:default-jre-headless mvn:maven pg_recvlogical:postgresql-client) ;;
demo)
  for kv in "$@"; do
    case "$kv" in
    KAFKA=real) want+=(java:default-jre-headless mvn:maven) ;;
    REDIS=real) want+=(redis-server:redis-server) ;;
    esac
  done ;;
esac
missing=()
for w in "${want[@]}"; do command -v "${w%%:*}" >/dev/null 2>&1 || missing+=("${w##*:}"); done
if [ "$what" = test ] && ! python3 -c 'import venv, ensurepip' >/dev/null 2>&1; then missing+=(python3-venv); fi
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  exit 0
fi
echo "missing: ${missing[*]} (Debian package names); install them and run this again" >&2
exit 1
