"""From the values that files hold to 8 bits, and what lies under transparency: the same for all images of a set."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

BLACK = "#000000"
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
SIXTEEN_BITS = 65535
PHOTOMETRIC, BITS, SAMPLE_FORMAT = 262, 258, 339  # TIFF's tags
SIGNED, FLOAT = 2, 3  # of SAMPLE_FORMAT; without one values are whole and unsigned


def _read_more_tiffs() -> None:
    """Let Pillow read half and double floats, and white-is-zero in every depth in which it reads black-is-zero."""
    known = TiffImagePlugin.OPEN_INFO
    for order, end in ((b"II", ""), (b"MM", "B")):
        known.setdefault((order, 1, (FLOAT,), 1, (16,), ()), (f"I;16{end}", f"I;16{end}"))
        known.setdefault((order, 1, (FLOAT,), 1, (64,), ()), ("F", f"F;64{end}F"))
    known.setdefault((b"MM", 1, (1,), 1, (32,), ()), ("I", "I;32B"))
    for (order, photometric, kind, fill, bits, extra), modes in [*known.items()]:
        if photometric == 1 and modes[0] in WIDE_MODES:
            known.setdefault((order, 0, kind, fill, bits, extra), modes)


_read_more_tiffs()


class BadImage(ValueError):
    """A file that gives no image. Its text is the reason; what is left of a colon is the same for all of a kind."""


class Tones(NamedTuple):
    """How the images of a set become opaque and 8 bits."""

    background: str = BLACK  # #rrggbb
    value_range: tuple[float, float] | None = None  # what becomes black and white; None: each file's own full range

    def to_plain(self) -> dict[str, Any]:
        """Return what JSON knows."""
        return {"background": self.background, "range": self.value_range}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> "Tones":
        """Return what `to_plain` gave, or those of sets of before there was a choice: on black, the full range."""
        value_range = plain.get("range")
        return Tones(plain.get("background", BLACK), value_range and (float(value_range[0]), float(value_range[1])))


def values_of(image: Image.Image) -> np.ndarray:
    """Return the numbers [H, W] that a file of one wide channel holds."""
    values = np.asarray(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits, kind = image.tag_v2.get(BITS, (1,))[0], image.tag_v2.get(SAMPLE_FORMAT, (1,))[0]
        if bits == 16 and kind == FLOAT:
            return values.view(values.dtype.str.replace("u", "f")).astype(np.float32)
        if bits == 32 and kind not in (SIGNED, FLOAT):
            return values.view(np.uint32)
    return values


def full_range(values: np.ndarray) -> tuple[float, float]:
    """Return what is black and white in files of such numbers."""
    return (0, 1) if values.dtype.kind == "f" else (0, SIXTEEN_BITS)


def to_8_bits(image: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
    """Return the image in 8 bits a channel, those of a wide one rounded to the nearest of 256 levels.

    Files of 8 bits are left as they are where the range's end is above theirs. Raises BadImage where no range is given
    and values are out of the full.
    """
    if image.mode in WIDE_MODES:
        return _narrow(image, value_range)
    if value_range is None or value_range[1] > 255 or image.mode not in ("L", "LA", "RGB", "RGBA"):
        return image
    table = _scaled(np.arange(256), value_range).tolist()
    alpha = [*range(256)] * (image.mode in ("LA", "RGBA"))
    return image.point(table * (len(image.mode) - bool(alpha)) + alpha)


def colours_to_8_bits(values: np.ndarray, value_range: tuple[float, float] | None) -> Image.Image:
    """Return the image of numbers uint16 [H, W, C], alpha last where C is 2 or 4: its full range is that of 16 bits."""
    full, every = (0.0, float(SIXTEEN_BITS)), np.arange(SIXTEEN_BITS + 1)
    levels = _scaled(every, value_range or full)[values]
    if values.shape[2] % 2 == 0:
        levels[..., -1] = _scaled(every, full)[values[..., -1]]
    return Image.fromarray(levels)


def is_clipped(image: Image.Image | np.ndarray, value_range: tuple[float, float] | None) -> bool:
    """Return whether numbers of a wide image, or of deep colours [H, W, C], are out of the range."""
    if isinstance(image, np.ndarray):
        values = image[..., : 3 if image.shape[2] > 2 else 1]
    elif image.mode in WIDE_MODES:
        values = values_of(image)
    else:
        return False
    return value_range is not None and not value_range[0] <= values.min() <= values.max() <= value_range[1]


def _narrow(image: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
    values = values_of(image)
    low, high = full_range(values)
    finite = np.isfinite(values).all()
    if not finite or (value_range is None and not (values.min() >= low and values.max() <= high)):
        raise BadImage(f"values out of range: {values.min()} to {values.max()} instead of {low} to {high}")
    levels = _scaled(values, value_range or (low, high))
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == 0:
        levels = 255 - levels  # white is zero
    narrow, key = Image.fromarray(levels), image.info.get("transparency")
    if key is None:
        return narrow
    return Image.merge("LA", (narrow, Image.fromarray((values != key).astype(np.uint8) * 255)))


def _scaled(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
