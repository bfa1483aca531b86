"""Pictures made of pictures, with words: grids side by side, rows with names."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 360  # small pictures are enlarged to about this many pixels, so that words fit beside them
FONT_SIZE, MARGIN = 15, 6
FONT_SHARE = 0.04  # of the width, so that words can be read when the picture is shown smaller


def to_image(pixels: np.ndarray) -> Image.Image:
    """Return uint8 pixels [H, W, C] of 1, 3 or 4 channels as Pillow's image."""
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)


def enlargement(size: tuple[int, int], side: int = SIDE) -> int:
    """Return how many times as wide and high `enlarge` makes an image of this size."""
    return max(1, round(side / max(size)))


def enlarge(image: Image.Image, side: int = SIDE) -> Image.Image:
    """Return a small image enlarged to about `side` pixels without blur; a large one as it is."""
    scale = enlargement(image.size, side)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def side_by_side(parts: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Return pictures of one size [H, W, C], each under its name, on white [H', W', C]."""
    images = [enlarge(to_image(pixels)) for _, pixels in parts]
    width, height = images[0].size
    total = (width + MARGIN) * len(images) - MARGIN
    size = max(FONT_SIZE, round(FONT_SHARE * total))
    head = size + 2 * MARGIN
    canvas = _white(images[0].mode, (total, head + height))
    for number, (image, (name, _)) in enumerate(zip(images, parts, strict=True)):
        canvas.paste(image, (number * (width + MARGIN), head))
        _write(canvas, (number * (width + MARGIN) + 1, MARGIN), name, size)
    return _pixels(canvas)


def named_rows(names: Sequence[str], pixels: np.ndarray) -> np.ndarray:
    """Return a picture [H, W, C] of as many equal rows as there are names, which stand to their left, on white [H',
    W', C].
    """
    image = enlarge(to_image(pixels))
    size = max(FONT_SIZE, round(FONT_SHARE * image.width))
    font = ImageFont.load_default(size)
    left = MARGIN + max(round(font.getlength(name)) for name in names) + MARGIN
    canvas = _white(image.mode, (left + image.width, image.height))
    canvas.paste(image, (left, 0))
    step = image.height / len(names)
    for row, name in enumerate(names):
        _write(canvas, (MARGIN, round((row + 0.5) * step - size * 0.6)), name, size)
    return _pixels(canvas)


def _white(mode: str, size: tuple[int, int]) -> Image.Image:
    return Image.new(mode, size, 255 if mode == "L" else "white")


def _write(canvas: Image.Image, position: tuple[int, int], text: str, size: int) -> None:
    ink = 0 if canvas.mode == "L" else "black"
    ImageDraw.Draw(canvas).text(position, text, fill=ink, font=ImageFont.load_default(size))


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
