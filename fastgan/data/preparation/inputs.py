"""What a data set's SRC on the command line means: a folder, an archive, shards, parquet files or a named set."""

import itertools
import json
import re
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from fastgan.data.archives import ArchiveReader, Entry, list_zip
from fastgan.data.class_folders import find_splits
from fastgan.data.file_kinds import is_image
from fastgan.data.local_folder import list_folder, walk
from fastgan.data.names import NAMES
from fastgan.data.pixels import RawImage
from fastgan.data.preparation.parquet import list_parquet
from fastgan.data.preparation.tars import list_tars
from fastgan.data.skipped import Skipped, name_bytes
from fastgan.errors import UserError

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def open_archive(text: str, dest: Path, with_own: bool = False) -> ArchiveReader:
    """Return the images that SRC names, DEST's own left out, and a folder's of `fastgan sample` unless asked for.

    Raises UserError where there is no such thing.
    """
    if text in NAMES:
        return _named(text)
    path = Path(text).expanduser()
    try:
        path = path.resolve()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError):
        is_folder = is_file = False
    if is_folder:
        return _open_folder(path, dest, with_own)
    if is_file:
        return _open_file(path, dest)
    if "{" in text:
        return list_tars(_existing(text), dest)
    raise UserError(f"there is no {text!r}: give a folder, a zip, a tar, or one of {', '.join(NAMES)}")


def _named(name: str) -> ArchiveReader:
    from fastgan.data import named

    loaded = named.load(name)
    images = loaded.images.permute(0, 2, 3, 1).contiguous().numpy()
    labels: list[int | None] = [None] * len(images) if loaded.labels is None else [*loaded.labels.tolist()]

    def read(number: int) -> RawImage:
        pixels: np.ndarray = images[number]
        return pixels

    source = ArchiveReader(f"the data set {name}", has_folders=False)
    size = images[0].nbytes
    for number, label in enumerate(labels):
        source.entries.append(Entry(f"{number:09d}", size, partial(read, number), label))
    return source


def _open_folder(path: Path, dest: Path, with_own: bool) -> ArchiveReader:
    """The shards or parquet files where the folder has as many of them as of images, else the images."""
    num_images, tars, tables = 0, [], []
    for name, entry, _ in walk(path, dest):
        if entry is None:
            continue
        num_images += is_image(name)
        if name.lower().endswith(TAR_ENDINGS) and "/" not in name:
            tars.append(path / name)
        elif name.lower().endswith(".parquet"):
            tables.append(name)
    if tars and len(tars) >= num_images:  # beside a prepared set's shards lies a contact sheet
        source = list_tars(sorted(tars, key=lambda tar: name_bytes(tar.name)), dest)
        source.classes = _own_classes(path)
        return source
    if tables and len(tables) >= num_images:
        return _open_tables(path, sorted(tables, key=name_bytes))
    return list_folder(path, dest, with_own)


def _open_tables(folder: Path, tables: list[str]) -> ArchiveReader:
    """The tables, or of splits those of the training part, whether folders or the tables' names say it."""
    splits = find_splits([f"{table}/" for table in tables])
    source = list_parquet([folder / table for number, table in enumerate(tables) if number not in splits.held_out])
    for number, split in splits.held_out.items():
        source.left_out.append(Skipped(tables[number], f"in {split}, not in {splits.training}"))
    source.splits = splits
    return source


def _own_classes(folder: Path) -> list[str] | None:
    """The names of the classes where the folder is a prepared set with labels."""
    try:
        names = json.loads((folder / "index.json").read_bytes())["labels"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _open_file(path: Path, dest: Path) -> ArchiveReader:
    try:
        if path.suffix.lower() == ".parquet":
            return list_parquet([path])
        if path.name.lower().endswith(TAR_ENDINGS) or tarfile.is_tarfile(path):
            return list_tars([path], dest)
        if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
            return list_zip(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from None
    raise UserError(f"{path} is no zip, tar or parquet file: unpack it and give the folder")


def _existing(pattern: str) -> list[Path]:
    paths = [Path(text).expanduser() for text in braces(pattern)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{pattern!r} names {len(paths)} files of which {len(missing)} are missing, e.g. {missing[0]}")
    return paths


def braces(pattern: str) -> list[str]:
    """Return the names of a pattern like `part-{000..012}-{a,b}.tar`; zeros in front are kept."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if number % 2 == 0 else _choices(part) for number, part in enumerate(parts)]
    return ["".join(names) for names in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    between = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if between is None:
        return inside.split(",")
    first, last = between.groups()
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
