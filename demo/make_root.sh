#!/bin/sh
# Makes the root of the other host, once: Debian's smallest, with sshd and sudo, without Python and compiler.
set -eu
root="$1"
[ ! -e "$root/.ready" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "setup: a root of its own needs root" >&2; exit 1; }
echo "setup: a Debian root in $root (a minute)"
rm -rf "$root"
mkdir -p "$root"
debootstrap --variant=minbase --include=openssh-server,sudo bookworm "$root" >"$root.log" 2>&1 || { tail -5 "$root.log" >&2; exit 1; }
rm -rf "$root/var/cache/apt" "$root/var/lib/apt/lists" "$root"/etc/ssh/ssh_host_*
for user in trusted asked unprivileged; do
    chroot "$root" useradd --create-home --shell /bin/bash --password '*' "$user"
done
echo "trusted ALL=(ALL:ALL) NOPASSWD: ALL" >"$root/etc/sudoers.d/trusted"
echo "asked ALL=(ALL:ALL) ALL" >"$root/etc/sudoers.d/asked"
mkdir -p "$root/run/sshd"
touch "$root/.ready"
