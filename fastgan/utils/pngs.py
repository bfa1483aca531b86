"""Images as grids, PNG and GIF files."""

import contextlib
import io
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fastgan.utils.pictures import enlarge, to_image

PARTIAL = ".partial"  # the end of a hidden name, until a file is whole
MARK, PNG_END = "fastgan", b"\0\0\0\0IEND\xae\x42\x60\x82"
GIF_FRAME_MS, GIF_LAST_MS = 200, 2000


def grid(images: Tensor, columns: int | None = None) -> np.ndarray:
    """Return uint8 images [N, C, H, W] as one picture [H', W', C], black lines between.

    Without `columns` it is square or a row short of it.
    """
    side = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / side)
    images = F.pad(images, (1, 1, 1, 1, 0, 0, 0, rows * side - len(images))).cpu()
    _, channels, height, width = images.shape
    tiled = images.view(rows, side, channels, height, width).permute(0, 3, 1, 4, 2)
    return tiled.reshape(rows * height, side * width, channels).numpy()


def save_png(path: Path, pixels: np.ndarray, mark: str | None = None) -> None:
    """Write uint8 pixels [H, W, C] of 1, 3 or 4 channels, or leave what was there. Raises OSError.

    With a `mark` it says in a text of its own what it was made of, for `has_mark`, and is no image of a data set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    if mark is not None:
        info.add_text(MARK, mark)
    data = io.BytesIO()
    to_image(pixels).save(data, format="PNG", pnginfo=info)
    side = path.with_name(f".{path.name}{PARTIAL}")
    try:
        while True:
            side.write_bytes(data.getvalue())
            with contextlib.suppress(FileNotFoundError):  # another process tidied up: once more
                side.replace(path)
                return
    except BaseException:
        side.unlink(missing_ok=True)
        raise


def has_mark(path: Path, mark: str) -> bool:
    """Return whether the file is a whole PNG that was saved with the mark."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            found = image.info.get(MARK)
            file.seek(-len(PNG_END), os.SEEK_END)
            return found == mark and file.read() == PNG_END
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # another's, or damaged
        return False


def save_gif(path: Path, frames: list[Path]) -> None:
    """Write a GIF of the PNGs in order, small ones enlarged without blur."""
    images = []
    for frame in frames:
        with Image.open(frame) as image:
            images.append(enlarge(image))
    write_gif(path, images, [GIF_FRAME_MS] * (len(images) - 1) + [GIF_LAST_MS])


def write_gif(path: Path, images: Iterable[Image.Image], durations_ms: list[int]) -> None:
    """Write a GIF that shows the images for ever, each so long, or leave what was there. Raises OSError."""
    side = path.with_name(f".{path.name}.partial")
    first, *others = images
    first.save(side, format="GIF", save_all=True, append_images=others, duration=durations_ms, loop=0)
    side.replace(path)
