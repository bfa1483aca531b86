"""What lies in a folder of the user's own: links are followed, each real folder is entered once."""

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fastgan.data.archives import ArchiveReader
from fastgan.data.file_kinds import HEAD_BYTES, HIDDEN, OWN, has_image_name, hidden_part, is_own
from fastgan.data.pixels import BadImage
from fastgan.data.skipped import Skipped

Found = tuple[str, os.DirEntry[str] | None, str]
RUN, PREPARED = "folder of a run", "folder of a prepared set"


def walk(root: Path, without: Path | None = None) -> Iterator[Found]:
    """Yield (name, entry, "") of every file under `root`, links followed, and (name, None, reason) of what isn't
    entered.

    A folder that lies below `root` itself goes before links to it.
    """
    entered: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = (root / folder).stat()
            if (identity := (status.st_dev, status.st_ino)) in entered:
                yield folder, None, "link to a folder that is there already"
                continue
            entered.add(identity)
            with os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield folder, None, f"cannot be read: {error.strerror}"
            continue
        own = own_folder({entry.name for entry in found})
        if own == RUN or (own and folder):  # a prepared set itself has a reader of its own
            yield folder or ".", None, own
            continue
        for entry in found:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if hidden_part(entry.name) is not None:
                yield name, None, HIDDEN
            elif not _is_folder(entry):
                yield name, entry, ""
            elif without is not None and Path(entry.path).resolve() == without:
                continue
            elif not entry.is_symlink():
                folders.append(name)
            elif (root / folder).resolve().is_relative_to(Path(entry.path).resolve()):
                yield name, None, "link to a folder that holds it"
            else:
                links.append(name)


def own_folder(names: set[str]) -> str:
    """Return what fastgan left, by the names in a folder, whatever its own: no part of a set.

    "" where it is none of ours.
    """
    if "config.json" in names and names & {"sessions.jsonl", "checkpoints", "grids"}:
        return RUN
    return PREPARED if {"index.json", "members.safetensors"} <= names else ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def list_folder(root: Path, without: Path | None, with_own: bool = False) -> ArchiveReader:
    """Return the images under a folder, those under `without` left out, and those of `fastgan sample` unless asked."""
    source = ArchiveReader("folder")
    linked, unnamed = set[tuple[int, int]](), dict[str, tuple[int, int]]()
    for name, entry, fault in walk(root, without):
        if entry is None:
            (source.left_out if fault == HIDDEN else source.skipped).append(Skipped(name, fault))
            continue
        try:
            status = entry.stat()
        except OSError as error:  # also where a link leads in a circle
            reason = "link that leads nowhere or in a circle" if entry.is_symlink() else f"cannot be read: {error}"
            source.skipped.append(Skipped(name, reason))
            continue
        path, identity = root / name, (status.st_dev, status.st_ino)
        if name == "dataset.json" and stat.S_ISREG(status.st_mode):
            source.add_sidecar(name, status.st_size, partial(_file_bytes, path))
            continue
        if entry.is_symlink():
            linked.add(identity)
        elif not has_image_name(name):
            unnamed[name] = identity
        if not with_own and name.lower().endswith(".png") and stat.S_ISREG(status.st_mode) and _is_own(path):
            source.left_out.append(Skipped(name, OWN))
            continue
        special = None if stat.S_ISREG(status.st_mode) else "no plain file"
        source.add(name, status.st_size, partial(_file_bytes, path), special, path, partial(_head, path))
    # A cache of downloads keeps them without endings, and links with names to them.
    twice = {name for name, identity in unnamed.items() if identity in linked} & source.names
    source.left_out += [Skipped(name, "there under a link's name") for name in twice]
    source.entries = [entry for entry in source.entries if entry.name not in twice]
    source.finish()
    return source


def _is_own(path: Path) -> bool:
    try:
        return is_own(_head(path))
    except OSError:  # which is told when it is read
        return False


def _head(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(HEAD_BYTES)


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from None
