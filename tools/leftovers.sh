#!/usr/bin/env bash
# Lists what Stead has on this machine: processes, network namespaces, mounts, loop devices, interfaces, cgroups, claims
# of names, nft tables. With a cluster's name, only that cluster's. Fails if it finds anything; with --list it only
# lists.
set -euo pipefail
export LC_ALL=C

list_only=0
if [ "${1-}" = --list ]; then
  list_only=1
  shift
fi
cluster=${1-}
readonly state_dir=${STEAD_STATE_DIR:-/var/lib/stead}

# In everything below, Stead's objects are recognised by one of these in their name, path, arguments or cgroup.
processes() {
  local dir pid arguments cgroups
  for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    [ "$pid" = $$ ] && continue
    arguments=$(tr '\0' ' ' 2>/dev/null <"$dir/cmdline") || continue
    [ -n "$arguments" ] || continue # kernel threads and the dead
    cgroups=$(sed -n 's/^[^:]*:[^:]*://p' "$dir/cgroup" 2>/dev/null | grep -m 1 '/stead') || cgroups=
    case "$arguments" in
      stead-node\ * | */stead-node\ * | *stead\ machine\ run* | *stead\ network\ run* | *"$state_dir"/clusters/* | *dnsmasq*/clusters/* | *qemu*/clusters/*) ;;
      *) [ -n "$cgroups" ] || continue ;;
    esac
    printf 'process %s: %s %s\n' "$pid" "${arguments:0:200}" "$cgroups"
  done
}
namespaces() { ip netns list 2>/dev/null | sed -n 's/^\(stead[^ ]*\).*/network namespace \1/p'; }
# Tests have state directories elsewhere, but all contain `clusters` or the store's blobs.
mounts() {
  awk -v dir="$state_dir/" '
    index($5, dir) == 1 || $5 ~ "/clusters/|/run/stead|/run/netns/stead" { print "mount " $5 }
  ' /proc/self/mountinfo
}
# A layer's file does not show its cluster, but its mount point does; a device that is not mounted is a leftover.
loop_devices() {
  losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null |
    awk -v dir="$state_dir/" '
      FILENAME != "-" { for (i = 7; i < NF; i++) if ($i == "-") at[$(i + 2)] = $5; next }
      index($2, dir) == 1 || $2 ~ "/clusters/|/blobs/sha256/" {
        where = ($1 in at) ? "mounted at " at[$1] : ($2 ~ "/blobs/") ? "not mounted" : ""
        print "loop device " $1 " " $2 " " where
      }' /proc/self/mountinfo -
}
interfaces() { ip -o link show 2>/dev/null | sed -n 's/^[0-9]*: \(stead[^:@]*\)[:@].*/interface \1/p'; }
cgroups() { find /sys/fs/cgroup -type d \( -name 'stead' -o -name 'stead[-_.]*' -o -path '*/stead/*' \) -printf 'cgroup %p\n' 2>/dev/null; }
claims() { find /run/stead/clusters -type f ! -name '.*' -printf 'claim %p\n' 2>/dev/null || true; }
tables() { nft list tables 2>/dev/null | sed -n 's/^table \([a-z0-9]* stead.*\)/nft table \1/p'; }

found=$({ processes; namespaces; mounts; loop_devices; interfaces; cgroups; claims; tables; } | sort)
if [ -n "$cluster" ]; then
  # The name as a whole word: "demo" matches "stead-demo" and "/demo/", but neither "demo2" nor "my-demo". The link out
  # of a cluster's network has a digest of the name instead, because interface names are short.
  link=$(printf %s "$cluster" | sha256sum | cut -c 1-8)
  found=$(grep -E "(stead[-_]|[^a-z0-9-])($cluster|$link)([^a-z0-9-]|\$)|not mounted" <<<"$found" || true)
fi

if [ -z "$found" ]; then
  [ $list_only = 1 ] || echo "leftovers: none${cluster:+ of $cluster}"
  exit 0
fi
printf '%s\n' "$found"
[ $list_only = 1 ] && exit 0
echo "leftovers: $(wc -l <<<"$found")${cluster:+ of $cluster}" >&2
exit 1
