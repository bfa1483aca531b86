"""Files of JSON lines, which a run's log is."""

import json
from pathlib import Path
from typing import Any

from fastgan.utils.files import write_atomically


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append the row to the file as a line of JSON."""
    with path.open("a+b") as file:
        end = file.tell()
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"\n", b""):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines, without a last one that was cut off; none where there is no file."""
    rows = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def cut_rows(path: Path, images_seen: int) -> None:
    """Cut the file's rows after `images_seen`: those are of a session that was killed before it saved them."""
    rows = read_rows(path)
    kept = [row for row in rows if row["images_seen"] <= images_seen]
    if len(kept) < len(rows):
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
