"""Pictures as text inside a page: scaled down until they fit into so many bytes."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fastgan.utils.pictures import enlarge

PLAIN_BYTES = 30_000  # a PNG up to this is kept as it is
QUALITY = 85
GIF_SIDE, GIF_MS, GIF_LAST_MS = 320, 200, 2000
SIDES = (768, 512, 384, 256, 160)
FRAMES = ((60, 448), (60, 320), (40, 320), (24, 256), (12, 192), (6, 128))  # how many, how large


@dataclass(frozen=True)
class Picture:
    """An image as a `data:` address, its size in pixels, and what it shows."""

    src: str
    width: int
    height: int
    alt: str

    @property
    def is_small(self) -> bool:
        """Whether a page should show its pixels as squares, not blurred."""
        return max(self.width, self.height) < 320


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(path: Path, alt: str, side: int = SIDES[0]) -> Picture:
    """Return the image, at most `side` pixels wide and high. Raises OSError where it can't be read."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if max(image.size) <= side and len(data) <= PLAIN_BYTES:
            return Picture(_address(data, "png"), *image.size, alt)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, format="WEBP", quality=QUALITY)
        return Picture(_address(out.getvalue(), "webp"), *image.size, alt)


def fitting(paths: Sequence[Path], alts: Sequence[str], budget: int) -> list[Picture]:
    """Return the images, as large as fits into `budget` bytes; none where even small ones don't fit."""
    for side in SIDES:
        if paths and len(picture(paths[-1], "", side).src) > budget:  # soon told
            continue
        made = [picture(path, alt, side) for path, alt in zip(paths, alts, strict=True)]
        if sum(len(one.src) for one in made) <= budget:
            return made
    return []


def spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of the numbers below `count`, evenly spread, the first and the last among them."""
    if count <= wanted:
        return list(range(count))
    return [round(position * (count - 1) / (wanted - 1)) for position in range(wanted)]


def frames(paths: Sequence[Path], alt: Callable[[Path], str], budget: int) -> list[Picture]:
    """Return the images in order, as many and as large as fit into `budget` bytes, evenly spread.

    It is empty where none fits.
    """
    for wanted, side in FRAMES:
        positions = spread(len(paths), wanted)
        if positions and len(picture(paths[-1], "", side).src) * len(positions) > 2 * budget:  # soon told
            continue
        made = [picture(paths[position], alt(paths[position]), side) for position in positions]
        if sum(len(one.src) for one in made) <= budget:
            return made
    return []


def gif(path: Path, paths: Sequence[Path], alt: str, budget: int) -> Picture | None:
    """Return the GIF at `path` if it fits, else one of some of its frames, smaller.

    None where none fits, or without frames.

    Raises OSError where an image can't be read.
    """
    if path.exists() and path.stat().st_size * 4 / 3 < budget:
        with Image.open(path) as image:
            return Picture(_address(path.read_bytes(), "gif"), *image.size, alt)
    for wanted, largest in FRAMES if paths else ():
        side, positions = min(largest, GIF_SIDE), spread(len(paths), wanted)
        if len(_gif([_frame(paths[-1], side)])) * len(positions) > 2 * budget:  # soon told
            continue
        images = [_frame(paths[position], side) for position in positions]
        if len(data := _gif(images)) * 4 / 3 < budget:
            return Picture(_address(data, "gif"), *images[0].size, alt)
    return None


def _gif(images: list[Image.Image]) -> bytes:
    durations = [GIF_MS] * (len(images) - 1) + [GIF_LAST_MS]
    out = io.BytesIO()
    images[0].save(out, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return out.getvalue()


def _frame(path: Path, side: int) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return enlarge(image, side)
