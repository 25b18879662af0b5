#!/bin/bash
# The floor for `stead up`: three incusd in bare namespaces on one bridge, formed into a cluster by hand with the
# stock `incus admin init --preseed`. Prints the seconds from the first process to three members ONLINE.
#
#   floor-incus.sh TREE     TREE: a Debian root with incus-base and incus-client
#
# Needs root. Everything it makes is called floor-$$ and is gone when it ends.
set -euo pipefail

if [ "${1-}" = --node ]; then # Inside the namespaces of one node, as its PID 1: NAME ADDRESS STATE [COMMAND...]
    # STATE: a directory for the engine's state, empty for memory. The tests of stead-node use this too.
    tree=$2 name=$3 address=$4 state=$5
    shift 5
    [ $# -gt 0 ] || set -- /usr/libexec/incus/incusd --logfile /var/log/incus/incusd.log
    mount --make-rprivate /
    root=/tmp
    mount -t tmpfs floor "$root"
    mkdir "$root/upper" "$root/work" "$root/root"
    mount -t overlay -o "lowerdir=$tree,upperdir=$root/upper,workdir=$root/work" overlay "$root/root"
    cd "$root/root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t tmpfs dev dev
    for device in null zero full random urandom tty; do
        : >"dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mkdir -p dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mount -t cgroup2 cgroup2 sys/fs/cgroup
    else
        mount -t tmpfs cgroup sys/fs/cgroup
        while IFS=: read -r _ controllers _; do
            case $controllers in
            '') continue ;;
            name=*) directory=${controllers#name=} options=none,$controllers ;;
            *) directory=$controllers options=$controllers ;;
            esac
            mkdir "sys/fs/cgroup/$directory"
            mount -t cgroup -o "$options" cgroup "sys/fs/cgroup/$directory"
        done </proc/self/cgroup
    fi
    mkdir -p var/lib/incus var/lib/lxd var/log/incus var/log/lxd mnt
    for directory in run tmp; do mount -t tmpfs tmpfs "$directory"; done
    for directory in var/lib/incus var/lib/lxd; do
        if [ "$state" ]; then mount --bind "$state" "$directory"; else mount -t tmpfs tmpfs "$directory"; fi
    done
    echo "root:1000000:1000000000" >etc/subuid
    cp etc/subuid etc/subgid
    pivot_root . mnt
    umount -l /mnt
    hostname "$name"
    ip link set lo up
    ip link set eth0 up
    ip address add "$address/24" dev eth0
    exec "$@"
fi

tree=$(realpath "${1:?usage: floor-incus.sh TREE}")
self=$(realpath "$0")
id=floor-$$
nodes=(10.123.0.1 10.123.0.2 10.123.0.3)
pids=()

clean_up() {
    status=$?
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || :; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || :; done
    for n in 0 1 2; do ip netns delete "$id-$n" 2>/dev/null || :; done
    ip netns delete "$id" 2>/dev/null || :
    for ((try = 0; try < 100; try++)); do # a cgroup is busy until its last process is reaped
        left=0
        for directory in /sys/fs/cgroup/"$id" /sys/fs/cgroup/*/"$id"; do
            [ -d "$directory" ] || continue
            find "$directory" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
        done
        [ $left = 0 ] && break
        sleep 0.05
    done
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

ip netns add "$id"
ip -n "$id" link add br0 type bridge
ip -n "$id" link set br0 up
for n in 0 1 2; do
    ip netns add "$id-$n"
    ip -n "$id" link add "port$n" type veth peer name eth0 netns "$id-$n"
    ip -n "$id" link set "port$n" master br0 up
done
for directory in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -e "$directory/cgroup.procs" ] && mkdir "$directory/$id"
    # A v1 cpuset takes nobody in before it has processors and memory.
    for list in cpuset.cpus cpuset.mems; do
        [ -e "$directory/$list" ] && [ "$directory" != /sys/fs/cgroup ] &&
            cat "$directory/$list" >"$directory/$id/$list"
    done
done || :

start=$EPOCHREALTIME
for n in 0 1 2; do
    (
        for directory in /sys/fs/cgroup /sys/fs/cgroup/*; do
            [ -e "$directory/$id/cgroup.procs" ] && echo $BASHPID >"$directory/$id/cgroup.procs"
        done
        exec ip netns exec "$id-$n" unshare --mount --pid --uts --ipc --cgroup --fork --kill-child \
            "$self" --node "$tree" "node$((n + 1))" "${nodes[n]}" ""
    ) >/dev/null 2>&1 &
    pids+=($!)
done

# The node's own view of the file system, through its PID 1.
for n in 0 1 2; do
    while ! inits[n]=$(pgrep -P "${pids[n]}" 2>/dev/null); do sleep 0.002; done
done
incus_in() { # NODE ARGUMENTS...: the client of the tree, in the node's namespaces
    n=$1
    shift
    nsenter --target "${inits[n]}" --mount --net --pid --uts --root --wd incus "$@"
}
for n in 0 1 2; do
    while ! [ -S "/proc/${inits[n]}/root/var/lib/incus/unix.socket" ]; do sleep 0.002; done
done

incus_in 0 admin init --preseed <<PRESEED
config: {core.https_address: "${nodes[0]}:8443"}
storage_pools: [{name: default, driver: dir}]
profiles: [{name: default, devices: {root: {type: disk, path: /, pool: default}, eth0: {type: nic, nictype: bridged, parent: br0, name: eth0}}}]
cluster: {server_name: node1, enabled: true}
PRESEED
for n in 1 2; do
    token=$(incus_in 0 cluster add "node$((n + 1))" --quiet | tail -n 1)
    incus_in "$n" admin init --preseed <<PRESEED
cluster: {enabled: true, server_address: "${nodes[n]}:8443", cluster_token: $token}
PRESEED
done
while [ "$(incus_in 0 cluster list --format csv | grep -c ',ONLINE,')" != 3 ]; do sleep 0.01; done
end=$EPOCHREALTIME

# Both have six decimals: as whole microseconds, then in seconds again.
took=$((${end/./} - ${start/./}))
printf '%d.%03d\n' $((took / 1000000)) $((took / 1000 % 1000))
