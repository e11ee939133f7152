#!/bin/sh
# root.sh FOLDER SUITE: makes a Debian system in a folder, from the mirror that
# this machine's own apt uses, and installs in it what the script on standard
# input says. It runs in namespaces of its own: what it mounts and starts ends
# with it, killed or not.
set -eu
root=$1 suite=$2
site=$(apt-get indextargets --format '$(SITE)' 'Label: Debian' | head -n 1)
[ -n "$site" ] || { echo "apt of this machine names no mirror of Debian" >&2; exit 1; }
eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
[ -z "${http_proxy:-}" ] || export http_proxy
[ -z "${https_proxy:-}" ] || export https_proxy

chmod 755 "$root"
debootstrap --variant=minbase "$suite" "$root" "$site"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no service is started
chmod 755 "$root/usr/sbin/policy-rc.d"
printf 'path-exclude=/usr/share/%s/*\n' doc man locale >"$root/etc/dpkg/dpkg.cfg.d/small"
cat /etc/resolv.conf >"$root/etc/resolv.conf"
mount -t proc proc "$root/proc"
chroot "$root" /usr/bin/env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -eux
chroot "$root" apt-get clean
