"""The hash of files: it follows their bytes, and is fast the second time."""

import os
import time
from pathlib import Path

import pytest

from fastgan.data import content
from fastgan.data.content import PART_BYTES, hash_files


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
    monkeypatch.setattr(content, "_hash", lambda path, is_whole: read.append(path) or plain(path, is_whole))
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
