"""Moving averages of G: those of half-lives, from the first of which images are sampled, and power functions."""

import copy

import torch
from torch import nn


class Ema:
    """Copies of G whose weights follow G's; their buffers (BatchNorm's statistics) are G's own of the moment."""

    def __init__(self, G: nn.Module, count: int = 1) -> None:
        self.nets = [copy.deepcopy(G).eval().requires_grad_(False) for _ in range(count)]

    @property
    def net(self) -> nn.Module:
        """The first average."""
        return self.nets[0]

    @torch.no_grad()
    def update(self, G: nn.Module, betas: tuple[float, ...]) -> None:
        """weights = beta * weights + (1 - beta) * G's, in each average with a beta of its own."""
        for net, beta in zip(self.nets, betas, strict=True):
            torch._foreach_lerp_(list(net.parameters()), list(G.parameters()), 1 - beta)
            for mine, others in zip(net.buffers(), G.buffers(), strict=True):
                mine.copy_(others)
