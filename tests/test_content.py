"""The hash of files: it follows their bytes, and is fast the second time."""

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image
from test_findings import DEBUG

from fastgan import cli
from fastgan.commands import train
from fastgan.data import content, loaders
from fastgan.data.content import PART_BYTES, hash_files
from fastgan.data.prepared import PreparedDataset
from fastgan.presets import parse_config


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A small and a large file that have lain there for a while."""
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    (tmp_path / "set").mkdir()
    paths = [tmp_path / "set" / name for name in ("small", "large")]
    for path, size in zip(paths, (100, 10 * PART_BYTES), strict=True):
        path.write_bytes(bytes(size))
    time.sleep(0.02)
    return paths


def hashed(files: list[Path]) -> str:
    return hash_files(files[0].parent, files)


def write(path: Path, offset: int) -> None:
    """Another byte, and the time of the last write put back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        file.write(b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("offset", [0, PART_BYTES + 1, 5 * PART_BYTES, -1])
def test_every_byte_of_a_small_set(files: list[Path], offset: int, is_cached: bool) -> None:
    """A changed byte changes the hash, with and without what was kept, whatever the times say."""
    before = hashed(files) if is_cached else hash_files(Path("elsewhere"), files)
    write(files[1], offset)
    assert hashed(files) != before


@pytest.mark.parametrize(
    ("offset", "is_seen"), [(0, True), (5 * PART_BYTES, True), (-1, True), (2 * PART_BYTES, False)]
)
def test_parts_of_a_large_set(files: list[Path], offset: int, is_seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set that is too large to read, head, middle and end of each file count, and the size."""
    monkeypatch.setattr(content, "WHOLE_BYTES", 1000)
    before = hashed(files)
    write(files[1], offset)
    assert (hashed(files) != before) == is_seen
    with files[1].open("ab") as file:
        file.write(b"x")
    assert hashed(files) != before


def test_nothing_is_read_twice(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were hashed aren't read again, by the same or another process; new and changed ones are."""
    before, read, plain = hashed(files), list[Path](), content._hash
    monkeypatch.setattr(content, "_hash", lambda path, kind: read.append(path) or plain(path, kind))
    assert hashed(files) == before and read == []
    write(files[0], 3)
    assert hashed(files) != before and read == [files[0]]


def test_just_written(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be written again within the same tick of a clock isn't kept: also where that clock is ahead of ours."""
    monkeypatch.setattr(content, "SETTLED_NS", 10**18)
    hashed(files)
    assert not list((files[0].parents[1] / "cache").rglob("*.json"))


def test_without_a_cache(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that can't be written or read is only slower; damage in it is no hash."""
    before = hashed(files)
    [kept] = (files[0].parents[1] / "cache").rglob("*.json")
    for damaged in ("", "[]", '{"a": 3}', "{"):
        kept.write_text(damaged)
        assert hashed(files) == before
    monkeypatch.setenv("FASTGAN_CACHE", str(files[0]))
    assert hashed(files) == before


def test_order_and_absence(files: list[Path]) -> None:
    """Another order is another set; a file that is gone is no error here."""
    before = hashed(files)
    assert hash_files(files[0].parent, files[::-1]) != before
    files[0].unlink()
    assert hashed(files) != before


@pytest.mark.usefixtures("keep_signal_handlers", "here")
def test_shards_changed_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another image of the same length in a prepared set's shard, its times put back, is another set: a run isn't
    resumed on it, and a new one says it. A set that is as it was has the hash that it was prepared with.
    """
    (tmp_path / "set").mkdir()
    for number in range(4):
        Image.new("L", (8, 8), 60 * number).save(tmp_path / "set" / f"{number}.png")
    dest = tmp_path / "made"
    assert cli.main(["data", "prepare", str(tmp_path / "set"), str(dest), "--size", "8", "--workers", "1"]) == 0
    args = [*DEBUG, "--channels", "1", "--data", str(dest), "--images"]
    assert train.main([*args, "2", "--run-dir", str(tmp_path / "run")]) == 0
    prepared = PreparedDataset(dest)
    assert prepared.content_hash() == json.loads((dest / "index.json").read_bytes())["content_hash"]
    shard = dest / "shard-000000.tar"
    data, first, other = shard.read_bytes(), prepared.encoded(1).tobytes(), prepared.encoded(3).tobytes()
    assert len(first) == len(other) and not prepared.changes()
    before = shard.stat()
    with shard.open("r+b") as file:
        file.write(data.replace(first, other))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    assert train.main([*args, "4", "--run-dir", str(tmp_path / "run")]) == 2
    assert "4 images as then, others" in capsys.readouterr().err
    (line,) = loaders.summary(parse_config([*args, "2"]), PreparedDataset(dest))
    assert line == f"shard-000000.tar of {dest} changed after it was prepared: better prepare it again"
