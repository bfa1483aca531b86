"""Files of JSON lines, also after a kill in the middle of one."""

from pathlib import Path

import pytest

from fastgan.runs.rows import append_row, cut_rows, put_row, read_rows


@pytest.mark.parametrize("tail", ["", "{", '{"images_seen": 3, "x": "' + "y" * 10_000])
def test_a_row_that_was_cut_off(tmp_path: Path, tail: str) -> None:
    """What a kill left of a row isn't read, and the next row takes its place."""
    path = tmp_path / "rows.jsonl"
    for number in (1, 2):
        append_row(path, {"images_seen": number})
    with path.open("a") as file:
        file.write(tail)
    assert [row["images_seen"] for row in read_rows(path)] == [1, 2]
    append_row(path, {"images_seen": 3})
    assert path.read_text() == "".join(f'{{"images_seen": {number}}}\n' for number in (1, 2, 3))


def test_a_row_in_place_of_another(tmp_path: Path) -> None:
    """What agrees with a row in the key takes its place at the end; damaged rows and all others stay."""
    path = tmp_path / "rows.jsonl"
    for number in (1, 2):
        put_row(path, {"at": number, "which": (0.1, None), "found": number}, ("at", "which"))
    with path.open("a") as file:
        file.write("damaged\n{cut o")
    put_row(path, {"at": 1, "which": (0.1, None), "found": 3}, ("at", "which"))
    put_row(path, {"at": 1, "which": (0.2, None), "found": 4}, ("at", "which"))
    said: list[str] = []
    assert [row["found"] for row in read_rows(path, said.append)] == [2, 3, 4]
    assert said == [f"{path}: 1 damaged row is passed over"] and "damaged\n" in path.read_text()


def test_cut(tmp_path: Path) -> None:
    """Rows after a number of images go; a file that has none, or isn't there, is left as it is."""
    path = tmp_path / "rows.jsonl"
    cut_rows(path, 3)
    assert not path.exists()
    for number in (0, 64, 128):
        append_row(path, {"images_seen": number})
    before = path.stat()
    cut_rows(path, 128)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    cut_rows(path, 64)
    assert [row["images_seen"] for row in read_rows(path)] == [0, 64]
