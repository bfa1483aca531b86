import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import refusal
from PIL import Image
from safetensors.numpy import load, save

from fastgan import cli
from fastgan.data.preparation import info
from fastgan.data.preparation.info import InfoOptions
from fastgan.data.preparation.prepare import PrepareOptions, prepare


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def noise(seed: int, size: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def nearly(colour: tuple[int, int, int]) -> np.ndarray:
    """One colour with a speck of one level."""
    array = np.full((8, 8, 3), colour, np.uint8)
    array[4, 4] += 1
    return array


FILES = {
    "ants/0.png": png(noise(0)),
    "ants/1.png": png(noise(1)),
    "ants/2.png": png(nearly((250, 100, 0))),
    "bees/3.png": png(noise(1)),
    "bees/4.png": png(noise(2)),
    "bees/5.png": b"broken",
    "bees/6.png": b"",
    "bees/7.png": b"",
}


def make(folder: Path, files: dict[str, bytes], **options: Any) -> Path:
    for name, data in files.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes(data)
    prepare(PrepareOptions(str(folder / "in"), folder / "out", "8", workers=1, **options))
    return folder / "out"


@pytest.mark.parametrize("workers", [1, 2])
def test_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Label counts, duplicates and flat images are found, over any number of processes."""
    monkeypatch.setattr(info, "BATCH_IMAGES", 2)
    facts = info.info(InfoOptions(make(tmp_path, FILES), workers))
    assert facts.label_counts == [3, 2]
    assert facts.duplicates == [[1, 3]] and facts.flat == [2]
    assert facts.index["num_images"] == 5 and len(facts.index["skipped"]) == 3


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fastgan data info` prints counts, size, labels, reasons, duplicates, flat images, a warning for a small set."""
    folder = make(tmp_path, FILES)
    capsys.readouterr()
    assert cli.main(["data", "info", str(folder), "--workers", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{folder}: 5 images of 8x8, 3 channels"
    assert shown[1].startswith("png, shards: 1, from ")
    assert shown[2:-2] == [
        "labels: 2",
        "         3  ants",
        "         2  bees",
        "skipped files: 3",
        "         2  empty file",
        "         1  no image of a known format",
        "duplicates: 1 (images 1 = 3)",
        "nearly one colour: 1 (images 2)",
    ]
    assert shown[-2].startswith("warning: under 2,000 images")
    assert shown[-1] == f"contact sheet: {folder / 'contact-sheet.png'}"


def test_no_warning_for_a_large_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set of as many images as the bound isn't warned of, one of an image less is."""
    folder = make(tmp_path, FILES)
    for bound, warned in ((5, False), (6, True)):
        monkeypatch.setattr(info, "FEW_IMAGES", bound)
        capsys.readouterr()
        info.info(InfoOptions(folder, 1))
        assert ("warning: under" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("channels", ["1", "3", "4"])
def test_contact_sheet(tmp_path: Path, channels: str) -> None:
    """The contact sheet shows up to 64 images, the first and the last among them; the set isn't changed."""
    files = {f"{number:03d}.png": png(noise(number)) for number in range(70)}
    folder = make(tmp_path, files, channels=channels)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    info.info(InfoOptions(folder, 1))
    with Image.open(folder / "contact-sheet.png") as sheet:
        shown = np.asarray(sheet)
    assert shown.shape[:2] == (80, 80)
    if channels == "3":
        assert np.array_equal(shown[1:9, 1:9], noise(0)) and np.array_equal(shown[71:79, 71:79], noise(69))
    before[folder / "contact-sheet.png"] = (folder / "contact-sheet.png").read_bytes()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_contact_sheet_of_few(tmp_path: Path) -> None:
    """A set of two images has a sheet of two, one of one image a sheet of one."""
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        folder = make(tmp_path / str(number), {f"{n}.png": png(noise(n)) for n in range(number)})
        info.info(InfoOptions(folder, 1))
        with Image.open(folder / "contact-sheet.png") as sheet:
            assert sheet.size == (10 * number, 10)


def drop_index(folder: Path) -> None:
    (folder / "index.json").unlink()


def drop_shard(folder: Path) -> None:
    (folder / "shard-000000.tar").unlink()


def other_format(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_bytes())
    (folder / "index.json").write_text(json.dumps(index | {"format": 2}))


def cut_members(folder: Path) -> None:
    members = load((folder / "members.safetensors").read_bytes())
    (folder / "members.safetensors").write_bytes(save({name: values[1:] for name, values in members.items()}))


def broken_members(folder: Path) -> None:
    (folder / "members.safetensors").write_bytes(b"nothing")


def swapped_members(folder: Path) -> None:
    members = load((folder / "members.safetensors").read_bytes())
    (folder / "members.safetensors").write_bytes(save({n: v[::-1].copy() for n, v in members.items()}))


def damaged_shard(folder: Path) -> None:
    data = bytearray((folder / "shard-000000.tar").read_bytes())
    data[600] ^= 0xFF
    (folder / "shard-000000.tar").write_bytes(data)


def short_shard(folder: Path) -> None:
    data = (folder / "shard-000000.tar").read_bytes()
    (folder / "shard-000000.tar").write_bytes(data[:700])


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (drop_index, "index.json"),
        (drop_shard, "shard-000000.tar"),
        (other_format, "format 2"),
        (cut_members, "no whole prepared data set"),
        (broken_members, "no whole prepared data set"),
        (swapped_members, "its hash is another"),
        (damaged_shard, "image 0"),
        (short_shard, "image 0"),
    ],
)
def test_sets_that_are_not_whole(tmp_path: Path, harm: Callable[[Path], None], word: str) -> None:
    """A set of which a part is missing or damaged is one line with the folder and the remedy."""
    folder = make(tmp_path, FILES)
    harm(folder)
    text = refusal(lambda: info.info(InfoOptions(folder, 1)))
    assert word in text and str(folder) in text and "prepare" in text


def test_no_set_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that isn't there ends the command with 2 and one line."""
    assert cli.main(["data", "info", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
