"""Writing while training goes on: tensors are copied to the host, and a thread of its own writes the copies."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Files = dict[str, dict[str, Tensor]]  # tensors by file, then by name


class AsyncWriter:
    """Writes what training hands over, one thing after the other, in the order in which it came.

    Once a write has failed no later one is begun: what follows on it must not be on disk without it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer", initializer=_lower_priority)
        self._copies: dict[str, Files] = {}  # by kind
        self._writes: dict[str, Future[None]] = {}  # the last one of each kind
        self._seconds: dict[str, float] = {}  # of writes that have ended, by kind, until somebody asks
        self.failure: Exception | None = None

    def save(self, kind: str, tensors: Files, write: Callable[[Files], object]) -> None:
        """Call `write`, in the thread, with copies of the tensors as they are now: they may change from here on.

        Waits where the write before of the same kind still needs its copies. Raises as `raise_if_failed`.
        """
        if kind in self._writes:
            self._writes[kind].result()
        self.raise_if_failed()
        self._copies[kind] = copies = _copy(tensors, self._copies.get(kind, {}))
        self._writes[kind] = self._pool.submit(self._write, kind, copies, write)

    def _write(self, kind: str, copies: Files, write: Callable[[Files], object]) -> None:
        if self.failure is not None:
            return
        began = time.monotonic()
        try:
            write(copies)
        except Exception as error:  # for the thread that trains
            self.failure = error
        else:
            self._seconds[kind] = time.monotonic() - began

    def raise_if_failed(self) -> None:
        """Raise what a write raised, each time; wait for nothing."""
        if self.failure is not None:
            raise self.failure

    def finished(self) -> dict[str, float]:
        """Return how many seconds the last write took of each kind of which one has ended since this was asked last."""
        return {kind: self._seconds.pop(kind) for kind in list(self._seconds)}

    def close(self) -> None:
        """Wait until all that was handed over is on disk, or `failure` says why not; nothing more can be saved."""
        self._pool.shutdown()


def _lower_priority() -> None:
    """Where there are too few cores for all, this thread gets about a tenth of what one that trains gets.

    It computes alone: helpers of its own would make OpenMP put those of the training thread to sleep between products.
    """
    torch.set_num_threads(1)  # of the calling thread
    if sys.platform == "linux":  # elsewhere threads have no niceness of their own
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + 10)


@torch.no_grad()
def _copy(tensors: Files, old: Files) -> Files:
    """The tensors' values on the host, laid out as they are; in the memory of `old` where that fits.

    A GPU's come through pinned memory, which is slow to get and fast to fill: another reason to keep it.
    """
    copies: Files = {}
    devices = set()
    for file, group in tensors.items():
        copies[file] = {}
        for name, tensor in group.items():
            copy = old.get(file, {}).get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
            copies[file][name] = copy.copy_(tensor, non_blocking=True)
            if tensor.is_cuda:
                devices.add(tensor.device)
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return copies
