"""Files that are whole or not there."""

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_synced(path: Path, data: bytes | Iterator[bytes | memoryview]) -> None:
    """Write `data`, or its pieces one after the other, so that `path` holds it also after a power cut.

    Raises OSError.
    """
    with path.open("wb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`, which holds that, or what it held before: never a part. Makes its folder. Raises OSError.

    What killed processes left of it half-written is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*"):
        old.unlink(missing_ok=True)
    while True:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            side = Path(file.name)
        try:
            side.chmod(0o644)
            write_synced(side, data)
            with contextlib.suppress(FileNotFoundError):  # another process took it for a killed one's: once more
                side.replace(path)
                return
        except BaseException:
            side.unlink(missing_ok=True)
            raise
