"""A prepared data set on disk: shards that are whole or not there, and what is needed to go on after a kill.

shard-000000.tar ...   plain tars of 000000000.png (or .jpg) and .cls (vectors: .json), numbered through the whole set
members.safetensors    where each image lies: shard, offset, length, and its label (label: a class; or vector: numbers)
index.json             what the set is; written last: without it a folder is no prepared set
.prepare.json          the command that made it; .shard-000000.json: how far the input had got, until the end
"""

import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import save

from fastgan.data.label_table import Vector
from fastgan.data.pixels import EncodedImage
from fastgan.data.skipped import Skipped
from fastgan.data.tones import Tones
from fastgan.errors import UserError
from fastgan.utils.files import write_atomically
from fastgan.utils.lock import Lock

FORMAT = 1
INDEX, MEMBERS, JOB, LOCK = "index.json", "members.safetensors", ".prepare.json", ".prepare.lock"
MAX_IMAGES = 5000
MAX_SHARD_BYTES = 256 * 2**20
ENDINGS = {"png": ".png", "jpeg": ".jpg"}
BLOCK = tarfile.BLOCKSIZE


@dataclass
class Shard:
    """A finished shard and the input up to it."""

    name: str
    sha256: str = ""
    num_bytes: int = 0
    next: int = 0  # position in the input after its last image
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    labels: list[int | Vector] = field(default_factory=list)  # empty in a set without
    digests: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # of how many images it was found that was watched for


class ShardWriter:
    """A shard under way: a hidden file until it is closed."""

    def __init__(self, folder: Path, before: list[Shard], encoding: str) -> None:
        self.shard = Shard(f"shard-{len(before):06d}.tar")
        self._folder, self._ending = folder, ENDINGS[encoding]
        self._first = sum(len(shard.offsets) for shard in before)
        self._side = folder / f".{self.shard.name}.partial"
        self._file: IO[bytes] = self._side.open("wb")
        self._sha256 = sha256()

    def fits(self, stored: EncodedImage) -> bool:
        """Return whether there is room; an empty shard takes any image."""
        count = len(self.shard.offsets)
        return count == 0 or (count < MAX_IMAGES and self.shard.num_bytes + len(stored.data) <= MAX_SHARD_BYTES)

    def add(self, stored: EncodedImage, label: int | Vector | None, next_position: int) -> None:
        """Add the image to the shard; `next_position` is what follows it in the input."""
        stem = f"{self._first + len(self.shard.offsets):09d}"
        self.shard.offsets.append(self._member(stem + self._ending, stored.data))
        self.shard.lengths.append(len(stored.data))
        self.shard.digests.append(stored.digest.hex())
        for kind in stored.seen:
            self.shard.seen[kind] = self.shard.seen.get(kind, 0) + 1
        if isinstance(label, tuple):
            self._member(f"{stem}.json", json.dumps({"label": label}).encode())
        elif label is not None:
            self._member(f"{stem}.cls", str(label).encode())
        if label is not None:
            self.shard.labels.append(label)
        self.shard.next = next_position

    def skip(self, skipped: Skipped, next_position: int) -> None:
        self.shard.skipped.append(skipped)
        self.shard.next = next_position

    def close(self) -> Shard:
        """Put the shard under its name, and after it the record from which a killed run resumes."""
        self._write(bytes(-self.shard.num_bytes % tarfile.RECORDSIZE or tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.shard.sha256 = self._sha256.hexdigest()
        self._side.replace(self._folder / self.shard.name)
        write_atomically(self._folder / f".{Path(self.shard.name).stem}.json", json.dumps(asdict(self.shard)).encode())
        return self.shard

    def drop(self) -> None:
        """Remove the shard as if it never was."""
        self._file.close()
        self._side.unlink(missing_ok=True)

    def _member(self, name: str, data: bytes) -> int:
        """The offset of the data in the file."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.shard.num_bytes
        self._write(data + bytes(-len(data) % BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.shard.num_bytes += len(data)


def finished_shards(folder: Path) -> list[Shard]:
    """Return the shards that a stopped run left whole, from the first on."""
    shards: list[Shard] = []
    while True:
        record = folder / f".shard-{len(shards):06d}.json"
        try:
            shard = Shard(**json.loads(record.read_bytes()))
            if (folder / shard.name).stat().st_size != shard.num_bytes:
                return shards
        except (OSError, ValueError, TypeError):
            return shards
        shard.skipped = [Skipped(*pair) for pair in shard.skipped]
        shards.append(shard)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes from preparing into the folder meanwhile. Raises UserError where one does."""
    held = Lock(folder / LOCK, f"another process prepares into {folder}", "wait for it or give another DEST")
    held.acquire()
    try:
        yield
    finally:
        held.release()


def check_dest(dest: Path) -> None:
    """Make DEST, and check that it is an empty folder, or one of ours. Raises UserError."""
    if dest.exists() and not dest.is_dir():
        raise UserError(f"{dest} is a file: give a folder as DEST")
    is_begun = dest.is_dir() and (dest / JOB).exists()
    if (
        dest.is_dir()
        and not is_begun
        and any(not path.name.startswith((LOCK, f".{LOCK}", f".{JOB}.")) for path in dest.iterdir())
    ):
        raise UserError(f"{dest} isn't empty and no data set was begun in it: give an empty or new folder as DEST")
    dest.mkdir(parents=True, exist_ok=True)


def resume_state(dest: Path, job: dict[str, Any]) -> tuple[int, Tones, tuple[str, ...]] | None:
    """Return channels, tones and what is watched for of the set that the same job began in DEST; None in an empty one.

    Raises UserError after another job. One of before there were tones goes on with those that it had.
    """
    try:
        before = {"background": "auto", "range": "auto", "resolved_tones": {}, "watch": []}
        old = before | json.loads((dest / JOB).read_bytes())
        there = {key: old[key] for key in job}
        channels = int(old["resolved_channels"])
        tones, watch = Tones.from_plain(old["resolved_tones"]), tuple(map(str, old["watch"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{dest / JOB} is damaged: delete {dest} and prepare again") from None
    for key, value in job.items():
        if there[key] != value:
            what = "other files or labels in SRC" if key == "files" else f"{key} {there[key]}, not {value}"
            raise UserError(f"{dest} was begun with {what}: give another DEST, or delete it and prepare again")
    return channels, tones, watch


def begin(dest: Path, job: dict[str, Any], channels: int, tones: Tones, watch: tuple[str, ...]) -> None:
    """Mark DEST as the job's."""
    resolved = {"resolved_channels": channels, "resolved_tones": tones.to_plain(), "watch": watch}
    write_atomically(dest / JOB, json.dumps(job | resolved, indent=1).encode())


def finish(dest: Path, shards: list[Shard], index: dict[str, Any]) -> dict[str, Any]:
    """Write members.safetensors, then index.json with `index` and what the shards say: the set is whole."""
    digests = bytes.fromhex("".join(digest for shard in shards for digest in shard.digests))
    counts = [len(shard.offsets) for shard in shards]
    members = {
        "shard": np.repeat(np.arange(len(shards)), counts),
        "offset": np.concatenate([shard.offsets for shard in shards]),
        "length": np.concatenate([shard.lengths for shard in shards]),
    }
    if index["labels"] is not None:
        members["label"] = np.concatenate([shard.labels for shard in shards])
    tensors = {name: values.astype(np.int64) for name, values in members.items()}
    if "vector_dim" in index:
        tensors["vector"] = np.concatenate([shard.labels for shard in shards]).astype(np.float32)
    write_atomically(dest / MEMBERS, save(tensors))
    whole = {"format": FORMAT, "num_images": sum(counts), "content_hash": sha256(digests).hexdigest()[:16]} | index
    whole["shards"] = [
        {"name": shard.name, "num_images": count, "sha256": shard.sha256}
        for shard, count in zip(shards, counts, strict=True)
    ]
    write_atomically(dest / INDEX, json.dumps(whole, indent=1).encode())
    return whole


def clear(dest: Path) -> None:
    """Remove what only a run under way needs."""
    for pattern in (".shard-*", f".{INDEX}.*", f".{MEMBERS}.*", f".{JOB}.*"):
        for path in dest.glob(pattern):
            path.unlink(missing_ok=True)
