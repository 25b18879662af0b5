#!/usr/bin/env bash
# Builds both binaries, from one profile, and puts them next to each other in build/: stead looks for stead-node beside
# itself. --tests: resolves features as the tests do, so that these binaries and the tests share every compiled crate.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
  echo "build: cargo is not on the PATH; install Rust with rustup first" >&2
  exit 1
}
what=(-p stead -p stead-node)
# Examples bring in the features of the tests' dependencies; without them, building the tests compiles everything again.
[ "${1-}" = --tests ] && what=(--workspace --bins --examples)
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
