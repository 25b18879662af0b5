#!/usr/bin/env bash
# All that CI runs, in order; the first step that fails ends it. Logs are kept in build/test/. The last line is
# "N passed, N failed, N skipped" over everything (in the file $STEAD_SUMMARY instead, when that is set).
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never
# Where `make images` puts them; tests of machines and clusters run on these.
export STEAD_TEST_STORE=${STEAD_TEST_STORE:-/var/lib/stead/images}

readonly logs=build/test
rm -rf "$logs"
mkdir -p "$logs"
passed=0 failed=0 skipped=0 notes=()

step() { # NAME SECONDS COMMAND…
  local name=$1 limit=$2 began=$SECONDS status
  shift 2
  printf '\n==> %s\n' "$name"
  timeout --kill-after=30 "$limit" "$@" </dev/null 2>&1 | tee "$logs/$name.log"
  status=${PIPESTATUS[0]}
  count "$name" "$status"
  printf -- '--- %s: %d s\n' "$name" $((SECONDS - began))
  [ "$status" = 0 ] || finish
}

count() { # NAME STATUS: adds what the step's log says; a step that fails without a failed test counts as one
  local tally counted
  mapfile -t tally < <(awk -f tools/tally.awk "$logs/$1.log")
  read -r -a counted <<<"${tally[0]}"
  if [ "$2" != 0 ] && [ "${counted[1]}" = 0 ]; then
    counted[1]=1
    tally+=("FAIL $1: $([ "$2" = 124 ] && echo "took too long" || echo "exit $2")")
  fi
  passed=$((passed + counted[0])) failed=$((failed + counted[1])) skipped=$((skipped + counted[2]))
  notes+=("${tally[@]:1}")
}

finish() {
  printf '\n'
  [ ${#notes[@]} = 0 ] || printf '%s\n' "${notes[@]}"
  local summary="$passed passed, $failed failed, $skipped skipped"
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
  if [ -z "$new" ]; then
    echo "PASS tests leave nothing behind"
  else
    printf '%s\n' "$new"
    echo "FAIL tests leave nothing behind: $(wc -l <<<"$new") things, listed above"
    return 1
  fi
}

step deps 600 tools/deps.sh
tools/leftovers.sh --list | sort >"$logs/before"
step lint 1200 tools/lint.sh
export BUILD_FLAGS=--tests
step build 2400 make build
step images 900 make images
# Incus 7 comes from sid, which may not install today: what is tested on it then says that it is skipped.
step incus7 300 bash -c 'build/stead image build images/incus7-node.yaml || true'
# --show-output: a test that cannot run says so on its output, which is otherwise kept from view when it passes.
step tests 3600 cargo test --locked --workspace --no-fail-fast -- --show-output
# The scriptlet in a real interpreter of its language, which is no part of the workspace's tests for the time it takes to build.
step placement 900 make test-placement
if [ -x tools/e2e.sh ]; then
  step e2e 1200 tools/e2e.sh
fi
export -f leftovers
export logs
step leftovers 60 bash -c leftovers
finish
