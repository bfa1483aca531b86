"""One session a run folder: who holds it, and who is known to be gone."""

import errno
import fcntl
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import refusal

from fastgan.commands import train
from fastgan.errors import EXIT_USER_ERROR
from fastgan.monitor.hooks import Hooks
from fastgan.runs.run_folder import RunFolder
from fastgan.training.trainer import Trainer
from fastgan.utils import lock
from fastgan.utils.lock import Lock

DEBUG = ("--preset", "debug", "--images", "64", "--eval-every", "0")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for longer than a test may take."""
    monkeypatch.setattr(lock, "PATIENCE_S", 0.2)
    monkeypatch.setattr(lock, "DEAD_S", 0.6)


def lock_of(folder: Path) -> Lock:
    return Lock(folder / ".lock", "another process has it", "wait")


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[multiprocessing.process.BaseProcess]:
    """Another process holds the folder's lock."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def hold() -> None:
        lock_of(folder).acquire()
        ready.set()
        time.sleep(60)

    process = context.Process(target=hold)
    process.start()
    assert ready.wait(30)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def leave_record(folder: Path, **holder: object) -> Path:
    """A record as a process that is gone without a word leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / ".lock").touch()
    record = folder / ".lock.json"
    record.write_text(json.dumps({"host": "elsewhere", "pid": 12, "since": "2026-01-01T00:00:00+00:00"} | holder))
    return record


@pytest.mark.usefixtures("keep_signal_handlers")
def test_second_session_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While a session trains a run another one ends with a line of its host, pid and start; nothing is touched."""
    run = tmp_path / "run"
    assert train.main([*DEBUG, "--run-dir", str(run)]) == 0
    assert not list(run.glob(".lock*"))
    (run / "checkpoints" / ".000000000096.partial").mkdir()  # as the first writes it
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if not path.name.startswith(".lock")}
    capsys.readouterr()
    with held_elsewhere(run) as holder:
        assert train.main([*DEBUG, "--images", "96", "--run-dir", str(run)]) == EXIT_USER_ERROR
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and f"another process trains the run {run}" in said
        assert f"host {socket.gethostname()}, pid {holder.pid}, since 2" in said
        after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if not path.name.startswith(".lock")}
        assert {path: after.get(path) for path in before if path != run} == {
            p: t for p, t in before.items() if p != run
        }
    assert train.main([*DEBUG, "--images", "96", "--run-dir", str(run)]) == 0


def test_by_another_path(tmp_path: Path) -> None:
    """The same folder by a link, or as another mount shows it, has the same lock."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with held_elsewhere(tmp_path / "run"):
        assert "another process has it" in refusal(lock_of(tmp_path / "link").acquire)


def test_killed_holder(tmp_path: Path) -> None:
    """kill -9 leaves no obstacle, also where its pid is another process's now."""
    with held_elsewhere(tmp_path) as holder:
        holder.kill()
        holder.join()
        assert (tmp_path / ".lock.json").exists()
        leave_record(tmp_path, host=socket.gethostname(), pid=os.getppid())
        one = lock_of(tmp_path)
        one.acquire()
        one.release()
    assert not list(tmp_path.iterdir())


def test_dead_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another host's lock is taken over once it shows no sign of life; how long that takes is said."""
    leave_record(tmp_path)
    one = lock_of(tmp_path)
    one.acquire()
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert "host elsewhere, pid 12" in capsys.readouterr().out
    one.release()


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_living_host(tmp_path: Path, step_s: int) -> None:
    """Another host's lock is respected while it is touched, whatever the clocks say, one that goes backwards too."""
    record = leave_record(tmp_path)
    code = (
        f"import os, time\nfor n in range(100):\n  os.utime({str(record)!r}, (9e8 + n * {step_s},) * 2); time.sleep(.1)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as beating:
        try:
            assert "host elsewhere, pid 12" in refusal(lock_of(tmp_path).acquire)
        finally:
            beating.kill()


def test_dead_host_whose_lock_stays(tmp_path: Path) -> None:
    """A file system that keeps a dead host's lock is no obstacle either."""
    with held_elsewhere(tmp_path):  # as that file system does
        leave_record(tmp_path)
        one = lock_of(tmp_path)
        one.acquire()
        one.release()


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks the record alone decides, of this host's processes, too."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    with held_elsewhere(tmp_path) as holder:
        monkeypatch.setattr(fcntl, "lockf", fail)
        assert "another process has it" in refusal(lock_of(tmp_path).acquire)
        holder.kill()
        holder.join()
        one = lock_of(tmp_path)
        one.acquire()
        one.release()


def test_taken_for_dead(tmp_path: Path) -> None:
    """A holder that was taken for dead neither removes the new one's lock nor keeps it alive."""
    one = lock_of(tmp_path)
    one.acquire()
    record = leave_record(tmp_path)
    one.release()
    assert record.exists() and (tmp_path / ".lock").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, '{"host": 3}'])
def test_damaged_record(tmp_path: Path, content: str) -> None:
    """A record that a full disk or a power cut damaged is no obstacle."""
    leave_record(tmp_path).write_text(content)
    one = lock_of(tmp_path)
    one.acquire()
    one.release()


def test_a_moment_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that its holder can't read, or that is gone, for a moment is touched again afterwards."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    one = lock_of(tmp_path)
    one.acquire()
    mine = one.record.read_bytes()
    for damage in (lambda: one.record.write_bytes(b"{"), one.record.unlink):
        damage()
        time.sleep(0.2)
        one.record.write_bytes(mine)
        os.utime(one.record, (0, 0))
        end = time.monotonic() + 10
        while one.record.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert one.record.stat().st_mtime > 0
        one.require_held()
    one.release()


@pytest.mark.usefixtures("keep_signal_handlers")
def test_a_session_that_slept_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where another host has taken its run over, a session ends with a line that names it, and saves nothing more."""
    run, log = tmp_path / "run", Hooks.log
    monkeypatch.setattr(lock, "BEAT_S", 0.01)

    def sleep(hooks: Hooks, trainer: Trainer) -> None:
        log(hooks, trainer)
        leave_record(run)
        time.sleep(0.2)

    monkeypatch.setattr(Hooks, "log", sleep)
    assert train.main([*DEBUG, "--run-dir", str(run), "--log-every", "16", "--health-every", "0"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "over (host elsewhere, pid 12, since 2026" in said, said
    assert not list((run / "checkpoints").glob("[0-9]*")) and json.loads((run / ".lock.json").read_text())["pid"] == 12


@pytest.mark.usefixtures("keep_signal_handlers")
def test_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder on a file system that can only be read is named with the reason."""

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "run" / ".lock"))

    monkeypatch.setattr(Lock, "_lock", fail)
    assert train.main([*DEBUG, "--run-dir", str(tmp_path / "run")]) == EXIT_USER_ERROR
    assert "cannot write into the run folder" in (said := capsys.readouterr().err) and "Read-only" in said


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is said, and holds no lock afterwards."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(lock, "write_atomically", fail)
        folder = RunFolder(tmp_path / "run")
        config = RunFolder(Path(__file__).with_name("data") / "run-of-0.1").read_config()
        said = refusal(lambda: folder.open(config, b"{}"))
    assert "cannot write into the run folder" in said and "No space left" in said
    folder.open(config, b"{}")
    folder.close()
