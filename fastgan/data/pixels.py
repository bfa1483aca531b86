"""Image files to pixels of one size, and pixels to the bytes that are stored. Imports no torch: workers start fast."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageFile, UnidentifiedImageError

from fastgan.data.deep_colours import read_deep
from fastgan.data.tones import WIDE_MODES, Tones, colours_to_8_bits, is_clipped, to_8_bits
from fastgan.data.tones import BadImage as BadImage  # noqa: PLC0414  # others get it from here

Image.init()
# Formats with a signature that Pillow decodes itself: no EPS, which would start an interpreter, and no guesses.
KNOWN_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
FORMATS = [name for name in KNOWN_FORMATS if name in Image.OPEN]
MAX_PIXELS = 2**28
DRAFT_GAP = 2  # JPEGs are decoded at a smaller scale as long as both sides stay this much above the wanted ones
REDUCING_GAP = 3.0  # above this ratio whole blocks are averaged before the Lanczos filter; the eye sees no difference
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # by channels: grey, RGB, RGBA
PNG_FILTER_UP = 2
GREY_MODES = ("1", "L", "LA", "La", *WIDE_MODES)
PLAIN = Tones()
TRANSPARENT, CLIPPED = "transparent", "clipped"  # what a sample of a set may miss
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

TURNED = {UPRIGHT[number] for number in (5, 6, 7, 8)}

Size = tuple[int, int]  # height, width


RawImage = (
    bytes | Path | np.ndarray | BadImage
)  # a file's bytes, the file, uint8 pixels [H, W, C], or why there is none


@dataclass(frozen=True)
class Transform:
    """What becomes of every image."""

    size: Size
    fit: str = "crop"
    channels: int = 3
    encoding: str = "png"
    quality: int = 95
    tones: Tones = PLAIN
    watch: tuple[str, ...] = ()  # of TRANSPARENT and CLIPPED what the sample that decided the tones hasn't


class EncodedImage(NamedTuple):
    """An image as it is stored."""

    data: bytes
    digest: bytes  # of the pixels that decoding `data` gives
    seen: tuple[str, ...] = ()  # what is to be watched for that it has


def decode(data: bytes, size: Size | None, fit: str, channels: int | None, tones: Tones = PLAIN) -> np.ndarray:
    """Return the image's pixels, uint8 [H, W, C], upright, the first frame of several.

    `size` None leaves the size as it is, `channels` None the channels (1, 3, or 4 where a pixel is transparent). An
    image that has the size isn't resampled. `fit` crop cuts the centre out, pad adds the background (transparency where
    there are 4 channels), stretch bends. What is transparent lies on the background where it must go. Raises BadImage.
    """
    return _decode(data, size, fit, channels, tones)[0]


def _decode(
    data: bytes, size: Size | None, fit: str, channels: int | None, tones: Tones, watch: tuple[str, ...] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pixels, and which of `watch` the image has."""
    with opened(data) as image:
        if image.format in ("JPEG", "MPO") and size is not None:
            image.draft(None, (DRAFT_GAP * max(size), DRAFT_GAP * max(size)))
        deep = read_deep(image, data)
        image.load()  # which also knows the EXIF at the end of a file
        narrow = to_8_bits(image, tones.value_range) if deep is None else colours_to_8_bits(deep, tones.value_range)
        has = {
            TRANSPARENT: TRANSPARENT in watch and is_transparent(narrow),
            CLIPPED: CLIPPED in watch and is_clipped(image if deep is None else deep, tones.value_range),
        }
        method = _upright_method(image)
        shown = narrow if method is None else narrow.transpose(method)
        pixels = _array(_with_channels(shown, channels, tones.background), size, fit, tones.background)
        return pixels, tuple(kind for kind in watch if has[kind])


@contextmanager
def opened(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """Open the image, of which nothing is decoded yet. Raises BadImage, also for what fails within."""
    if not data:
        raise BadImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            yield image
    except BadImage:
        raise
    except Exception as error:  # decoders raise anything where they are fed with garbage
        raise _reason(error) from None


def encode_array(pixels: np.ndarray, encoding: str, quality: int = 95) -> bytes:
    """Return uint8 pixels [H, W, C] as a PNG or JPEG file, the same bytes for the same pixels."""
    if encoding == "png":
        return _encode_png(pixels)
    out = io.BytesIO()
    _image(pixels).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def _encode_png(pixels: np.ndarray) -> bytes:
    """A PNG in under half of Pillow's time, which goes into trying all filters on each line: here each line is stored
    as its difference from the line above, and packed by run lengths and Huffman codes alone (PNG specification, 9.2).
    """
    height, width, channels = pixels.shape
    lines = pixels.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = PNG_FILTER_UP
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packer.compress(filtered.data) + packer.flush()), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def digest(pixels: np.ndarray) -> bytes:
    """Return the SHA-256 of shape and pixels: equal images have equal ones, however they were stored."""
    hashed = sha256(repr(pixels.shape).encode())
    hashed.update(pixels.tobytes())
    return hashed.digest()


def encode(recipe: Transform, raws: list[RawImage]) -> list[EncodedImage | BadImage]:
    """Return each image as it is to be stored, or why it can't be."""
    return [_encode(recipe, raw) for raw in raws]


def count_channels(raws: list[RawImage]) -> list[int]:
    """Return the channels that each image needs (1, 3, or 4 where a pixel is transparent); 0 where it can't be read."""
    return [_count_channels(raw) for raw in raws]


def _encode(recipe: Transform, raw: RawImage) -> EncodedImage | BadImage:
    try:
        pixels, seen = read(recipe, raw)
    except BadImage as bad:
        return bad
    stored = encode_array(pixels, recipe.encoding, recipe.quality)
    if recipe.encoding != "png":  # the digest is of what a reader will see
        pixels = decode(stored, None, recipe.fit, recipe.channels)
    return EncodedImage(stored, digest(pixels), seen)


def read(recipe: Transform, raw: RawImage) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the image as the recipe wants it, uint8 [H, W, C], and what it has of what is watched for.

    Raises BadImage.
    """
    if isinstance(raw, BadImage):
        raise raw
    if isinstance(raw, np.ndarray):
        background = recipe.tones.background
        return _array(_with_channels(_image(raw), recipe.channels, background), recipe.size, recipe.fit, background), ()
    return _decode(bytes_of(raw), recipe.size, recipe.fit, recipe.channels, recipe.tones, recipe.watch)


def bytes_of(raw: bytes | Path) -> bytes:
    """Return the file's bytes. Raises BadImage."""
    if isinstance(raw, bytes):
        return raw
    try:
        return raw.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from None


def _count_channels(raw: RawImage) -> int:
    try:
        return shape_of(raw)[2]
    except BadImage:  # its reason is told when it is decoded
        return 0


def shape_of(raw: RawImage) -> tuple[int, int, int]:
    """Return the image's height, width, both as it is shown, and the channels that it needs. Raises BadImage."""
    if isinstance(raw, BadImage):
        raise raw
    if isinstance(raw, np.ndarray):
        return raw.shape
    try:
        with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw, formats=FORMATS) as image:
            _check_size(image)
            # Whether a pixel is transparent takes decoding: before the EXIF is looked for, which decodes, too.
            deep = read_deep(image, bytes_of(raw)) if image.has_transparency_data else None
            width, height = image.size[::-1] if _upright_method(image) in TURNED else image.size
            return height, width, _natural_channels(image if deep is None else colours_to_8_bits(deep, None))
    except BadImage:
        raise
    except Exception as error:  # decoders raise anything where they are fed with garbage
        raise _reason(error) from None


def _natural_channels(image: Image.Image) -> int:
    if is_transparent(image):
        return 4
    if image.mode == "P" and image.has_transparency_data:
        image = image.convert("RGBA")
    return 1 if image.mode in GREY_MODES else 3


def is_transparent(image: Image.Image) -> bool:
    """Return whether a pixel is."""
    if not image.has_transparency_data:
        return False
    if image.mode in WIDE_MODES:
        image = to_8_bits(image, (0, 1))
    alpha = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    least, _ = alpha.getchannel("A").getextrema()
    return bool(least < 255)  # type: ignore[operator]


def _reason(error: Exception) -> BadImage:
    """The same reason for the same file, also in another process."""
    if isinstance(error, UnidentifiedImageError):
        return BadImage("no image of a known format")
    if isinstance(error, Image.DecompressionBombError):
        return BadImage("too many pixels")
    detail = re.sub(r"<[^>]*>|0x[0-9a-f]+", "", " ".join(str(error).split()))  # without addresses in memory
    return BadImage(f"damaged: {detail or type(error).__name__}")


def _check_size(image: Image.Image) -> None:
    limit = min(Image.MAX_IMAGE_PIXELS or MAX_PIXELS, MAX_PIXELS)
    if image.width * image.height > limit:
        raise BadImage(f"too many pixels: {image.width}x{image.height}")


def _upright_method(image: Image.Image) -> Image.Transpose | None:
    """What shows the image as the camera was held."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF says nothing about a good picture
        return None


def _with_channels(image: Image.Image, channels: int | None, background: str) -> Image.Image:
    mode = MODES[channels or _natural_channels(image)]
    if image.mode == "LAB":
        image = _lab_as_rgb(image)
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    if image.mode == "RGBA" and mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode == mode else image.convert(mode)


def _lab_as_rgb(image: Image.Image) -> Image.Image:
    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    shown = ImageCms.applyTransform(image, transform)
    assert shown is not None  # as it isn't done in place
    return shown


def _array(image: Image.Image, size: Size | None, fit: str, background: str) -> np.ndarray:
    """The image's pixels [H, W, C] at the size."""
    if size is not None and image.size != (size[1], size[0]):
        image = _pad(image, size, background) if fit == "pad" else _resample(image, size, _box(image, size, fit))
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _box(image: Image.Image, size: Size, fit: str) -> tuple[float, float, float, float]:
    """The part of the image that is shown: all of it, or its largest centred part of the wanted shape."""
    if fit == "stretch":
        return 0, 0, image.width, image.height
    scale = min(image.width / size[1], image.height / size[0])
    width, height = min(image.width, size[1] * scale), min(image.height, size[0] * scale)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return left, top, min(image.width, left + width), min(image.height, top + height)


def _pad(image: Image.Image, size: Size, background: str) -> Image.Image:
    scale = min(size[1] / image.width, size[0] / image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if (width, height) != image.size:
        image = _resample(image, (height, width), (0, 0, image.width, image.height))
    colour = (0, 0, 0, 0) if image.mode == "RGBA" else ImageColor.getcolor(background, image.mode)
    sheet = Image.new(image.mode, (size[1], size[0]), colour)
    sheet.paste(image, ((size[1] - width) // 2, (size[0] - height) // 2))
    return sheet


def _resample(image: Image.Image, size: Size, box: tuple[float, float, float, float]) -> Image.Image:
    """The box of the image at the size; colours are weighted by opacity, so that hidden ones don't bleed."""
    arguments: dict[str, Any] = {"resample": Image.Resampling.LANCZOS, "box": box, "reducing_gap": REDUCING_GAP}
    if image.mode == "RGBA":
        return image.convert("RGBa").resize(size[::-1], **arguments).convert("RGBA")
    return image.resize(size[::-1], **arguments)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
