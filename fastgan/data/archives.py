"""What lies in a folder or a zip: named images to read one by one. Nothing is ever unpacked to a path."""

import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from fastgan.data.pixels import BadImage, RawImage
from fastgan.data.skipped import Skipped, name_bytes

# The last five can't be read: such files are told, not passed over.
IMAGE_SUFFIXES = frozenset(
    """.png .jpg .jpeg .jpe .jfif .webp .gif .bmp .dib .tif .tiff
    .ppm .pgm .pbm .pnm .avif .jp2 .j2k .heic .heif .jxl .tga .psd""".split()  # noqa: SIM905
)
MAX_BYTES = 512 * 2**20  # of one entry, unpacked
MAX_NOTE_BYTES = 64 * 2**20  # of a file of labels; a class's sidecar has a few
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    MemoryError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)
CLIMBS = "climbs out of its folder"


class Entry(NamedTuple):
    """An image that can be asked for."""

    name: str  # relative to the source, parts joined by /
    size: int
    read: Callable[[], RawImage]  # bytes, or pixels in a set that is drawn; raises BadImage
    label: int | str | tuple[float, ...] | None = None
    path: Path | None = None  # where it lies as a file of its own, to be read elsewhere


@dataclass
class ArchiveReader:
    """The images of a data set, in the order of their names' bytes; open until its `with` block ends."""

    kind: str
    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: dict[str, bytes] = field(default_factory=dict)  # what says the labels: dataset.json, sidecars of images
    classes: list[str] | None = None  # names of the labels 0, 1, ... where the source knows them
    has_folders: bool = True  # whether the entries' folders may be their classes
    handles: ExitStack = field(default_factory=ExitStack)
    names: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.handles.close()

    def add(
        self,
        raw_name: str,
        size: int,
        read: Callable[[], RawImage],
        fault: str | None = None,
        path: Path | None = None,
    ) -> None:
        """The entry is taken, skipped with its reason, or, hidden or no image by its name, passed over."""
        name = clean(raw_name)
        if not is_image(name or raw_name):
            return
        if name is None:
            fault = CLIMBS
        elif name in self.names:
            fault = "the same name again"
        elif size > MAX_BYTES:
            fault = fault or f"above {MAX_BYTES // 2**20} MiB"
        if fault or name is None:
            self.skipped.append(Skipped(raw_name, fault or CLIMBS))
            return
        self.names.add(name)
        self.entries.append(Entry(name, size, read, path=path))

    def add_sidecar(self, name: str, size: int, read: Callable[[], RawImage]) -> None:
        """A file beside the images that may say labels is kept. Sidecars count in archives only."""
        if name in self.notes or size > MAX_NOTE_BYTES:
            return
        try:
            data = read()
        except BadImage as bad:
            self.skipped.append(Skipped(name, bad.args[0]))
            return
        if isinstance(data, bytes):
            self.notes[name] = data

    def sort(self) -> None:
        self.entries.sort(key=lambda entry: name_bytes(entry.name))


def clean(name: str) -> str | None:
    """The name without empty parts; None where it leads out of its folder."""
    if name.startswith("/") or re.match(r"[A-Za-z]:[/\\]", name) or ".." in name.split("/"):
        return None
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def is_image(name: str) -> bool:
    """Whether the name is that of an image which isn't hidden."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    hidden = not parts or "__MACOSX" in parts or any(part.startswith(".") for part in parts)
    return not hidden and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def walk(root: Path, without: Path | None = None) -> Iterator[tuple[str, os.DirEntry[str] | None, str]]:
    """(name, entry, reason why it can't be entered or "") of everything under `root`, links to folders unfollowed."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield folder, None, f"cannot be read: {error.strerror}"
            continue
        for entry in found:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if not entry.is_dir(follow_symlinks=False):
                yield name, entry, ""
            elif not entry.name.startswith(".") and Path(entry.path) != without:
                waiting.append(name)


def list_folder(root: Path, without: Path | None) -> ArchiveReader:
    """The images under a folder, those under `without` left out."""
    source = ArchiveReader("folder")
    for name, entry, fault in walk(root, without):
        if entry is None:
            source.skipped.append(Skipped(name, fault))
        elif name == "dataset.json" and entry.is_file(follow_symlinks=False):
            source.add_sidecar(name, entry.stat().st_size, partial(_file_bytes, root / name))
        elif is_image(name) or entry.is_symlink():
            _add_file(source, root, name)
    source.sort()
    return source


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from None


def _add_file(source: ArchiveReader, root: Path, name: str) -> None:
    path = root / name
    try:
        status = path.stat()
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a circle is the one or the other, by Python's version
        source.skipped.append(Skipped(name, "link that leads nowhere or in a circle"))
        return
    if stat.S_ISDIR(status.st_mode):
        source.skipped.append(Skipped(name, "link to a folder"))
        return
    fault = None
    if not real.is_relative_to(root):
        fault = CLIMBS
    elif not stat.S_ISREG(status.st_mode):
        fault = "no plain file"
    source.add(name, status.st_size, partial(_file_bytes, path), fault, path)


def list_zip(path: Path) -> ArchiveReader:
    """The images in a zip."""
    source = ArchiveReader("zip")
    try:
        archive = source.handles.enter_context(zipfile.ZipFile(path))
    except BROKEN as error:
        source.skipped.append(Skipped(path.name, f"damaged archive: {error}"))
        return source
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        read = partial(_zip_bytes, archive, info)
        if info.is_dir():
            continue
        if clean(name) == "dataset.json":
            source.add_sidecar("dataset.json", info.file_size, read)
        source.add(name, info.file_size, read, _zip_fault(info))
    source.sort()
    return source


def _zip_fault(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    if info.flag_bits & 1:
        return "encrypted"
    return "no plain file" if stat.S_IFMT(mode) not in (0, stat.S_IFREG) else None


def _zip_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except BROKEN as error:
        raise BadImage(f"cannot be unpacked: {error or type(error).__name__}") from None
