"""Sums and gathers over all processes, inside a step; they must all take part."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of all processes' tensors, who must all ask."""
    if is_distributed():
        x = x.clone()
        dist.all_reduce(x)
    return x


def rank_and_world_size() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """All processes' tensors, who must all ask, in their order: [...] -> [processes, ...]."""
    if not is_distributed():
        return x[None]
    values = x.new_empty(dist.get_world_size(), *x.shape)
    dist.all_gather(list(values), x.contiguous())
    return values
