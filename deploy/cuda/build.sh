#!/usr/bin/env bash
# Builds the executables with CUDA and NCCL into target/cuda/build/release, warnings denied; needs no GPU. About 15 processor minutes the first time.
# Usage: deploy/cuda/build.sh [TOOLCHAIN]   CUDA_COMPUTE_CAP says for which GPUs: 90 (default) = H100, H200; 80 = A100; 100 = B200
# Ends by starting each executable as a user without a GPU would, if there is none.
set -euo pipefail
cd "$(dirname "$0")/../.."

eval "$(deploy/cuda/install-toolchain.sh "${1:-target/cuda/toolchain}")"
export CUDA_HOME CUDA_PATH=$CUDA_HOME CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} PATH=$CUDA_HOME/bin:$PATH CARGO_TERM_COLOR=never
log=target/cuda/build.log
folder=target/cuda/build/release

nice -n 10 cargo build --release --target-dir target/cuda/build \
    -p quorum-coordinator -p quorum-learner -p quorum-rollout-worker -p quorum-engine \
    --features quorum-learner/cuda,quorum-learner/nccl,quorum-rollout-worker/cuda,quorum-rollout-worker/nccl,quorum-engine/cuda,quorum-engine/nccl \
    --bins --example gpu_kernels --example gpu_speed --example parity --example nccl_check 2>&1 | tee "$log" >&2
if grep -q '^warning' "$log"; then
    echo "the build warns: $log" >&2
    exit 1
fi

# None of the libraries may be needed to start.
for name in coordinator learner rollout-worker; do
    if ldd "$folder/$name" | grep -E 'libcuda|libcublas|libcurand|libnvrtc|libnccl'; then
        echo "$name cannot start without CUDA" >&2
        exit 1
    fi
    "$folder/$name" --version
done

# On a machine without a GPU, asking for one is an error that says so.
if ! command -v nvidia-smi >/dev/null; then
    for name in learner rollout-worker; do
        code=0
        words=$(timeout 60 "$folder/$name" --coordinator http://127.0.0.1:9 --device cuda:0 2>&1) || code=$?
        echo "$name --device cuda:0 → exit code $code: $(tail -n 1 <<<"$words")"
        if [ "$code" = 0 ] || [ "$code" = 124 ] || ! grep -qi 'no usable CUDA device' <<<"$words"; then
            echo "$name should end at once and say that there is no CUDA device" >&2
            exit 1
        fi
    done
fi
