#!/usr/bin/env bash
# What only a GPU can tell, in four minutes on one of them, without network or installation: torch 2.11 or newer and the
# packages that training needs are there already, or in the folder that gpu_pack.sh made; a part whose package or data
# is missing is skipped with a word.
# usage: benchmarks/gpu_acceptance.sh [--minutes 4] [--parts kernels steps ...] [--copy-to FOLDER] [--anyway]
# Tables go to benchmarks/results. FASTGAN_PACK names the pack, without it .pack
set -uo pipefail
since=$(date +%s.%N)
root=$(cd "$(dirname "$0")/.." && pwd)
export FASTGAN_PACK="${FASTGAN_PACK:-$root/.pack}"
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir -p "$site/tree/fastgan" "$site/cache" # as an installation would have it: kernels/ stands beside fastgan/ in the tree
ln -s "$root"/fastgan/* "$site/tree/fastgan/"
ln -sfn "$root/kernels" "$site/tree/fastgan/kernels"
if [ -d "$FASTGAN_PACK/wheels" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site/wheels" \
        "$FASTGAN_PACK"/wheels/*.whl
fi
for archive in "$FASTGAN_PACK"/*.tar.xz; do # packages that as wheels are too large to bring along, DALI's say
    [ -f "$archive" ] && mkdir -p "$site/wheels" && tar -xJf "$archive" -C "$site/wheels"
done
[ -d "$FASTGAN_PACK/cache" ] && cp -r "$FASTGAN_PACK/cache/." "$site/cache"
export PYTHONPATH="$site/tree:$root/benchmarks:$site/wheels" PYTHONUNBUFFERED=1 FASTGAN_CACHE="$site/cache"
export TORCHINDUCTOR_CACHE_DIR="$site/inductor" TRITON_CACHE_DIR="$site/triton" TORCHINDUCTOR_COMPILE_THREADS=3
# Many processes side by side; none of them computes on the CPU for long.
export OMP_NUM_THREADS=1
export PYTHONSAFEPATH=1 # the folder that it is called in has a fastgan without kernels
"$python" "$root/benchmarks/gpu_acceptance.py" --since "$since" "$@" &
pid=$!
trap 'kill "$pid"' TERM INT # the parts' processes are its own
wait "$pid" || wait "$pid"
