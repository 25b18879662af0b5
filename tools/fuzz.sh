#!/usr/bin/env bash
# Runs each fuzz target for some seconds: tools/fuzz.sh [SECONDS]. Crashing inputs are kept in fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

readonly seconds=${1:-30}
need() { echo "fuzz: $1" >&2; exit 1; }
rustup toolchain list 2>/dev/null | sed -n '/^nightly/p' | grep . >/dev/null ||
  need "the nightly toolchain is missing; run \`rustup toolchain install nightly\`"
command -v cargo-fuzz >/dev/null || need "cargo-fuzz is missing; run \`cargo install cargo-fuzz --locked\`"
command -v c++ >/dev/null || need "libFuzzer needs a C++ compiler; run \`apt-get install g++\`"

triple=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p target
for source in fuzz_targets/*.rs; do
  target=$(basename "$source" .rs)
  mkdir -p "corpus/$target"
  log=target/$target.log
  echo "fuzz: $target, $seconds s"
  cargo +nightly fuzz run --features libfuzzer --target "$triple" "$target" "corpus/$target" "seeds/$target" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 >"$log" 2>&1 ||
    { cat "$log" >&2; need "$target failed; the input is in fuzz/artifacts/$target/"; }
  sed -n 's/^Done \([0-9]* runs\) .*/fuzz:   \1/p' "$log"
done
echo "fuzz: every target passed"
