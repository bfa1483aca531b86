"""Several processes against one, as `accelerate launch` starts them."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import _signal_handlers_kept, refusal, without_gpu
from forks import ForkServer

from fastgan.commands import train
from fastgan.distributed import launcher, processes, zero
from fastgan.distributed.heartbeat import EVENT_S
from fastgan.runs.checkpoint import Checkpoints
from fastgan.runs.rows import read_rows
from fastgan.utils.lock import Lock

TRAIN = Path(__file__).parents[1] / "fastgan" / "train.py"
MOST_PROCESSES = 3
OPTIONS = ("--preset", "debug", "--images", "320", "--log-every", "32")


def launch(
    run_dir: Path, num_processes: int, *options: str, precision: str = "no", backend: str = "no"
) -> subprocess.CompletedProcess:
    several = ("--multi_gpu",) if num_processes > 1 else ()  # without it, Accelerate starts one on a CPU
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", *several),
        *("--num_processes", str(num_processes), "--num_machines", "1", "--main_process_port", "0"),
        *("--mixed_precision", precision, "--dynamo_backend", backend),
        *(str(TRAIN), *OPTIONS, "--run-dir", str(run_dir), *options),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if torch.cuda.device_count() < MOST_PROCESSES:  # NCCL wants a GPU for each
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("one") / "run"
    with _signal_handlers_kept(), nullcontext() if torch.cuda.device_count() >= MOST_PROCESSES else without_gpu():
        assert train.main([*OPTIONS, "--run-dir", str(run_dir)]) == 0
    return run_dir


def assert_same_run(run_dir: Path, one: Path) -> None:
    """Rows and final weights are equal, but for float32's rounding."""
    rows, wanted = read_rows(run_dir / "log.jsonl"), read_rows(one / "log.jsonl")
    assert len(rows) == len(wanted) == 10
    for row, other in zip(rows, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    found, right = (Checkpoints(folder / "checkpoints").latest() for folder in (run_dir, one))
    for net in ("G", "D", "G_ema"):
        for name, value in right.tensors[net].items():
            if value.is_floating_point():
                torch.testing.assert_close(found.tensors[net][name], value, rtol=1e-3, atol=2e-4)


def test_processes_learn_what_one_learns(tmp_path, one):
    """Two processes that Accelerate's launcher starts have one's losses; BatchNorm and dropout included."""
    run_dir = tmp_path / "run"
    answer = launch(run_dir, 2)
    assert answer.returncode == 0, answer.stderr
    assert_same_run(run_dir, one)
    assert answer.stdout.count("done: 320 images") == 1


@pytest.mark.slow
def test_uneven_shares_learn_what_one_learns(tmp_path, one, fork_server: ForkServer):
    """Three processes, whose shares of 32 images differ, have one's losses, too."""
    said = fork_server.launch(3, train.main, [*OPTIONS, "--run-dir", str(tmp_path / "run")])
    assert_same_run(tmp_path / "run", one)
    assert ["done: 320 images" in text for text in said] == [True, False, False]


@pytest.mark.slow
def test_one_launch_a_run(tmp_path):
    """A launch into a run that another process trains ends on all its processes, and leaves nothing."""
    run_dir = tmp_path / "run"
    lock = Lock(run_dir / ".lock", "somebody", "wait")
    lock.acquire()
    answer = launch(run_dir, 2)
    lock.release()
    assert answer.returncode != 0
    assert (
        f"another process trains the run {run_dir} (host " in answer.stderr and f"pid {os.getpid()}," in answer.stderr
    )
    assert not list(run_dir.iterdir())


@pytest.mark.slow
def test_accelerates_own_precision_and_compiling_are_left_out(tmp_path, one):
    """Where Accelerate's configuration asks for them, two processes learn what one learns, and say who decides."""
    run_dir = tmp_path / "run"
    answer = launch(run_dir, 2, precision="bf16", backend="inductor")
    assert answer.returncode == 0, answer.stderr
    assert_same_run(run_dir, one)
    assert answer.stdout.count("mixed_precision is bf16: it isn't used, fastgan's own --precision decides") == 1
    assert answer.stdout.count("dynamo_backend is inductor: it isn't used, fastgan's own --compile decides") == 1


@pytest.mark.slow
def test_whole_run_under_divided_weights(tmp_path, one, fork_server: ForkServer):
    """ZeRO 3, where no process holds whole weights: rows and weights are those of one, with histograms, too."""
    run_dir = tmp_path / "run"
    fork_server.launch(2, train.main, [*OPTIONS, "--run-dir", str(run_dir), "--engine", "zero3", "--histograms"])
    assert_same_run(run_dir, one)


@pytest.mark.slow
def test_mistake_on_several_processes_ends_them(tmp_path):
    """A wrong setting ends every process with its one line, and doesn't hang."""
    answer = launch(tmp_path / "run", 2, "--batch-size", "1001")
    assert answer.returncode != 0
    assert "batch_size is 1001" in answer.stderr


@pytest.mark.parametrize(
    ("environment", "wanted", "threads"),
    [
        ({}, None, None),  # torch's own choice stands
        ({}, 3, 3),
        ({"OMP_NUM_THREADS": "1"}, None, None),  # the user's choice stands
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, None, 4),  # a launcher's doesn't
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, None, 8),
        ({"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "2"}, None, None),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "20"}, None, 1),
    ],
)
def test_threads_are_the_share_of_the_cores(monkeypatch, environment, wanted, threads):
    """Processes that a launcher limited to one thread each get their share of eight cores; other choices stand."""
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "num_cores", lambda: 16)
    monkeypatch.setattr(processes.psutil, "cpu_count", lambda logical: 8)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    processes._set_threads(wanted)
    assert chosen == ([] if threads is None else [threads])


@pytest.mark.slow
def test_resumed_processes_log_what_undisturbed_ones_do(tmp_path, fork_server: ForkServer):
    """Resumed between two rows, two processes write the very rows that they wrote before."""
    options = [*OPTIONS, "--log-every", "96", "--checkpoint-every", "64", "--keep-checkpoints", "9"]
    options += ["--run-dir", str(tmp_path / "run")]
    fork_server.launch(2, train.main, options)
    rows = read_rows(tmp_path / "run" / "log.jsonl")
    for path in Checkpoints(tmp_path / "run" / "checkpoints").paths()[2:]:  # the second is of 128 images
        shutil.rmtree(path)
    assert "at 128 of 320 images" in fork_server.launch(2, train.main, options)[0]
    assert read_rows(tmp_path / "run" / "log.jsonl") == rows


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, ("ddp", False)),
        ({"ACCELERATE_USE_DEEPSPEED": "false"}, ("ddp", False)),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, ("zero2", False)),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, ("ddp", False)),
        (
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
            },
            ("zero3", True),
        ),
    ],
)
def test_accelerates_configuration_names_the_engine(monkeypatch, environment, asked):
    """What a DEEPSPEED configuration asks for is taken over, and hidden from Accelerate, which knows one network."""
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    wishes = launcher.read_wishes()
    assert (wishes.engine, wishes.offload) == asked and wishes.unused == []
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ


class Stepped:
    """What DeepSpeed's engine is after a step whose gradients had this norm."""

    def __init__(self, norm: torch.Tensor | float | None) -> None:
        self._norm = norm

    def step(self) -> None:
        pass

    def get_global_grad_norm(self) -> torch.Tensor | float | None:
        return self._norm


@pytest.mark.parametrize("norm", [torch.tensor(3.0), torch.tensor(3.0, device="meta"), float("inf"), 0.0, None])
def test_gradient_norm_of_zero_lies_where_the_weights_do(monkeypatch, norm):
    """Of states on the host, too; one that is there already isn't looked at, for which the host would wait.

    A device without memory stands for a GPU: whoever looks at its numbers fails.
    """
    monkeypatch.setattr(zero, "_zero_engine", lambda *_: Stepped(norm))
    net = torch.nn.Linear(2, 2, device="meta")
    player = zero.ZeroEngine(net, net, torch.optim.Adam(net.parameters()), stage=2, offload=True)
    found = player.step(lr=1e-3, beta2=0.99)
    assert found.device.type == "meta" and found.shape == ()


def say_timeouts() -> None:
    """What each process of the next test does."""
    here = processes.Processes(threads=1, limit_s=300.0)
    for group in (dist.group.WORLD, here._cpu_group):
        options = group._get_backend(torch.device("cpu")).options
        print(f"timeout {options._timeout.total_seconds()}")
    here.close()


@pytest.mark.slow
def test_every_process_group_outlasts_the_watchdog(fork_server: ForkServer):
    """Votes, too, are waited for longer than any phase may take: gloo's own half hour would end an evaluation."""
    said = "".join(fork_server.launch(2, say_timeouts)).splitlines()
    found = [float(line.split()[1]) for line in said if line.startswith("timeout")]
    assert len(found) == 4 and min(found) > EVENT_S


def test_more_processes_than_gpus_are_refused(monkeypatch):
    """In one line, before NCCL's own complaint."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    text = refusal(processes.Processes)
    assert text.startswith("num_processes is 2 on this host, which has 1 GPU: give accelerate launch --num_processes 1")
