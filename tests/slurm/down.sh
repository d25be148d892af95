#!/usr/bin/env bash
# Stops what up.sh started in directory D, by process id.
D=${D:?directory of the cluster}
export SLURM_CONF=$D/slurm.conf
timeout 5 scancel --user="$(id -un)" 2>/dev/null
sleep 1
for file in "$D"/slurmd.*.pid "$D/slurmctld.pid"; do
  [ -s "$file" ] && kill "$(cat "$file")" 2>/dev/null
done
# Step daemons outlive a slurmd that was killed.
for process in $(pgrep slurmstepd); do
  grep -qzxF "SLURM_CONF=$D/slurm.conf" "/proc/$process/environ" 2>/dev/null && kill -9 "$process" 2>/dev/null
done
sleep 1
[ -s "$D/munge/pid" ] && kill "$(cat "$D/munge/pid")" 2>/dev/null
true
