#!/bin/bash
# Runs a command with an image's root: in-image.sh LAYER… -- COMMAND ARGUMENT…, the lowest layer first; the command gets
# the directory of the root as its last argument. The mounts are in a mount namespace of their own and go with it.
set -euo pipefail

if [ "${STEAD_IN_IMAGE-}" != yes ]; then
  STEAD_IN_IMAGE=yes exec unshare --mount --propagation private -- "$0" "$@"
fi

top=/mnt
mount -t tmpfs in-image "$top"
lower=
n=0
while [ "$1" != -- ]; do
  mkdir "$top/$n"
  mount -t squashfs -o loop,ro "$1" "$top/$n"
  lower="$top/$n${lower:+:$lower}"
  n=$((n + 1))
  shift
done
shift
mkdir "$top/root"
if [ "$n" = 1 ]; then
  mount --bind "$lower" "$top/root"
else
  mount -t overlay -o "ro,lowerdir=$lower" overlay "$top/root"
fi
# Not by exec: a floor that dies at once must not leave the loop devices to a lazy unmount.
"$@" "$top/root"
