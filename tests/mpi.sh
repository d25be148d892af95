#!/usr/bin/env bash
# Learner ranks over MPI. First the collectives and the sharded optimiser under mpirun with 1 to 4 ranks: sums against one rank, a missing rank, a killed rank.
# Then whole runs with learner.reduction = "fixed": one rank, four ranks, and four ranks of which one is killed with SIGKILL must end in the same bits.
# Needs mpirun, the headers of an MPI library and libclang (Debian: openmpi-bin libopenmpi-dev libclang-dev).
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in mpirun mpicc; do
  command -v "$tool" >/dev/null || { echo "tests/mpi.sh: $tool is missing; apt-get install openmpi-bin libopenmpi-dev libclang-dev" >&2; exit 1; }
done
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

[ -n "${QUORUM_BIN:-}" ] || cargo test --release -q -p quorum-learner --features mpi --test mpi
test=$0
. tests/cluster.sh

# start NAME RANKS: a small run in the background; its process id is $!.
start() {
  timeout 300 "$scratch/bin/coordinator" --config tests/configs/small.toml --workers 1 --ranks "$2" --progress plain \
    --set "run.dir=$scratch/$1" --set learner.reduction=fixed --set checkpoint.every=1 >"$scratch/$1.log" 2>&1 &
}
# What must not differ: digest of the weights and the figures of every step.
end_state() {
  grep -o '"weights_sha256": *"[0-9a-f]*"' "$scratch/$1/report.json" && cat "$scratch/$1/metrics.jsonl"
}
two_steps() { [ "$(cat "$scratch/$1/metrics.jsonl" 2>/dev/null | wc -l)" -ge 2 ]; }
no_ranks() { [ -z "$(pgrep -f "$scratch/bin/learner" || true)" ]; }
rank_pid() {
  for pid in $(pgrep -f "$scratch/bin/learner" || true); do
    if tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1"; then echo "$pid"; fi
  done
}

echo "one rank"
start one 1
wait $! || failed "the run with one rank failed"

echo "four ranks"
start four 4
wait $! || failed "the run with four ranks failed"
[ "$(end_state four)" = "$(end_state one)" ] || failed "four ranks end elsewhere than one"
ls "$scratch"/four/checkpoints/*/optimizer-00004-of-00004.safetensors >/dev/null || failed "rank 3 wrote no part of a checkpoint"

echo "four ranks, rank 2 killed"
start killed 4
run=$!
await 120 "the second step" two_steps killed
victim=$(rank_pid 2)
[ -n "$victim" ] || failed "rank 2 was not found"
kill -9 "$victim"
wait "$run" || failed "the run with a killed rank failed"
[ "$(cat "$scratch"/killed/logs/* | grep -c "group formed.*rank=2")" = 2 ] || failed "rank 2 did not meet the others twice"
[ "$(end_state killed)" = "$(end_state one)" ] || failed "after a kill the run ends elsewhere"

echo "one rank goes on where four stopped"
start resumed 4
run=$!
await 120 "the second step" two_steps resumed
pid=$(pgrep -f "$scratch/bin/coordinator.*$scratch/resumed" | tail -n 1)
kill -9 "$pid"
wait "$run" 2>/dev/null && failed "the coordinator was not killed"
await 10 "the ranks to end with their coordinator" no_ranks
timeout 300 "$scratch/bin/coordinator" --resume "$scratch/resumed" --workers 1 --ranks 1 --progress plain >>"$scratch/resumed.log" 2>&1 ||
  failed "the resumed run failed"
[ "$(end_state resumed)" = "$(end_state one)" ] || failed "resumed with one rank, the run ends elsewhere"
echo "tests/mpi.sh: all ended in $(end_state one | head -n 1)"
