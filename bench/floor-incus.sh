#!/bin/bash
# The floor for `stead up`: incusd in bare namespaces on one bridge, formed into a cluster by hand. Prints the seconds
# from the first process to all members ONLINE.
#
#   floor-incus.sh TREE [NODES]     TREE: a Debian root with incus-base; NODES: how many, 3 when absent
#
# No step waits longer than necessary: the first daemon initialises once it answers; each other one joins once it
# answers and the one before it has joined (the engine accepts one join at a time). Requests go to the daemons' own
# sockets by curl, since the stock client takes 60 ms a call. Waiting forks no process.
#
# Needs root. Everything it creates is named floor-$$ and is removed at its end.
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

tree=$(realpath "${1:?usage: floor-incus.sh TREE [NODES]}")
count=${2:-3}
self=$(realpath "$0")
id=floor-$$
nodes=()
for ((n = 0; n < count; n++)); do nodes+=("10.123.0.$((n + 1))"); done
pids=()

clean_up() {
    status=$?
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || :; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || :; done
    for n in "${!nodes[@]}"; do ip netns delete "$id-$n" 2>/dev/null || :; done
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
for n in "${!nodes[@]}"; do
    ip netns add "$id-$n"
    ip -n "$id" link add "port$n" type veth peer name eth0 netns "$id-$n"
    ip -n "$id" link set "port$n" master br0 up
done
for directory in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -e "$directory/cgroup.procs" ] && mkdir "$directory/$id"
    # A version 1 cpuset accepts no process before it has CPUs and memory nodes.
    for list in cpuset.cpus cpuset.mems; do
        [ -e "$directory/$list" ] && [ "$directory" != /sys/fs/cgroup ] &&
            cat "$directory/$list" >"$directory/$id/$list"
    done
done || :

# For sleeping without a fork: nothing is ever written here.
exec {never}<> <(:)
nap() { read -r -t 0.002 -u "$never" || :; }

start=$EPOCHREALTIME
for n in "${!nodes[@]}"; do
    (
        for directory in /sys/fs/cgroup /sys/fs/cgroup/*; do
            [ -e "$directory/$id/cgroup.procs" ] && echo $BASHPID >"$directory/$id/cgroup.procs"
        done
        exec ip netns exec "$id-$n" unshare --mount --pid --uts --ipc --cgroup --fork --kill-child \
            "$self" --node "$tree" "node$((n + 1))" "${nodes[n]}" ""
    ) >/dev/null 2>&1 &
    pids+=($!)
done

state=()
wait_for() { # NODE: until its daemon answers; its directory is then in state[NODE]
    local child=
    # The data has no line end, so `read` fails but has read it.
    until [ "$child" ]; do
        nap
        read -r child <"/proc/${pids[$1]}/task/${pids[$1]}/children" || :
    done
    state[$1]=/proc/${child%% *}/root/var/lib/incus
    until [ -S "${state[$1]}/unix.socket" ]; do nap; done
}
ask() { # NODE METHOD PATH [BODY]
    local answer
    answer=$(curl --silent --show-error --unix-socket "${state[$1]}/unix.socket" --request "$2" \
        ${4:+--json "$4"} "http://incus$3")
    case $answer in *'"type":"error"'*) printf 'floor: %s %s: %s\n' "$2" "$3" "$answer" >&2; exit 1 ;; esac
    printf '%s' "$answer"
}
done_with() { # NODE ANSWER: waits for the operation that this answer names
    local operation
    operation=$(jq -r .operation <<<"$2")
    case $(ask "$1" GET "$operation/wait") in *'"err":""'*) ;; *) echo "floor: $operation failed" >&2; exit 1 ;; esac
}

wait_for 0
ask 0 PUT /1.0 "{\"config\":{\"core.https_address\":\"${nodes[0]}:8443\"}}" >/dev/null
ask 0 POST /1.0/storage-pools '{"name":"default","driver":"dir"}' >/dev/null
ask 0 PUT /1.0/profiles/default '{"devices":{"root":{"type":"disk","path":"/","pool":"default"},"eth0":{"type":"nic","nictype":"bridged","parent":"br0","name":"eth0"}}}' >/dev/null
done_with 0 "$(ask 0 PUT /1.0/cluster '{"server_name":"node1","enabled":true}')"
certificate=$(jq -Rs . <"${state[0]}/cluster.crt")
for ((n = 1; n < count; n++)); do
    name=node$((n + 1))
    token=$(ask 0 POST /1.0/cluster/members "{\"server_name\":\"$name\"}" |
        jq -r '.metadata.metadata | {server_name: .serverName, fingerprint, addresses, secret, expires_at: .expiresAt} | @base64')
    wait_for "$n"
    done_with "$n" "$(ask "$n" PUT /1.0/cluster "{\"server_name\":\"$name\",\"enabled\":true,\"server_address\":\"${nodes[n]}:8443\",\"cluster_address\":\"${nodes[0]}:8443\",\"cluster_certificate\":$certificate,\"cluster_token\":\"$token\"}")"
done
while [ "$(ask 0 GET '/1.0/cluster/members?recursion=1' | jq '[.metadata[] | select(.status == "Online")] | length')" != "$count" ]; do nap; done
end=$EPOCHREALTIME

# Both have six decimals: compute in whole microseconds, then print seconds.
took=$((${end/./} - ${start/./}))
printf '%d.%03d\n' $((took / 1000000)) $((took / 1000 % 1000))
