#!/usr/bin/env bash
# The figures of the live page in REPORT.md: a history of 10,000 steps in Chromium, and what watching costs a run.
# Needs Node.js with npm, and Debian's chromium. bench/page.sh [arguments of `quorum-bench watching`]
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release -q
cargo build --release -q -p quorum-bench
mkdir -p target/page && cp tests/page/package.json tests/page/ready.mjs target/page/
(cd target/page && npm install --no-audit --no-fund --silent)
for groups in 16 128; do
  dir=$(mktemp -d)
  target/release/quorum-bench history --groups "$groups" --dir "$dir/run" --browser target/page/ready.mjs
  rm -rf "$dir"
done
dir=$(mktemp -d)
target/release/quorum-bench watching --dir "$dir/runs" "$@"
rm -rf "$dir"
