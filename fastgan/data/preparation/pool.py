"""Work over several processes, results in order."""

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from fastgan.utils.cores import num_cores, require_startable
from fastgan.utils.stop import SIGNALS

T = TypeVar("T")
R = TypeVar("R")

# A forked worker is there at once and never touches what is unsafe after a fork (torch, locks); any method works.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
BATCHES_AHEAD = 3  # a worker's batches that wait or are under way: enough to keep it busy, few in memory


class Pool:
    """Processes that end with this one, however it ends."""

    def __init__(self, workers: int | None = None) -> None:
        require_startable("workers", workers)
        self.workers = workers or num_cores()
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def map(self, function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], crashed: R) -> Generator[list[R]]:
        """Yield `function` of each batch, in order; `crashed` stands for an item on which a process dies.

        An iterator that is left early drops what is under way.
        """
        ahead: deque[_Job[T, R]] = deque()
        try:
            for batch in batches:
                ahead.append(self._submit(function, batch))
                if len(ahead) >= BATCHES_AHEAD * self.workers:
                    yield self._result(function, ahead.popleft(), crashed)
            while ahead:
                yield self._result(function, ahead.popleft(), crashed)
        finally:
            for job in ahead:
                if job.future is not None:
                    job.future.cancel()

    def _submit(self, function: Callable[[list[T]], list[R]], batch: list[T]) -> "_Job[T, R]":
        if self._executor is None:
            self._executor = _executor(self.workers)
        try:
            return _Job(batch, self._executor, self._executor.submit(function, batch))
        except BrokenProcessPool:
            return _Job(batch, self._executor, None)

    def _result(self, function: Callable[[list[T]], list[R]], job: "_Job[T, R]", crashed: R) -> list[R]:
        try:
            if job.future is not None:
                return job.future.result()
        except BrokenProcessPool:
            pass  # the batches under way are lost with it: each is done again, an item a process
        if job.executor is self._executor:
            self._close()
        return [self._alone(function, item, crashed) for item in job.batch]

    def _alone(self, function: Callable[[list[T]], list[R]], item: T, crashed: R) -> R:
        with _executor(1) as executor:
            try:
                return executor.submit(function, [item]).result()[0]
            except BrokenProcessPool:
                return crashed

    def _close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor = None


@dataclass(frozen=True)
class _Job(Generic[T, R]):
    batch: list[T]
    executor: ProcessPoolExecutor
    future: Future[list[R]] | None  # None where the pool broke before it could take the batch


def _executor(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context(START_METHOD),
        initializer=functools.partial(_start, os.getpid()),
    )


def _start(parent: int) -> None:
    """The worker leaves Ctrl-C to its parent and ends when that is gone, also where it was killed."""
    warnings.simplefilter("ignore")  # an image is good or skipped with a reason
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
