#!/usr/bin/env bash
# The compose files for real: images by buildah on a Debian base, started by podman-compose, containers killed in the middle of the run;
# the run ends with the same weights as an undisturbed one on this machine, and Prometheus saw every process.
# Needs root and: podman buildah runc netavark aardvark-dns iptables debootstrap curl python3-venv (Debian), podman-compose (PyPI, installed here).
# Usage: tests/compose.sh [BUILD_DIRECTORY]    (default: target/release, which must hold the three executables)
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/release}")
packages="podman buildah runc netavark aardvark-dns iptables debootstrap curl"
for command in podman buildah runc iptables debootstrap curl python3; do
    command -v "$command" >/dev/null || { echo "tests/compose.sh: $command is missing: apt-get install $packages python3-venv" >&2; exit 1; }
done
[ -x "$build/coordinator" ] || { echo "tests/compose.sh: no executables in $build: cargo build --release" >&2; exit 1; }

work=$(mktemp -d /var/tmp/quorum-compose.XXXXXX)
project=quorum-$$
say() { printf '%4ds  %s\n' "$SECONDS" "$1"; }
fail() { say "FAILED: $1"; podman ps -a 2>/dev/null || true; compose logs 2>/dev/null | cut -c1-300 | tail -40 || true; exit 1; }

# All configuration of the container tools lies here, so that a machine's own is neither needed nor touched.
mkdir "$work/conf"
cat > "$work/conf/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "$work/networks"
CONF
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$work" "$work" > "$work/conf/storage.conf"
echo 'unqualified-search-registries = []' > "$work/conf/registries.conf"
export CONTAINERS_CONF="$work/conf/containers.conf" CONTAINERS_STORAGE_CONF="$work/conf/storage.conf" CONTAINERS_REGISTRIES_CONF="$work/conf/registries.conf"
export QUORUM_IMAGE=localhost/quorum:cpu PROMETHEUS_IMAGE=localhost/prometheus:test
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
QUORUM_HTTP_PORT=$(free_port) PROMETHEUS_PORT=$(free_port)
export QUORUM_HTTP_PORT PROMETHEUS_PORT
# Long enough for Prometheus to find all processes and for three to be killed, also on a fast machine; both runs have the same settings.
settings='run.steps=160;run.seed=7;data.train=assets/data/validation.parquet;data.test=assets/data/validation.parquet;rollout.prompts_per_step=64;rollout.group_size=8;rollout.max_new_tokens=24;view.count=2;eval.questions=16;eval.samples=2;checkpoint.every=4;cluster.prompts_per_lease=2;cluster.heartbeat_seconds=0.5'
export QUORUM_SETTINGS=$settings

compose() { "$work/venv/bin/podman-compose" --no-ansi -f deploy/compose/compose.yaml -p "$project" "$@"; }
clean() {
    compose down -v -t 2 >/dev/null 2>&1 || true
    podman rm -af -t 1 >/dev/null 2>&1 || true
    podman network prune -f >/dev/null 2>&1 || true
    umount "$work/graph/overlay" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 143' TERM INT

say "podman-compose from PyPI"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install podman-compose==1.6.0

say "base image: debootstrap"
base=${QUORUM_TEST_BASE:-}
if [ -z "$base" ]; then
    base="$work/base.tar"
    debootstrap --variant=minbase bookworm "$work/base" > "$work/debootstrap.log" 2>&1 || { tail -5 "$work/debootstrap.log"; exit 1; }
    # The way out that works here works in the containers, too.
    cp -f /etc/apt/sources.list.d/*.sources "$work/base/etc/apt/sources.list.d/" 2>/dev/null || true
    rm -rf "$work"/base/var/cache/apt/archives/*.deb
    tar -C "$work/base" -cf "$base" . && rm -rf "$work/base"
fi
podman import -q "$base" localhost/base:test >/dev/null

say "images: buildah, executables of $(basename "$build")"
deploy/docker/pack.sh "$build" "$QUORUM_IMAGE" localhost/base:test > "$work/build.log" 2>&1 || { tail -20 "$work/build.log"; exit 1; }
buildah build --format docker --isolation chroot --network host -f deploy/docker/prometheus.Dockerfile --build-arg BASE=localhost/base:test \
    -t "$PROMETHEUS_IMAGE" deploy/docker > "$work/prometheus.log" 2>&1 || { tail -20 "$work/prometheus.log"; exit 1; }

say "the same run on this machine, undisturbed"
QUORUM_SET="$settings" "$build/coordinator" --workers 1 --progress plain --set "run.dir=$work/reference" --set cluster.listen=127.0.0.1:0 \
    --set cluster.http=127.0.0.1:0 > "$work/reference.log" 2>&1 || { tail -5 "$work/reference.log"; exit 1; }
digest() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["weights_sha256"])' "$1"; }
expected=$(digest "$work/reference/report.json")

say "compose up"
# podman-compose turns depends_on into podman's --requires, and podman restarts nothing that requires a container which has ended, as init has.
compose up --no-build init > "$work/up.log" 2>&1 || { tail -20 "$work/up.log"; fail "compose up init"; }
compose up -d --no-build --no-deps coordinator learner worker-0 worker-1 prometheus > "$work/up.log" 2>&1 || { tail -20 "$work/up.log"; fail "compose up"; }
run=$(podman volume inspect "${project}_run" --format '{{.Mountpoint}}')/run
named() { podman ps -a --filter "name=${project}_$1" --format '{{.Names}}' | head -1; }
steps() { cat "$run/metrics.jsonl" 2>/dev/null | wc -l; }
wait_steps() {
    local until=$((SECONDS + 180))
    while [ "$(steps)" -lt "$1" ]; do
        [ "$SECONDS" -lt "$until" ] || fail "step $1 was not reached (at $(steps))"
        sleep 0.1
    done
}
# A crash, not a stop: the process inside dies by SIGKILL, and the restart policy must bring it back.
crash() {
    local name pid until
    name=$(named "$1")
    pid=$(podman inspect "$name" --format '{{.State.Pid}}')
    [ "$pid" -gt 0 ] || fail "$1 does not run"
    kill -9 "$pid"
    until=$((SECONDS + 60))
    while [ "$(podman inspect "$name" --format '{{.RestartCount}}')" = 0 ] || [ "$(podman inspect "$name" --format '{{.State.Running}}')" != true ]; do
        [ "$SECONDS" -lt "$until" ] || fail "$1 did not come back"
        sleep 0.1
    done
    say "$1 was killed after $(steps) steps and is back"
}

wait_steps 1
# As the image's HEALTHCHECK: three tries of 6 s, for while containers are added their name server may lose a question.
healthy() { for _ in 1 2 3; do timeout 6 podman exec "$(named "$1")" coordinator status > "$work/health-$1" && return; done; return 1; }
for name in coordinator learner worker-0 worker-1; do
    healthy "$name" || fail "$name is not healthy"
done
podman exec "$(named worker-0)" sh -c 'touch /probe 2>/dev/null' && fail "the root file system can be written"
[ "$(podman exec "$(named coordinator)" id -u)" = 10001 ] || fail "runs as root"
podman exec "$(named worker-0)" sh -c 'ls /etc/quorum/coordinator/key.pem 2>/dev/null' && fail "a worker sees the coordinator's key"
curl -sk "https://127.0.0.1:$QUORUM_HTTP_PORT/status" | grep -q "no valid token" || fail "the page answers without a token"

ask() { curl -sf "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/$1"; }
up() { ask targets | python3 -c 'import json, sys; t = json.load(sys.stdin)["data"]["activeTargets"]; print(sum(x["health"] == "up" for x in t), "of", len(t), sorted(x["labels"].get("instance_id", x["labels"]["role"]) for x in t if x["health"] == "up"))'; }
until=$((SECONDS + 60))
while [[ "$(up)" != "4 of 4"* ]]; do
    [ "$SECONDS" -lt "$until" ] || fail "Prometheus sees $(up), not coordinator, learner and two workers"
    sleep 0.5
done
say "Prometheus scrapes $(up)"

for name in worker-1 learner coordinator; do
    wait_steps $(($(steps) + 2))
    [ ! -e "$run/report.json" ] || fail "the run ended before $name was killed"
    crash "$name"
done

until=$((SECONDS + 180))
while [ ! -s "$run/report.json" ]; do
    [ "$SECONDS" -lt "$until" ] || fail "the run did not end (at step $(steps))"
    sleep 0.2
done
found=$(digest "$run/report.json")
[ "$found" = "$expected" ] || fail "the run in containers ends with $found, the local one with $expected"
cmp "$run/metrics.jsonl" "$work/reference/metrics.jsonl" || fail "metrics.jsonl differs"
until=$((SECONDS + 60))
for name in coordinator learner worker-0 worker-1; do
    while [ "$(podman inspect "$(named "$name")" --format '{{.State.Status}} {{.State.ExitCode}}')" != "exited 0" ]; do
        [ "$SECONDS" -lt "$until" ] || fail "$name did not end by itself: $(podman inspect "$(named "$name")" --format '{{.State.Status}} {{.State.ExitCode}}')"
        sleep 0.2
    done
done
ask rules | grep -q NoReadyWorkers || fail "Prometheus has no alert rules"
say "compose: same weights $found, byte-identical metrics.jsonl"
echo "1 passed, 0 failed"
