#!/bin/bash
# Runs a command with an image's root: in-image.sh LAYER… -- COMMAND ARGUMENT…, lowest layer first; the command gets the
# root's directory as its last argument. The mounts are in a private mount namespace and end with it.
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
# Without exec: if the command dies at once, the loop devices must not be left to a lazy unmount.
"$@" "$top/root"
