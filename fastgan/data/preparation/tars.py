"""What lies in tars: one, compressed or not, or the shards of a set. Nothing is ever unpacked to a path."""

import os
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tarfile import EOFHeaderError  # type: ignore[attr-defined]  # its type stubs lack it
from typing import IO, Self

from fastgan.data.archives import BROKEN, MAX_BYTES, ArchiveReader, clean
from fastgan.data.file_kinds import HEAD_BYTES, begins_as_image, has_image_name, hidden_part
from fastgan.data.pixels import BadImage
from fastgan.data.skipped import Skipped

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


def list_tars(paths: list[Path], spool_folder: Path) -> ArchiveReader:
    """Return the images in one or several tars, compressed or not; those of several bear their tar's name in front.

    A compressed tar can only be read from end to end: its images wait in a nameless file in `spool_folder`.
    """
    source = ArchiveReader("tar" if len(paths) == 1 else f"{len(paths)} tars", has_folders=len(paths) == 1)
    files = source.handles.enter_context(_Files())
    spool: IO[bytes] | None = None
    for path in paths:
        prefix = f"{path.name}/" if len(paths) > 1 else ""
        try:
            with path.open("rb") as file:
                compressed = file.read(6).startswith(COMPRESSED)
            if compressed and spool is None:
                spool = source.handles.enter_context(tempfile.TemporaryFile(dir=spool_folder))  # noqa: SIM115
            _list_tar(source, path, prefix, spool if compressed else None, files)
        except BROKEN as error:
            source.skipped.append(Skipped(path.name, f"damaged archive: {error or type(error).__name__}"))
    source.finish()
    return source


class _Files:
    """Opens files to read, one at a time: a set of shards may have more than a process may hold open."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: IO[bytes] | None = None

    def open(self, path: Path) -> IO[bytes]:
        if self._file is None or path != self._path:
            self.__exit__()
            self._path, self._file = path, path.open("rb")
        return self._file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


class _Member(tarfile.TarInfo):
    """A member whose header is damaged is an error wherever it lies: tarfile takes all but the first for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            member = super().fromtarfile(archive)
        except EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it ends early ({error})") from None
        if archive.offset <= member.offset:
            raise tarfile.ReadError(f"a member's size is {member.size}")
        return member

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Refuse a negative size, by which tarfile would read the same header again for ever, or all that follows."""
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0:
            raise tarfile.ReadError(f"a member's size is {member.size}")
        return member


def _list_tar(source: ArchiveReader, path: Path, prefix: str, spool: IO[bytes] | None, files: _Files) -> None:
    """Raises one of BROKEN where the archive ends early; what came before is taken."""
    open_it = partial(files.open, path) if spool is None else lambda: spool
    with tarfile.open(path, "r:" if spool is None else "r|*", tarinfo=_Member) as archive:
        for member in archive:
            name, offset = clean(member.name), member.offset_data
            is_note = name is not None and (name == "dataset.json" or name.endswith((".cls", ".json")))
            fault = None if member.isreg() and not member.issparse() else "no plain file"
            if member.isdir():
                continue
            head: Callable[[], bytes] | None = partial(_tar_head, open_it, offset, member.size)
            if spool is not None and fault is None and member.size <= MAX_BYTES:
                wanted = is_note or has_image_name(member.name)
                copied = None if hidden_part(member.name) else _copy(archive, member, spool, wanted)
                offset, head = copied or 0, (lambda: b"") if copied is None else None
            read = partial(_tar_bytes, open_it, offset, member.size)
            if is_note and fault is None and name is not None:
                source.add_sidecar(prefix + name, member.size, read)
            else:
                source.add(member.name if name is None else prefix + name, member.size, read, fault, head=head)


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, spool: IO[bytes], wanted: bool) -> int | None:
    """The member's place in the spool, where it lies now; None for one that isn't wanted and begins as no image."""
    content = archive.extractfile(member)
    assert content is not None
    block = content.read(HEAD_BYTES)
    if not wanted and not begins_as_image(block):
        return None
    offset = spool.seek(0, os.SEEK_END)
    while block:
        spool.write(block)
        block = content.read(2**20)
    return offset


def _tar_head(open_it: Callable[[], IO[bytes]], offset: int, size: int) -> bytes:
    file = open_it()
    file.seek(offset)
    return file.read(min(size, HEAD_BYTES))


def _tar_bytes(open_it: Callable[[], IO[bytes]], offset: int, size: int) -> bytes:
    try:
        file = open_it()
        file.seek(offset)
        data = file.read(size)
    except BROKEN as error:
        raise BadImage(f"cannot be read: {error}") from None
    if len(data) != size:
        raise BadImage("cut off with its archive")
    return data
