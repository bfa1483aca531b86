import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastgan.data import pixels
from fastgan.data.pixels import BadImage, count_channels, decode, digest, encode_array

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of what is then refused

# Mode -> a format that keeps it
MODES = {
    "1": "PNG",
    "L": "PNG",
    "LA": "PNG",
    "P": "PNG",
    "RGB": "PNG",
    "RGBA": "PNG",
    "I;16": "PNG",
    "CMYK": "TIFF",
    "YCbCr": "JPEG",
    "F": "TIFF",
}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def image_of(mode: str, height: int, width: int) -> Image.Image:
    """A picture of noise in the mode."""
    if mode == "I;16":
        return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (height, width), np.uint16))
    if mode == "F":
        return Image.fromarray(np.random.default_rng(0).random((height, width), np.float32))
    if mode in ("1", "P"):
        return Image.fromarray(noise(height, width)).convert(mode)
    bands = {"L": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "RGBA": 4, "CMYK": 4}[mode]
    planes = [Image.fromarray(noise(height, width, 1, seed)[:, :, 0]) for seed in range(bands)]
    return Image.merge(mode, planes)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(array: np.ndarray) -> bytes:
    return file_of(Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand, for what Pillow doesn't write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def reason(action: Callable[[], object]) -> str:
    with pytest.raises(BadImage) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text and text
    return text


# Any image at any size

sizes = st.one_of(
    st.tuples(st.integers(1, 30), st.integers(1, 4096)),
    st.tuples(st.integers(1, 4096), st.integers(1, 30)),
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
)


@settings(max_examples=200)
@given(
    mode=st.sampled_from(sorted(MODES)),
    source=sizes,
    target=st.tuples(st.integers(1, 96), st.integers(1, 96)),
    fit=st.sampled_from(["crop", "pad", "stretch"]),
    channels=st.sampled_from([1, 3, 4]),
)
@example(mode="RGB", source=(30, 4096), target=(128, 128), fit="crop", channels=3)
@example(mode="RGBA", source=(4096, 30), target=(1, 96), fit="crop", channels=4)
@example(mode="LA", source=(1, 1), target=(96, 1), fit="pad", channels=1)
def test_any_size(mode: str, source: tuple[int, int], target: tuple[int, int], fit: str, channels: int) -> None:
    """Whatever the mode and the shape, what comes has the wanted shape, the same each time."""
    data = file_of(image_of(mode, *source), MODES[mode])
    array = decode(data, target, fit, channels)
    assert array.shape == (*target, channels) and array.dtype == np.uint8
    assert np.array_equal(array, decode(data, target, fit, channels))


@settings(max_examples=60)
@given(height=st.integers(1, 64), width=st.integers(1, 64), channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 9))
def test_right_size_is_exact(height: int, width: int, channels: int, seed: int) -> None:
    """An image of the size and channels passes unchanged, however it should be fitted, stored and read again."""
    array = noise(height, width, channels, seed)
    for fit in ("crop", "pad", "stretch"):
        assert np.array_equal(decode(png(array), (height, width), fit, channels), array)
    assert np.array_equal(decode(png(array), None, "crop", None), array)
    assert np.array_equal(decode(encode_array(array, "png"), None, "crop", channels), array)


def blocks(*colours: tuple[int, ...], side: int = 40) -> np.ndarray:
    """Squares of the colours side by side."""
    return np.concatenate([np.full((side, side, len(colour)), colour, np.uint8) for colour in colours], axis=1)


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize("upright", [False, True])
def test_fits(upright: bool) -> None:
    """Crop shows the middle, stretch shows all, pad shows all between black bars of the right height."""

    def fitted(fit: str, size: tuple[int, int] = (24, 24)) -> np.ndarray:
        array = blocks(RED, GREEN, BLUE)
        data = png(array.transpose(1, 0, 2) if upright else array)
        shown = decode(data, size, fit, 3)
        return shown.transpose(1, 0, 2) if upright else shown

    def near(shown: np.ndarray, colour: tuple[int, int, int]) -> bool:
        return bool(abs(shown.astype(int) - colour).max() < 25)  # the filter rings near edges

    assert near(fitted("crop")[:, 2:-2], GREEN)
    stretched, padded = fitted("stretch"), fitted("pad")
    for place, colour in enumerate((RED, GREEN, BLUE)):
        middle = slice(8 * place + 3, 8 * place + 5)
        assert near(stretched[:, middle], colour) and near(padded[8:16, middle], colour)
    assert (padded[:8] == 0).all() and (padded[16:] == 0).all()


def test_pad_is_transparent() -> None:
    """Bars are transparent where the set has transparency."""
    padded = decode(png(blocks((9, 9, 9, 255), (9, 9, 9, 255))), (16, 16), "pad", 4)
    assert (padded[:4] == 0).all() and (padded[4:12] == (9, 9, 9, 255)).all() and (padded[12:] == 0).all()


def test_downscaling_averages() -> None:
    """Detail finer than the new pixels becomes its mean, without a pattern; upscaling leaves no new values."""
    checks = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    small = decode(png(checks), (64, 64), "crop", 1).astype(int)
    assert abs(small - 127.5).max() < 4
    assert (decode(png(np.full((3, 5, 3), 77, np.uint8)), (64, 64), "crop", 3) == 77).all()


def test_large_jpegs() -> None:
    """A JPEG that is decoded at a smaller scale looks as if it had been decoded whole."""
    wave = np.sin(np.indices((1600, 2000)) / [[[6]], [[5]]]).sum(0)
    array = np.stack([wave * 50 + 128, wave[::-1] * 50 + 128, wave.T[:1600, :1600].mean() + wave * 30 + 128], 2)
    data = file_of(Image.fromarray(array.astype(np.uint8)), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        whole = image.crop((200, 0, 1800, 1600)).resize((300, 300), Image.Resampling.LANCZOS)
    difference = abs(decode(data, (300, 300), "crop", 3).astype(int) - np.asarray(whole))
    assert difference.mean() < 1 and difference.max() < 16


def test_colours_of_jpegs() -> None:
    """A JPEG keeps the colour of each column, also where neighbours differ."""
    array = np.tile(np.array([RED, BLUE], np.uint8), (16, 8, 1))
    assert abs(decode(encode_array(array, "jpeg", 95), None, "crop", 3).astype(int) - array).mean() < 8


def test_hidden_colours_do_not_bleed() -> None:
    """Resampling weighs colours by opacity: red that is transparent tints nothing."""
    array = blocks((255, 255, 255, 255), (255, 0, 0, 0))
    shown = decode(png(array), (10, 20), "stretch", 4)
    seen = shown[shown[:, :, 3] > 8]
    assert len(seen) >= 100 and (seen[:, :3] > 250).all() and (shown[:, -3:, 3] == 0).all()


# Channels and bit depths


def test_grey_as_colours() -> None:
    """Grey gives three equal channels, colours give their luminance, and opaque is 255."""
    array = noise(7, 9, 1)
    assert np.array_equal(decode(png(array), None, "crop", 3), array.repeat(3, 2))
    assert np.array_equal(decode(png(array.repeat(3, 2)), None, "crop", 1), array)
    assert (decode(png(noise(7, 9, 3)), None, "crop", 4)[:, :, 3] == 255).all()


def test_transparent_lies_on_black() -> None:
    """Without a channel for it, what is transparent shows black and what is half so shows half the colour."""
    array = np.array([[(200, 100, 50, 0), (200, 100, 50, 255), (200, 100, 50, 128)]], np.uint8)
    shown = decode(png(array), None, "crop", 3)[0]
    assert shown[:2].tolist() == [[0, 0, 0], [200, 100, 50]] and abs(shown[2] - np.array([100, 50, 25])).max() <= 1


def test_16_bit_grey() -> None:
    """16-bit grey is scaled to the nearest of 256 levels, not clipped, in each byte order."""
    values = np.arange(0, 65536, 13, np.uint16)[:5000].reshape(50, 100)
    wanted = np.rint(values / 257).astype(np.uint8)[:, :, None]
    files = [file_of(Image.fromarray(values), kind) for kind in ("PNG", "TIFF")]
    files.append(b"P5 100 50 65535\n" + values.astype(">u2").tobytes())
    for data in (*files, *(tiff_16(values, order) for order in "<>")):
        shown = decode(data, None, "crop", 1)
        assert np.array_equal(shown, wanted)
    assert wanted.min() == 0 and wanted.max() > 250


def tiff_16(values: np.ndarray, order: str) -> bytes:
    """A plain 16-bit grey TIFF in the byte order."""
    height, width = values.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, values.nbytes))
    data = values.astype(f"{order}u2").tobytes()
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def test_16_bit_colours() -> None:
    """16-bit colours and grey with transparency keep their upper bytes."""
    high = noise(6, 5, 3)
    rows = b"".join(b"\0" + np.stack([row, row // 2], -1).tobytes() for row in high)
    assert np.array_equal(decode(raw_png(5, 6, 16, 2, rows), None, "crop", 3), high)
    grey = noise(6, 5, 2)
    rows = b"".join(b"\0" + np.stack([row, row], -1).tobytes() for row in grey)
    assert np.array_equal(decode(raw_png(5, 6, 16, 4, rows), None, "crop", 4), grey[:, :, [0, 0, 0, 1]])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_shallow_grey(depth: int) -> None:
    """Grey of 1, 2, 4 and 8 bits spans black to white."""
    row = bytes(range(256)) if depth == 8 else {1: b"\x40", 2: b"\x1b", 4: bytes.fromhex("0123456789abcdef")}[depth]
    levels = 2**depth
    shown = decode(raw_png(levels, 1, depth, 0, b"\0" + row), None, "crop", 1)
    assert shown.ravel().tolist() == [round(level * 255 / (levels - 1)) for level in range(levels)]


def test_float_tiff() -> None:
    """Floats in [0, 1] are scaled; others are refused with the range that was found."""
    values = np.linspace(0, 1, 256, dtype=np.float32)[None]
    assert decode(file_of(Image.fromarray(values), "TIFF"), None, "crop", 1).ravel().tolist() == list(range(256))
    for bad in (values * 255, values - 0.5, np.where(values > 0.5, np.float32("nan"), values)):
        data = file_of(Image.fromarray(bad.astype(np.float32)), "TIFF")
        assert reason(lambda data=data: decode(data, None, "crop", 1)).startswith("values out of range: ")


def test_32_bit_grey() -> None:
    """Whole numbers below 0 or above 16 bits are refused, not clipped."""
    for values in ([[-1, 5]], [[0, 65536]]):
        data = file_of(Image.fromarray(np.array(values, np.int32)), "TIFF")
        assert "values out of range" in reason(lambda data=data: decode(data, None, "crop", 1))


def test_palette_with_transparency() -> None:
    """A palette's colours and transparency are kept, whether one entry or several are transparent."""
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for place in range(3):
        image.putpixel((place, 0), place)
    assert decode(file_of(image), None, "crop", None).tolist() == [[[*RED], [*GREEN], [*BLUE]]]
    one = decode(file_of(image, transparency=1), None, "crop", None)
    assert one[0, :, 3].tolist() == [255, 0, 255] and one[0, 0, :3].tolist() == [*RED]
    several = decode(file_of(image, transparency=bytes([0, 100, 255])), None, "crop", None)
    assert several[0, :, 3].tolist() == [0, 100, 255] and several[0, 2].tolist() == [*BLUE, 255]


def test_colour_key() -> None:
    """A grey or RGB image whose one colour stands for transparent has four channels."""
    key = chunk(b"tRNS", struct.pack(">HHH", *RED))
    shown = decode(raw_png(2, 1, 8, 2, bytes([0, *RED, *BLUE]), key), None, "crop", None)
    assert shown[0, :, 3].tolist() == [0, 255] and shown[0, 1].tolist() == [*BLUE, 255]
    shown = decode(raw_png(2, 1, 8, 0, bytes([0, 7, 9]), chunk(b"tRNS", struct.pack(">H", 9))), None, "crop", None)
    assert shown.tolist() == [[[7, 7, 7, 255], [9, 9, 9, 0]]]


def test_cmyk() -> None:
    """Ink becomes light: no ink is white, cyan takes the red away."""
    for kind in ("TIFF", "JPEG"):
        image = Image.new("CMYK", (16, 16))
        image.paste((255, 0, 0, 0), (8, 0, 16, 16))
        shown = decode(file_of(image, kind), None, "crop", 3)[8].astype(int)
        assert abs(shown[2] - 255).max() < 5 and abs(shown[13] - [0, 255, 255]).max() < 8


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("1", 1),
        ("L", 1),
        ("I;16", 1),
        ("F", 1),
        ("LA", 4),
        ("RGBA", 4),
        ("RGB", 3),
        ("P", 3),
        ("CMYK", 3),
        ("YCbCr", 3),
    ],
)
def test_channels_of_headers(mode: str, wanted: int) -> None:
    """The header says as many channels as decoding gives: 1 for grey, 4 with transparency, else 3; 0 for none."""
    data = file_of(image_of(mode, 8, 8), MODES[mode])
    assert count_channels([data, b"text", BadImage("gone")]) == [wanted, 0, 0]
    assert decode(data, None, "crop", None).shape[2] == wanted


# Which way is up, which frame is first


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind: str, orientation: int) -> None:
    """A picture is upright however the camera was held, at its own size and at another, in each format with EXIF."""
    upright = np.kron(np.array([[0, 90, 180], [250, 30, 120]], np.uint8), np.ones((16, 16), np.uint8))
    held: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, 3),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(held[orientation](upright))).convert("RGB")
    data = file_of(image, kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 98}))
    shown = decode(data, None, "crop", 1)[:, :, 0].astype(int)
    assert shown.shape == upright.shape and abs(shown - upright).max() < (1 if kind in ("PNG", "TIFF") else 12)
    small = decode(data, (2, 3), "stretch", 1)[:, :, 0].astype(int)
    assert np.array_equal(small.argsort(axis=None), upright[8::16, 8::16].argsort(axis=None))


def test_broken_exif() -> None:
    """A picture whose EXIF is garbage is taken as it lies."""
    array = noise(8, 8)
    data = file_of(Image.fromarray(array), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"garbage" * 9)
    assert np.array_equal(decode(data, None, "crop", 3), array)


@pytest.mark.parametrize(("kind", "lossless"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_first_frame(kind: str, lossless: dict[str, bool]) -> None:
    """Of an animation the first frame is taken."""
    frames = [Image.new("RGB", (9, 9), colour) for colour in (RED, GREEN, BLUE)]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert (decode(data, None, "crop", 3) == RED).all()


# What is refused


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_off(kind: str) -> None:
    """A file cut anywhere before the end of its pixels is refused, at its own size and at another."""
    data = file_of(Image.fromarray(noise(40, 50)), kind)
    assert decode(data, None, "crop", 3).shape == (40, 50, 3)
    for length in range(1, len(data) * 9 // 10, len(data) // 40):
        for size in (None, (16, 16)):
            assert reason(lambda length=length, size=size: decode(data[:length], size, "crop", 3))


@settings(max_examples=150)
@given(
    data=st.binary(max_size=300), kind=st.sampled_from(FORMATS), place=st.integers(0, 10**6), value=st.integers(0, 255)
)
def test_garbage(data: bytes, kind: str, place: int, value: int) -> None:
    """Garbage, garbage after a true header, and a file with a wrong byte give pixels or a reason, nothing else."""
    good = bytearray(file_of(Image.fromarray(noise(12, 13)), kind))
    head = bytes(good[: place % 60])
    good[place % len(good)] = value
    for bad in (data, head + data, bytes(good)):
        try:
            assert decode(bad, (8, 8), "crop", 3).shape == (8, 8, 3)
        except BadImage as error:
            assert "\n" not in str(error) and " at 0x" not in str(error)


def test_empty() -> None:
    """A file without bytes is refused as such."""
    assert reason(lambda: decode(b"", (8, 8), "crop", 3)) == "empty file"


def test_no_image() -> None:
    """Text, pages and programs are no image; a page in PostScript isn't run."""
    for data in (
        b"<html></html>" * 9,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b"MZ",
    ):
        assert reason(lambda data=data: decode(data, (8, 8), "crop", 3)) == "no image of a known format"


@pytest.mark.parametrize("side", [9500, 20_000, 65_500, 2**31 - 1])
def test_bombs(side: int) -> None:
    """A header of more pixels than Pillow's limit is refused before a pixel is decoded."""
    data = raw_png(side, side, 8, 2, b"\0" * 100)
    assert reason(lambda: decode(data, (8, 8), "crop", 3)).startswith(("too many pixels", "damaged"))
    assert count_channels([data]) == [0]


def test_bombs_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Pillow's limit was switched off the limit is 2^28 pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    data = raw_png(2**14 + 1, 2**14, 8, 0, b"\0" * 100)
    assert reason(lambda: decode(data, (8, 8), "crop", 3)) == "too many pixels: 16385x16384"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24)
    assert reason(lambda: decode(png(noise(5, 5)), None, "crop", 3)) == "too many pixels: 5x5"
    assert decode(png(noise(4, 6)), None, "crop", 3).shape == (4, 6, 3)


# What is stored


def test_digest() -> None:
    """The digest changes with a pixel and with the shape, and with nothing else."""
    array = noise(4, 6)
    other = array.copy()
    other[3, 5, 2] ^= 1
    digests = {digest(array), digest(other), digest(array.reshape(6, 4, 3)), digest(array.reshape(4, 18, 1))}
    assert len(digests) == 4 and digest(np.asfortranarray(array)) == digest(array)


def test_cooked() -> None:
    """A cooked image's digest is that of the pixels a reader gets, in both encodings; a bad one keeps its reason."""
    for encoding in ("png", "jpeg"):
        recipe = pixels.Transform((16, 16), "crop", 3, encoding, 90)
        good, bad, drawn = pixels.encode(recipe, [png(noise(20, 30)), BadImage("gone"), noise(16, 16)])
        for stored in (good, drawn):
            assert isinstance(stored, pixels.EncodedImage)
            assert digest(decode(stored.data, None, "crop", 3)) == stored.digest
        assert isinstance(bad, BadImage) and str(bad) == "gone"
        assert isinstance(drawn, pixels.EncodedImage) and (drawn.digest == digest(noise(16, 16))) == (encoding == "png")
