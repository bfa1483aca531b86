"""Processes of a run that die, hang or lose each other, and what the others say; the store is a real one."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed import HashStore, TCPStore

from fastgan.distributed.heartbeat import EVENT_S, EXIT_LOST, PREPARING_S, Watchdog, collective_timeout, is_lost
from fastgan.utils import exit_status

LIMIT_S = 2.0
BOUND_S = LIMIT_S + 4  # until the other process has ended, on a busy machine

TRAINING = """
import os, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from fastgan.distributed.heartbeat import Watchdog
from fastgan.errors import EXIT_LOST

rank, port, fate, victim = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
store = dist.TCPStore("127.0.0.1", port, 2, False, timedelta(seconds=20), wait_for_workers=False)
dog = Watchdog(store, rank, 2, 2.0, preparing_s=2.0).start()
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
try:
    for step in range(100):
        dog.set_phase("reading a batch", 100 * step)
        if rank == victim and step == 3:
            print("fate", flush=True)
            if fate == "sleeps":
                time.sleep(60)
            if fate == "fails":
                raise ValueError("a broken disk")
            time.sleep(60)  # until the test kills or stops it
        dog.set_phase("D's phase", 100 * step)
        dist.all_reduce(torch.ones(4))
        dog.report_saved(100 * step)
except Exception as error:
    text = dog.diagnose(error)
    if text is None:
        dog.report_exit(str(error))
        os._exit(1)
    print(f"fastgan: error: {text}", file=sys.stderr, flush=True)
    os._exit(EXIT_LOST)
"""


@pytest.fixture
def store():
    """What a launcher's agent holds."""
    return TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=20), wait_for_workers=False)


@pytest.fixture
def start(store):
    """Starts two processes that exchange something at each step; the victim's fate comes at its fourth."""
    processes: list[subprocess.Popen] = []

    def started(fate: str, victim: int = 1) -> list[subprocess.Popen]:
        for rank in range(2):
            command = [sys.executable, "-c", TRAINING, str(rank), str(store.port), fate, str(victim)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
            processes.append(subprocess.Popen(command, env=environment, **pipes))
        assert processes[victim].stdout.readline() == "fate\n"
        return processes

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def last_line(process: subprocess.Popen) -> tuple[str, float]:
    """The one line about it, and how long that took; it ended with its own exit code."""
    began = time.monotonic()
    said = process.communicate(timeout=60)[1]
    lines = [line for line in said.splitlines() if line.startswith("fastgan: ")]
    assert len(lines) == 1, said
    assert process.returncode == EXIT_LOST
    return lines[0], time.monotonic() - began


@pytest.mark.slow
def test_sleeping_process_is_named_with_its_phase(start):
    """Where one process sleeps, both end within the bound and name it, its phase and the checkpoint to go on from."""
    first, second = start("sleeps")
    line, spent = last_line(first)
    assert spent < BOUND_S
    for process_line in (line, last_line(second)[0]):
        assert "rank 1 on" in process_line and "is stuck in reading a batch at 300 images" in process_line
        assert process_line.endswith("start the same command again: it resumes from the checkpoint of 200 images")


def test_killed_process_is_named_with_its_last_place(start):
    """After kill -9 the other one ends within a few beats, and says where the killed one was last."""
    first, second = start("is killed")
    time.sleep(1)  # its last beats say where it is
    second.kill()
    line, spent = last_line(first)
    assert spent < BOUND_S
    assert "rank 1 on" in line and "has not been heard of" in line
    assert "(last: reading a batch at 300 images); rank 0 on" in line and "waits in D's phase at 300 images" in line


@pytest.mark.slow
def test_killed_rank_0_is_named_by_the_others(start):
    """Rank 0, which alone reads what all say, is missed by those who read what it makes of that."""
    first, second = start("is killed", victim=0)
    time.sleep(1)
    first.kill()
    line, spent = last_line(second)
    assert spent < BOUND_S
    assert "rank 0 on" in line and "(last: reading a batch at 300 images); rank 1 on" in line


@pytest.mark.slow
def test_frozen_process_is_noticed(start):
    """A process that stands still without closing its connections, as behind a cut cable, is noticed too."""
    first, second = start("is stopped")
    second.send_signal(signal.SIGSTOP)
    line, spent = last_line(first)
    assert spent < BOUND_S
    assert "rank 1 on" in line and "has not been heard of" in line


def test_reason_of_a_process_that_failed_is_handed_on(start):
    """Where a process ends with an error of its own, the others' line says which."""
    first, second = start("fails")
    line, spent = last_line(first)
    assert spent < BOUND_S
    assert "rank 1 on" in line and "ended: a broken disk" in line
    second.communicate(timeout=30)
    assert second.returncode == 1


def test_store_out_of_reach_is_named(monkeypatch, capsys):
    """Without the main host's store a process ends as well, and says what it can't reach."""
    monkeypatch.setenv("MASTER_ADDR", "main-host")
    monkeypatch.setenv("MASTER_PORT", "29500")
    command = textwrap.dedent(
        """
        import time
        from torch.distributed import TCPStore
        store = TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False)
        print(store.port, flush=True)
        time.sleep(60)
        """
    )
    host = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    client = TCPStore("127.0.0.1", int(host.stdout.readline()), 2, False, timedelta(20), wait_for_workers=False)
    codes: list[int] = []
    dog = Watchdog(client, 1, 2, 1.0, preparing_s=1.0, end=codes.append).start()
    dog.set_phase("G's phase", 500)
    host.send_signal(signal.SIGSTOP)  # answers nothing, closes nothing
    end = time.monotonic() + 10
    while not codes and time.monotonic() < end:
        time.sleep(0.05)
    host.kill()
    host.communicate()
    dog.close()
    said = capsys.readouterr().err
    assert codes[0] == EXIT_LOST
    assert "the main host's store (main-host:29500) is out of reach" in said and "G's phase at 500 images" in said


def test_busy_process_is_waited_for(store):
    """A process may be in a phase for as long as the phase's own limit says: nobody gives up on it before."""
    codes: list[int] = []
    dogs = [Watchdog(store, rank, 2, 0.6, preparing_s=0.6, end=codes.append).start() for rank in range(2)]
    dogs[0].set_phase("an evaluation", 100, limit_s=30.0)
    dogs[1].set_phase("an evaluation", 100, limit_s=30.0)
    dogs[1].set_phase("D's phase", 100)
    time.sleep(2)
    assert codes == []
    dogs[0].set_phase("D's phase", 100)
    time.sleep(0.2)
    for dog in dogs:
        dog.set_phase("G's phase", 200)
        dog.close()
    assert codes == []


def test_exchange_that_hangs_for_all_blames_nobody(store, capsys):
    """Where all processes wait at the same place, the line says so."""
    codes: list[int] = []
    dogs = [Watchdog(store, rank, 2, 0.8, preparing_s=0.8, end=codes.append).start() for rank in range(2)]
    for dog in dogs:
        dog.set_phase("D's phase", 100)
    end = time.monotonic() + 10
    while not codes and time.monotonic() < end:
        time.sleep(0.05)
    for dog in dogs:
        dog.close()
    assert "all 2 ranks wait in D's phase at 100 images" in capsys.readouterr().err


class CountingStore:
    """A store in this process that counts what it is asked, and is its own clone."""

    def __init__(self) -> None:
        self._store, self.num_calls = HashStore(), 0

    def clone(self) -> "CountingStore":
        return self

    def __getattr__(self, name: str) -> Callable[..., object]:
        self.num_calls += 1
        return getattr(self._store, name)


def test_hundreds_of_ranks_make_few_store_calls():
    """Where all wait, a beat of n processes takes 2 n + 1 calls, and each of them learns who is behind or has ended."""
    store, count = CountingStore(), 300
    dogs = [Watchdog(store, rank, count, 1e-6, preparing_s=1e-6) for rank in range(count)]
    for dog in dogs:
        dog.set_phase(
            "reading a batch" if dog.rank in (200, 250) else "D's phase", 100 if dog.rank in (200, 250) else 200
        )
    time.sleep(0.01)
    for number in (1, 2, 3):  # in the first, rank 0 finds out who has come
        before = store.num_calls
        for dog in reversed(dogs):
            dog._exchange(number)
    assert store.num_calls - before == 2 * count + 1
    for dog in (dogs[0], dogs[7], dogs[200]):
        text = dog._stuck(1.0)
        assert text is not None and text.startswith("rank 200 on")
        assert "(and 1 more) is stuck in reading a batch at 100 images" in text
    assert len(store.get("watchdog/digest")) < 1000  # whatever the number of processes
    dogs[123]._ended = "rank 123 on a host ended: a broken disk"
    for number in (4, 5):
        for dog in reversed(dogs):
            dog._exchange(number)
    assert {dog._gone(60.0) for dog in dogs} == {"rank 123 on a host ended: a broken disk"}


def test_alone_there_is_nothing_to_watch():
    """A single process has no threads and no limits."""
    dog = Watchdog(None, 0, 1, 0.1).start()
    dog.set_phase("D's phase", 0)
    dog.report_exit("it ends")
    dog.close()
    assert not any(thread.is_alive() for thread in dog._threads)


def test_place_costs_nothing(store, monkeypatch):
    """To say where a process is asks the store nothing: a step may say it several times."""
    dog, asked = Watchdog(store, 0, 2), []
    for name in ("set", "get", "add", "check", "wait", "clone", "compare_set"):
        monkeypatch.setattr(TCPStore, name, lambda *_, name=name: asked.append(name))
    for step in range(10):
        dog.set_phase("D's phase", step)
    assert asked == []


def test_only_failures_of_the_exchange_are_explained():
    """Errors of other kinds go on as they are."""
    assert Watchdog(None, 0, 1).diagnose(ValueError("no")) is None
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:1")
    assert "Connection closed by peer" in Watchdog(None, 0, 1).diagnose(closed)


NCCL_AT = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, "


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistNetworkError("failed to recv, got 0 bytes"), True),
        (dist.DistStoreError("wait timeout after 300000ms, keys: /0"), True),
        (
            dist.DistBackendError(f"{NCCL_AT}remote process exited or there was a network error, NCCL version 2.29"),
            True,
        ),
        (
            dist.DistBackendError(
                f"{NCCL_AT}unhandled system error (run with NCCL_DEBUG=INFO for details)\nncclSystemError: System call "
                "(e.g. socket, malloc) or external library call failed or device error.\nLast error:\n"
                "socketProgress: Connection closed by remote peer 10.0.0.2<40000>"
            ),
            True,
        ),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:1"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Read error [10.0.0.2]:1: Connection reset by peer"), True),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 60000ms for recv operation"), True),
        (RuntimeError("NCCL Error 1: unhandled cuda error (run with NCCL_DEBUG=INFO for details)"), False),
        (
            dist.DistBackendError(f"{NCCL_AT}unhandled cuda error, NCCL version 2.29\nCuda failure 'out of memory'"),
            False,
        ),
        (dist.DistBackendError(f"{NCCL_AT}invalid usage\nDuplicate GPU detected : rank 0 and rank 1"), False),
        (
            dist.DistBackendError(
                f"{NCCL_AT}unhandled system error\nncclSystemError: System call failed\nLast error:\n"
                "Error while creating shared memory segment /dev/shm/nccl-1 (size 9637888)"
            ),
            False,
        ),
        (
            RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:454] op.preamble.length <= op.nbytes. 8 vs 4"),
            False,
        ),
        (RuntimeError("ProcessGroupGloo::allreduce: invalid tensor type"), False),
        (RuntimeError("shape mismatch"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_only_a_partner_or_way_that_is_gone_counts_as_lost(error, lost):
    """What NCCL, gloo and torch say of memory, drivers or wrong tensors ends a run as any error does."""
    assert is_lost(error) == lost


def test_groups_wait_longer_than_any_phase_may_take():
    """So the watchdog's line comes before a collective's own timeout, in an evaluation, too."""
    for limit_s in (1.0, 300.0, 10_000.0):
        assert collective_timeout(limit_s).total_seconds() > max(limit_s, PREPARING_S, EVENT_S)


def test_status_file_holds_checkpoints_and_exit_codes(tmp_path, monkeypatch):
    """Who started the process can read what launchers hide."""
    monkeypatch.setenv(exit_status.STATUS, str(tmp_path / "status"))
    Watchdog(None, 0, 1).report_saved(1200)
    exit_status.report("exit 69")
    assert (tmp_path / "status").read_text() == "checkpoint 1200\nexit 69\n"
