#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of at most ten minutes: our kernels against candle's operations, parity fixtures, NCCL with one rank
# and with a rank missing, a whole default run, and the speed of a model of 3 billion parameters beside PyTorch's on the same card.
# Needs a driver, CUDA 13.0 libraries, NCCL, and python3 with PyTorch for the comparison; neither Rust nor network.
# Usage: quorum-gpu/measure.sh [OUTPUT.md]   from an unpacked bundle (bundle.sh). Without a GPU: DEVICE=candle-cpu SMALL=1 tries the script itself.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
output=${1:-$here/GPU-results.md}
device=${DEVICE:-cuda:0}
config=bench/configs/Q3/config.json
budget=12          # seconds a workload
limit=570          # seconds for everything
[ -z "${SMALL:-}" ] || { config=bench/configs/T/config.json; budget=1; }
logs=$(mktemp -d)
failed=0

# CUDA 13's libraries and NCCL, also where they came as Python packages.
loads() { python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" 2>/dev/null; }
libraries="libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libnvrtc.so.13 libnccl.so.2"
for name in $libraries; do
    loads "$name" && continue
    found=$(python3 - "$name" <<'PY' 2>/dev/null
import pathlib, sys
for folder in map(pathlib.Path, sys.path):
    for package in ("nvidia", "torch/lib"):
        for library in (folder / package).rglob(sys.argv[1]):
            print(library.parent)
            sys.exit()
PY
    )
    [ -n "$found" ] || found=$(find /usr/local /opt -name "$name" -printf '%h\n' -quit 2>/dev/null)
    [ -z "$found" ] || LD_LIBRARY_PATH="$found:${LD_LIBRARY_PATH:-}"
done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
missing=
for name in libcuda.so.1 $libraries; do
    loads "$name" || missing="${missing:+$missing, }$name"
done
[ -z "$missing" ] || echo "missing on this machine: $missing; what needs it will fail below" >&2

say() { printf '%s\n' "$@" >> "$output"; }
title() { echo "== $1 (${SECONDS}s)" >&2; say "" "## $1" ""; }
left() { local rest=$((limit - SECONDS)); echo $((rest < $1 ? (rest > 1 ? rest : 1) : $1)); }

# verdict NAME CODE LOG: a row that says how a step ended, with its last words if it failed.
verdict() {
    if [ "$2" = 0 ]; then
        say "| $1 | ok |"
    else
        failed=$((failed + 1))
        say "| $1 | FAILED, exit code $2: $(tail -n 2 "$3" | tr '\n|' '  ') |"
    fi
}

card=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
: > "$output"
say "# Measured on a GPU" "" "| | |" "| --- | --- |" "| date | $(date -u +%F) |" "| card, memory, driver | ${card:-none} |" \
    "| device | $device |" "| commit | $(cat COMMIT 2>/dev/null) |" "| command | quorum-gpu/measure.sh |" \
    "| missing on this machine | ${missing:-nothing} |" "| PyTorch | $(python3 -c 'import torch; print(torch.__version__)' 2>/dev/null || echo none) |"

memory_log=$logs/memory
if [ -n "$card" ]; then
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 200 >> "$memory_log" 2>/dev/null &
    watcher=$!
fi
peak_memory() { sort -n "$memory_log" 2>/dev/null | tail -n 1; : > "$memory_log"; }

title "Kernels against candle's operations on the same card"
if [[ $device = cuda:* ]]; then
    for size in small 3b; do
        timeout "$(left 60)" bin/gpu_kernels $size > "$logs/kernels" 2> "$logs/kernels.err"
        code=$?
        say "Shape $size, exit code $code:" ""
        cat "$logs/kernels" >> "$output"
        say ""
        [ $code = 0 ] || { failed=$((failed + 1)); say "\`\`\`" "$(tail -n 3 "$logs/kernels.err")" "\`\`\`"; }
    done
else
    say "Not on $device."
fi

title "Parity fixtures (reference outputs of transformers)"
say "| fixture | |" "| --- | --- |"
for fixture in tests/fixtures/*/expected.json; do
    folder=$(dirname "$fixture")
    timeout "$(left 60)" bin/parity "$folder" "$device" > "$logs/parity" 2>&1
    code=$?
    grep -E 'FAILED$' "$logs/parity" > "$logs/bad" || cp "$logs/parity" "$logs/bad"
    verdict "$(basename "$folder"), $(grep -c ' ok$' "$logs/parity") checks ok, $(grep -c 'FAILED$' "$logs/parity") not" $code "$logs/bad"
done

title "Tensor parallel: the fixtures on two devices that hold half the heads each"
case $device in candle-cpu) pair=candle-cpu+candle-cpu ;; *) pair=cuda:0+cuda:1 ;; esac
if [ "$device" = candle-cpu ] || [ "$(nvidia-smi --list-gpus 2>/dev/null | wc -l)" -ge 2 ]; then
    say "| fixture | |" "| --- | --- |"
    for name in qwen2_5_vl qwen3_text; do
        timeout "$(left 60)" bin/parity "tests/fixtures/$name" "$pair" > "$logs/parity" 2>&1
        code=$?
        grep -E 'FAILED$' "$logs/parity" > "$logs/bad" || cp "$logs/parity" "$logs/bad"
        verdict "$name on $pair, $(grep -c ' ok$' "$logs/parity") checks ok, $(grep -c 'FAILED$' "$logs/parity") not" $code "$logs/bad"
    done
else
    say "One device only."
fi

title "NCCL"
if [[ $device = cuda:* ]]; then
    timeout "$(left 60)" bin/nccl_check "${device#cuda:}" >> "$output" 2> "$logs/nccl"
    code=$?
    [ $code = 0 ] || { failed=$((failed + 1)); say "" "exit code $code: $(tail -n 2 "$logs/nccl" | tr '\n' ' ')"; }
else
    say "Not on $device."
fi

title "Tokens a second, $(basename "$(dirname "$config")") in bf16, random weights"
# Share of peak of 989 TFLOP/s (H100 and H200, dense bf16), 6 FLOP a parameter and token forward and backward, 2 when decoding.
for engine in quorum unrecorded candle torch; do
    : > "$memory_log"
    case $engine in
        quorum) timeout "$(left 130)" bin/gpu_speed $config "$device" $budget > "$logs/$engine" 2> "$logs/$engine.err" ;;
        unrecorded) QUORUM_GRAPHS=0 timeout "$(left 45)" bin/gpu_speed $config "$device" 5 decode > "$logs/$engine" 2> "$logs/$engine.err" ;;
        candle) QUORUM_FUSED=0 timeout "$(left 80)" bin/gpu_speed $config "$device" 5 > "$logs/$engine" 2> "$logs/$engine.err" ;;
        torch) timeout "$(left 75)" python3 torch_gpu_speed.py $config $budget "" "${device/candle-cpu/cpu}" > "$logs/$engine" 2> "$logs/$engine.err" ;;
    esac
    echo $? > "$logs/$engine.code"
    peak_memory > "$logs/$engine.memory"
done
python3 - "$logs" "$config" >> "$output" <<'PY'
import json, pathlib, sys
logs = pathlib.Path(sys.argv[1])
c = json.loads(pathlib.Path(sys.argv[2]).read_text())
h, m, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
head = h // c["num_attention_heads"]
weights = layers * (h * (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * head + h * h + 3 * h * m) + h * c["vocab_size"]
print(f"{weights / 1e9:.2f} billion weights in matrices; peak taken as 989 TFLOP/s.\n")
print("| engine | workload | seconds | tokens/s | share of peak | memory in use at most, MiB |\n| --- | --- | --- | --- | --- | --- |")
names = {"quorum": "Quorum", "unrecorded": "Quorum, QUORUM_GRAPHS=0", "candle": "Quorum, QUORUM_FUSED=0", "torch": "PyTorch"}
for engine, name in names.items():
    memory = (logs / f"{engine}.memory").read_text().strip()
    for line in (logs / engine).read_text().splitlines():
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        rate = row.get("tokens_per_second")
        flops = weights * (2 if row["workload"].startswith("decode") else 6)
        share = f"{rate * flops / 989e12:.1%}" if rate else ""
        extra = f" ({row['gigabytes']} GB)" if "gigabytes" in row else ""
        print(f"| {name} | {row['workload']}{extra} | {row['seconds']} | {rate or ''} | {share} | {memory} |")
    code = (logs / f"{engine}.code").read_text().strip()
    if code != "0":
        words = " ".join((logs / f"{engine}.err").read_text().splitlines()[-2:]).replace("|", " ")
        print(f"| {name} | ended with exit code {code}: {words} | | | | |")
PY
[ "$(cat "$logs/quorum.code")" = 0 ] || failed=$((failed + 1))

title "A whole default run"
seconds=$(left 240)
start=$SECONDS
settings=()
[ -z "${SMALL:-}" ] || settings=(--set run.steps=2 --set eval.enabled=false)
timeout -s INT -k 15 "$seconds" bin/coordinator --workers 1 --device "$device" --progress plain --set run.dir="$logs/run" \
    --set cluster.listen=127.0.0.1:0 --set cluster.http=127.0.0.1:0 "${settings[@]}" > "$logs/default" 2>&1
code=$?
say "| | |" "| --- | --- |"
verdict "coordinator --workers 1 --device $device, $((SECONDS - start)) s of at most $seconds" $code "$logs/default"
say "| last metrics | \`$(tail -n 1 "$logs/run/metrics.jsonl" 2>/dev/null | cut -c 1-600)\` |" "" "\`\`\`" "$(tail -n 25 "$logs/default" | cut -c 1-200)" "\`\`\`"

[ -z "${watcher:-}" ] || kill "$watcher"
say "" "$failed steps failed; ${SECONDS} s in all."
cat "$output"
rm -rf "$logs"
exit $((failed > 0))
