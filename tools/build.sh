#!/usr/bin/env bash
# Builds both binaries, from one profile, and puts them next to each other in build/: stead looks for stead-node beside
# itself. --tests: builds the test runner, too.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
  echo "build: cargo is not on the PATH; install Rust with rustup first" >&2
  exit 1
}
what=(-p stead -p stead-node)
[ "${1-}" = --tests ] && what+=(-p xtask)
echo "build: cargo build --release ${what[*]}"
cargo build --locked --release "${what[@]}"

triple=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p build
for name in stead stead-node; do
  binary=${CARGO_TARGET_DIR:-target}/$triple/release/$name
  # A running binary cannot be overwritten, but another file can be renamed over it.
  if ! cmp -s "$binary" "build/$name"; then
    cp "$binary" "build/.$name.new"
    mv "build/.$name.new" "build/$name"
  fi
  echo "build: build/$name, $(($(stat -c %s "build/$name") / 1024)) KiB"
done
