#!/usr/bin/env bash
# A whole run on a private Slurm cluster of four nodes: het job (coordinator | 2 MPI learner ranks | worker), workers that join and leave by array,
# kill -9 of a slurmd, of slurmctld, of a rank and of the coordinator, SIGUSR1 → checkpoint → requeue → resume. At the end the weights must be
# bit for bit those of the same run on this machine with one rank and one worker (learner.reduction = "fixed").
# Needs root, and the Debian packages slurm-wlm munge openmpi-bin libopenmpi-dev libclang-dev libpmix2.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in slurmctld slurmd munged srun mpirun; do
  command -v "$tool" >/dev/null || { echo "tests/slurm.sh: $tool is missing; apt-get install slurm-wlm munge openmpi-bin libpmix2" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "tests/slurm.sh: the daemons of a private cluster need root" >&2; exit 1; }
ranks=${RANKS:-2}
test=$0
. tests/cluster.sh
export D=$scratch/cluster
stop() { bash tests/slurm/down.sh; }
began=$SECONDS
say() { echo "[$((SECONDS - began)) s] $*"; }

settings=(--config tests/configs/small.toml --set run.steps=80 --set rollout.prompts_per_step=40 --set checkpoint.every=10 --set learner.reduction=fixed --set cluster.heartbeat_seconds=0.5
  --set cluster.lease_seconds=20)
say "the same run on one machine"
"$scratch/bin/coordinator" --workers 1 "${settings[@]}" --set run.dir="$scratch/local" --progress plain > "$scratch/local.log" 2>&1 ||
  { cat "$scratch/local.log" >&2; failed "the local run failed"; }

say "cluster"
bash tests/slurm/up.sh
export SLURM_CONF=$D/slurm.conf
run=$scratch/run
export QUORUM_RUN_DIR=$run QUORUM_BIN=$scratch/bin OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
status() { "$scratch/bin/coordinator" status "$run" 2>/dev/null; }
figure() { status | sed -n "s/^ *\"$1\": \([0-9]*\).*/\1/p" | head -n 1; }
at_least() { local now; now=$(figure "$1"); [ -n "$now" ] && [ "$now" -ge "$2" ]; }
# Delivered groups of a worker whose name begins with the first argument.
delivered() { status | tr -d '\n' | grep -E "\"id\": \"$1[^{}]*\"delivered\": [1-9]" > /dev/null; }
state() { squeue -h -o %T -j "$1" 2>/dev/null | head -n 1; }
is() { [ "$(state "$1")" = "$2" ]; }
gone() { [ -z "$(state "$1")" ]; }

say "het job"
job=$(sbatch --parsable --output="$scratch/quorum-%j.log" --mem=500 : --ntasks="$ranks" --mem=500 : --ntasks=1 --mem=500 deploy/slurm/quorum.sbatch "${settings[@]}")
array=$(sbatch --parsable --output="$scratch/quorum-workers-%A-%a.log" --array=0-1 --mem=500 deploy/slurm/workers.sbatch)
await 60 "the run to begin" at_least epoch 1
await 60 "the first step" at_least committed 1
await 30 "an array worker to deliver" delivered "worker-$array-"
say "a worker of the array leaves: $(squeue -h -j "${array}_0" -o %T)"
scancel --signal=TERM --batch "${array}_0"

# What slurmctld accepted less than 5 s before its death it may forget, and kill or start again: that is Slurm's promise, not ours.
sleep 6
say "kill -9 of the slurmd of the learner's node, and of slurmctld"
node=$(squeue -h -j "$job" -o "%i %N" | sed -n "s/^$job+1 //p")
kill -9 "$(cat "$D/slurmd.$node.pid")"
kill -9 "$(cat "$D/slurmctld.pid")"
sleep 1
slurmd -f "$SLURM_CONF" -N "$node"
slurmctld -f "$SLURM_CONF"
await 60 "a step after it" at_least committed 12

say "kill -9 of a learner rank"
kill -9 "$(pgrep -f "^$scratch/bin/learner " | head -n 1)"
await 60 "the ranks to be started again" grep -q "learner ended by itself" "$scratch/quorum-$job.log"
after=$(figure committed)
await 60 "a step after it" at_least committed $((${after:-0} + 1))
say "signal before the time limit: checkpoint, requeue"
await 10 "slurmctld" is "$job" RUNNING
scancel --signal=USR1 --batch "$job"
await 60 "the requeue" is "$job" PENDING
grep -q "gave the machine back" "$scratch/quorum-$job.log" || failed "the coordinator did not say that it gave the machine back"
[ ! -e "$run/owner.json" ] || failed "the run directory still has an owner"
await 60 "the job to start again" is "$job" RUNNING
await 60 "the second start" at_least epoch 2
await 30 "the array's other worker to come back" delivered "worker-$array-"

say "kill -9 of the coordinator"
kill -9 "$(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' "$run/endpoints.json")"
await 120 "the end of the run" gone "$job"
await 30 "the array to end" gone "$array"

say "compare"
grep -q "coordinator ended with status 0" "$scratch/quorum-$job.log" || failed "the job did not end well"
newest() { ls -d "$1"/checkpoints/step-* | tail -n 1; }
digests() { sha256sum < "$(newest "$1")/model.safetensors"; sha256sum < "$1/metrics.jsonl"; }
digests "$scratch/local" > "$scratch/expected"
digests "$run" > "$scratch/found"
diff "$scratch/expected" "$scratch/found" >&2 || failed "weights or metrics differ from the local run"
say "weights and metrics are bit for bit those of the local run: $(head -c 16 "$scratch/found")…"
