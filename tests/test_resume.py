"""Whole runs in processes of their own: killed, stopped, resumed, against one that was never stopped."""

import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import EAGER
from forks import Fork, ForkServer

from fastgan.commands import train
from fastgan.errors import EXIT_STOPPED, EXIT_USER_ERROR
from fastgan.runs import checkpoint
from fastgan.runs.checkpoint import Checkpoints

OPTIONS = (
    *("--preset", "debug", "--images", "15000", "--log-every", "160"),
    *("--checkpoint-every", "320", "--grid-every", "1000"),
    *EAGER,
)
NUM_KILLS = 10
PATIENCE_S = 120


@pytest.fixture(scope="module")
def start(fork_server: ForkServer) -> Callable[..., Fork]:
    """Starts `train`, or what stands in for it, on a run folder."""

    def started(run_dir: Path, *options: str, main: Callable[..., int] = train.main) -> Fork:
        return fork_server.start(main, [*OPTIONS, "--run-dir", str(run_dir), *options])

    return started


def newest(run_dir: Path) -> str:
    paths = Checkpoints(run_dir / "checkpoints").paths()
    return paths[-1].name if paths else ""


def wait_for_checkpoint_after(run_dir: Path, name: str, process: Fork) -> None:
    end = time.monotonic() + PATIENCE_S
    while newest(run_dir) == name and process.poll() is None:
        assert time.monotonic() < end, "the run makes no progress"
        time.sleep(0.01)


def contents(run_dir: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on how often a run was stopped."""
    files = [
        run_dir / "log.jsonl",
        run_dir / "training.gif",
        *run_dir.glob("grids/*"),
        *run_dir.glob("checkpoints/**/*.*"),
    ]
    return {str(file.relative_to(run_dir)): sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, start) -> dict[str, str]:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(run_dir)
    said = process.finish()
    assert process.returncode == 0, said
    found = contents(run_dir)
    assert len(found) == 2 + 16 + 3 * 5
    return found


@pytest.mark.slow
def test_killed_ten_times_ends_as_if_never_stopped(tmp_path, start, undisturbed):
    """Kill -9 at ten random moments: weights, optimizers, average, log rows and grids are those of the other run."""
    run_dir, moments = tmp_path / "run", random.Random(4)
    for number in range(NUM_KILLS):
        before = newest(run_dir)
        process = start(run_dir)
        if number % 3 != 2:  # else at any moment, starting up included
            wait_for_checkpoint_after(run_dir, before, process)
        time.sleep(moments.uniform(0, 0.3))
        assert process.poll() is None, "the run ended before it was killed: it must be longer"
        process.kill()
        process.finish()
        for path in Checkpoints(run_dir / "checkpoints").paths():
            checkpoint.read(path)
    process = start(run_dir)
    said = process.finish()
    assert process.returncode == 0, said
    assert "resuming" in said
    assert contents(run_dir) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signals_save_and_go_on(tmp_path, start, undisturbed, number):
    """SIGTERM and Ctrl-C end with a checkpoint of that very step and exit code 75; the same command then finishes."""
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for_checkpoint_after(run_dir, "", process)
    process.send_signal(number)
    said = process.finish()
    assert process.returncode == EXIT_STOPPED, said
    assert "stopped on request at" in said and "Traceback" not in said
    stopped_at = int(said.split("stopped on request at ")[1].split(" images")[0].replace(",", ""))
    assert int(newest(run_dir)) == stopped_at
    process = start(run_dir)
    assert f"resuming {run_dir} at {stopped_at:,}" in process.finish()
    assert {k: v for k, v in contents(run_dir).items() if "checkpoints" not in k} == {
        k: v for k, v in undisturbed.items() if "checkpoints" not in k
    }
    last = f"checkpoints/{newest(run_dir)}/state.json"
    assert contents(run_dir)[last] == undisturbed[last]


def train_without_room(args: Sequence[str]) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    return train.main(args)


@pytest.mark.slow
def test_full_disk_keeps_the_earlier_checkpoint(tmp_path, start):
    """Where a file can't grow any more the run ends with one line and exit code 2, and resumes once there is room."""
    run_dir = tmp_path / "run"
    process = start(run_dir, "--images", "320")
    assert "done" in process.finish()
    process = start(run_dir, "--images", "2000", main=train_without_room)
    said = process.finish()
    assert process.returncode == EXIT_USER_ERROR, said
    assert "cannot save the checkpoint" in said and "000000000320 is kept" in said and "Traceback" not in said
    assert [path.name for path in Checkpoints(run_dir / "checkpoints").paths()] == ["000000000320"]
    assert not list((run_dir / "checkpoints").glob(".*"))
    process = start(run_dir, "--images", "2000")
    assert "resuming" in process.finish()
    assert process.returncode == 0
