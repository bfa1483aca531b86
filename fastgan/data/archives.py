"""What lies in an archive: named images to read one by one. Nothing is ever unpacked to a path."""

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from fastgan.data.class_folders import NO_SPLITS, Splits, find_splits
from fastgan.data.file_kinds import HEAD_BYTES, HIDDEN, NO_IMAGE, begins_as_image, has_image_name, hidden_part
from fastgan.data.pixels import BadImage, RawImage
from fastgan.data.skipped import Skipped, name_bytes

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
    skipped: list[Skipped] = field(default_factory=list)  # images that can't be used
    left_out: list[Skipped] = field(default_factory=list)  # what is no image of the set
    splits: Splits = NO_SPLITS
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
        head: Callable[[], bytes] | None = None,
    ) -> None:
        """Take the entry, skip it with its reason, or, hidden or no image by its name, pass it over.

        A name without an image's ending is tried by `head`, its first bytes; `head` None: it has been.
        """
        name = clean(raw_name)
        if (hidden := hidden_part(name or raw_name)) is not None:
            self.left_out.append(Skipped(hidden, HIDDEN))
            return
        if name is None:
            fault = CLIMBS
        elif name in self.names:
            fault = "the same name again"
        elif size > MAX_BYTES:
            fault = fault or f"above {MAX_BYTES // 2**20} MiB"
        if not has_image_name(raw_name) and (fault or (head is not None and not _is_image(head))):
            self.left_out.append(Skipped(raw_name, fault or NO_IMAGE))
        elif fault or name is None:
            self.skipped.append(Skipped(raw_name, fault or CLIMBS))
        else:
            self.names.add(name)
            self.entries.append(Entry(name, size, read, path=path))

    def add_sidecar(self, name: str, size: int, read: Callable[[], RawImage]) -> None:
        """Keep a file beside the images that may say labels. Sidecars count in archives only."""
        if name in self.notes or size > MAX_NOTE_BYTES:
            return
        try:
            data = read()
        except BadImage as bad:
            self.skipped.append(Skipped(name, bad.args[0]))
            return
        if isinstance(data, bytes):
            self.notes[name] = data

    def finish(self) -> None:
        """Put the entries in their order, without those of splits that aren't for training."""
        self.entries.sort(key=lambda entry: name_bytes(entry.name))
        self.splits = find_splits([entry.name for entry in self.entries])
        held_out = self.splits.held_out
        for number, split in held_out.items():
            reason = f"in {split}, not in {self.splits.training}"
            self.left_out.append(Skipped(self.entries[number].name, reason))
        self.entries = [entry for number, entry in enumerate(self.entries) if number not in held_out]


def clean(name: str) -> str | None:
    """Return the name without empty parts; None where it leads out of its folder."""
    if name.startswith("/") or re.match(r"[A-Za-z]:[/\\]", name) or ".." in name.split("/"):
        return None
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _is_image(head: Callable[[], bytes]) -> bool:
    try:
        return begins_as_image(head())
    except BROKEN:
        return False


def list_zip(path: Path) -> ArchiveReader:
    """Return the images in a zip."""
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
            continue
        source.add(name, info.file_size, read, _zip_fault(info), head=partial(_zip_head, archive, info))
    source.finish()
    return source


def _zip_fault(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    if info.flag_bits & 1:
        return "encrypted"
    return "no plain file" if stat.S_IFMT(mode) not in (0, stat.S_IFREG) else None


def _zip_head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(HEAD_BYTES)


def _zip_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except BROKEN as error:
        raise BadImage(f"cannot be unpacked: {error or type(error).__name__}") from None
