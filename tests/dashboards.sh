#!/usr/bin/env bash
# Dashboards and alerts against a real Prometheus that scrapes a real run: every panel has data, every rule is tested.
# Needs Debian's `prometheus` package, python3-venv and the release executables (cargo build --release).
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in prometheus promtool; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install -y prometheus"; exit 1; }
done
target="${CARGO_TARGET_DIR:-target}/release"
[ -x "$target/coordinator" ] || { echo "$target/coordinator is missing: cargo build --release"; exit 1; }
venv=$(bash tests/deploy-venv.sh)

promtool check rules deploy/prometheus/alerts.yml
(cd deploy/prometheus && promtool test rules alerts_test.yml)
promtool check config deploy/prometheus/prometheus.yml
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp deploy/prometheus/alerts.yml deploy/prometheus/prometheus-tls.yml "$scratch"
touch "$scratch/ca.pem" "$scratch/token"
promtool check config "$scratch/prometheus-tls.yml"

"$venv/bin/python" tests/dashboards/check.py --executables "$target" --scratch "$scratch"
