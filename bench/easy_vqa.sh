#!/usr/bin/env bash
# The easy-VQA benchmark from nothing to test accuracy: fetch (PyPI), convert, warm a small model up, train it without labels, report.
# Usage: bench/easy_vqa.sh [fetch|convert|warmup|train|all]   (default: all; each stage needs the ones before it)
# Settings: DIR (default runs/easy-vqa), WORKERS (2), PYTHON (python3, needs pip; used for the download alone),
# TRAIN_SETS (more arguments of the training run, e.g. "--set run.steps=40").
set -euo pipefail
cd "$(dirname "$0")/.."

DIR=${DIR:-runs/easy-vqa}
WORKERS=${WORKERS:-2}
PYTHON=${PYTHON:-python3}
SHA256=fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f
WHEEL=easy_vqa-1.0-py3-none-any.whl

fetch() {
    mkdir -p "$DIR/package"
    if [ ! -f "$DIR/$WHEEL" ]; then
        "$PYTHON" -m pip download --quiet --no-deps --dest "$DIR" easy-vqa==1.0
    fi
    echo "$SHA256  $DIR/$WHEEL" | sha256sum --check --quiet
    "$PYTHON" -m zipfile -e "$DIR/$WHEEL" "$DIR/package"
}

convert() {
    target/release/quorum-bench easy-vqa --package "$DIR/package/easy_vqa/data" --out "$DIR/data"
}

warmup() {
    rm -rf "$DIR/tokenizer" "$DIR/new-model" "$DIR/warmup" "$DIR/seed-model"
    target/release/xtask train-tokenizer --text "$DIR/data/warmup.parquet" --out "$DIR/tokenizer"
    target/release/xtask new-model --tokenizer "$DIR/tokenizer" --out "$DIR/new-model" --seed 1
    target/release/coordinator --config configs/easy-vqa-warmup.toml --workers "$WORKERS" --progress plain \
        --set model.path="$DIR/new-model" --set data.train="$DIR/data/warmup.parquet" \
        --set data.test="$DIR/data/validation.parquet" --set run.dir="$DIR/warmup"
    target/release/coordinator export "$DIR/warmup" --to "$DIR/seed-model" --dtype bf16
}

train() {
    # shellcheck disable=SC2086 # TRAIN_SETS is a list of arguments
    target/release/coordinator --config configs/easy-vqa.toml --workers "$WORKERS" --progress plain \
        --set model.path="$DIR/seed-model" --set data.train="$DIR/data/unlabelled.parquet" \
        --set data.test="$DIR/data/test.parquet" --set run.dir="$DIR/train" ${TRAIN_SETS:-}
}

stages=${1:-all}
case "$stages" in
    all) stages="fetch convert warmup train" ;;
    fetch | convert | warmup | train) ;;
    *) echo "unknown stage $stages; there are fetch, convert, warmup, train, all" >&2; exit 2 ;;
esac
if [ "$stages" != fetch ]; then
    cargo build --release --quiet
    cargo build --release --quiet -p xtask -p quorum-bench
fi
for stage in $stages; do
    echo "== $stage"
    "$stage"
done
