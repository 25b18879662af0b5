#!/usr/bin/env bash
# Everything that CI runs. Steps that use different resources run at the same time: building images is mostly dpkg on
# one CPU, so the checks and the tests are compiled meanwhile. Logs, junit.xml and the steps' durations are kept in
# build/test/. The last line is "N passed, N failed, N skipped" in total; if $STEAD_SUMMARY is set, it goes to that file
# instead.
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never
# The store of `make images`; tests of machines and clusters use its images.
export STEAD_TEST_STORE=${STEAD_TEST_STORE:-/var/lib/stead/images}
# One profile for everything: the tested code is what ships, and each crate is compiled once.
readonly profile=release
export PROFILE=$profile

# Third-party crates compiled by an earlier run on this machine are reused, from a folder outside the clone, one for
# each combination of lock file, flags and compiler. Our own crates are always compiled. Only in CI: a developer's
# target/ is left alone.
if [ -n "${CI-}" ] && [ -z "${CARGO_TARGET_DIR-}" ]; then
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/stead-ci
  key=$({ cat Cargo.lock scriptlet/Cargo.lock Cargo.toml .cargo/config.toml; rustc -vV; } | sha256sum | cut -c 1-16)
  export CARGO_TARGET_DIR=$cache/$key
  mkdir -p "$CARGO_TARGET_DIR"
  find "$cache" -mindepth 1 -maxdepth 1 ! -name "$key" -exec rm -rf {} +
  find "$CARGO_TARGET_DIR" -depth -mindepth 1 \( -name 'stead*' -o -name 'libstead*' -o -name 'xtask*' -o -name 'it-*' \) -exec rm -rf {} +
fi

# Whether an earlier run left compiled crates and images: the goals differ (`make bench ONLY=ci`).
state=cold
[ -n "$(find "${CARGO_TARGET_DIR:-target}" -name 'libtokio-*.rlib' -print -quit 2>/dev/null)" ] && [ -e "$STEAD_TEST_STORE/images/base" ] && state=warm

readonly logs=build/test
rm -rf "$logs"
mkdir -p "$logs"
: >"$logs/notes"
began=$SECONDS

step() { # NAME SECONDS COMMAND…: runs it, with its output in NAME.log; its exit code is the command's
  local name=$1 limit=$2 started=$SECONDS status
  shift 2
  printf '\n==> %s\n' "$name"
  timeout --kill-after=30 "$limit" "$@" </dev/null >"$logs/$name.log" 2>&1
  status=$?
  # In one write, because another step may write at the same time.
  printf '%s\n--- %s: %d s\n' "$(cat "$logs/$name.log")" "$name" $((SECONDS - started))
  printf '%s %d %d\n' "$name" $((SECONDS - started)) "$status" >>"$logs/steps"
  grep -E '^SKIP ' "$logs/$name.log" >>"$logs/notes"
  [ "$status" = 0 ] && return
  printf 'FAIL %s: %s\n' "$name" "$([ "$status" = 124 ] && echo "took too long" || echo "exit $status")" >>"$logs/notes"
  return "$status"
}

# The runner's own output is shown at once, not at the end of the step.
tests() { # NAME SECONDS ARGUMENTS…
  local name=$1 limit=$2 started=$SECONDS status
  shift 2
  printf '\n==> %s\n' "$name"
  timeout --kill-after=30 "$limit" "$xtask" test --profile "$profile" --out "$logs" "$@" </dev/null 2>&1 | tee "$logs/$name.log"
  status=${PIPESTATUS[0]}
  printf -- '--- %s: %d s\n' "$name" $((SECONDS - started))
  printf '%s %d %d\n' "$name" $((SECONDS - started)) "$status" >>"$logs/steps"
  [ "$status" = 0 ] || [ -s "$logs/counts" ] || echo "FAIL $name: exit $status" >>"$logs/notes"
  return "$status"
}

finish() {
  local passed=0 failed=0 skipped=0 file
  printf '\n%-12s %8s\n' step seconds
  while read -r name seconds _; do
    printf '%-12s %8d\n' "$name" "$seconds"
  done <"$logs/steps"
  printf '%-12s %8d\n' "all, $state" $((SECONDS - began))
  echo "all-$state $((SECONDS - began)) 0" >>"$logs/steps"
  for file in "$logs/counts" "$logs/notes"; do
    [ -e "$file" ] || continue
    [ "$file" = "$logs/counts" ] && read -r passed failed skipped <"$file"
    grep -E '^(FAIL|SKIP) ' "$file"
  done
  failed=$((failed + $(grep -c '^FAIL ' "$logs/notes")))
  skipped=$((skipped + $(grep -c '^SKIP ' "$logs/notes")))
  # Examples in documentation, which only cargo runs.
  passed=$((passed + $(awk '/^test result: ok/ { n += $4 } END { print n + 0 }' "$logs/compile.log" 2>/dev/null || echo 0)))
  local summary="$passed passed, $failed failed, $skipped skipped"
  printf '\n'
  if [ -n "${STEAD_SUMMARY-}" ]; then
    printf '%s\n' "$summary" >"$STEAD_SUMMARY"
  else
    printf '%s\n' "$summary"
  fi
  [ "$failed" = 0 ] && exit 0
  exit 1
}

leftovers() { # compares with what was there before: a running cluster of the user's is none of our business
  local new
  new=$(comm -13 "$logs/before" <(tools/leftovers.sh --list | sort))
  [ -z "$new" ] && return
  printf 'tests left behind:\n%s\n' "$new"
  return 1
}

# Without `make build` first, which would wait for the compiler's lock.
images() { make --old-file=build images IMAGES="base incus-node lxd-node debian-12 incus7-node"; }
compile() {
  tools/lint.sh &&
    cargo test --locked --workspace --no-run --profile "$profile" &&
    cargo test --locked --workspace --no-run --profile "$profile" --manifest-path scriptlet/Cargo.toml &&
    cargo test --locked --workspace --doc --profile "$profile"
}
export -f leftovers images compile
export logs profile

step deps 600 tools/deps.sh || finish
tools/leftovers.sh --list | sort >"$logs/before"
export BUILD_FLAGS=--tests
step build 2400 make build || finish
readonly xtask=${CARGO_TARGET_DIR:-target}/$(rustc -vV | sed -n 's/^host: //p')/release/xtask
# A forbidden licence is a failure, but the other steps still run.
{ step images 1500 bash -c images && { step deny 900 tools/deny.sh || true; }; } &
images=$!
step compile 2400 bash -c compile
compiled=$?
wait "$images" && [ "$compiled" = 0 ] || finish
tests tests 3600 --manifest-path Cargo.toml --manifest-path scriptlet/Cargo.toml
step leftovers 60 bash -c leftovers
finish
