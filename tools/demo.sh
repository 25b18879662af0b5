#!/usr/bin/env bash
# The demo: builds Stead and the images, starts examples/demo.yaml, launches a container on each of two members, checks
# that they reach each other by name, and prints how long each step took. A second run reuses what exists.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

readonly cluster=demo
readonly stead=build/stead
# A container has its addresses within a few seconds; a minute allows for a loaded machine with a cold page cache.
readonly patience_s=60

[ "$(id -u)" = 0 ] || { echo "demo: the namespace backend needs root" >&2; exit 1; }

names=() times=()
# No `||` after the command: inside such a list bash would ignore failures.
trap 'printf "demo: \"%s\" failed\n" "${current-}" >&2' ERR
step() { # NAME COMMAND…: runs it and keeps the time it took
  local began=$EPOCHREALTIME
  current=$1
  shift
  printf '\n==> %s\n' "$current"
  "$@"
  names+=("$current")
  times+=($((${EPOCHREALTIME/./} - ${began/./})))
}

# Every `incus` gets an empty standard input: from a pipe it would read YAML.
client() { incus "$@" </dev/null; }

image() { "$stead" image build "images/$1.yaml"; }

import_instance_image() {
  local shown metadata rootfs fingerprint known
  shown=$("$stead" image show debian-12 --json)
  metadata=$(jq -er .paths.metadata <<<"$shown")
  rootfs=$(jq -er .paths.rootfs <<<"$shown")
  # The engine's fingerprint of a split image: the digest of its two files, concatenated.
  fingerprint=$(cat "$metadata" "$rootfs" | sha256sum | cut -d' ' -f1)
  known=$(client image list --format json | jq -r '.[] | select(any(.aliases[]?; .name == "debian-12")) | .fingerprint')
  if [ "$known" = "$fingerprint" ]; then
    echo "debian-12 is already in the cluster"
    return
  fi
  [ -z "$known" ] || client image alias delete debian-12
  client image import "$metadata" "$rootfs" --alias debian-12
}

container() { # NAME MEMBER: runs afterwards, whatever was before
  local state
  state=$(client list "^$1\$" --format json | jq -r '.[0].status // "none"')
  case "$state" in
    Running) echo "$1 is already running" ;;
    none) client launch debian-12 "$1" --target "$2" --quiet && echo "$1 runs on $2" ;;
    *) client start "$1" ;;
  esac
}

launch() {
  container c1 node1 &
  local first=$!
  container c2 node2
  wait "$first"
}

# Succeeds when both containers have a global address of both families.
have_addresses() {
  client list --format json | jq -e '
    [.[] | select(.name == "c1" or .name == "c2")
         | [.state.network // {} | to_entries[] | .value.addresses[] | select(.scope == "global") | .family]
         | contains(["inet"]) and contains(["inet6"])]
    | length == 2 and all' >/dev/null
}

until_true() { # WHAT COMMAND…
  local what=$1 deadline=$((SECONDS + patience_s))
  shift
  until "$@"; do
    if [ $SECONDS -ge $deadline ]; then
      echo "demo: not true after ${patience_s} s: $what" >&2
      client list >&2 || true
      return 1
    fi
    sleep 0.2
  done
}

ping_by_name() { # FROM TO FAMILY
  client exec "$1" -- ping "$3" -c 1 -W 1 -q "$2" >/dev/null 2>&1
}

reach_each_other() {
  until_true "both containers have IPv4 and IPv6 addresses" have_addresses
  local family
  for family in -4 -6; do
    until_true "c1 reaches c2 by name with ping $family" ping_by_name c1 c2 "$family"
    until_true "c2 reaches c1 by name with ping $family" ping_by_name c2 c1 "$family"
  done
  echo "c1 and c2 reach each other by name over IPv4 and IPv6"
}

client_environment() { # the stock client's settings, for the steps after this one
  local settings
  settings=$("$stead" env "$cluster")
  eval "$settings"
  client list --format compact >/dev/null
  echo "the stock client talks to the cluster over TLS"
}

began=$EPOCHREALTIME
step "build" tools/build.sh
step "image incus-node" image incus-node
step "image debian-12" image debian-12
step "up: three nodes, one Incus cluster" "$stead" up examples/demo.yaml
step "client" client_environment
step "import debian-12" import_instance_image
step "launch c1 and c2" launch
step "reach each other" reach_each_other
total=$((${EPOCHREALTIME/./} - ${began/./}))

printf '\n'
"$stead" status "$cluster"

printf '\nTimes\n'
for i in "${!names[@]}"; do
  printf '  %-38s %7d.%01d s\n' "${names[i]}" $((times[i] / 1000000)) $((times[i] % 1000000 / 100000))
done
printf '  %-38s %7d.%01d s\n' total $((total / 1000000)) $((total % 1000000 / 100000))

cat <<END

Next
  eval "\$($stead env $cluster)"     the stock incus client, on this cluster
  incus list
  incus exec c1 -- bash              a shell in an instance
  incus launch debian-12 c3          another one
  $stead shell $cluster node1        a shell on a node
  make demo-down                     take it all down
END
