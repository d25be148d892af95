#!/usr/bin/env bash
# Inside the builder image: builds the executables for CUDA with deploy/cuda and collects them with the libraries that they load at run time.
# Usage: deploy/docker/build-cuda.sh OUT     → OUT/bin, OUT/lib
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?output directory}
deploy/cuda/build.sh
deploy/docker/collect.sh target/cuda/build/release "$out"
eval "$(deploy/cuda/install-toolchain.sh target/cuda/toolchain)"
mkdir -p "$out/lib"
for library in "$CUDA_HOME"/lib/lib{cublas,cublasLt,curand,nvrtc,nvrtc-builtins,cudart}.so.* "$NCCL_HOME"/lib/libnccl.so.*; do
    case $library in *.alt.so.*) continue ;; esac
    cp -L "$library" "$out/lib/"
    # Some are looked for without their version.
    name=$(basename "$library")
    ln -sf "$name" "$out/lib/${name%%.so.*}.so"
done
