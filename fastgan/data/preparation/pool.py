"""Work over several processes, results in order."""

import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from fastgan.utils.cores import num_cores, require_startable
from fastgan.utils.stop import signals_delayed
from fastgan.utils.workers import begin_worker, script_hidden, worker_context

T = TypeVar("T")
R = TypeVar("R")

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
        with script_hidden(), signals_delayed():  # or a process that was being started finds nobody any more
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
                with script_hidden(), signals_delayed():
                    future = executor.submit(function, [item])
                return future.result()[0]
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
    return ProcessPoolExecutor(workers, mp_context=worker_context("fastgan.data.pixels"), initializer=_begin)


def _begin() -> None:
    """Leave Ctrl-C to the parent and end with it, or by SIGTERM, with which an executor ends what it has left."""
    warnings.simplefilter("ignore")  # an image is good or skipped with a reason
    begin_worker()
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
