"""Locks of folders, each held by one process at a time, as long as it lives.

The kernel's lock goes with its process, however that ends. Between hosts many file systems don't carry it, or keep that
of a host that is dead: there a record beside it decides, whose holder touches it again and again.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from fastgan.errors import UserError
from fastgan.utils.files import write_atomically

BEAT_S = 5.0  # between two touches of the record
DEAD_S = 30.0  # without one a holder on another host is dead; no clock of another host is believed
PATIENCE_S = 2.0  # for a killed process of this host to be gone


class Lock:
    """The lock `path`, with its record beside it; `taken` says in an error what its holder does, `remedy` what to do.

    A POSIX lock goes with the first handle of its file that the process closes: nothing else may open the file.
    """

    def __init__(self, path: Path, taken: str, remedy: str, say: Callable[[str], None] = print) -> None:
        self.path, self.record = path, path.with_name(f"{path.name}.json")
        self._taken, self._remedy, self._say = taken, remedy, say
        self._file: IO[bytes] | None = None
        self._has_kernels = True  # whether the file system knows locks
        self._mine: dict[str, object] = {}
        self._released, self._taken_by = threading.Event(), ""

    def acquire(self) -> None:
        """Hold the lock until `release`. Raises UserError where another process holds it, OSError without room."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + PATIENCE_S
        while not (is_held := self._lock()) and not self._is_unknown() and time.monotonic() < end:
            time.sleep(0.1)
        if self._is_unknown():
            self._watch()
        elif not is_held:
            raise self._refusal()
        if not is_held:  # the file system keeps a dead host's
            self.path.unlink(missing_ok=True)
            if not self._lock():
                raise self._refusal()
        began = datetime.now(UTC).isoformat(timespec="seconds")
        self._mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": began}
        try:
            write_atomically(self.record, json.dumps(self._mine).encode())
        except OSError:
            self._close()
            raise
        self._released.clear()
        self._taken_by = ""
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def release(self) -> None:
        """Let others have the lock; nothing happens where it isn't held, or another host has taken it for dead."""
        self._released.set()
        if self._file is not None:
            if self._holder() == self._mine:
                with contextlib.suppress(OSError):  # of a disk that can only be read by now, say
                    self.record.unlink(missing_ok=True)
                    self.path.unlink(missing_ok=True)
            self._close()

    def require_held(self) -> None:
        """Raise UserError where another host has taken this holder for dead: it may have slept."""
        if self._taken_by:
            raise UserError(
                f"another process has taken {self.path.parent} over ({self._taken_by}), as this one gave no sign of "
                f"life for {DEAD_S:g} s: it ends, and saves nothing more"
            )

    def _lock(self) -> bool:
        """Whether this process has the kernel's lock, or the file system has none."""
        file = self.path.open("ab")
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # on Windows
            self._has_kernels = False
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                return False
            self._has_kernels = False
        self._file = file
        try:
            is_its_file = os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            is_its_file = False
        if not is_its_file:  # its holder removed it meanwhile
            self._close()
        return is_its_file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _holder(self) -> dict[str, object]:
        """What the record says; empty where there is none, or none that can be read."""
        try:
            found = json.loads(self.record.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _is_unknown(self) -> bool:
        """Whether there is a holder of which the kernel's lock tells nothing: on another host, most likely."""
        host = self._holder().get("host")
        return host is not None and (host != socket.gethostname() or not self._has_kernels)

    def _watch(self) -> None:
        """Wait until the record's holder is dead. Raises UserError where it isn't."""
        first, end = self._touched(), time.monotonic() + DEAD_S
        self._say(f"{self._holder_text()} left a lock in {self.path.parent}: waiting {DEAD_S:g} s for a sign of life")
        while time.monotonic() < end:
            time.sleep(min(0.5, DEAD_S / 4))
            if self._touched() not in (first, None):
                self._close()
                raise self._refusal()

    def _touched(self) -> int | None:
        """When the record was touched, by whichever clock; opened for it, as network file systems look again then."""
        try:
            with self.record.open("rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            if (holder := self._holder()) not in (self._mine, {}):
                self._taken_by = self._holder_text()
                return
            if holder:  # else a network file system is out of reach for a moment
                with contextlib.suppress(OSError):  # a full disk or a lost mount, which training itself reports
                    os.utime(self.record)

    def _holder_text(self) -> str:
        holder = self._holder()
        return ", ".join(f"{name} {holder.get(name, 'unknown')}" for name in ("host", "pid", "since"))

    def _refusal(self) -> UserError:
        return UserError(f"{self._taken} ({self._holder_text()}): {self._remedy}")
