"""Sums and gathers over all processes, inside a step; they must all take part."""

import torch
import torch.distributed as dist
from torch import Tensor


def several_processes() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of all processes' tensors, who must all ask."""
    if several_processes():
        x = x.clone()
        dist.all_reduce(x)
    return x


def place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if several_processes() else (0, 1)


@torch.no_grad()
def all_values(x: Tensor) -> Tensor:
    """All processes' tensors, who must all ask, in their order: [...] -> [processes, ...]."""
    if not several_processes():
        return x[None]
    values = x.new_empty(dist.get_world_size(), *x.shape)
    dist.all_gather(list(values), x.contiguous())
    return values
