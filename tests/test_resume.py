"""Whole runs as processes of their own: killed, stopped, resumed, against one that was never stopped."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import EAGER

from fastgan.errors import EXIT_STOPPED, EXIT_USER_ERROR
from fastgan.runs import checkpoint
from fastgan.runs.checkpoint import Checkpoints

TRAIN = Path(__file__).parents[1] / "fastgan" / "train.py"
OPTIONS = (
    *("--preset", "debug", "--images", "15000", "--log-every", "160"),
    *("--checkpoint-every", "320", "--grid-every", "1000"),
    *EAGER,
)
NUM_KILLS = 10
PATIENCE_S = 120


def start(run_dir: Path, *options: str, **popen) -> subprocess.Popen:
    command = [sys.executable, str(TRAIN), *OPTIONS, "--run-dir", str(run_dir), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny networks: threads only wait for one another
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **popen
    )


def finish(process: subprocess.Popen) -> str:
    return process.communicate(timeout=PATIENCE_S)[0]


def newest(run_dir: Path) -> str:
    paths = Checkpoints(run_dir / "checkpoints").paths()
    return paths[-1].name if paths else ""


def wait_for_checkpoint_after(run_dir: Path, name: str, process: subprocess.Popen) -> None:
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
def undisturbed(tmp_path_factory) -> dict[str, str]:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(run_dir)
    said = finish(process)
    assert process.returncode == 0, said
    found = contents(run_dir)
    assert len(found) == 2 + 16 + 3 * 5
    return found


@pytest.mark.slow
def test_killed_ten_times_ends_as_if_never_stopped(tmp_path, undisturbed):
    """Kill -9 at ten random moments: weights, optimizers, average, log rows and grids are those of the other run."""
    run_dir, moments = tmp_path / "run", random.Random(4)
    for number in range(NUM_KILLS):
        before = newest(run_dir)
        process = start(run_dir)
        if number % 3 == 2:
            time.sleep(moments.uniform(0, 3))  # any moment, starting up included
        else:
            wait_for_checkpoint_after(run_dir, before, process)
            time.sleep(moments.uniform(0, 0.3))
        assert process.poll() is None, "the run ended before it was killed: it must be longer"
        process.kill()
        finish(process)
        for path in Checkpoints(run_dir / "checkpoints").paths():
            checkpoint.read(path)
    process = start(run_dir)
    said = finish(process)
    assert process.returncode == 0, said
    assert "resuming" in said
    assert contents(run_dir) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signals_save_and_go_on(tmp_path, undisturbed, number):
    """SIGTERM and Ctrl-C end with a checkpoint of that very step and exit code 75; the same command then finishes."""
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for_checkpoint_after(run_dir, "", process)
    process.send_signal(number)
    said = finish(process)
    assert process.returncode == EXIT_STOPPED, said
    assert "stopped on request at" in said and "Traceback" not in said
    stopped_at = int(said.split("stopped on request at ")[1].split(" images")[0].replace(",", ""))
    assert int(newest(run_dir)) == stopped_at
    process = start(run_dir)
    assert f"resuming {run_dir} at {stopped_at:,}" in finish(process)
    assert {k: v for k, v in contents(run_dir).items() if "checkpoints" not in k} == {
        k: v for k, v in undisturbed.items() if "checkpoints" not in k
    }
    last = f"checkpoints/{newest(run_dir)}/state.json"
    assert contents(run_dir)[last] == undisturbed[last]


@pytest.mark.slow
def test_full_disk_keeps_the_earlier_checkpoint(tmp_path):
    """Where a file can't grow any more the run ends with one line and exit code 2, and resumes once there is room."""
    run_dir = tmp_path / "run"
    process = start(run_dir, "--images", "320")
    assert "done" in finish(process)

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    process = start(run_dir, "--images", "2000", preexec_fn=no_room)
    said = finish(process)
    assert process.returncode == EXIT_USER_ERROR, said
    assert "cannot save the checkpoint" in said and "000000000320 is kept" in said and "Traceback" not in said
    assert [path.name for path in Checkpoints(run_dir / "checkpoints").paths()] == ["000000000320"]
    assert not list((run_dir / "checkpoints").glob(".*"))
    process = start(run_dir, "--images", "2000")
    assert "resuming" in finish(process)
    assert process.returncode == 0
