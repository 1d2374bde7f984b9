#!/usr/bin/env bash
# Measures on a CUDA GPU what docs/performance.md has no figures for, in 20 minutes at most: decoding of small and medium
# shapes, opening and first sound, the codec, training. The result is OUT/figures.jsonl and, as a table, OUT/figures.md.
#
#   tools/bench_gpu.sh [OUT]              OUT is build/gpu unless given
#   MINIATURE=1 tools/bench_gpu.sh OUT    the same commands on a CPU, in small; a test runs them
#
# Each command has a process and a limit of its own, what is slow to compile comes last, and what no longer fits into
# LIMIT_S seconds is left out; both cost a line. PYTHON is the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-build/gpu}") python=${PYTHON:-python} end=$((SECONDS + ${LIMIT_S:-1200}))
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
json=(--json "$out/figures.jsonl")
mkdir -p "$out"
: >"$out/figures.jsonl"

run() { # run SECONDS TOOL ARGUMENTS...
    local limit=$1 left=$((end - SECONDS))
    shift
    echo "== $*"
    if ((left < 10)); then
        echo "left out: no time is left"
        return
    fi
    timeout --kill-after 10 $((limit < left ? limit : left)) "$python" "tools/$@" ||
        echo "left out: it failed, or took longer than its limit (status $?)"
}

if [ -n "${MINIATURE:-}" ]; then
    device=cpu sizes=tiny batches=1 frames="--threads 1 --frames 6 --steps 2 --rounds 1"
    plain="transformers-bfloat16 eager-int8" compiled= trainings="lm_tiny" rounds=1 seconds=0.3 dtypes=bfloat16
    codec="--shape tiny --threads 1 --seconds 0.2 --rounds 1 --batch 1 --models transformers-float32 plain-float32"
else
    device=cuda sizes="small medium" batches="1 8 32" frames="--frames 500 --rounds 3"
    plain="transformers-bfloat16 pytorch-bfloat16 graph-bfloat16 graph-int8" compiled="compile-bfloat16 compile-int8"
    trainings="lm_small lm_medium" rounds=5 seconds=10 dtypes="bfloat16 float32"
    codec="--threads 1 --seconds 10 --batch 1 16 --models transformers-float32 plain-float32"
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        { echo "error: PyTorch sees no CUDA GPU; MINIATURE=1 runs the commands on a CPU" >&2; exit 2; }
fi

for size in $sizes; do
    run 180 bench_generate.py --device $device --shape $size --batch $batches $frames --models $plain "${json[@]}"
    run 180 random_release.py build "$out/$size" --size $size
    for dtype in $dtypes; do
        run 60 random_release.py load "$out/$size" --device $device --dtype $dtype --unpacked --generate $seconds "${json[@]}"
    done
    rm -rf "${out:?}/$size"
done
run 90 bench_codec.py --device $device $codec "${json[@]}"
for name in $trainings; do
    run 120 bench_train.py --device $device --only $name --precision bfloat16 --rounds $rounds "${json[@]}"
done
for batch in $batches; do
    for model in $compiled; do
        for size in $sizes; do
            run 240 bench_generate.py --device $device --shape $size --batch $batch $frames --models graph-bfloat16 $model "${json[@]}"
        done
    done
done
"$python" tools/records.py "$out/figures.jsonl" | tee "$out/figures.md"
