#!/usr/bin/env bash
# Checks formatting, clippy warnings and shell syntax. PROFILE=release reuses the build scripts and procedural macros
# that the release profile has already built.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "lint: cargo fmt --check"
cargo fmt --all --check
for workspace in fuzz scriptlet; do
  cargo fmt --manifest-path $workspace/Cargo.toml --check
done
echo "lint: bash -n"
for script in .ci/run tools/*.sh bench/*.sh; do
  bash -n "$script"
done
echo "lint: cargo clippy -D warnings"
cargo clippy --locked --quiet --profile "${PROFILE:-dev}" --workspace --all-targets -- -D warnings
