"""Moving averages of G: those of half-lives, from the first of which images are sampled, and power functions."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.training.schedules import Value


class Ema:
    """Copies of G whose weights follow G's; their buffers (BatchNorm's statistics) are G's own of the moment."""

    def __init__(self, G: nn.Module, count: int = 1) -> None:
        self.nets = [copy.deepcopy(G).eval().requires_grad_(False) for _ in range(count)]

    @property
    def net(self) -> nn.Module:
        """The first average."""
        return self.nets[0]

    @torch.no_grad()
    def update(self, G: nn.Module, betas: Sequence[Value]) -> None:
        """Compute weights = beta * weights + (1 - beta) * G's, in each average with a beta of its own."""
        for net, beta in zip(self.nets, betas, strict=True):
            weights: list[Tensor] = list(net.parameters())
            others: list[Tensor] = list(G.parameters())
            if isinstance(beta, Tensor):  # a weight of lerp must be a number that the host knows
                steps = torch._foreach_sub(others, weights)
                torch._foreach_mul_(steps, (1 - beta).to(steps[0].dtype))
                torch._foreach_add_(weights, steps)
            else:
                torch._foreach_lerp_(weights, others, 1 - beta)
            if mine := list(net.buffers()):
                torch._foreach_copy_(mine, list(G.buffers()))
