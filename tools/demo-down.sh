#!/usr/bin/env bash
# Takes the demo's cluster down and checks that nothing of it is left.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x build/stead ] || { echo "demo-down: build/stead is not there; \`make build\` makes it" >&2; exit 1; }
build/stead down demo --if-exists
tools/leftovers.sh demo
