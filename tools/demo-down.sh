#!/usr/bin/env bash
# Takes the demo's cluster down and checks for leftovers.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x build/stead ] || { echo "demo-down: build/stead does not exist; run \`make build\`" >&2; exit 1; }
build/stead down demo --if-exists
tools/leftovers.sh demo
