"""From the numbers in files to 8 bits, and what lies under transparency: by the set as a whole."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusal
from PIL import Image, ImageDraw, features
from test_pixels import chunk, file_of, raw_png

from fastgan import cli
from fastgan.commands import train
from fastgan.config import Config, DataConfig
from fastgan.data import survey as survey_module
from fastgan.data.archives import Entry
from fastgan.data.folder import FolderDataset
from fastgan.data.loaders import open_dataset
from fastgan.data.pixels import count_channels, decode
from fastgan.data.prepared import PreparedDataset
from fastgan.data.survey import survey
from fastgan.data.tones import Tones
from fastgan.runs.run_folder import RunFolder

SIDE = 32


def tiff(
    values: np.ndarray,
    order: str = "<",
    photometric: int = 1,
    kind: int = 1,
    extra: int | None = None,
    apart: bool = False,
    packed: bool = False,
) -> bytes:
    """A TIFF of numbers [H, W] or [H, W, C] written by hand: `kind` and `extra` as in its tags, its channels one after
    the other where they are `apart`.
    """
    height, width, *more = values.shape
    samples = (*more, 1)[0]
    planes = [values[..., channel] for channel in range(samples)] if apart else [values]
    strips = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    strips = [zlib.compress(strip) if packed else strip for strip in strips]
    ends = [8 + sum(map(len, strips[:number])) for number in range(len(strips) + 1)]
    tags = {256: [width], 257: [height], 258: [values.dtype.itemsize * 8] * samples, 259: [8 if packed else 1]}
    tags |= {262: [photometric], 273: ends[:-1], 277: [samples], 278: [height], 279: [*map(len, strips)]}
    tags |= {284: [2 if apart else 1]} | ({} if extra is None else {338: [extra]}) | {339: [kind]}
    entries, arrays, place = b"", b"", ends[-1] + 2 + 12 * len(tags) + 4
    for tag, found in tags.items():
        value = found[0] if len(found) == 1 else place + len(arrays)
        arrays += struct.pack(f"{order}{len(found)}I", *found) if len(found) > 1 else b""
        entries += struct.pack(f"{order}HHII", tag, 4, len(found), value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", ends[-1])
    return head + b"".join(strips) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + arrays


def ramp(top: float, kind: str, bottom: float = 0.0) -> np.ndarray:
    return (np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE) * (top - bottom) + bottom).astype(kind)


RAMP = np.rint(np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE) * 255)


def icon(ink: int, shift: int = 0) -> Image.Image:
    """A ring of ink on nothing."""
    image = Image.new("RGBA", (SIDE, SIDE))
    ImageDraw.Draw(image).ellipse((4 + shift, 4, 26, 26), outline=(ink, ink, ink, 255), width=4)
    return image


def key_of_16_bits(ink: int) -> bytes:
    """A grey PNG of 16 bits in which one grey stands for transparent."""
    alpha = np.asarray(icon(ink))[:, :, 3]
    rows = np.where(alpha > 0, ink * 257, 999).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return raw_png(SIDE, SIDE, 16, 0, lines, chunk(b"tRNS", struct.pack(">H", 999)))


def deep_png(ink: int) -> bytes:
    """RGBA of 16 bits."""
    rows = np.asarray(icon(ink)).astype(">u2") * 257
    return raw_png(SIDE, SIDE, 16, 6, b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))


def palette(ink: int) -> Image.Image:
    image = Image.fromarray((np.asarray(icon(ink))[:, :, 3] > 0).astype(np.uint8), "P")
    image.putpalette([90, 90, 90, ink, ink, ink])
    return image


def colour_key(ink: int) -> bytes:
    shown = Image.new("RGB", (SIDE, SIDE), (1, 200, 3))
    shown.paste(icon(ink), mask=icon(ink))
    return file_of(shown, transparency=(1, 200, 3))


TRANSPARENT: dict[str, Callable[[int], bytes]] = {
    "rgba.png": lambda ink: file_of(icon(ink)),
    "la.png": lambda ink: file_of(icon(ink).convert("LA")),
    "palette.png": lambda ink: file_of(palette(ink), transparency=0),
    "palette-alphas.png": lambda ink: file_of(palette(ink), transparency=bytes([0, 255])),
    "key.png": colour_key,
    "key16.png": key_of_16_bits,
    "rgba16.png": deep_png,
    "icon.gif": lambda ink: file_of(palette(ink), "GIF", transparency=0),
    "icon.webp": lambda ink: file_of(icon(ink), "WEBP", lossless=True),
    "animated.webp": lambda ink: file_of(
        icon(ink), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGBA", (SIDE, SIDE), "red")]
    ),
    "icon.tif": lambda ink: file_of(icon(ink), "TIFF"),
}


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def prepared(source: Path, *options: str, channels: int = 1) -> np.ndarray:
    """The pixels [N, H, W, C] that `data prepare` makes, which are those that training sees of the folder."""
    dest = source.with_name(f"{source.name}-prepared{len([*source.parent.iterdir()])}")
    assert cli.main(["data", "prepare", str(source), str(dest), "--size", str(SIDE), "--workers", "1",
                     "--channels", str(channels), *options]) == 0  # fmt: skip
    dataset = PreparedDataset(dest)
    given = dict(zip(options[::2], options[1::2], strict=True))
    folder = FolderDataset(
        source,
        (SIDE, SIDE),
        channels,
        background=given.get("--background", "auto"),
        value_range=given.get("--range", "auto"),
    )
    everything = torch.arange(len(dataset))
    found = dataset.pixels(everything)
    assert torch.equal(found, folder.pixels(everything)) and folder.tones == dataset.tones
    return found.permute(0, 2, 3, 1).numpy()


def entry(data: bytes, name: str = "a.png") -> Entry:
    return Entry(name, len(data), lambda: data)


def remarks(files: list[bytes], background: str = "auto", value_range: str = "auto", **options: Any) -> list[str]:
    return survey([entry(data) for data in files], background, value_range, **options).lines


# Transparency


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("ink", "ground"), [(0, 255), (255, 0)])
def test_every_kind_of_transparency_lies_on_what_shows_it(
    tmp_path: Path, ink: int, ground: int, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Black ink lies on white, white ink on black, whatever the kind of file; it is said, with the number of files."""
    files = {name: make(ink) for name, make in TRANSPARENT.items()}
    found = prepared(put(tmp_path / "set", files), channels=channels)
    ring = np.asarray(icon(ink))[:, :, 3] > 0
    for name, image in zip(sorted(files), found, strict=True):
        assert (image[ring] == ink).all() and (image[~ring] == ground).all(), name
    name = "white" if ground else "black"
    assert f"transparency: 11 of 11 images have it; laid on {name} (--background" in capsys.readouterr().out


def test_black_and_white_ink_lie_on_grey(tmp_path: Path) -> None:
    """Where neither black nor white keeps all visible, both kinds are visible on grey."""
    files = {f"{n}.png": file_of(icon(255 * (n % 2), n)) for n in range(6)}
    found = prepared(put(tmp_path / "set", files)).astype(int)
    assert (found[:, 0, 0] == 128).all() and (abs(found - 128).max(axis=(1, 2, 3)) > 100).all()


def test_a_few_odd_images_do_not_decide(tmp_path: Path) -> None:
    """The set as a whole decides: one white icon among forty black ones is said to be faint on white."""
    files = [file_of(icon(0, n % 5)) for n in range(40)] + [file_of(icon(255))]
    (line,) = remarks(files)
    assert "laid on white; 1 can hardly be seen on it" in line


def test_a_colour_of_ones_own(tmp_path: Path) -> None:
    """Half of a colour and half of the background meet; padding is background, too; a wrong colour is refused."""
    image = Image.new("RGBA", (SIDE, SIDE // 2), (0, 0, 0, 128))
    source = put(tmp_path / "set", {"a.png": file_of(image)})
    dest = tmp_path / "out"
    args = ["data", "prepare", str(source), str(dest), "--size", str(SIDE), "--channels", "3", "--fit", "pad"]
    assert cli.main([*args, "--background", "#FF8000"]) == 0
    shown = PreparedDataset(dest).pixels(torch.tensor([0]))[0].permute(1, 2, 0)
    assert shown[0, 0].tolist() == [255, 128, 0] and shown[16, 16].tolist() == [127, 64, 0]
    index = json.loads((dest / "index.json").read_bytes())
    assert (index["background"], index["range"]) == ("#ff8000", None)
    assert cli.main([*args, "--background", "mauve"]) == 2
    assert "background is 'mauve'" in refusal(lambda: DataConfig(background="mauve"))


def test_asked_for_black_is_told_to_hide_them() -> None:
    """Black under black ink is done as asked, and said."""
    (line,) = remarks([file_of(icon(0))] * 3, background="black")
    assert "laid on black; 3 can hardly be seen on it: give another --background" in line


def test_opaque_alpha_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a transparent pixel makes four channels, and the file that has it is named; grey stays grey."""
    opaque = Image.new("RGBA", (SIDE, SIDE), (200, 10, 30, 255))
    files = {"a.png": file_of(opaque), "b.png": file_of(opaque.convert("LA"))}
    for name, more, wanted in (
        ("opaque", {}, 3),
        ("one", {"c.png": file_of(icon(0))}, 4),
    ):
        source, dest = put(tmp_path / name, files | more), tmp_path / f"{name}-out"
        assert cli.main(["data", "prepare", str(source), str(dest), "--size", str(SIDE)]) == 0
        assert PreparedDataset(dest).channels == wanted
    assert "4 channels, as c.png is transparent; --channels 3 lays it on a background" in capsys.readouterr().out
    assert decode(files["b.png"], None, "crop", None).shape == (SIDE, SIDE, 1)
    kept = prepared(put(tmp_path / "kept", files | {"c.png": file_of(icon(9))}), channels=4)
    assert np.array_equal(kept[2], np.asarray(icon(9))) and (kept[0] == (200, 10, 30, 255)).all()


# Numbers


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(ramp(4095, "u2")), "0 to 4095; 0 becomes black, 4095 white"),
        (tiff(ramp(4095, "u2"), ">", photometric=0), "0 to 4095; 0 becomes black, 4095 white"),
        (tiff(ramp(255, "i4"), kind=2), "0 to 255; 0 becomes black, 255 white"),
        (tiff(ramp(1023, "u4"), ">"), "0 to 1023; 0 becomes black, 1023 white"),
        (tiff(ramp(3e9, "u4")), "0 to 3e+09; 0 becomes black, 3e+09 white"),
        (tiff(ramp(2951, "i2", -1024), kind=2), "-1024 to 2951; -1024 becomes black, 2951 white"),
        (tiff(ramp(2951, "i4", -1024), kind=2, photometric=0), "-1024 to 2951; -1024 becomes black, 2951 white"),
        (tiff(ramp(0.02, "f4"), kind=3), "0 to 0.02; 0 becomes black, 0.02 white"),
        (tiff(ramp(255, "f4"), ">", kind=3), "0 to 255; 0 becomes black, 255 white"),
        (tiff(ramp(4, "f8", -1), kind=3), "-1 to 4; -1 becomes black, 4 white"),
        (tiff(ramp(1, "f2"), kind=3), None),
        (tiff(ramp(1, "f2"), ">", kind=3, photometric=0), None),
        (tiff(ramp(1, "f8"), ">", kind=3), None),
        (tiff(ramp(65535, "u2"), photometric=0), None),
        (tiff(ramp(65535, "u2"), ">"), None),
        (tiff(ramp(255, "u1"), photometric=0), None),
        (b"P5 32 32 4095\n" + ramp(4095, ">u2").tobytes(), None),
    ],
)
def test_numbers_span_black_to_white(
    tmp_path: Path, data: bytes, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the depth and the kind of numbers, they span black to white, white is zero where a file says so, and
    what isn't a kind's own range is said.
    """
    (found,) = prepared(put(tmp_path / "set", {"a.tif": data}))[:, :, :, 0]
    with Image.open(io.BytesIO(data)) as image:
        is_turned = image.format == "TIFF" and image.getexif()[262] == 0
    assert abs(found - (255 - RAMP if is_turned else RAMP)).max() <= 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("values")]
    assert lines == ([] if said is None else [f"values: {said}"])


def test_a_scan_has_one_scale(tmp_path: Path) -> None:
    """Slices of one scan, of which some go below 0, keep their ratio: nothing is left out, nothing scaled by itself."""
    slices = {f"{n}.tif": tiff(ramp(2000, "i4", -1000 * (n % 2)), kind=2) for n in range(4)}
    found = prepared(put(tmp_path / "set", slices)).astype(int)
    assert found[0].min() == 85 and found[1].min() == 0 and found[0].max() == found[1].max() == 255


def test_a_range_of_ones_own(tmp_path: Path) -> None:
    """LOW and HIGH become black and white, what is beyond is clipped; files of 8 bits follow where HIGH is theirs."""
    files = {"a.tif": tiff(ramp(300, "i4", -100), kind=2), "b.png": file_of(Image.new("L", (SIDE, SIDE), 50))}
    found = prepared(put(tmp_path / "set", files), "--range", "0:200")
    wanted = np.clip(np.rint(ramp(300, "i4", -100) / 200 * 255), 0, 255)
    assert np.array_equal(found[0, :, :, 0], wanted) and (found[1] == 64).all()
    assert (prepared(tmp_path / "set", "--range", "0:1000")[1] == 50).all()
    for text in ("5:3", "0:", "0:nan", "-inf:3", "dark"):
        assert "range is" in refusal(lambda text=text: DataConfig(range=text))


def test_little_of_the_range_is_told() -> None:
    """Under an eighth of the full range, a line names the option that helps; masks of 0 and 1 in 8 bits, too."""
    deep, mask = tiff(ramp(4092, "u2")), file_of(Image.fromarray((RAMP > 99).astype(np.uint8)))
    assert remarks([deep], value_range="full") == [
        "values end at 4092 of 65535: images will be nearly black; --range 0:4095"
    ]
    assert remarks([mask] * 3) == ["values end at 1 of 255: images will be nearly black; --range 0:1"]
    assert not remarks([deep], value_range="0:4095") and not remarks([mask], value_range="0:1")
    assert set(decode(mask, None, "crop", 1, Tones(value_range=(0, 1))).ravel()) == {0, 255}
    assert not remarks([mask, mask, file_of(Image.new("L", (9, 9), 99))])


def deep_numbers() -> np.ndarray:
    """Colours of 12 bits and an alpha of 16, 0, half or opaque, [H, W, 4]."""
    grey = ramp(4095, "u2")
    alpha = np.full_like(grey, 65535)
    alpha[0], alpha[1] = 0, 32768
    return np.stack([grey, grey.T, grey[::-1], alpha], axis=2)


def deep_file(kind: int, numbers: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of 16 bits."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in numbers)
    return raw_png(SIDE, SIDE, 16, kind, lines, *chunks)


DEEP = deep_numbers()
WEIGHTED = np.concatenate([np.rint(DEEP[..., :3] * (DEEP[..., 3:] / 65535)), DEEP[..., 3:]], axis=2).astype("u2")
KEYED = np.where(DEEP[..., 3:] > 0, DEEP[..., :3], np.uint16([7, 9, 1023]))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (deep_file(2, DEEP[..., :3]), DEEP[..., :3]),
        (deep_file(6, DEEP), DEEP),
        (deep_file(4, DEEP[..., ::3]), DEEP[..., [0, 0, 0, 3]]),
        (
            deep_file(2, KEYED, chunk(b"tRNS", struct.pack(">HHH", 7, 9, 1023))),
            np.concatenate([KEYED, np.where(DEEP[..., 3:] > 0, 65535, 0)], axis=2),
        ),
        (tiff(DEEP[..., :3], photometric=2), DEEP[..., :3]),
        (tiff(DEEP[..., :3], ">", photometric=2), DEEP[..., :3]),
        (tiff(DEEP[..., :3], ">", photometric=2, packed=True), DEEP[..., :3]),
        (tiff(DEEP, photometric=2, extra=0), DEEP[..., :3]),
        (tiff(DEEP, photometric=2, extra=2, packed=True), DEEP),
        (tiff(WEIGHTED, ">", photometric=2, extra=1), DEEP),
        (tiff(WEIGHTED, photometric=2, extra=1, apart=True), DEEP),
        (tiff(DEEP[..., :3], ">", photometric=2, apart=True), DEEP[..., :3]),
        (tiff(DEEP, photometric=2, extra=0, apart=True), DEEP[..., :3]),
    ],
    ids="rgb rgba la key tiff big packed rgbx rgba-packed weighted weighted-apart apart rgbx-apart".split(),  # noqa: SIM905
)
def test_all_bits_of_deep_colours(data: bytes, wanted: np.ndarray) -> None:
    """Each kind of file with colours of 16 bits spans black to white by the range; opacity is that of 16 bits."""
    tones = Tones(value_range=(0, 4095))
    found = decode(data, None, "crop", wanted.shape[2], tones).astype(int)
    seen = wanted[..., 3] > 0 if wanted.shape[2] == 4 else np.full((SIDE, SIDE), True)  # what is hidden may be any
    assert abs(found[..., :3] - np.rint(wanted[..., :3] / 4095 * 255))[seen].max() <= 1
    assert wanted.shape[2] < 4 or np.array_equal(found[..., 3], np.rint(wanted[..., 3] / 257))
    assert count_channels([data]) == [
        1 if np.array_equal(wanted[..., 0], wanted[..., 1]) and False else wanted.shape[2]
    ]


def test_deep_colours_of_a_set(tmp_path: Path) -> None:
    """Colours of 12 bits in files of 16 have their range found; full is that of 16 bits, as of grey ones."""
    files = {"a.png": deep_file(2, DEEP[..., :3]), "b.tif": tiff(DEEP[..., :3], photometric=2)}
    source = put(tmp_path / "set", files)
    (line,) = remarks([*files.values()])
    assert line == "values: 0 to 4095; 0 becomes black, 4095 white"
    for value_range, top in (("auto", 4095), ("full", 65535), ("100:2000", None)):
        low, high = (100, 2000) if top is None else (0, top)
        wanted = np.rint(np.clip((DEEP[..., :3] - float(low)) / (high - low), 0, 1) * 255)
        for found in prepared(source, "--range", value_range, channels=3):
            assert np.array_equal(found, wanted)


def test_colours_that_lose_bits_are_counted() -> None:
    """Kinds whose colours are read by their upper 8 bits are counted, with their names; those of 8 bits aren't."""
    deep_jp2 = bytearray(file_of(Image.new("RGB", (9, 9), (9, 99, 200)), "JPEG2000"))
    deep_jp2[deep_jp2.find(b"\xff\x4f\xff\x51") + 42] = 11  # as its header says it of 12 bits
    cut = [
        tiff(DEEP, photometric=5),
        tiff(DEEP[..., :3], photometric=2, apart=True, packed=True),
        b"P6 32 32 4095\n" + DEEP[..., :3].astype(">u2").tobytes(),
        bytes(deep_jp2),
    ]
    whole = [
        file_of(Image.new("RGB", (9, 9), (9, 99, 200)), kind) for kind in ("PNG", "JPEG2000", "AVIF", "TIFF", "PPM")
    ]
    lines = remarks([*cut, *whole], value_range="0:65535")
    assert lines[0] == "deep colours: 4 of 9 images (JPEG2000, PPM, TIFF) are read by their upper 8 bits", lines
    assert not [line for line in remarks([deep_file(2, DEEP[..., :3]), *whole], value_range="full") if "deep" in line]


def test_kinds_of_numbers_that_no_range_fits_are_refused() -> None:
    """Floats beside whole numbers, or 8 bits beside deeper files that span less, need one of the user's."""
    whole, part = tiff(ramp(4095, "u2")), tiff(ramp(0.02, "f4"), kind=3)
    grey = file_of(Image.new("L", (9, 9), 99))
    for files in ([whole, part], [grey, part]):
        assert "give one --range LOW:HIGH for all" in refusal(lambda files=files: remarks(files))
        remarks(files, value_range="0:1")
    assert "0 becomes black, 4095 white" in remarks([whole, grey])[0]


def test_one_odd_file_does_not_decide() -> None:
    """A deep image among ten of 8 bits is read by its full range; two of them are asked about."""
    usual, odd = file_of(Image.new("L", (9, 9), 99)), file_of(Image.fromarray(np.full((9, 9), 7.5, np.float32)), "TIFF")
    assert not remarks([*[usual] * 10, odd])
    assert "give one --range LOW:HIGH for all" in refusal(lambda: remarks([*[usual] * 10, odd, odd]))


def test_first_page_of_many_is_told() -> None:
    """Stacks and animations are counted; a camera's previews are no pages."""
    pages = [Image.new("L", (9, 9), level) for level in (200, 100, 50)]
    many = [file_of(pages[0], kind, save_all=True, append_images=pages[1:]) for kind in ("TIFF", "GIF", "MPO")]
    assert remarks([*many, file_of(pages[0])])[0] == "pages: 2 of 4 images have more than one; the first is taken"


def test_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some images, evenly spread, stand for all, and it is said how many; a few files of another kind are seen, too."""
    monkeypatch.setattr(survey_module, "SAMPLE", 10)
    numbers = survey_module.sample([f"{n}.jpg" for n in range(21)] + ["x.png", "y.odd", "z"])
    assert numbers == [0, 10, 20, 21, 22, 23]
    entries = [entry(file_of(Image.new("L", (9, 9), 99)), "a.gif")] * 40 + [entry(file_of(icon(0)))]
    assert "1 of 6 of 41 images have it; laid on white" in survey(entries, "auto", "auto").lines[0]


# Other kinds of files


def lab_tiff() -> bytes:
    return file_of(Image.new("LAB", (16, 16), (138, 209, 198)), "TIFF")


def premultiplied() -> bytes:
    return tiff(np.full((16, 16, 4), (100, 50, 25, 128), np.uint8), photometric=2, extra=1)


def with_profile() -> bytes:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return file_of(Image.new("RGB", (16, 16), (10, 20, 30)), icc_profile=profile)


@pytest.mark.parametrize(
    ("data", "channels", "wanted"),
    [
        (lab_tiff(), 3, (254, 0, 0)),
        pytest.param(
            *(file_of(Image.new("RGB", (16, 16), (200, 50, 50)).convert("YCbCr"), "TIFF"), 3, (200, 50, 50)),
            marks=pytest.mark.skipif(features.version("pil") < "13", reason="older Pillows don't read what they wrote"),
        ),
        (file_of(Image.new("RGB", (16, 16), (200, 50, 50)), "TIFF", compression="jpeg"), 3, (200, 50, 50)),
        (file_of(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), 3, (255, 0, 0)),
        (file_of(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "TIFF", compression="tiff_lzw"), 3, (0, 0, 0)),
        (premultiplied(), 4, (199, 99, 49, 128)),
        (premultiplied(), 3, (100 + 127, 50 + 127, 25 + 127)),
        (with_profile(), 3, (10, 20, 30)),
        (file_of(Image.new("1", (16, 16), 1)), 1, (255,)),
        (file_of(Image.new("1", (16, 16), 1), "TIFF", compression="group4"), 1, (255,)),
        (file_of(Image.new("RGBA", (16, 16), (10, 20, 30, 0)), "AVIF"), 3, (255, 255, 255)),
        (file_of(Image.new("RGBA", (16, 16), (10, 20, 30, 0)), "JPEG2000"), 3, (255, 255, 255)),
        (file_of(Image.fromarray(np.full((16, 16), 4112, np.uint16)), "JPEG2000"), 1, (16,)),
        (file_of(Image.fromarray(np.full((16, 16), 4112, np.uint16)), "TIFF", compression="tiff_deflate"), 1, (16,)),
    ],
    ids="lab ycbcr jpeg-in-tiff cmyk cmyk-lzw premultiplied premultiplied-on-white icc bit fax avif jp2 jp2-16 deflate-16".split(),  # noqa: SIM905, E501
)
def test_kinds_of_files(data: bytes, channels: int, wanted: tuple[int, ...]) -> None:
    """Each kind of file gives the colours that it shows."""
    shown = decode(data, None, "crop", channels, Tones("#ffffff"))
    assert abs(shown[8, 8].astype(int) - wanted).max() <= 6, shown[8, 8]


# Part of the data's identity


def test_tones_are_in_the_hash(tmp_path: Path) -> None:
    """Another background or range is another set; where both are as ever, so is the hash."""
    source = put(tmp_path / "set", {f"{n}.png": file_of(icon(n)) for n in range(3)})
    hashes = [
        FolderDataset(source, (8, 8), 3, background=background, value_range=value_range).content_hash()
        for background, value_range in (("black", "full"), ("white", "full"), ("auto", "auto"), ("black", "0:9"))
    ]
    assert hashes[1] == hashes[2] and len({*hashes}) == 3


def test_prepared_sets_refuse_other_tones(tmp_path: Path) -> None:
    """What was prepared isn't done again otherwise in silence; a set of before the choice lies on black."""
    source = put(tmp_path / "set", {f"{n}.png": file_of(icon(0)) for n in range(3)})
    dest = tmp_path / "out"
    assert cli.main(["data", "prepare", str(source), str(dest), "--size", "8", "--channels", "3"]) == 0
    config = DataConfig(data=str(dest), image_size=(8, 8), channels=3)

    def opened(**changes: str) -> Tones:
        dataset = open_dataset(Config(data=DataConfig(**(vars(config) | changes))))  # type: ignore[arg-type]
        assert isinstance(dataset, PreparedDataset)
        return dataset.tones

    assert opened() == opened(background="white") == opened(range="full") == Tones("#ffffff")
    assert "lies on #ffffff" in refusal(lambda: opened(background="black"))
    assert "has the range full" in refusal(lambda: opened(range="0:9"))
    assert cli.main(["data", "prepare", str(source), str(dest), "--size", "8", "--channels", "3",
                     "--background", "black"]) == 2  # fmt: skip
    index = json.loads((dest / "index.json").read_bytes())
    (dest / "index.json").write_text(json.dumps({k: v for k, v in index.items() if k not in ("background", "range")}))
    job = json.loads((dest / ".prepare.json").read_bytes())
    old = {k: v for k, v in job.items() if k not in ("background", "range", "resolved_tones")}
    (dest / ".prepare.json").write_text(json.dumps(old))
    assert opened() == opened(background="black", range="full") == Tones()
    assert cli.main(["data", "prepare", str(source), str(dest), "--size", "8", "--channels", "3"]) == 0


@pytest.mark.usefixtures("keep_signal_handlers")
def test_runs_keep_their_tones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of before the choice resumes with what it had; a run that chose white isn't resumed on black."""
    source = put(tmp_path / "set", {f"{n}.png": file_of(icon(0, n)) for n in range(6)})
    run = tmp_path / "run"
    args = ["--preset", "debug", "--width", "0.03125", "--data", str(source), "--batch-size", "4", "--eval-every", "0"]
    args += ["--run-dir", str(run)]
    assert train.main([*args, "--images", "4", "--background", "white"]) == 0
    assert train.main([*args, "--images", "8", "--background", "black"]) == 2
    assert "background: black, not white" in capsys.readouterr().err
    assert train.main([*args, "--images", "8"]) == 0
    config = json.loads((run / "config.json").read_text())
    assert config["data"].pop("background") == "white" and config["data"].pop("range") == "auto"
    (run / "config.json").write_text(json.dumps(config))
    (run / "data.json").unlink()
    assert train.main([*args, "--images", "12"]) == 0
    kept = RunFolder(run).read_config().data
    assert (kept.background, kept.range) == ("black", "full")


def test_two_channels_of_a_folder_are_refused(tmp_path: Path) -> None:
    """With the numbers of channels that there are."""
    source = put(tmp_path / "set", {"a.png": file_of(icon(0))})
    config = Config(data=DataConfig(data=str(source), channels=2))
    assert refusal(lambda: open_dataset(config)) == "channels is 2: give 1, 3 or 4"
