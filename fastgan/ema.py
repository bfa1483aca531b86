"""The moving average of G, from which images are sampled."""

import copy

import torch
from torch import nn


class Ema:
    """G_ema: a copy of G whose weights follow G's; its buffers (BatchNorm's statistics) are G's own of the moment."""

    def __init__(self, G: nn.Module) -> None:
        self.net = copy.deepcopy(G).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, G: nn.Module, beta: float) -> None:
        """weights = beta * weights + (1 - beta) * G's."""
        torch._foreach_lerp_(list(self.net.parameters()), list(G.parameters()), 1 - beta)
        for mine, others in zip(self.net.buffers(), G.buffers(), strict=True):
            mine.copy_(others)
