#!/usr/bin/env bash
# What only a GPU can tell, in eight minutes on one of them, without network or installation: torch 2.11 or newer and the
# packages that training needs are there already; a part whose package isn't is skipped with a word.
# usage: benchmarks/gpu_acceptance.sh [--parts kernels steps ...] [--anyway]     tables go to benchmarks/results
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir "$site/fastgan" # as an installation would have it: kernels/ stands beside fastgan/ in the tree
ln -s "$root"/fastgan/* "$site/fastgan/"
ln -sfn "$root/kernels" "$site/fastgan/kernels"
export PYTHONPATH="$site:$root/benchmarks" PYTHONUNBUFFERED=1 FASTGAN_ROOT="$root"
"${PYTHON:-python3}" "$root/benchmarks/gpu_acceptance.py" "$@"
