#!/usr/bin/env bash
# Checks the arithmetic of engine/cuda/*.cu on a machine without a GPU: the same sources, compiled as C++ and compared with formulas in f64.
# It needs g++ alone. It says nothing about speed or races; measure.sh compares the kernels with candle's operations on a GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
g++ -std=c++17 -O2 -Wall -Wno-unused -Wno-unknown-pragmas -x c++ engine/cuda/check/kernels.cpp -o "$folder/kernels"
"$folder/kernels"
