#!/usr/bin/env bash
# Packs what measure.sh needs into one file for a machine with a GPU but without Rust or network: executables, model, data, parity fixtures, scripts.
# Usage: deploy/cuda/bundle.sh [OUTPUT]   (default: target/cuda/quorum-gpu.tar.xz); run build.sh first
# There: tar xf quorum-gpu.tar.xz (or: python3 -m tarfile -e quorum-gpu.tar.xz) && quorum-gpu/measure.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

from=target/cuda/build/release
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root="$stage/quorum-gpu"
mkdir -p "$root/bin" "$root/tests/fixtures" "$root/bench/configs"
for executable in coordinator learner rollout-worker examples/gpu_kernels examples/gpu_speed examples/parity examples/nccl_check; do
    [ -x "$from/$executable" ] || { echo "$from/$executable is missing: run deploy/cuda/build.sh" >&2; exit 1; }
    strip -o "$root/bin/$(basename "$executable")" "$from/$executable"
done
cp -r assets "$root/"
for fixture in tests/fixtures/*/expected.json; do
    cp -r "$(dirname "$fixture")" "$root/tests/fixtures/"
done
cp -r tests/fixtures/images "$root/tests/fixtures/"
cp -r bench/configs/Q3 bench/configs/T "$root/bench/configs/"
cp bench/peers/torch_gpu_speed.py deploy/cuda/measure.sh "$root/"
git rev-parse HEAD > "$root/COMMIT" 2>/dev/null || echo unknown > "$root/COMMIT"

# The executables hold the same kernels: a dictionary larger than one of them lets the copies cost nothing.
output=${1:-target/cuda/quorum-gpu.tar.xz}
python3 - "$stage" "$output" <<'PY'
import lzma, sys, tarfile
filters = [{"id": lzma.FILTER_LZMA2, "preset": 2, "dict_size": 192 << 20}]
with lzma.open(sys.argv[2], "wb", filters=filters) as file, tarfile.open(fileobj=file, mode="w|") as bundle:
    bundle.add(sys.argv[1] + "/quorum-gpu", "quorum-gpu")
PY
size=$(stat -c %s "$output")
echo "$output: $((size / 1000)) kB"
[ "$size" -le 60000000 ] || { echo "the bundle is larger than 60 MB" >&2; exit 1; }
