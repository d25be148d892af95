# Sourced by mpi.sh, ranks.sh and slurm.sh, with $test set to the name of the caller and $ranks to 1 if the learner needs no MPI. Makes a scratch directory
# with executables of its own, since other builds must not change them in the middle, and leaves no process behind.
bin=${QUORUM_BIN:-target/release}
if [ -z "${QUORUM_BIN:-}" ]; then
  cargo build --release -q -p quorum-coordinator -p quorum-rollout-worker
  cargo build --release -q -p quorum-learner --features mpi
fi
if [ "${ranks:-2}" != 1 ]; then
  "$bin/learner" --version | grep -q mpi || { echo "$test: $bin/learner was not built with feature mpi" >&2; exit 1; }
fi
scratch=$(mktemp -d /tmp/quorum-test.XXXXXX)
mkdir "$scratch/bin"
cp "$bin/coordinator" "$bin/learner" "$bin/rollout-worker" "$scratch/bin/"

failed() {
  echo "$test: $*" >&2
  find "$scratch" -name '*.log' ! -path '*/cluster/*' -exec tail -n 40 {} + >&2 || true
  exit 1
}
# What else is to be stopped first; callers may define it anew.
stop() { :; }
finish() {
  status=$?
  stop
  for pid in $(pgrep -f "$scratch/" || true); do kill -9 "$pid" 2>/dev/null || true; done
  [ "$status" = 0 ] && rm -rf "$scratch" || echo "$test: files are kept in $scratch" >&2
}
trap finish EXIT
# await SECONDS WHAT COMMAND…: until the command succeeds.
await() {
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $limit ] || failed "waited too long for $what"
    sleep 0.1
  done
}
