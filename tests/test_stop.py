"""Stops that are asked for, by whom and in whatever way: a checkpoint, the exit code of a stop, nothing left behind."""

import contextlib
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from fastgan import presets
from fastgan.commands import train
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader
from fastgan.errors import EXIT_STOPPED, EXIT_USER_ERROR, Lost, Stopped, UserError
from fastgan.monitor.hooks import Hooks
from fastgan.runs.checkpoint import Checkpoints
from fastgan.utils.stop import StopRequest, signals_delayed, stoppable

TRAIN = Path(__file__).parents[1] / "fastgan" / "train.py"
OPTIONS = ("--preset", "debug", "--images", "1000000", "--checkpoint-every", "1000000", "--grid-every", "1000000")
QUICK = ("--eval-every", "0", "--health-every", "0", "--log-every", "32", "--console", "run")
LAUNCHER = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
]
WAIT_S = 120
pytestmark = pytest.mark.usefixtures("keep_signal_handlers")


def wait_until(condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def loader_and_wanted(workers: int):
    """A torch loader with so many workers, and the pixels of its first ten batches."""
    pixels = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 28, 28).contiguous()
    config = presets.get("debug")
    config = replace(config, data=replace(config.data, batch_size=8), run=replace(config.run, loader="torch"))
    dataset, cpu = ArrayDataset("memory", pixels), torch.device("cpu")
    makers = [replace(config, run=replace(config.run, workers=number)) for number in (workers, 0)]
    ahead, plain = (build_loader(one, dataset, cpu) for one in makers)
    return ahead, [plain.batch(8 * number).pixels for number in range(10)]


def started(workers: int) -> tuple[Any, list[torch.Tensor], list[BaseProcess]]:
    """A loader that has made its first batch, all its batches, and its workers: other tests have processes, too."""
    before = multiprocessing.active_children()
    loader, wanted = loader_and_wanted(workers)
    assert torch.equal(loader.batch(0).pixels, wanted[0])
    found = [child for child in multiprocessing.active_children() if child not in before]
    assert len(found) == workers
    return loader, wanted, found


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_are_deaf_to_what_stops_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """What a terminal or a scheduler sends to all processes ends neither the loader's workers nor what forks them."""
    loader, wanted, workers = started(2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        for pid in [*(worker.pid for worker in workers), forkserver._forkserver._forkserver_pid]:  # type: ignore[attr-defined]
            os.kill(pid, number)
    time.sleep(0.5)
    assert all(torch.equal(loader.batch(8 * number).pixels, wanted[number]) for number in range(1, 10))
    assert all(worker.is_alive() for worker in workers)
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_that_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a worker is killed, for want of memory say, the batches are the same still, and one line says so."""
    loader, wanted, workers = started(2)
    for worker in workers:
        worker.kill()
    assert all(torch.equal(loader.batch(8 * number).pixels, wanted[number]) for number in range(1, 10))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "from here on this process decodes by itself" in said


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (RuntimeError("Connection closed by peer"), EXIT_STOPPED),
        (Lost("rank 1 is gone"), EXIT_STOPPED),
        (OSError("no more"), EXIT_STOPPED),
        (UserError("the disk is full"), EXIT_USER_ERROR),  # the same command would fail again
    ],
)
def test_stop_goes_before_what_breaks_meanwhile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    exit_code: int,
) -> None:
    """What breaks while a stop is carried out is said in its line, and the exit code is a stop's; its checkpoint is
    there where it could be saved."""
    log, show = Hooks.log, Hooks._show

    def breaks(*args: object, **kwargs: object) -> None:
        show(*args, **kwargs)  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr(Hooks, "log", lambda *args: (log(*args), signal.raise_signal(signal.SIGTERM)))
    monkeypatch.setattr(Hooks, "_show", breaks)
    assert train.main([*OPTIONS, *QUICK, "--run-dir", str(tmp_path / "run")]) == exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(error) in said and ("stopped on request" in said) == (exit_code != 2)
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").paths()] == ["000000000032"]


def test_hangup_under_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed terminal stops a run, but not one whose SIGHUP is ignored, as `nohup` has it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    signal.raise_signal(signal.SIGHUP)
    assert stop.asked == StopRequest.NONE
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop = StopRequest()
    signal.raise_signal(signal.SIGHUP)
    assert stop.asked == StopRequest.SIGNAL


def test_delayed_signals() -> None:
    """A stop that is asked for within the block is raised after it."""
    done = False
    with pytest.raises(Stopped), stoppable():
        with signals_delayed():
            signal.raise_signal(signal.SIGTERM)
            done = True
        pytest.fail("the stop came too late")
    assert done


@pytest.mark.slow
def test_closed_terminal(tmp_path: Path) -> None:
    """A terminal that closes stops the run with a checkpoint, though nothing can be printed there any more."""
    run_dir = tmp_path / "run"
    command = [sys.executable, str(TRAIN), *OPTIONS, *QUICK, "--run-dir", str(run_dir)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have been started by nohup
        os.execv(command[0], command)
    log = run_dir / "log.jsonl"
    wait_until(lambda: log.exists() and log.stat().st_size > 0)
    os.close(terminal)
    try:
        assert psutil.Process(pid).wait(WAIT_S) == EXIT_STOPPED
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert len(Checkpoints(run_dir / "checkpoints").paths()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("several", "number", "to_all"),
    [
        (True, signal.SIGINT, True),  # Ctrl-C: the launcher hands it on, too
        (True, signal.SIGTERM, False),  # to the launcher alone
        (False, signal.SIGTERM, True),
        (False, signal.SIGKILL, False),
    ],
)
def test_torch_workers(tmp_path: Path, several: bool, number: signal.Signals, to_all: bool) -> None:
    """With loader processes a stop saves one checkpoint and says so, and no process of the run stays, nor after a
    kill."""
    run_dir = tmp_path / "run"
    command = [*(LAUNCHER if several else [sys.executable]), str(TRAIN), *OPTIONS, *QUICK, "--run-dir", str(run_dir)]
    process = subprocess.Popen(
        [*command, "--loader", "torch", "--workers", "3" if not several else "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    log = run_dir / "log.jsonl"
    wait_until(lambda: log.exists() and log.stat().st_size > 0)
    all_of_them = psutil.Process(process.pid).children(recursive=True)
    assert len(all_of_them) >= (8 if several else 4)
    (os.killpg if to_all else os.kill)(process.pid, number)
    said = process.communicate(timeout=WAIT_S)[0]
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in all_of_them), 20)
    if number != signal.SIGKILL:
        assert "stopped on request at" in said and "exited unexpectedly" not in said
        assert len(Checkpoints(run_dir / "checkpoints").paths()) == 1
        assert several or process.returncode == EXIT_STOPPED
