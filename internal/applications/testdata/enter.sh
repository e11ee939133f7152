#!/bin/sh
# enter.sh FOLDER COMMAND…: runs a command in the Debian system in a folder. The
# system itself cannot be written to; what the command writes is gone afterwards.
# It runs in namespaces of its own, as root.sh does.
set -eu
root=$1
shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
for dir in tmp run var/cache var/log var/tmp; do mount -t tmpfs tmpfs "$root/$dir"; done
exec chroot "$root" "$@"
