"""What is done where memory runs out: the same, of fewer images at a time."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import Tensor, nn

from fastgan.errors import UserError

T = TypeVar("T")


def in_smaller_parts(size: int, work: Callable[[int], T], on_halved: Callable[[int], None] = lambda size: None) -> T:
    """Return `work(size)`; each time memory runs out, try it with half as many images at a time.

    `on_halved` is called with each smaller size before it is tried. Raises torch.OutOfMemoryError where the work of one
    image at a time doesn't fit.
    """
    while True:
        try:
            return work(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        # Only here, past the `except` block, are the tensors of the work free: the error holds on to its frames.
        size = -(-size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        on_halved(size)


class InParts(nn.Module):
    """Give a network, to which no image of a batch matters to another, `size` at a time: ever fewer as memory runs out.

    An input is [B, ...], or None for all parts alike; the first one is a tensor.
    """

    def __init__(self, net: Callable[..., Tensor], size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, *inputs: Tensor | None) -> Tensor:
        def run(size: int) -> Tensor:
            parts = [itertools.repeat(None) if values is None else values.split(size) for values in inputs]
            return torch.cat([self.net(*part) for part in zip(*parts, strict=False)])

        return in_smaller_parts(self.size, run, self._remember)

    def _remember(self, size: int) -> None:
        self.size = size


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this process has held: on the GPU where it computes there, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def require_free(needed: float, device: torch.device | str, what: str, remedy: str, processes: int = 1) -> None:
    """Raise UserError where so many bytes aren't free there: a machine goes down under what it hasn't.

    `processes` of this machine take as many each, which share its memory, but no GPU.
    """
    device = torch.device(device)
    free = free_bytes(device)
    if device.type != "cuda" and processes > 1:
        needed, what = needed * processes, f"{what}, in each of {processes} processes of this machine"
        remedy += ", or start fewer"
    if needed > free:
        size = f"{needed / 1e9:,.1f} GB of memory at least, and {free / 1e9:,.1f} GB are free"
        raise UserError(f"{what}: that takes {size}; {remedy}")


def free_bytes(device: torch.device) -> int:
    """Return the memory that a process may still take there: of the GPU, or of the machine or its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no such group, or "max"
        return free
