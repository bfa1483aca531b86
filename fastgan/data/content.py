"""A hash of what files hold: neither their names nor their times decide it.

A set of up to 4 GiB is read whole; of each file of a larger one the head, the middle and the end are. Hashes are kept
in the cache folder by what changes with every write (inode, size, times: nobody can set the time of the last change).
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from fastgan.data.named import cache_dir
from fastgan.data.tones import Tones
from fastgan.utils.files import write_atomically

WHOLE_BYTES = 4 * 2**30
PART_BYTES = 16 * 2**10
SETTLED_NS = 2 * 10**9  # a file may be written again within one tick of its file system's clock
BATCH = 256  # files that a thread takes at once
UNREADABLE = "unreadable"
PARTS, WHOLE, PLAIN = 0, 1, 2  # what of a file is hashed: parts, or all, and its size; its bytes alone


def hash_files(folder: Path, paths: Sequence[Path], num_threads: int = 1) -> str:
    """Return the hash of the files' contents in their order; `folder` is whose hashes are kept together."""
    stats = [_stat(path) for path in paths]
    hashes = _hashes(folder, paths, stats, num_threads, WHOLE if _is_small(stats) else PARTS)
    return sha256("\n".join(hashes).encode()).hexdigest()


def sha256_each(folder: Path, paths: Sequence[Path], num_threads: int = 1) -> list[str] | None:
    """Return the SHA-256 of each file; None where they are too large to be read whole."""
    stats = [_stat(path) for path in paths]
    return _hashes(folder, paths, stats, num_threads, PLAIN) if _is_small(stats) else None


Stat = os.stat_result | None  # None where there is no file


def _is_small(stats: list[Stat]) -> bool:
    return sum(stat.st_size for stat in stats if stat is not None) <= WHOLE_BYTES


def _hashes(folder: Path, paths: Sequence[Path], stats: list[Stat], num_threads: int, kind: int) -> list[str]:
    """The hash of each file, read where it isn't kept."""
    began = time.time_ns()
    kept = cache_dir() / "hashes" / f"{sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.json"
    known = _read(kept)
    keys = ["" if stat is None else _key(stat, kind) for stat in stats]
    missing = [number for number, key in enumerate(keys) if key not in known]
    batches = [missing[first : first + BATCH] for first in range(0, len(missing), BATCH)]
    with ThreadPoolExecutor(num_threads) as pool:
        hashed = pool.map(lambda batch: [_hash(paths[number], kind) for number in batch], batches)
        found = dict(zip(missing, itertools.chain.from_iterable(hashed), strict=True))
    hashes = [known[key] if number not in found else found[number] for number, key in enumerate(keys)]
    lasting = {
        key: digest
        for key, digest, stat in zip(keys, hashes, stats, strict=True)
        if stat is not None and digest != UNREADABLE and stat.st_ctime_ns < began - SETTLED_NS
    }
    if lasting.keys() != known.keys():
        with contextlib.suppress(OSError):  # without a cache the next start is slower, no more
            write_atomically(kept, json.dumps(lasting).encode())
    return hashes


def hash_set(folder: Path, paths: Sequence[Path], shape: Sequence[object], tones: Tones, num_threads: int = 1) -> str:
    """Return the hash of what the files hold and of what becomes of it, images of (size, channels) = `shape`."""
    digest = sha256(repr(tuple(shape)).encode())
    if tones != Tones():  # as earlier versions had them
        digest.update(repr(tones).encode())
    digest.update(hash_files(folder, paths, num_threads).encode())
    return digest.hexdigest()[:16]


def _stat(path: Path) -> Stat:
    try:
        return path.stat()
    except OSError:
        return None


def _key(stat: os.stat_result, kind: int) -> str:
    parts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, kind)
    return "-".join(map(str, parts))


def _hash(path: Path, kind: int) -> str:
    """The hash of the file as its kind says; UNREADABLE where it can't be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = sha256(b"" if kind == PLAIN else f"{size}\n".encode())
            offsets, length = [0], size
            if kind == PARTS and size > 3 * PART_BYTES:
                offsets, length = [0, (size - PART_BYTES) // 2, size - PART_BYTES], PART_BYTES
            for offset in offsets:
                file.seek(offset)
                digest.update(file.read(length))
            return digest.hexdigest()
    except OSError:
        return UNREADABLE


def _read(path: Path) -> dict[str, str]:
    """The kept hashes; none where they can't be read."""
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
