"""Sums, means and gathers over all processes, who must all ask; a process that is alone has its own back.

Tensors stay where they are: those on a GPU go through NCCL, those on the host through gloo.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


@torch.no_grad()
def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of all processes' tensors, the same on all."""
    if is_distributed():
        x = x.clone()
        dist.all_reduce(x)
    return x


def all_reduce_min(number: int) -> int:
    """Return the smallest of all processes' numbers."""
    return int(all_gather(torch.tensor(int(number))).min())


def all_reduce_mean(values: dict[str, float]) -> dict[str, float]:
    """Return each value's mean over all processes, which have the same names."""
    if not is_distributed() or not values:
        return values
    means = all_reduce_sum(torch.tensor(list(values.values()), dtype=torch.float64)) / dist.get_world_size()
    return dict(zip(values, means.tolist(), strict=True))


def from_main(number: int) -> int:
    """Return the main process's number."""
    return int(all_gather(torch.tensor(number))[0])


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """Return all processes' tensors, in their order: [...] -> [processes, ...]."""
    if not is_distributed():
        return x[None]
    values = x.new_empty(dist.get_world_size(), *x.shape)
    dist.all_gather(list(values), x.contiguous())
    return values


def all_gather_rows(x: Tensor) -> Tensor:
    """Return all processes' tensors [N, ...], in a row by rank; N may differ."""
    sizes = all_gather(torch.tensor(len(x))).tolist()
    padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
    return torch.cat([part[:size] for part, size in zip(all_gather(padded), sizes, strict=True)])
