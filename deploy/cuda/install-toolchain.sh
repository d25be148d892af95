#!/usr/bin/env bash
# Installs what compiles Quorum for CUDA (compiler, headers, libraries to link with) from PyPI into a Python venv; needs no GPU, no driver, no root.
# Usage: deploy/cuda/install-toolchain.sh [DIRECTORY]   (default: target/cuda/toolchain)
# Prints, as its last lines, the shell assignments that build.sh reads; running it again on a complete directory only prints them.
set -euo pipefail
cd "$(dirname "$0")/../.."

directory=${1:-target/cuda/toolchain}
cuda_version=13.0.2   # cudarc 0.19 knows CUDA up to 13.4 and the libraries of a release serve every driver of its major version
nccl_version=2.28.9

[ -x "$directory/bin/python" ] || python3 -m venv "$directory"
directory=$(cd "$directory" && pwd)
home=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/nvidia
if [ ! -e "$directory/complete-$cuda_version-$nccl_version" ]; then
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check \
        "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl,cublas,curand,nvrtc]==$cuda_version" "nvidia-nccl-cu13==$nccl_version" >&2
    # Wheels hold libNAME.so.13 alone, and no libcuda at all; what -lNAME finds here instead loads the library of the machine at run time,
    # so that the executables start where there is none.
    python3 deploy/cuda/lazy_libraries.py "$home/cu13" "$home/nccl" "$home/cu13/lib"
    "$home/cu13/bin/nvcc" --version >&2
    touch "$directory/complete-$cuda_version-$nccl_version"
fi
echo "CUDA_HOME=$home/cu13"
echo "NCCL_HOME=$home/nccl"
