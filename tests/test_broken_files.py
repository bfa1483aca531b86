"""Ten broken files of each of many kinds among three good ones: what is good is kept, what is not is named."""

import gzip
import io
import json
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastgan.data import archives
from fastgan.data.preparation import tars
from fastgan.data.preparation.prepare import PrepareOptions, prepare
from fastgan.errors import UserError

GOOD = 3
BAD = 10

Broken = tuple[Path, list[str]]  # the source, and the names of what is broken in it


def file_of(kind: str, seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).save(out, kind)
    return out.getvalue()


GOOD_FILES = {f"good-{number}.png": file_of("PNG", number) for number in range(GOOD)}


def names(ending: str = ".png") -> list[str]:
    return [f"bad-{number}{ending}" for number in range(BAD)]


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


# In folders


def files(tmp: Path, data: Callable[[int], bytes], ending: str = ".png") -> Broken:
    bad = {name: data(number) for number, name in enumerate(names(ending))}
    return put(tmp / "in", GOOD_FILES | bad), list(bad)


def links(tmp: Path, target: Callable[[Path, int], str | Path]) -> Broken:
    folder = put(tmp / "in", GOOD_FILES)
    for number, name in enumerate(names()):
        (folder / name).symlink_to(target(folder, number))
    return folder, names()


def cut(kind: str) -> Callable[[Path], Broken]:
    data = file_of(kind)
    return lambda tmp: files(tmp, lambda n: data[: len(data) * (n + 1) // (BAD + 2)], f".{kind.lower()}")


def flipped(number: int) -> bytes:
    data = bytearray(file_of("PNG"))
    data[41 + 100 * number] ^= 0xFF  # in the compressed pixels
    return bytes(data)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def float_tiff(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.inf if number % 2 else np.nan, np.float32)).save(out, "TIFF")
    return out.getvalue()


def pipes(tmp: Path) -> Broken:
    folder = put(tmp / "in", GOOD_FILES)
    for name in names():
        os.mkfifo(folder / name)
    return folder, names()


# In archives


def zipped(tmp: Path, bad: list[tuple[zipfile.ZipInfo | str, bytes]]) -> Path:
    with zipfile.ZipFile(tmp / "a.zip", "w") as archive:
        for name, data in [*GOOD_FILES.items(), *bad]:
            archive.writestr(name, data)
    return tmp / "a.zip"


def zip_names(tmp: Path, name: Callable[[int], str]) -> Broken:
    bad = [name(number) for number in range(BAD)]
    return zipped(tmp, [(one, file_of("PNG")) for one in bad]), bad


def zip_links(tmp: Path) -> Broken:
    infos = [zipfile.ZipInfo(name) for name in names()]
    for info in infos:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped(tmp, [(info, b"/etc/passwd") for info in infos]), names()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def zip_duplicates(tmp: Path) -> Broken:
    return zipped(tmp, [("good-1.png", file_of("PNG", 50 + number)) for number in range(BAD)]), ["good-1.png"]


def patched_zip(tmp: Path, patch: Callable[[bytearray, zipfile.ZipInfo, int], None]) -> Broken:
    """A zip in which `patch` changes each bad entry; it gets the bytes, the entry, its place in the directory."""
    path = zipped(tmp, [(name, file_of("PNG")) for name in names()])
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.startswith("bad"):
                patch(data, info, data.rindex(info.filename.encode()) - 46)
    path.write_bytes(data)
    return path, names()


def encrypt(data: bytearray, info: zipfile.ZipInfo, directory: int) -> None:
    data[directory + 8] |= 1
    data[info.header_offset + 6] |= 1


def damage(data: bytearray, info: zipfile.ZipInfo, directory: int) -> None:
    data[info.header_offset + 30 + len(info.filename) + 500] ^= 0xFF


def unknown_method(data: bytearray, info: zipfile.ZipInfo, directory: int) -> None:
    data[directory + 10] = 77


def huge(data: bytearray, info: zipfile.ZipInfo, directory: int) -> None:
    data[directory + 24 : directory + 28] = struct.pack("<I", 600 * 2**20)


def tarred(tmp: Path, bad: list[tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(tmp / "a.tar", mode) as archive:
        for name, data in GOOD_FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in bad:
            data = file_of("PNG") if info.isreg() else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return tmp / "a.tar"


def typed(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


def tar_kind(kind: bytes, target: str = "good-0.png", mode: str = "w") -> Callable[[Path], Broken]:
    def build(tmp: Path) -> Broken:
        infos = [tarfile.TarInfo(name) for name in names()]
        for info in infos:
            info.type, info.linkname = kind, target
        return tarred(tmp, infos, mode), names()

    return build


def tar_names(tmp: Path, name: Callable[[int], str], mode: str = "w") -> Broken:
    bad = [name(number) for number in range(BAD)]
    return tarred(tmp, [tarfile.TarInfo(one) for one in bad], mode), bad


def cut_tars(tmp: Path) -> Broken:
    """Shards of which ten end in the middle of their second image."""
    for number in range(BAD + 1):
        tmp.joinpath("build").mkdir(exist_ok=True)
        path = tarred(tmp / "build", [])
        data = path.read_bytes()
        put(tmp / "in", {f"{number:02d}.tar": data if number == 0 else data[:3500]})
        path.unlink()
    return tmp / "in", [f"{number:02d}.tar" for number in range(1, BAD + 1)]


KINDS: dict[str, tuple[Callable[[Path], Broken], str]] = {
    "cut PNG": (cut("PNG"), ""),
    "cut JPEG": (cut("JPEG"), ""),
    "cut WebP": (cut("WEBP"), ""),
    "cut GIF": (cut("GIF"), ""),
    "wrong bytes": (lambda tmp: files(tmp, flipped), "damaged"),
    "no bytes": (lambda tmp: files(tmp, lambda n: b""), "empty file"),
    "text": (lambda tmp: files(tmp, lambda n: b"not found\n" * n + b"."), "no image of a known format"),
    "page": (lambda tmp: files(tmp, lambda n: b"<html>%d" % n, ".jpg"), "no image of a known format"),
    "postscript": (lambda tmp: files(tmp, lambda n: b"%!PS-Adobe-3.0 EPSF-3.0\n"), "no image of a known format"),
    "zip as PNG": (lambda tmp: files(tmp, lambda n: b"PK\3\4" + bytes(n)), "no image of a known format"),
    "bomb": (lambda tmp: files(tmp, lambda n: png_header(9500 + n * 5000, 65_000)), "too many pixels"),
    "float": (lambda tmp: files(tmp, float_tiff, ".tiff"), "values out of range"),
    "link to itself": (lambda tmp: links(tmp, lambda folder, n: f"bad-{n}.png"), "in a circle"),
    "links in a circle": (lambda tmp: links(tmp, lambda folder, n: f"bad-{(n + 1) % BAD}.png"), "in a circle"),
    "link to nowhere": (lambda tmp: links(tmp, lambda folder, n: f"gone-{n}.png"), "nowhere"),
    "link to the folder": (lambda tmp: links(tmp, lambda folder, n: folder), "link to a folder"),
    "pipe": (pipes, "no plain file"),
    "zip that climbs": (lambda tmp: zip_names(tmp, lambda n: f"{'../' * (n + 1)}bad.png"), "climbs out"),
    "zip that climbs later": (lambda tmp: zip_names(tmp, lambda n: f"a/{n}/../../../bad.png"), "climbs out"),
    "zip with absolute names": (lambda tmp: zip_names(tmp, lambda n: f"/tmp/bad-{n}.png"), "climbs out"),
    "zip with names of Windows": (lambda tmp: zip_names(tmp, lambda n: f"C:\\bad-{n}.png"), "climbs out"),
    "zip with links": (zip_links, "no plain file"),
    "zip with passwords": (lambda tmp: patched_zip(tmp, encrypt), "encrypted"),
    "zip with wrong bytes": (lambda tmp: patched_zip(tmp, damage), "cannot be unpacked"),
    "zip of another method": (lambda tmp: patched_zip(tmp, unknown_method), "cannot be unpacked"),
    "zip bomb": (lambda tmp: patched_zip(tmp, huge), "above 512 MiB"),
    "tar that climbs": (lambda tmp: tar_names(tmp, lambda n: f"{'../' * (n + 1)}bad.png"), "climbs out"),
    "compressed tar that climbs": (lambda tmp: tar_names(tmp, lambda n: f"../{n}.png", "w:gz"), "climbs out"),
    "tar with absolute names": (lambda tmp: tar_names(tmp, lambda n: f"/tmp/bad-{n}.png"), "climbs out"),
    "tar with links": (tar_kind(tarfile.SYMTYPE, "/etc/passwd"), "no plain file"),
    "tar with hard links": (tar_kind(tarfile.LNKTYPE), "no plain file"),
    "tar with devices": (tar_kind(tarfile.CHRTYPE, ""), "no plain file"),
    "compressed tar with pipes": (tar_kind(tarfile.FIFOTYPE, "", "w:gz"), "no plain file"),
}


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything under the folder, DEST left out."""
    found = {}
    for path in folder.rglob("*"):
        if "out" not in path.parts:
            status = path.lstat()
            found[str(path)] = status.st_size, status.st_mtime_ns
    return found


def run(tmp_path: Path, source: Path, **options: Any) -> dict[str, Any]:
    """The index; nothing but DEST has changed."""
    before = state(tmp_path)
    index = prepare(PrepareOptions(str(source), tmp_path / "out", "8", **({"workers": 1} | options)))
    assert state(tmp_path) == before
    assert json.loads((tmp_path / "out" / "index.json").read_bytes()) == index
    return index


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files(kind: str, tmp_path: Path) -> None:
    """Each of ten broken files is skipped with its reason, the good ones are kept, and nothing outside DEST changes."""
    build, reason = KINDS[kind]
    source, bad = build(tmp_path)
    index = run(tmp_path, source)
    assert index["num_images"] == GOOD
    assert sorted(one["file"] for one in index["skipped"]) == sorted(name.replace("\\", "/") for name in bad)
    assert all(one["reason"] and reason in one["reason"] and "\n" not in one["reason"] for one in index["skipped"])


def test_all_at_once(tmp_path: Path) -> None:
    """All kinds in one folder, over two processes: only what is good is there, and every bad file is named."""
    wanted = set()
    kinds = list(KINDS)[:17]
    for number, kind in enumerate(kinds):
        place = tmp_path / "in" / f"{number:02d}"
        place.mkdir(parents=True)
        source, bad = KINDS[kind][0](place)
        wanted |= {str((source / name).relative_to(tmp_path / "in")) for name in bad}
    index = run(tmp_path, tmp_path / "in", workers=2, labels="none")
    assert {one["file"] for one in index["skipped"]} == wanted and len(wanted) == len(kinds) * BAD
    assert index["num_images"] == len(kinds) * GOOD
    assert len({one["reason"].split(":")[0] for one in index["skipped"]}) >= 7


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names(tmp_path: Path) -> None:
    """Of several entries with one name the first is kept, in zips and tars, also where it is written otherwise."""
    source = zipped(tmp_path, [(f"{'./' * n}good-1.png", file_of("PNG", 50 + n)) for n in range(BAD)])
    index = run(tmp_path, source)
    assert index["num_images"] == GOOD and len(index["skipped"]) == BAD
    assert {one["reason"] for one in index["skipped"]} == {"the same name again"}
    (tmp_path / "b").mkdir()
    again = tarred(tmp_path / "b", [tarfile.TarInfo("good-1.png") for _ in range(BAD)])
    first = prepare(PrepareOptions(str(again), tmp_path / "out2", "8", workers=1))
    assert first["content_hash"] == index["content_hash"]
    assert first["skipped"] == [{"file": "good-1.png", "reason": "the same name again"}]


def test_shards_that_are_cut_off(tmp_path: Path) -> None:
    """Of a shard that ends early the images before its end are kept, and it is named."""
    source, bad = cut_tars(tmp_path)
    index = run(tmp_path, source)
    assert index["num_images"] == GOOD + BAD
    assert {one["file"].split("/")[0] for one in index["skipped"]} == set(bad)
    assert {one["reason"].split(":")[0] for one in index["skipped"]} <= {"cut off with its archive", "damaged archive"}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tar_that_is_cut_off(tmp_path: Path, mode: str) -> None:
    """Of a compressed tar that ends early what came whole is kept, and it is named; or nothing is left."""
    infos = [tarfile.TarInfo(f"more-{number}.png") for number in range(200)]
    path = tarred(tmp_path, infos, mode)
    path.write_bytes(path.read_bytes()[:-100])
    try:
        index = run(tmp_path, path)
    except UserError as error:
        assert "a.tar" in str(error) and mode == "w:bz2"  # its blocks are larger than the whole archive
        return
    assert 0 < index["num_images"] <= GOOD + 200 and [one["file"] for one in index["skipped"]] == ["a.tar"]


def test_large_entries_of_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry above the limit is skipped in each kind of tar, without being copied."""
    monkeypatch.setattr(archives, "MAX_BYTES", 10_000)
    monkeypatch.setattr(tars, "MAX_BYTES", 10_000)
    for mode in ("w", "w:gz"):
        folder = tmp_path / mode[-1]
        folder.mkdir()
        with tarfile.open(folder / "a.tar", mode) as archive:
            for name, data in {"bomb.png": bytes(10**6), **GOOD_FILES}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        index = prepare(PrepareOptions(str(folder / "a.tar"), folder / "out", "8", workers=1))
        assert index["num_images"] == GOOD and [one["file"] for one in index["skipped"]] == ["bomb.png"]
        assert "above" in index["skipped"][0]["reason"]


def test_what_is_ignored(tmp_path: Path) -> None:
    """Hidden files, what a Mac leaves in archives, and what is no image are left out, told and no fault."""
    noise = {
        ".DS_Store": b"x",
        "._good-0.png": b"x",
        "__MACOSX/._good.png": b"x",
        "readme.txt": b"x",
        ".git/a.png": b"x",
    }
    source = zipped(tmp_path, list(noise.items()))
    assert run(tmp_path, source)["skipped"] == []
    for name in noise:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    put(tmp_path / "in", GOOD_FILES)
    index = prepare(PrepareOptions(str(tmp_path / "in"), tmp_path / "out2", "8", workers=1))
    assert index["num_images"] == GOOD and index["skipped"] == []


def test_wrong_endings(tmp_path: Path) -> None:
    """An image is what it holds, not what its name says."""
    kinds = {"a.png": file_of("JPEG"), "b.jpg": file_of("PNG"), "c.gif": file_of("WEBP"), "d.bmp": file_of("TIFF")}
    index = run(tmp_path, put(tmp_path / "in", kinds))
    assert index["num_images"] == 4 and index["skipped"] == []


def negative(info: tarfile.TarInfo, size: int) -> bytes:
    """The header of a member of that size, as GNU's tar writes numbers below 0."""
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (size % 256**11).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(size: str) -> bytes:
    """A member whose extended header says its size."""
    info = tarfile.TarInfo("bad.png")
    info.pax_headers = {"size": size}
    return info.tobuf(tarfile.PAX_FORMAT)


BACKWARDS = {
    "a file": negative(tarfile.TarInfo("bad.png"), -512),
    "a file, a byte": negative(tarfile.TarInfo("bad.png"), -1),
    "an extended header": negative(typed("bad.png", tarfile.XHDTYPE), -512),
    "a long name": negative(typed("bad.png", tarfile.GNUTYPE_LONGNAME), -512),
    "by an extended header": pax("-1024"),
    "no number": pax("nan"),
}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kind", BACKWARDS)
def test_sizes_below_zero(kind: str, mode: str, tmp_path: Path) -> None:
    """A member of a negative size, after which a reader stands where it stood, ends the archive: what came before is
    kept, and it is named."""
    path = tarred(tmp_path, [])
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset
    content = path.read_bytes()[:end] + BACKWARDS[kind] + bytes(10_240)
    path.write_bytes(gzip.compress(content) if mode == "w:gz" else content)
    index = run(tmp_path, path)
    assert index["num_images"] == GOOD
    assert index["skipped"] and {one["file"] for one in index["skipped"]} <= {"a.tar", "bad.png"}
