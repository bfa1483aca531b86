"""Checkpoints: a folder each, of safetensors and one JSON file; whole or not there, the last few kept.

    checkpoints/000000060000/G.safetensors  D…  G_ema…  optimizers…  state.json

`state.json` holds the SHA-256 of every file and of itself, so that damage is noticed before anything is loaded.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.utils.files import write_synced

STATE = "state.json"
BEST = "best"  # the folder, in a run's, of the one checkpoint that is best by a metric
MAX_READS = 20  # of checkpoints that are replaced while they are read
REPLACED_S = 0.2  # for a checkpoint to have its name
DTYPES = {  # as safetensors names them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    path: Path
    tensors: dict[str, dict[str, Tensor]]  # by file, then by name; on the CPU
    state: dict[str, Any]


class CorruptCheckpoint(Exception):
    """A checkpoint that can't be trusted."""


class Checkpoints:
    """The checkpoints of a run, in `folder`."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Return the finished checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("[0-9]*") if path.is_dir())

    def save(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
        """Write the checkpoint of `state["images_seen"]` to disk, whole, and remove all but the last `keep`.

        Raises UserError where it can't be written; then the earlier ones are as they were.
        """
        final = self.folder / f"{state['images_seen']:012d}"
        side = self.folder / f".{final.name}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(side, ignore_errors=True)
            side.mkdir()
            _write(side, tensors, state)
            if final.exists():  # damaged, or the same: a run that was resumed before it comes here again
                _remove(final)
            side.rename(final)
            _sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(side, ignore_errors=True)
            kept = f"{self.paths()[-1]} is kept" if self.paths() else "there is no earlier one"
            raise UserError(
                f"cannot save the checkpoint {final} ({error.strerror}): {kept}; "
                "free some space and run the same command again"
            ) from error
        for old in self.paths()[: -self.keep]:
            _remove(old)
        return final

    def latest(
        self, say: Callable[[str], None] = print, fault: Callable[[Checkpoint], str | None] = lambda found: None
    ) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, None where there is none at all; damaged ones are reported.

        `fault` says what else of one is damaged. A run that goes on meanwhile removes what is being read: what seems
        damaged is read again until nothing has changed meanwhile. Raises UserError where all are damaged: a new start
        would hide that.
        """
        for _ in range(MAX_READS):
            before = self._identities()
            found, faults = _newest_whole(list(before), fault)
            if not faults or before == self._identities():
                break
        if before and found is None:
            path, reason = next(iter(faults.items()))
            raise UserError(
                f"every checkpoint in {self.folder} is damaged ({path.name}: {reason}): put a whole one there from a "
                "copy, or train again in another folder"
            )
        for path, reason in faults.items():
            say(f"checkpoint {path} is damaged ({reason}): falling back to the one before")
        return found

    def _identities(self) -> dict[Path, int]:
        """`paths`, with what tells a folder from another in its place.

        Where there are none but one is being written or replaced, those a moment later.
        """
        if not self.paths() and any(self.folder.glob(".*.partial")):
            time.sleep(REPLACED_S)
        found = {}
        for path in self.paths():
            with contextlib.suppress(FileNotFoundError):
                found[path] = path.stat().st_ino
        return found

    def remove_partial(self) -> None:
        """Remove what a killed process left half-written."""
        for side in self.folder.glob(".*.partial"):
            shutil.rmtree(side, ignore_errors=True)


def read(path: Path, check: bool = True) -> Checkpoint:
    """Read the checkpoint in the folder `path`. Raises CorruptCheckpoint where a byte isn't as it was written.

    Without the check files are mapped: of what nobody uses nothing is read.
    """
    try:
        content = json.loads((path / STATE).read_text())
        files, state = content["files"], content["state"]
        if content["sha256"] != _hash_json(files, state):
            raise CorruptCheckpoint(f"{STATE} has changed")
        if type(state["images_seen"]) is not int or state["images_seen"] != int(path.name):
            raise CorruptCheckpoint(f"{STATE} has images_seen {state['images_seen']!r}")
        tensors = {}
        with contextlib.ExitStack() as held:  # what is open can be read to its end, also when its run removes it
            opened = {name: held.enter_context((path / name).open("rb")) for name in files}
            for name, wanted in files.items():
                data = opened[name].read() if check else None
                if data is not None and sha256(data).hexdigest() != wanted:
                    raise CorruptCheckpoint(f"{name} has changed")
                group = safetensors.torch.load_file(path / name) if data is None else safetensors.torch.load(data)
                tensors[name.removesuffix(".safetensors")] = group
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{type(error).__name__}: {error}") from None
    return Checkpoint(path, tensors, state)


def _newest_whole(
    paths: list[Path], fault: Callable[[Checkpoint], str | None]
) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest of the checkpoints, oldest first, that can be read and has no fault, and why newer ones don't do."""
    faults = dict[Path, str]()
    for path in reversed(paths):
        try:
            found = read(path)
            if (text := fault(found)) is None:
                return found, faults
            faults[path] = text
        except CorruptCheckpoint as reason:
            faults[path] = str(reason)
    return None, faults


def _remove(path: Path) -> None:
    """The checkpoint is gone at once: a kill leaves no part of it under its name."""
    aside = path.with_name(f".{path.name}.old.partial")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    files = {}
    for name, group in tensors.items():
        files[f"{name}.safetensors"] = _write_tensors(folder / f"{name}.safetensors", group)
    content = {"files": files, "state": state, "sha256": _hash_json(files, state)}
    write_synced(folder / STATE, json.dumps(content, indent=1).encode())
    _sync_folder(folder)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """The tensors are on disk as safetensors; returns the file's SHA-256."""
    digest = sha256()

    def hashed() -> Iterator[bytes | memoryview]:
        for piece in _pieces(tensors):
            digest.update(piece)
            yield piece

    write_synced(path, hashed())
    return digest.hexdigest()


def _pieces(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """What a safetensors file of them holds: the length of the header, the header, each tensor.

    safetensors' own `save` first lays all of it together, and lets no other thread of Python run meanwhile: training
    would stand still.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # each begins at a multiple of that
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.itemsize
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _hash_json(*values: object) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """The names in the folder are on disk as well."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
