#!/usr/bin/env bash
# What each ingredient of mnist28-fast brings: recipes that differ from it in one, half a minute of training each.
# usage: benchmarks/ablation.sh [options of bench_quality.py]     goes on where it was stopped
set -euo pipefail
cd "$(dirname "$0")/.."

ingredients=(
    "--loss relativistic --penalty r1+r2 --penalty-every 1"
    "--loss hinge"
    "--penalty none"
    "--penalty-every 1"
    "--penalty-every 16"
    "--width 0.5"
    "--width 2"
    "--batch-size 32"
    "--batch-size 256"
    "--g-lr 5e-4 --d-lr 5e-4"
    "--g-lr 1e-3 --d-lr 1e-3"
    "--g-lr 4e-3 --d-lr 4e-3"
    "--betas 0.5 0.99"
    "--ema-half-lives 64"
    "--ema-half-lives 100000"
    "--no-share-fakes"
    "--num-classes 0"
)
exec python benchmarks/bench_quality.py mnist28-fast "${ingredients[@]/#/mnist28-fast }" \
    --minutes 0.5 --theme ablation --folder runs/ablation "$@"
