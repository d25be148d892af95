#!/usr/bin/env bash
# `coordinator --ranks 3` on one machine under faults: kill -9 of a rank, of mpirun, a rank that stands still, kill -9 of the coordinator. No process may
# be left behind, and with learner.reduction = "fixed" the run must end bit for bit as with one rank. Needs what tests/mpi.sh needs.
set -euo pipefail
cd "$(dirname "$0")/.."
test=$0
. tests/cluster.sh
run() { "$scratch/bin/coordinator" "$@"; }
settings=(--workers 1 --progress plain --config tests/configs/small.toml --set run.steps=30 --set rollout.prompts_per_step=40 --set checkpoint.every=10 --set learner.reduction=fixed
  --set cluster.heartbeat_seconds=0.3)
run "${settings[@]}" --set run.dir="$scratch/one" > "$scratch/one.log" 2>&1 || failed "the run with one rank failed"

dir=$scratch/three
"$scratch/bin/coordinator" "${settings[@]}" --ranks 3 --set run.dir="$dir" > "$scratch/three.log" 2>&1 &
coordinator=$!
ranks() { pgrep -f "^$scratch/bin/learner " || true; }
steps() { cat "$dir/metrics.jsonl" 2>/dev/null | wc -l; }
learned() { [ "$(steps)" -ge "$1" ]; }
restarts() { [ "$(grep -c "^learner died" "$scratch/three.log")" -ge "$1" ]; }
await 60 "the first steps" learned 2
kill -9 "$(ranks | tail -n 1)"
await 30 "the restart after a lost rank" restarts 1
await 60 "steps after it" learned 5
kill -9 "$(pgrep -P "$coordinator" -x mpirun)"
await 30 "the restart after a lost mpirun" restarts 2
await 60 "steps after it" learned 8
kill -STOP "$(ranks | tail -n 1)"
await 60 "the restart after a rank that stood still" restarts 3
await 60 "steps after it" learned 11
kill -9 "$coordinator"
wait "$coordinator" 2>/dev/null || true
none() { [ -z "$(ranks)" ]; }
await 10 "the ranks to end with their coordinator" none
run --resume "$dir" --workers 1 --progress plain > "$scratch/resumed.log" 2>&1 || failed "the resumed run failed"
digests() { sha256sum < "$1/metrics.jsonl"; sha256sum < "$1/checkpoints/step-000030/model.safetensors"; }
[ "$(digests "$scratch/one")" = "$(digests "$dir")" ] || failed "the end differs from that of one rank"
none || failed "ranks are left behind"
echo "three ranks under faults end bit for bit as one"
