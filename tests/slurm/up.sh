#!/usr/bin/env bash
# Starts a private Slurm cluster of N nodes on this machine, wholly inside directory D, with its own munge key and socket. Needs root and the packages
# slurm-wlm and munge, whose own services need not run. Stop it with down.sh.
set -euo pipefail
D=${D:?directory of the cluster}
N=${N:-4}
# Away from the ports that outgoing connections get.
PORT=${PORT:-$((20000 + $$ % 10000))}
rm -rf "$D"
mkdir -p "$D"/{munge,state,log,spool}
chmod 755 "$D" "$D/munge"
host=$(hostname -s)

dd if=/dev/urandom of="$D/munge/key" bs=1024 count=1 status=none
chmod 600 "$D/munge/key"
munged --force --num-threads=2 --key-file="$D/munge/key" --socket="$D/munge/sock" --pid-file="$D/munge/pid" --log-file="$D/munge/log" \
  --seed-file="$D/munge/seed"

# Credentials that expire soon: a requeued job waits for that. A short backfill interval: het jobs are started by it.
cat > "$D/slurm.conf" <<EOF
ClusterName=quorum
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=2
UnkillableStepTimeout=20
RequeueExit=75
EOF
for i in $(seq 0 $((N - 1))); do
  mkdir -p "$D/spool/n$i"
  echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + 1 + i)) CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4" \
    "ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN" >> "$D/slurm.conf"
done
echo "PartitionName=all Nodes=n[0-$((N - 1))] Default=YES MaxTime=INFINITE State=UP" >> "$D/slurm.conf"

export SLURM_CONF=$D/slurm.conf
slurmctld -f "$SLURM_CONF"
for i in $(seq 0 $((N - 1))); do slurmd -f "$SLURM_CONF" -N "n$i"; done
for _ in $(seq 120); do
  [ "$(sinfo -h -o %D -t idle 2>/dev/null)" = "$N" ] && exit 0
  sleep 0.25
done
echo "slurm: $N nodes did not become idle within 30 s; see $D/log" >&2
sinfo -N -l >&2 || true
exit 1
