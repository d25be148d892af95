#!/usr/bin/env bash
# The Helm chart: linted, rendered for three Kubernetes versions, validated, compared with golden renderings (--update writes them anew), and its
# processes started from the rendered command, environment and ports on loopback. Needs python3-venv and the release executables.
set -euo pipefail
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}/release"
[ -x "$target/coordinator" ] || { echo "$target/coordinator is missing: cargo build --release"; exit 1; }
venv=$(bash tests/deploy-venv.sh)
"$venv/bin/python" tests/helm/check.py --helm "$venv/bin/helm" "$@"
"$venv/bin/python" tests/helm/run.py --helm "$venv/bin/helm" --executables "$target"
