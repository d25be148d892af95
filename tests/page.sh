#!/usr/bin/env bash
# The live page in a real browser during a real run. Needs target/release executables, Node.js with npm, and Debian's chromium.
# tests/page.sh [SHOTS_DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in node npm; do command -v $tool >/dev/null || { echo "tests/page.sh needs $tool (Debian: nodejs npm)"; exit 1; }; done
[ -x "${CHROMIUM:-/usr/bin/chromium}" ] || { echo "tests/page.sh needs Debian's chromium (or CHROMIUM=PATH)"; exit 1; }
[ -x target/release/coordinator ] || { echo "build first: cargo build --release"; exit 1; }

dir=$(mktemp -d)
pid=
cleanup() { [ -n "$pid" ] && kill "$pid" 2>/dev/null; wait 2>/dev/null; rm -rf "$dir"; }
trap cleanup EXIT

mkdir -p target/page && cp tests/page/package.json tests/page/page.mjs target/page/
(cd target/page && npm install --no-audit --no-fund --silent)

target/release/coordinator --workers 2 --progress plain \
  --set run.dir="$dir/run" --set run.steps=400 --set rollout.prompts_per_step=16 --set eval.questions=32 \
  --set cluster.listen=127.0.0.1:0 --set cluster.http=127.0.0.1:0 >"$dir/out" 2>&1 &
pid=$!
for _ in $(seq 300); do [ -s "$dir/run/endpoints.json" ] && break; kill -0 $pid 2>/dev/null || { cat "$dir/out"; exit 1; }; sleep 0.1; done
http=$(sed -E 's/.*"http":"([^"]+)".*/\1/' "$dir/run/endpoints.json")
node target/page/page.mjs "http://$http/" "${1:-}" || { tail -20 "$dir/out"; exit 1; }
