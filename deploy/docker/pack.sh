#!/usr/bin/env bash
# Packs executables that are built already into an image, with buildah or docker; compiles nothing.
# Usage: deploy/docker/pack.sh BUILD_DIRECTORY IMAGE [BASE]      e.g. deploy/docker/pack.sh target/release quorum:cpu
set -euo pipefail
cd "$(dirname "$0")/../.."
from=${1:?build directory, e.g. target/release} image=${2:?image name, e.g. quorum:cpu}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
deploy/docker/collect.sh "$from" "$stage/out"
base=()
[ -z "${3:-}" ] || base=(--build-arg "BASE=$3")
if command -v buildah >/dev/null; then build=(buildah build --format docker); else build=(docker build); fi
# The named context stands for the stage that would compile.
"${build[@]}" -f deploy/docker/Dockerfile --target cpu --network none --build-context "executables-cpu=$stage" "${base[@]}" -t "$image" .
