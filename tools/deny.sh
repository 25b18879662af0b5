#!/usr/bin/env bash
# Runs cargo deny check: licences, sources and banned crates of every workspace. Advisories are left out: their database
# is a git repository, which a build machine need not reach. If cargo-deny is not on the PATH, it is installed into the
# cache once per version, without optimisation, as it runs for a second. If that fails: SKIP, with the reason.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly version=0.20.2
readonly root=${XDG_CACHE_HOME:-$HOME/.cache}/stead-ci-tools/cargo-deny-$version
deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
  deny=$root/bin/cargo-deny
  if [ ! -x "$deny" ]; then
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    echo "deny: cargo install cargo-deny@$version"
    # In another folder, so that the flags of this project's .cargo/config.toml do not apply.
    (
      cd "$build"
      CARGO_TARGET_DIR=$build/target CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install --quiet --locked --root "$root" "cargo-deny@$version"
    ) || {
      echo "SKIP deny: cargo-deny $version cannot be installed"
      exit 0
    }
  fi
fi
for manifest in Cargo.toml scriptlet/Cargo.toml fuzz/Cargo.toml; do
  echo "deny: $manifest"
  # The lock files also have crates for other platforms, which may not be downloaded yet.
  cargo fetch --quiet --locked --manifest-path "$manifest"
  "$deny" --manifest-path "$manifest" --offline --log-level error --config deny.toml check bans licenses sources
done
