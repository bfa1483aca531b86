"""Commands that are killed at each event in which they make, rename or remove a file, and begun again."""

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import ForkServer
from PIL import Image

from fastgan import cli
from fastgan.data.preparation import shard_writer
from fastgan.runs.rows import read_rows
from fastgan.utils.files import write_atomically

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def dies_at(command: Sequence[str], root: Path, kill_at: int | None) -> int:
    """Run the command, killed right before the event of this number in `root`; else print how many it made."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in EVENTS or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if not os.fsdecode(args[0]).startswith(str(root)) or (event == "open" and not args[2] & WRITES):
            return
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    shard_writer.MAX_IMAGES = 2
    sys.addaudithook(hook)
    code = cli.main(command)
    print(f"\n{seen}")
    return code


def run(server: ForkServer, command: Sequence[str], root: Path, kill_at: int | None = None) -> int:
    """How many events in `root` a process made that ran the command; it is killed right before the one of a number."""
    process = server.start(dies_at, command, root, kill_at)
    assert process.poll(60) == (0 if kill_at is None else -signal.SIGKILL), process.log.read_text()
    return int(process.log.read_text().split()[-1]) if kill_at is None else kill_at


def contents(root: Path) -> dict[str, bytes]:
    """All files, hidden ones too; the rows of an evaluation without their session, which has the time."""
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for path in root.rglob("evaluation.jsonl"):
        rows = [{name: value for name, value in row.items() if name != "session"} for row in read_rows(path)]
        found[str(path.relative_to(root))] = repr(rows).encode()
    return found


def killed_everywhere(
    server: ForkServer, command: Sequence[str], root: Path, least: int, template: Path | None = None
) -> None:
    """After a kill at any event the same command ends with the files of one that nobody killed, and no others.

    It makes `least` events or more; the root begins as the template, or empty.
    """

    def begin() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root) if template is not None else root.mkdir()

    begin()
    count = run(server, command, root)
    wanted = contents(root)
    assert count >= least
    for number in range(count):
        begin()
        run(server, command, root, kill_at=number)
        run(server, command, root)
        assert contents(root) == wanted, f"after a kill at event {number}"


@pytest.mark.slow
def test_sampling(debug_run: Path, tmp_path: Path, fork_server: ForkServer) -> None:
    """Samples and their npz: what was made is kept, nothing half-written stays."""
    root = tmp_path / "root"
    out = ["--out", str(root / "out"), "--npz", str(root / "all.npz")]
    killed_everywhere(fork_server, ["sample", str(debug_run), "--seeds", "0-3", *out], root, least=11)


@pytest.mark.slow
def test_evaluation(debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer) -> None:
    """An evaluation and the real images' statistics: one row, and nothing half-written in the cache."""
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "root" / "cache"))
    template = tmp_path / "template"
    shutil.copytree(debug_run, template / "run")
    (template / "run" / "evaluation.jsonl").unlink(missing_ok=True)  # other tests' rows
    command = ["evaluate", str(tmp_path / "root" / "run"), "--images", "20"]
    killed_everywhere(fork_server, command, tmp_path / "root", least=5, template=template)
    assert len(read_rows(tmp_path / "root" / "run" / "evaluation.jsonl")) == 1


@pytest.mark.slow
def test_preparation(tmp_path: Path, fork_server: ForkServer) -> None:
    """A prepared set of several shards."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    root = tmp_path / "root"
    command = ["data", "prepare", str(tmp_path / "in"), str(root / "out"), "--size", "8", "--workers", "1"]
    killed_everywhere(fork_server, command, root, least=20)


def test_half_written_files_go(tmp_path: Path) -> None:
    """A file that is written anew takes with it what killed processes left of it; where another process takes its own
    for such, it is written once more."""
    for name in (".a.json.x1y2", ".b.json.x1y2", "a.json.bak"):
        (tmp_path / name).write_bytes(b"half")
    write_atomically(tmp_path / "a.json", b"whole")
    assert contents(tmp_path) == {"a.json": b"whole", ".b.json.x1y2": b"half", "a.json.bak": b"half"}
    chmod, seen = Path.chmod, list[Path]()

    def chmod_while_another_begins(self: Path, mode: int) -> None:
        chmod(self, mode)
        if not seen:
            seen.append(self)
            write_atomically(tmp_path / "a.json", b"another's")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "chmod", chmod_while_another_begins)
        write_atomically(tmp_path / "a.json", b"mine")
    assert seen and contents(tmp_path)["a.json"] == b"mine" and len(contents(tmp_path)) == 3
