#!/usr/bin/env bash
# Runs each fuzz target for some seconds: tools/fuzz.sh [SECONDS]. Crashing inputs are kept in fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

readonly seconds=${1:-30}
need() { echo "fuzz: $1" >&2; exit 1; }
rustup toolchain list 2>/dev/null | sed -n '/^nightly/p' | grep . >/dev/null ||
  need "there is no nightly toolchain; \`rustup toolchain install nightly\`"
command -v cargo-fuzz >/dev/null || need "there is no cargo-fuzz; \`cargo install cargo-fuzz --locked\`"
command -v c++ >/dev/null || need "libFuzzer is built with a C++ compiler; \`apt-get install g++\`"

triple=$(rustc -vV | sed -n 's/^host: //p')
for source in fuzz_targets/*.rs; do
  target=$(basename "$source" .rs)
  mkdir -p "corpus/$target"
  echo "fuzz: $target, $seconds s"
  cargo +nightly fuzz run --features libfuzzer --target "$triple" "$target" "corpus/$target" "seeds/$target" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=0 -verbosity=0
done
echo "fuzz: every target survived"
