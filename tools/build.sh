#!/usr/bin/env bash
# Builds both binaries and puts them next to each other in build/: stead looks for stead-node beside itself.
# --tests: builds the tests, and takes the stead that they use. What nobody times need not be optimised, and a second build
# of everything would be a fifth of CI's time.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
  echo "build: cargo is not on the PATH; install Rust with rustup first" >&2
  exit 1
}
triple=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}/$triple

if [ "${1-}" = --tests ]; then
  echo "build: cargo test --workspace --no-run"
  cargo test --locked --workspace --no-run
  profile=debug
else
  echo "build: cargo build --release -p stead"
  cargo build --locked --release -p stead
  profile=release
fi
echo "build: cargo build --profile node -p stead-node"
cargo build --locked --profile node -p stead-node

mkdir -p build
for binary in "$target/$profile/stead" "$target/node/stead-node"; do
  name=${binary##*/}
  # A running binary cannot be written to, but its name can be given to another file.
  if ! cmp -s "$binary" "build/$name"; then
    cp "$binary" "build/.$name.new"
    mv "build/.$name.new" "build/$name"
  fi
  echo "build: build/$name, $(($(stat -c %s "build/$name") / 1024)) KiB"
done
