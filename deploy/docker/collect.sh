#!/usr/bin/env bash
# Copies the three executables of a build directory to OUT/bin, without debug sections. Usage: deploy/docker/collect.sh target/release OUT
set -euo pipefail
from=${1:?build directory} out=${2:?output directory}
mkdir -p "$out/bin"
for name in coordinator learner rollout-worker; do
    [ -x "$from/$name" ] || { echo "$from/$name is missing: cargo build --release" >&2; exit 1; }
    # A Debian image has the C and C++ libraries alone.
    needs=$(ldd "$from/$name" | awk '{print $1}' | grep -vE '^(linux-vdso|/lib64/ld-|lib(c|m|gcc_s|stdc\+\+|pthread|dl|rt)\.so)' || true)
    [ -z "$needs" ] || { echo "$from/$name needs ${needs//$'\n'/, }, which the image does not have: build it without feature mpi" >&2; exit 1; }
    install -m 0755 "$from/$name" "$out/bin/$name"
    strip --strip-debug "$out/bin/$name"
done
