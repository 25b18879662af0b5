#!/usr/bin/env bash
# Formatting, clippy without warnings, shell syntax.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "lint: cargo fmt --check"
cargo fmt --all --check
if [ -f fuzz/Cargo.toml ]; then
  cargo fmt --manifest-path fuzz/Cargo.toml --check
fi
echo "lint: bash -n"
for script in .ci/run tools/*.sh bench/*.sh; do
  [ -e "$script" ] || continue
  bash -n "$script"
done
echo "lint: cargo clippy -D warnings"
cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
