"""The processes of a run, through Accelerate: which one this is, where it computes, how gradients are shared."""

import ctypes
import os
import platform
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator
from torch import nn

T = TypeVar("T")


class Processes:
    """One process of a run of `count`, number `rank`, computing on `device`."""

    def __init__(self, threads: int | None = None) -> None:
        _set_threads(threads)
        keep_freed_memory()
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.is_main: bool = self._accelerator.is_main_process

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, whose backward pass now averages gradients over all processes."""
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process: the same answer on all of them, who must all ask."""
        if self.count == 1:
            return flag
        return bool(self._accelerator.reduce(torch.tensor(float(flag), device=self.device), reduction="sum") > 0)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over all processes, who must all ask, with the same names."""
        if self.count == 1 or not values:
            return values
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        return dict(zip(values, self._accelerator.reduce(mine, reduction="mean").tolist(), strict=True))

    def main_first(self, make: Callable[[], T]) -> T:
        """What `make` returns; the main process makes it before the others do."""
        if self.is_main:
            made = make()
        self.wait()
        return made if self.is_main else make()

    def say(self, text: str) -> None:
        """The main process prints the line."""
        if self.is_main:
            print(text, flush=True)

    def wait(self) -> None:
        """All processes have come here."""
        self._accelerator.wait_for_everyone()

    def end(self) -> None:
        """The process group is closed; nothing may be sent after."""
        self._accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _set_threads(threads: int | None) -> None:
    """This process computes with so many CPU threads; with None, with its share of the machine's cores.

    Accelerate's and torch's launchers set OMP_NUM_THREADS to 1 where the user set nothing, which would leave all cores
    but one idle; where no launcher is, or the variable is above 1, it stands.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    if threads is None and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        usable = (
            len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
        )
        cores = min(usable, psutil.cpu_count(logical=False) or usable)
        threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if threads is not None:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Large blocks that are freed stay with this process and are used again, where its C library is glibc.

    Otherwise each large tensor is fresh memory from the kernel, which fills it with zeros page by page.
    """
    if platform.libc_ver()[0] == "glibc":
        libc, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None), -1, -3
        libc.mallopt(m_mmap_threshold, 32 * 2**20)  # the largest value there is
        libc.mallopt(m_trim_threshold, 2**30)
