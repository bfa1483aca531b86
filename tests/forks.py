"""Processes that begin with torch and fastgan imported: forked from a server that imports them once a session.

One that Python starts imports them first, which takes a core for several seconds. All compute on the CPU, in one
thread. What tests how a launcher or a shell starts the program doesn't belong here.
"""

import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from torch.distributed import TCPStore

PRELOADED = ("torch._dynamo", "fastgan.commands.train", "fastgan.data.loaders", "fastgan.distributed.processes")
PRELOADED += ("fastgan.evaluation.evaluator", "fastgan.monitor.hooks", "fastgan.planning.room", "deepspeed")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
PATIENCE_S = 600.0


class Fork:
    """A process of the server's; all that it says goes into a file."""

    def __init__(self, server: "ForkServer", pid: int, log: Path) -> None:
        self._server, self.pid, self.log = server, pid, log
        self.returncode: int | None = None

    def poll(self, seconds: float = 0.0) -> int | None:
        """Its exit code, the negative number of a signal that killed it; None where it still runs after so long."""
        if self.returncode is None:
            self.returncode = self._server.ask("join", self.pid, seconds)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def finish(self) -> str:
        """Wait for its end, and return what it has said."""
        assert self.poll(PATIENCE_S) is not None, self.log.read_text()[-9000:]
        return self.log.read_text()


class ForkServer:
    """Starts processes; itself it is started by the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self._pipe: Connection | None = None

    def ask(self, *question: Any) -> Any:
        if self._pipe is None:
            spawn = multiprocessing.get_context("spawn")
            self._pipe, theirs = spawn.Pipe()
            self._process = spawn.Process(target=_serve, args=(theirs,))
            with mock.patch.dict(os.environ, ENVIRONMENT):  # before torch is imported
                self._process.start()
            theirs.close()
        self._pipe.send(question)
        return self._pipe.recv()

    def start(self, target: Callable[..., object], *args: object, **environment: str) -> Fork:
        """Start a process that calls `target(*args)`, and ends with the exit code that this returns, if any."""
        log = self._folder / f"{next(self._numbers)}.log"
        given = os.environ | ENVIRONMENT | environment
        return Fork(self, self.ask("start", target, args, given, Path.cwd(), log), log)

    def launch(self, count: int, target: Callable[..., object], *args: object, **environment: str) -> list[str]:
        """Call `target(*args)` in so many processes of one launch; return what each has said. All must end well.

        The store that they meet at is here, where a launcher would have it.
        """
        store = TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=60), wait_for_workers=False)
        common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RESTART_COUNT": "0"}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} | common for rank in range(count)]
        forks = [self.start(target, *args, **(rank if count > 1 else {}), **environment) for rank in ranks]
        texts = [fork.finish() for fork in forks]
        for fork, text in zip(forks, texts, strict=True):
            assert fork.returncode == 0, text[-9000:]
        return texts

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._process.join()


def _serve(pipe: Connection) -> None:
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    fork, children = multiprocessing.get_context("fork"), {}
    with contextlib.suppress(EOFError):
        while True:
            kind, *given = pipe.recv()
            if kind == "start":
                child = fork.Process(target=_run, args=given)
                child.start()
                children[child.pid] = child
                pipe.send(child.pid)
            else:
                pid, seconds = given
                children[pid].join(seconds)
                pipe.send(children[pid].exitcode)
    for child in children.values():
        child.kill()
    os._exit(0)  # what was imported needn't be cleared away


def _run(
    target: Callable[..., object], args: tuple[object, ...], environment: dict[str, str], folder: Path, log: Path
) -> None:
    os.environ.clear()
    os.environ |= environment
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    for number in (1, 2):
        os.dup2(file, number)
    sys.exit(target(*args))
