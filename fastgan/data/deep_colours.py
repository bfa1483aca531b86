"""Colours of more than 8 bits a channel: all 16 of PNGs and TIFFs; of other kinds Pillow has the upper 8 alone.

Pillow takes of the two bytes of such a number one, the first or the second by the order that it is told. An image that
is decoded in either order, whatever its own, gives both.
"""

import io
import re
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from fastgan.data.tones import SIXTEEN_BITS, WIDE_MODES, BadImage

BITS, PLANAR = 258, 284  # TIFF's tags
APART = 2  # of PLANAR: one channel after the other
FIRST, SECOND = "B", "L"  # the orders in which Pillow takes the first byte, and the second
J2K_HEAD, J2K_DEPTH = b"\xff\x4f\xff\x51", 42  # how a codestream begins, and where its first channel's depth is
AV1_CONFIG, AV1_DEEP = b"av1C", 0x40  # AVIF's box, whose third byte has a bit for more than 8


def read_deep(image: ImageFile.ImageFile, data: bytes) -> np.ndarray | None:
    """Return the numbers uint16 [H, W, C] of an image of 16-bit colours, alpha last where C is 2 or 4.

    `data` is its file, of which nothing is decoded yet. None where it is another kind, or gives its upper bits alone.
    Raises BadImage.
    """
    if not image.tile:
        return None
    layout, is_apart = _layout(image.tile[0]), _is_apart(image)
    if layout == "LA;16B":
        _decode_as(image, {layout: "RGBA"})  # all four bytes at once
        return np.asarray(image).view(">u2")
    if is_apart and image.tile[0][0] == "raw":  # which Pillow takes for 8 bits
        if layout not in tuple("RGBA"):
            raise BadImage(f"channels of 16 bits one after the other: {image.mode}")
    elif is_apart or not re.fullmatch("RGB[AaX]?;16[BLN]", layout):
        return None
    layouts = {_layout(tile) for tile in image.tile} - {";", "X"}
    halves = []
    with Image.open(io.BytesIO(data), formats=[image.format or ""]) as again:
        for opened, order in ((image, FIRST), (again, SECOND)):
            _decode_as(opened, {name: f"{name.split(';')[0].replace('a', 'A')};16{order}" for name in layouts})
            halves.append(np.asarray(opened))
    is_little = sys.byteorder == "little" if layout.endswith("N") else layout.endswith("L") or data[:2] == b"II"
    values = np.stack(halves, axis=-1).view("<u2" if is_little else ">u2")[..., 0]
    if any("a" in name for name in layouts):
        colours = values[..., :3] * (SIXTEEN_BITS / np.maximum(values[..., 3:], 1))  # which were weighted by opacity
        values = np.concatenate([np.minimum(colours, SIXTEEN_BITS).astype(np.uint16), values[..., 3:]], axis=2)
    key = image.info.get("transparency")
    if isinstance(key, tuple):
        opaque = (values != key).any(axis=2, keepdims=True)
        values = np.concatenate([values, opaque * np.uint16(SIXTEEN_BITS)], axis=2)
    return values


def has_more_bits(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Return whether colours have more than the 8 bits that are read of them.

    Of an image that `read_deep` leaves, and that isn't decoded yet.
    """
    if image.mode in ("L", "LA", *WIDE_MODES) or not image.tile:
        return False
    if image.format == "JPEG2000":
        place = data.find(J2K_HEAD) + J2K_DEPTH
        return (data[place] & 0x7F) > 7
    if image.format == "AVIF":
        place = data.find(AV1_CONFIG) + len(AV1_CONFIG) + 2
        return bool(data[place] & AV1_DEEP)
    layout = image.tile[0][3]
    is_deep_ppm = image.format == "PPM" and isinstance(layout, tuple) and int(layout[1]) > 255
    return is_deep_ppm or ";16" in _layout(image.tile[0])


def _is_apart(image: ImageFile.ImageFile) -> bool:
    """Whether its channels of 16 bits lie one after the other."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    bits = image.tag_v2.get(BITS, (1,))
    return image.tag_v2.get(PLANAR) == APART and len(bits) > 1 and bits[0] == 16


def _layout(tile: tuple[Any, ...]) -> str:
    """How Pillow calls the order of the bytes of a part of a file."""
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _decode_as(image: ImageFile.ImageFile, layouts: dict[str, str]) -> None:
    """Let the parts of the image be decoded by other layouts; those without one aren't."""
    image.tile = [
        tile._replace(args=layouts[name] if isinstance(tile[3], str) else (layouts[name], *(tile[3] or ())[1:]))
        for tile, name in ((tile, _layout(tile)) for tile in image.tile)
        if name in layouts
    ]
