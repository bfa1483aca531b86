"""What shows of single files while they are read: kept in the run's folder, so that each is told once a run."""

import contextlib
import json
import threading
from collections import Counter
from pathlib import Path
from typing import IO

FILE = "files.jsonl"
BROKEN = "broken"
_thread_lock = threading.Lock()


class Findings:
    """What was found of which file, by any process and session of the run in `folder`.

    Each process knows its own where there is no such folder, none yet, or none that can be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE
        self._known: set[tuple[str, str]] = set()
        self._place = 0  # in the file: what is before it is known
        self._is_torn = False  # its last row has no end

    def add(self, file: str, kind: str, reason: str = "") -> bool:
        """Return whether this is the first time that it is found of the file."""
        finding = (kind, file)
        with _thread_lock:
            if finding in self._known:
                return False
            if self._path is not None:
                with contextlib.suppress(OSError), self._path.open("a+b") as kept:
                    _lock(kept)
                    self._read(kept)
                    if finding in self._known:
                        return False
                    row = {"kind": kind, "file": file} | ({"reason": reason} if reason else {})
                    kept.write(b"\n" * self._is_torn + json.dumps(row).encode() + b"\n")
            self._known.add(finding)
            return True

    def counts(self) -> Counter[str]:
        """Return of how many files each kind was found."""
        with _thread_lock:
            if self._path is not None:
                with contextlib.suppress(OSError), self._path.open("rb") as kept:
                    self._read(kept)
            return Counter(kind for kind, _ in self._known)

    def _read(self, kept: IO[bytes]) -> None:
        """Learn what others wrote; a row that a full disk or a power cut left in parts says nothing."""
        kept.seek(self._place)
        for line in kept:
            self._is_torn = not line.endswith(b"\n")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self._known.add((str(row["kind"]), str(row["file"])))
        self._place = kept.tell()


def _lock(file: IO[bytes]) -> None:
    """Keep other processes out until the file is closed; where a file system has no locks, a line may come twice."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
