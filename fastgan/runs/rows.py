"""Files of JSON lines, which a run's log is."""

import json
from collections.abc import Callable, Sequence
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


def put_row(path: Path, row: dict[str, Any], key: Sequence[str]) -> None:
    """Append the row in place of those that have the same values of `key`: what was measured twice is kept once."""
    plain = json.loads(json.dumps(row))
    lines = _whole_lines(path)
    kept = [line for line in lines if not _agree(_parsed(line), plain, key)]
    if len(kept) < len(lines):
        write_atomically(path, b"".join([*kept, json.dumps(row).encode() + b"\n"]))
    else:
        append_row(path, row)


def read_rows(path: Path, say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; none where there is no file.

    A last one that was cut off isn't there. Damaged ones are passed over, and `say` hears of them in a line.
    """
    return _whole(path, [_parsed(line) for line in _whole_lines(path)], say)


def read_figures(path: Path, say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Return the numbers of each row at `images_seen`, as `read_rows` does: what is no number is passed over."""
    found: list[dict[str, Any] | None] = []
    for line in _whole_lines(path):
        numbers = {name: value for name, value in (_parsed(line) or {}).items() if is_number(value)}
        found.append(numbers if isinstance(numbers.get("images_seen"), int) else None)
    return _whole(path, found, say)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cut_rows(path: Path, images_seen: int) -> None:
    """Cut the file's rows after `images_seen`: those are of a session that was killed before it saved them."""
    rows = read_rows(path)
    kept = [row for row in rows if not is_number(row.get("images_seen")) or row["images_seen"] <= images_seen]
    if len(kept) < len(rows):
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The row; None where it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _agree(row: dict[str, Any] | None, other: dict[str, Any], key: Sequence[str]) -> bool:
    return row is not None and all(row.get(name) == other.get(name) for name in key)


def _whole(path: Path, rows: Sequence[dict[str, Any] | None], say: Callable[[str], None]) -> list[dict[str, Any]]:
    damaged = sum(row is None for row in rows)
    if damaged:
        say(f"{path}: {damaged:,} damaged {'row is' if damaged == 1 else 'rows are'} passed over")
    return [row for row in rows if row is not None]
